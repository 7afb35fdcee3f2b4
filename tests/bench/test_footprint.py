"""Start and memory benchmarks against real servers, and the synthetic snapshots that they use."""

import json
from pathlib import Path

import numpy as np
import pytest

from heliotrope_bench import synthetic_store as synthetic
from heliotrope_bench.command import main
from heliotrope_bench.synthetic_store import clustered_vectors, synthetic_store
from heliotrope_indexer.snapshot import SnapshotStore


def test_start_is_measured_with_users_in_the_data_folder(tmp_path: Path) -> None:
    out = tmp_path / "start.json"
    arguments = ["--items", "300", "--dimension", "8", "--users", "20", "--rounds", "2", "--work", str(tmp_path)]
    assert main(["start", *arguments, "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["results"]
    assert (row["items"], row["users"], len(row["rounds_s"])) == (300, 20, 2)
    assert row["first_s"] == row["rounds_s"][0] > 0.0
    assert row["again_s"] == row["rounds_s"][1] > 0.0
    assert row["server_mib"] > 10.0


def test_memory_of_items_and_users(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    arguments = ["--items", "300", "--dimension", "8", "--users", "400", "--work", str(tmp_path)]
    assert main(["memory", *arguments, "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["results"]
    # 8 float32 and a bias, 12 bytes to find the id, and the heads of the files.
    assert 48.0 <= row["array_bytes_an_item"] < 51.0
    assert row["over_float32"] == pytest.approx(12 / 8, rel=0.05)
    assert row["text_bytes_an_item"] > 10.0
    assert row["live_bytes_an_item"] > 0.0
    assert 100.0 < row["bytes_a_user"] < 100_000.0
    assert row["bytes_a_user"] <= row["peak_bytes_a_user"] < 200_000.0
    assert 100.0 < row["stored_bytes_a_user"] < 100_000.0
    assert 20.0 < row["log_bytes_an_event"] < 200.0


def test_a_large_synthetic_snapshot_has_an_index_and_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "EXACT_UP_TO", 1_000)
    store = synthetic_store(tmp_path, 4_000, 16, threads=1)
    snapshot = SnapshotStore(store).open()
    assert snapshot.manifest.parameters.search is not None
    assert (len(snapshot.item_ids), snapshot.vectors.shape) == (4_000, (4_000, 16))
    assert synthetic_store(tmp_path, 4_000, 16) == store
    assert SnapshotStore(store).open().version == snapshot.version


def test_synthetic_vectors_gather_around_centres() -> None:
    vectors = clustered_vectors(900, 12)
    np.testing.assert_array_equal(vectors, clustered_vectors(900, 12))
    assert float((vectors**2).sum(axis=1).mean()) == pytest.approx(1.0, abs=0.25)
    nearest = np.sort(-(vectors @ vectors.T), axis=1)[:, 1:6]
    mixed = np.random.default_rng(0).permuted(vectors, axis=1)
    assert -nearest.mean() > 1.1 * -np.sort(-(mixed @ mixed.T), axis=1)[:, 1:6].mean()
