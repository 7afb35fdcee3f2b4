"""The lifecycle bench on a real server, for seconds; its latencies mean nothing here, what it finds does."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heliotrope import Event
from heliotrope_bench.command import main
from heliotrope_bench.exact_answers import ExactAnswers, Served
from heliotrope_bench.newcomers import Newcomers
from heliotrope_server.answerer import Question
from heliotrope_server.event import EventKind, UserEvent
from tests.bench.titles_folder import write_titles
from tests.server import worlds

PHASES = [
    "steady",
    "items stream in",
    "after the items",
    "full rebuild",
    "swap",
    "after the swap",
    "rollback",
    "after the rollback",
]
NOW_S = 1.7e9


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_titles(
        tmp_path / "data", 3_000, lambda number, row: f"thing {row} of kind {number}\tand what it is for"
    )


def test_a_server_is_followed_from_its_first_item_to_the_rollback(
    data: Path, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lifecycle.json"
    sizes = ["--items", "300", "--dimension", "16", "--users", "20", "--stream-s", "1", "--steady-s", "0.6"]
    rates = ["--rate", "40", "--items-per-s", "100", "--server-cpus", ""]
    folders = ["--model", str(model_folder), "--work", str(tmp_path / "work"), "--data", str(data)]
    assert main(["lifecycle", *sizes, *rates, *folders, "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["results"]
    assert [row["phase"] for row in rows] == PHASES
    for row in rows:
        assert row["failed"] == row["incomplete"] == 0, row
        # So few items are searched exactly.
        assert row["recall@10"] in (None, 1.0), row
        assert row["rate_per_s"] > 0.0 and row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
        assert row["buckets"] and sum(bucket["failed"] for bucket in row["buckets"]) == 0
    by_phase = {row["phase"]: row for row in rows}
    assert by_phase["items stream in"]["new_items"] > 50
    # A look at each call's newest item, at least.
    assert by_phase["items stream in"]["looks"] > 5
    assert by_phase["swap"]["call_s"] > 0.0
    assert sum(row["recall@10"] == 1.0 for row in rows) > 4


def test_exact_answers_are_what_the_engine_says_and_wrong_ones_are_caught(tmp_path: Path) -> None:
    """The oracle knows nothing of the engine: events, snapshot files and vectors of texts give the same lists."""
    served = worlds.catalogue(tmp_path)
    snapshot = served.snapshot
    pooled = np.random.default_rng(3).normal(size=(6, snapshot.projection.shape[1])).astype(np.float32)
    newcomers = Newcomers([f"Newcomer {place}" for place in range(6)], pooled, snapshot.manifest.model_version)
    events = [
        Event(f"u{number % 3}", f"i{number * 7 % 40}", "click", time=NOW_S - 3_600.0 * number) for number in range(12)
    ]
    exact = ExactAnswers(tmp_path / "store", newcomers)

    async def lists() -> list[list[str]]:
        async with worlds.engine(tmp_path, served, wall_clock=lambda: NOW_S) as engine:
            await engine.record([recorded(event) for event in events])
            asked = [Question(f"u{user}", 200 - 4) for user in range(3)]
            return [(await engine.recommend(question)).result.item_ids for question in asked]

    for user, listed in enumerate(asyncio.run(lists())):
        answer = Served(f"u{user}", NOW_S, 0, listed[:10], served.version)
        assert (exact.judge(answer, events).right, exact.judge(answer, events).missing) == (10, [])
        wrong = replace(answer, item_ids=[*listed[:9], listed[-1]])
        assert exact.judge(wrong, events).right == 9


def test_a_newcomer_is_missed_only_from_its_acknowledgement_on(tmp_path: Path) -> None:
    served = worlds.catalogue(tmp_path, live_popularity_weight=0.0)
    snapshot = served.snapshot
    event = Event("u", "i3", "click", time=NOW_S)
    query = np.random.default_rng(3).normal(size=(50, snapshot.projection.shape[1])).astype(np.float32)
    exact = ExactAnswers(tmp_path / "store", Newcomers([str(place) for place in range(50)], query, "none"))
    # All that there is, best first, is what a server would say that knows every newcomer.
    everything = [f"i{row}" for row in range(200) if row != 3] + [f"n{place}" for place in range(50)]
    whole = Served("u", NOW_S, 50, everything, served.version)
    assert exact.judge(whole, [event]).right == len(everything)
    without = replace(whole, item_ids=everything[:-1])
    assert exact.judge(without, [event]).missing in ([], ["n49"])
    assert exact.judge(replace(without, acknowledged=49), [event]).missing == []
    nobody_new = replace(whole, item_ids=everything[:199])
    assert exact.judge(nobody_new, [event]).missing
    assert exact.judge(replace(nobody_new, acknowledged=0), [event]).missing == []


def recorded(event: Event) -> UserEvent:
    """As the server takes it."""
    assert isinstance(event.time, float)
    return UserEvent(event.user_id, event.event_id, EventKind.CLICK, event.item_id, 1.0, round(event.time * 1e6))
