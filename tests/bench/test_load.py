"""The whole load benchmark, short, against a real server."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from heliotrope_bench.command import main
from heliotrope_bench.load import parse_cpus
from heliotrope_bench.load_data import Population, mixed
from heliotrope_bench.recall import SnapshotArrays, hits
from tests.server.worlds import publish

OTHERS = ("BatchRecommend", "mix", "RecordEvents")
SHORT = ["--duration-s", "1.5", "--warm-up-s", "0.3", "--rounds", "1", "--users", "40", "--events-per-user", "5"]


def test_every_case_runs_and_the_answers_are_right(tmp_path: Path) -> None:
    publish(tmp_path / "store", items=400, with_index=True)
    out = tmp_path / "load.json"
    core = str(min(os.sched_getaffinity(0)))
    arguments = ["load", "--snapshots", str(tmp_path / "store"), "--server-cpus", core, "--rate", "50"]
    assert main([*arguments, *SHORT, "--intake-events", "3000", "--p99-ms", "5000", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    rows = {row["case"].partition(",")[0]: row for row in report["results"]}
    assert list(rows) == ["empty handler", "Recommend(10)", "Recommend(10) of diversity 0.3", *OTHERS]
    intake = [row["case"] for row in report["results"] if row["case"].startswith("RecordEvents")]
    assert intake == ["RecordEvents, 100 a call: events", "RecordEvents, 1,000 a call: events"]
    for row in rows.values():
        assert {"rate_per_s", "p50_ms", "p99_ms", "p99_9_ms", "errors"} <= set(row)
        assert row["errors"] == 0 and row["rate_per_s"] > 0
        assert row["p50_ms"] <= row["p99_ms"] <= row["p99_9_ms"]
    served = rows["Recommend(10)"]
    assert served["of_ceiling"] == pytest.approx(served["rate_per_s"] / rows["empty handler"]["rate_per_s"])
    assert served["recall@10"] >= 0.95
    assert rows["mix"]["holds_bound"] and report["settings"]["items"] == 400


def test_the_population_is_seeded_and_prefers_some_items() -> None:
    items = [f"i{number}" for number in range(100)]
    first, again = (list(Population(items, 50, 3).history(20)) for _ in range(2))
    assert [event.item_id for event in first] == [event.item_id for event in again]
    counts = np.unique([event.item_id for event in first], return_counts=True)[1]
    assert counts.max() > 5 * np.median(counts)
    assert len({(event.user_id, event.event_id) for event in first}) == 1_000


def test_a_mix_uses_each_record_call_once() -> None:
    population = Population(["a", "b"], 10, 0)
    recommend = population.recommend_calls(10, number=4)
    record = population.record_calls(number=1_000, events_per_call=2, salt="x")
    calls = mixed(recommend, record, 1_000, 0.2, seed=1)
    recorded = [call.request for call in calls if call.method.endswith("RecordEvents")]
    assert len(calls) == 1_000 and len(set(recorded)) == len(recorded) == pytest.approx(200, abs=50)


def test_exact_scores_against_a_loop(tmp_path: Path) -> None:
    version = publish(tmp_path / "store", items=30, dimension=8)
    arrays = SnapshotArrays.read(tmp_path / "store", version)
    generator = np.random.default_rng(0)
    interest, counts = generator.normal(size=(2, 8)), generator.integers(0, 9, size=30).astype(float)
    scores = arrays.scores(interest, counts)
    for row in range(30):
        taste = sum(interest[h] @ arrays.scoring_matrices[h] @ arrays.vectors[row] for h in range(2))
        expected = taste + arrays.bias[row] + 0.3 * np.log1p(counts[row]) - 1.5
        assert scores[row] == pytest.approx(expected, rel=1e-5)


def test_hits_forgive_ties_at_the_cut_and_nothing_else() -> None:
    scores = np.array([5.0, 4.0, 3.0, 3.0, 1.0])
    assert hits(scores, [0, 1, 3], 3) == hits(scores, [2, 1, 0], 3) == 3
    assert hits(scores, [0, 1, 4], 3) == 2
    assert hits(scores, [0, 0, 0], 3) == 1


def test_cores_are_checked() -> None:
    assert parse_cpus("") is None
    with pytest.raises(ValueError, match="not on 9999"):
        parse_cpus("9999")
