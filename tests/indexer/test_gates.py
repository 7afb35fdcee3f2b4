"""Gates: each limit shuts its own gate, and a shut gate publishes nothing and keeps the evidence."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from heliotrope_indexer import command, input_settings
from heliotrope_indexer.build import BuildRequest, build
from heliotrope_indexer.errors import GatesShutError
from heliotrope_indexer.gate_figures import Compared, Figures
from heliotrope_indexer.gates import GateLimits, judge
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.replay import Quality
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_indexer.snapshot_diff import VectorDrift
from tests.indexer.conftest import WordEncoder

Shop = Callable[..., BuildRequest]

DRIFT = VectorDrift(items=90, aligned=False, mean=0.5, p50=0.5, p90=0.5, p99=0.5, largest=0.5)
EVEN = Compared(
    version="v1",
    items=(100, 100),
    items_gone=20,
    events=(1_000, 500),
    held_out=(Quality(50, 0.5, 0.25), Quality(50, 0.4, 0.2)),
    replay=(Quality(50, 0.5, 0.25), Quality(50, 0.4, 0.2)),
    drift=DRIFT,
)
"""Everything exactly at its default limit."""


def test_what_is_at_its_limit_passes() -> None:
    verdict = judge(Figures(0.95, 0.92, EVEN), GateLimits())
    assert verdict.failures == []
    assert all(gate.value == pytest.approx(gate.limit) for gate in verdict.gates.values())


BETTER, WORSE = Quality(50, 0.5, 0.25), {"hr": Quality(50, 0.3, 0.25), "ndcg": Quality(50, 0.5, 0.1)}


def compared(**changes: Any) -> Figures:
    return Figures(0.95, 0.92, replace(EVEN, **changes))


@pytest.mark.parametrize(
    ("gate", "figures"),
    [
        ("recall_at_10", Figures(0.94, 0.92, EVEN)),
        ("recall_at_100", Figures(0.95, 0.91, EVEN)),
        ("item_loss", compared(items_gone=21)),
        ("event_loss", compared(events=(1_000, 499))),
        ("held_out_hr_drop", compared(held_out=(BETTER, WORSE["hr"]))),
        ("held_out_ndcg_drop", compared(held_out=(BETTER, WORSE["ndcg"]))),
        ("replay_hr_drop", compared(replay=(BETTER, WORSE["hr"]))),
        ("replay_ndcg_drop", compared(replay=(BETTER, WORSE["ndcg"]))),
        ("drift", compared(drift=replace(DRIFT, mean=0.51))),
    ],
)
def test_what_is_beyond_its_limit_shuts_that_gate_alone(gate: str, figures: Figures) -> None:
    verdict = judge(figures, GateLimits())
    assert [name for name, each in verdict.gates.items() if not each.passed] == [gate]
    (message,) = verdict.failures
    assert message.startswith(f"{gate} is ") and f"the limit is {verdict.gates[gate].limit}" in message
    assert not verdict.overridden
    assert judge(figures, GateLimits(), override=True).overridden


def test_what_cannot_be_compared_is_left_open_with_the_reason() -> None:
    alone = judge(Figures(1.0, 1.0, None), GateLimits())
    assert (alone.previous, set(alone.gates), alone.failures) == (None, {"recall_at_10", "recall_at_100"}, [])
    few = (Quality(49, 0.5, 0.2), Quality(400, 0.0, 0.0))
    turned = replace(DRIFT, aligned=True, mean=9.0)
    verdict = judge(
        Figures(1.0, 1.0, replace(EVEN, held_out=None, replay=few, events=(0, 0), drift=turned)), GateLimits()
    )
    notes = {name: gate.note for name, gate in verdict.gates.items() if gate.value is None}
    assert notes == {
        "event_loss": "no events before",
        "held_out_hr_drop": "not measured in both",
        "held_out_ndcg_drop": "not measured in both",
        "replay_hr_drop": "49 users, fewer than 50",
        "replay_ndcg_drop": "49 users, fewer than 50",
        "drift": "not on the same weights",
    }
    assert verdict.failures == []


def test_a_shut_gate_publishes_nothing_and_keeps_the_evidence(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    before = build(shop(), encoder, steps)
    path = shop().sources.catalogue.path
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:16]) + "\n")
    with pytest.raises(GatesShutError, match=r"item_loss is 0\.5, the limit is 0\.2 \(30 items to 15\)") as caught:
        build(shop(), encoder, steps)
    store = shop().store
    assert (store.current(), store.versions()) == (before.version, [before.version])
    (figures,) = Path(store.path).glob("failed/*Z.json")
    assert str(figures) in str(caught.value)
    evidence = json.loads(figures.read_text())
    assert evidence["quality"]["gates"]["gates"]["item_loss"]["value"] == 0.5
    assert evidence["data"]["rejects"]["unknown_item"] > 0
    (rejects,) = Path(store.path).glob("failed/*.rejects.jsonl")
    assert len(rejects.read_text().splitlines()) == evidence["data"]["rejects"]["unknown_item"]
    assert not shop().scratch.exists()

    after = build(shop(publish_anyway=True), encoder, steps)
    assert store.current() == after.version != before.version
    verdict = after.manifest.quality["gates"]
    assert (verdict["overridden"], verdict["previous"]) == (True, before.version)
    assert not verdict["gates"]["item_loss"]["passed"]


def test_a_build_on_broken_events_is_held_back(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    limits = GateLimits(min_quality_users=20)
    build(shop(gates=limits), encoder, steps)
    path = shop().sources.events[0].path
    head, *lines = path.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    items = [row[1] for row in rows]
    random.Random(0).shuffle(items)
    path.write_text(
        "\n".join([head, *(",".join([row[0], item, *row[2:]]) for row, item in zip(rows, items, strict=True))])
    )
    with pytest.raises(GatesShutError, match=r"held_out_hr_drop is .*the limit is 0\.2"):
        build(shop(gates=limits), encoder, steps)


def test_the_same_input_again_is_no_loss(shop: Shop, encoder: WordEncoder, steps: Steps) -> None:
    limits = GateLimits(min_quality_users=20, max_quality_drop=0.0, max_item_loss=0.0, max_event_loss=0.0)
    build(shop(gates=limits), encoder, steps)
    path = shop().sources.catalogue.path
    path.write_text(path.read_text() + "\n")
    verdict = build(shop(gates=limits), encoder, steps).manifest.quality["gates"]
    values = {name: gate["value"] for name, gate in verdict["gates"].items()}
    assert values == {
        "recall_at_10": 1.0,
        "recall_at_100": 1.0,
        "item_loss": 0.0,
        "event_loss": 0.0,
        "held_out_hr_drop": 0.0,
        "held_out_ndcg_drop": 0.0,
        "replay_hr_drop": 0.0,
        "replay_ndcg_drop": 0.0,
        "drift": None,
    }


def test_limits_are_options_of_the_command(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(input_settings.TextEncoder, "open", lambda *_arguments, **_options: WordEncoder())
    request, out = shop(), str(tmp_path / "out")
    asked: list[Any] = ["--model", "m", "--out", out, "--quiet", "--threads", "1", "--dimension", "12"]
    asked += ["--catalogue", str(request.sources.catalogue.path), "--events", str(request.sources.events[0].path)]
    assert command.main(asked) == 0
    path = request.sources.catalogue.path
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    assert command.main([*asked, "--gates.max-item-loss", "0.03"]) == 1
    error = capsys.readouterr().err
    assert "nothing is published: item_loss is 0.0333, the limit is 0.03" in error and error.count("\n") == 1
    assert len(SnapshotStore(out).versions()) == 1
    assert command.main([*asked, "--gates.max-item-loss", "2"]) == 2
    assert "--gates.max-item-loss: Input should be less than or equal to 1" in capsys.readouterr().err
    assert command.main([*asked, "--gates.max-item-loss", "0.03", "--publish-anyway"]) == 0
    assert len(SnapshotStore(out).versions()) == 2
    assert "published although item_loss is 0.0333, the limit is 0.03 (30 items to 29)" in capsys.readouterr().err
