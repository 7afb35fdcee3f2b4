"""The swap benchmark end to end, on snapshots that are small enough to be made at once."""

import json
from pathlib import Path

from heliotrope_bench.command import main
from heliotrope_bench.swap import two_versions
from heliotrope_bench.synthetic_store import synthetic_store
from heliotrope_indexer.snapshot import SnapshotStore


def test_a_swap_is_measured_prepared_and_not(tmp_path: Path) -> None:
    out = tmp_path / "swap.json"
    arguments = ["--items", "300", "--dimension", "8", "--live-items", "40", "--users", "5", "--rounds", "2"]
    assert main(["swap", *arguments, "--work", str(tmp_path), "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["results"]
    assert (row["items"], row["live_items"], len(row["rounds"])) == (300, 40, 2)
    assert all(row[name] > 0.0 for name in ("unprepared_ms", "swap_ms", "prepare_s", "p99_ms", "longest_ms"))
    assert min(row["peak_mib"], row["own_mib"]) > 10.0


def test_the_second_version_holds_the_same_items(tmp_path: Path) -> None:
    store = SnapshotStore(synthetic_store(tmp_path, 200, 4))
    first, second = two_versions(store)
    assert first != second and store.current() == first
    assert list(store.open(first).item_ids) == list(store.open(second).item_ids)
    assert two_versions(store) == (first, second)
