"""The whole load benchmark, short, against a real server."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from heliotrope_bench.command import main
from heliotrope_bench.job import run_job
from heliotrope_bench.load import BARE, parse_cpus
from heliotrope_bench.load_data import Population, mixed
from heliotrope_bench.recall import SnapshotArrays, hits
from tests.server.worlds import publish

BATCH = "BatchRecommend(10), 256 a call: users"
EMPTY = ["empty handler", "empty stream", "empty handler, a batch of 256 a call"]
ASKED = ["Recommend(10)", "Recommend(10) of diversity 0.3", "StreamRecommend(10)", BATCH]
SHORT = ["--duration-s", "1.5", "--warm-up-s", "0.3", "--rounds", "1", "--users", "40", "--events-per-user", "5"]


def test_every_case_runs_and_the_answers_are_right(tmp_path: Path) -> None:
    publish(tmp_path / "store", items=400, with_index=True)
    out = tmp_path / "load.json"
    core, cores = str(min(os.sched_getaffinity(0))), os.cpu_count() or 1
    arguments = ["load", "--snapshots", str(tmp_path / "store"), "--server-cpus", core, "--rate", "50"]
    assert main([*arguments, *SHORT, "--intake-events", "3000", "--p99-ms", "5000", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    rows = {row["case"]: row for row in report["results"]}
    mix, intake = "mix, open loop, 50/s due", [f"RecordEvents, {size} a call: events" for size in ("100", "1,000")]
    assert list(rows) == [*EMPTY, *ASKED, BARE, mix, *intake]
    for case, row in rows.items():
        assert row["errors"] == 0 and row["rate_per_s"] > 0
        if case != BARE:
            assert row["p50_ms"] <= row["p99_ms"] <= row["p99_9_ms"] and 0 < row["generator_cpu"] < cores + 0.1
    for case, ceiling in zip(ASKED, [EMPTY[0], EMPTY[0], EMPTY[1], EMPTY[2]], strict=True):
        assert rows[case]["of_ceiling"] == pytest.approx(rows[case]["rate_per_s"] / rows[ceiling]["rate_per_s"])
    assert rows[BATCH]["of_bare"] == pytest.approx(rows[BATCH]["rate_per_s"] / rows[BARE]["rate_per_s"])
    assert rows["Recommend(10)"]["recall@10"] >= 0.95 and rows[BARE]["recall@10"] >= 0.95
    assert rows[mix]["keeps_ms"] == [5000.0] and report["settings"]["items"] == 400


def test_a_mix_takes_every_kind_of_call_and_half_the_highest_rate_is_measured(
    tmp_path: Path, model_folder: Path
) -> None:
    build = ["build", "--catalogue", str(tmp_path / "items.csv"), "--model", str(model_folder)]
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{row},Film {row}\n" for row in range(30)))
    run_job([*build, "--out", str(tmp_path / "store")], show=False)
    out = tmp_path / "load.json"
    shares = ["--record-share", "0.2", "--batch-share", "0.05", "--upsert-share", "0.05", "--model", str(model_folder)]
    arguments = ["load", "--snapshots", str(tmp_path / "store"), "--server-cpus", "", *shares, *SHORT, "--count", "5"]
    assert main([*arguments, "--intake-events", "0", "--p99-ms", "9000", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["results"]
    # A rate that is too much for the machine ends the sweep; it may have errors.
    kept = [row for row in rows if row.get("keeps_ms")]
    assert kept and not any(row["errors"] for row in kept)
    half = rows[-1]
    assert half["case"].startswith("mix, half of the highest rate within 9000 ms") and not half["errors"]
    assert half["offered_per_s"] == pytest.approx(kept[-1]["offered_per_s"] / 2)
    assert half["p99_over_p50"] == pytest.approx(half["p99_ms"] / half["p50_ms"])


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
    calls = mixed(recommend, [(0.2, record)], 1_000, seed=1)
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
