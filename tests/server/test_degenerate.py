"""Degenerate data trains, builds and serves without NaN, and both jobs say what is degenerate."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from heliotrope_indexer.build import BuildRequest, build
from heliotrope_indexer.job_input import JobSources
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_indexer.source import Source
from heliotrope_indexer.training_job import TrainingRequest, train
from heliotrope_indexer.training_settings import TrainingSettings
from heliotrope_server.answerer import Question
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.live_catalogue import LiveCatalogue
from tests.indexer.conftest import WordEncoder
from tests.server import worlds

NOW_S = 1.7e9
ITEMS = [f"i{number},thing {number} of kind {number % 3}" for number in range(8)]
EVENTS = [f"u{number % 4},i{(number * 5) % 8},click,1,{NOW_S - 9_000 + 100 * number}" for number in range(40)]

WORLDS = {
    "ordinary": (ITEMS, EVENTS, []),
    "one user": (ITEMS, [f"u,{line.partition(',')[2]}" for line in EVENTS], ["all 40 events are of one user"]),
    "one item": (
        ["i0,the only thing"],
        [f"u{number % 4},i0,click,1,{NOW_S - 900 + number}" for number in range(20)],
        ["the catalogue has one item"],
    ),
    "one event": (ITEMS, EVENTS[:1], ["all 1 events are of one user", "all 1 events are on one item"]),
    "all negative": (ITEMS, [line.replace("click", "dislike") for line in EVENTS], ["none of 40 events is positive"]),
    "identical texts": ([f"i{number},the same" for number in range(8)], EVENTS, ["all 8 items have the same text"]),
    "constant times": (
        ITEMS,
        [f"{line.rpartition(',')[0]},{NOW_S - 50}" for line in EVENTS],
        ["events have the same time"],
    ),
    "no event": (ITEMS, [], []),
}


@pytest.mark.parametrize("trained", [False, True], ids=["plain", "trained"])
@pytest.mark.parametrize("name", WORLDS)
async def test_degenerate_data_is_named_and_served(name: str, trained: bool, tmp_path: Path) -> None:
    items, events, messages = WORLDS[name]
    if trained and not events:
        pytest.skip("there is nothing to train on; the job says so")
    (tmp_path / "items.csv").write_text("\n".join(["id,title", *items]) + "\n")
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,type,value,timestamp", *events]) + "\n")
    sources = JobSources(Source(tmp_path / "items.csv"), (Source(tmp_path / "events.csv"),), tmp_path / "embeddings")
    request = BuildRequest(
        sources=sources,
        store=SnapshotStore(tmp_path / "store"),
        scratch=tmp_path / "store" / ".building",
        collaborative_dimension=4,
        text_dimension=4,
        threads=1,
    )
    encoder, steps = WordEncoder(), Steps(quiet=True)
    if trained:
        settings = TrainingSettings(dimension=8, epochs=2)
        training = train(TrainingRequest(sources, settings, tmp_path / "weights", threads=1), encoder, steps).manifest
        assert all(any(message in said for said in training.training["degenerate"]) for message in messages)
        request = replace(request, weights=tmp_path / "weights")
    manifest = build(request, encoder, steps).manifest
    said = manifest.quality["degenerate"]
    assert all(any(message in line for line in said) for message in messages)
    assert bool(said) == bool(messages)
    served = LiveCatalogue(request.store.open())
    async with worlds.engine(tmp_path / "data", served, wall_clock=lambda: NOW_S) as engine:
        await engine.record([UserEvent("u1", "e1", EventKind.CLICK, "i0", 1.0, round(NOW_S * 1e6), "")])
        await engine.record([UserEvent("u1", "e2", EventKind.DISLIKE, "i0", 1.0, round(NOW_S * 1e6), "")])
        for user in ("u1", "nobody"):
            answer = (await engine.recommend(Question(user, 10, include_seen=True, time_s=NOW_S))).result
            assert len(answer.item_ids) == len(items)
            assert all(math.isfinite(score) for score in answer.scores)
