"""Users on their way to another model, with small seeded snapshots in place of trained ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heliotrope_bench import migration
from heliotrope_bench.command import main
from heliotrope_bench.dataset import Dataset
from heliotrope_bench.errors import BenchError
from heliotrope_bench.interval import Bootstrap
from heliotrope_bench.migration import FORGOTTEN, MIGRATED, NEXT, REBUILT, measure, next_positives
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.snapshot import CatalogItem, SnapshotStore, write_snapshot
from tests.bench.toy_ratings import toy_dataset

DAY_S = 86_400.0


def timed_toy() -> Dataset:
    """100 different films of each of 12 users, all liked, of half of the catalogue, an event every six hours."""
    random = np.random.default_rng(0)
    item = np.stack([2 * random.permutation(120)[:100] + user % 2 for user in range(12)], axis=1).ravel()
    toy = toy_dataset(users=12, items=240, events=len(item))
    stars = random.integers(4, 6, size=len(item)).astype(float)
    times = 1.5e9 + np.arange(len(item)) * DAY_S / 4
    return replace(toy, user=np.arange(len(item)) % 12, item=item, value=stars, time=times)


def publish(store: Path, vectors: np.ndarray, half_lives_s: tuple[float, ...]) -> Path:
    items, dimension = vectors.shape
    horizons = len(half_lives_s)
    write_snapshot(
        store.parent / f"draft-{store.name}",
        items=[CatalogItem(f"m{row}", f"Film {row}") for row in range(items)],
        vectors=vectors.astype(np.float32),
        bias=np.zeros(items, np.float32),
        prior=np.zeros(dimension, np.float32),
        scoring_matrices=np.repeat(np.eye(dimension, dtype=np.float32)[None], horizons, axis=0),
        parameters=Parameters(half_lives_s=half_lives_s, kappas=(1.0,) * horizons),
    )
    SnapshotStore(store).publish(store.parent / f"draft-{store.name}")
    return store


def test_targets_are_the_next_positives_and_nothing_later_is_history() -> None:
    data = timed_toy()
    holdout = next_positives(data)
    assert data.positive[holdout.targets].all()
    users, counts = np.unique(holdout.users, return_counts=True)
    assert len(users) and set(counts.tolist()) == {NEXT}
    for user in users.tolist():
        first = holdout.targets[holdout.users == user].min()
        history = holdout.train[data.user[holdout.train] == user]
        assert history.max() < first
        seen = set(data.item[history].tolist())
        assert not seen & set(data.item[holdout.targets[holdout.users == user]].tolist())


def test_migrated_users_are_served_what_rebuilt_ones_are_and_forgetting_shows(tmp_path: Path) -> None:
    """The new vectors have hardly anything to do with the old ones, nor have dimension and half-lives."""
    data = timed_toy()
    random = np.random.default_rng(0)
    taste = np.where(np.arange(240) % 2, 1.0, -1.0)[:, None]
    old = np.hstack([taste * 0.3, random.normal(size=(240, 11))])
    new = np.hstack([taste * 0.3, random.normal(size=(240, 19))])
    stores = [
        publish(tmp_path / "old", old, (3_600.0, 300 * DAY_S)),
        publish(tmp_path / "new", new, (900 * DAY_S, 7_200.0)),
    ]
    rows = measure(next_positives(data), *stores, tmp_path, ring_size=8)
    by_state = {row["state"]: row for row in rows if row["users"] == "with folded events"}
    assert by_state[REBUILT]["targets"] == NEXT * by_state[REBUILT]["user_count"] > 0
    assert by_state[REBUILT]["folded_share"] > 0.5
    assert by_state[REBUILT]["ndcg@10_ratio"] == by_state[REBUILT]["overlap@10"] == 1.0
    assert by_state[MIGRATED]["overlap@10"] > 0.6 > 0.4 > by_state[FORGOTTEN]["overlap@10"]
    assert by_state[MIGRATED]["map_error"] > 0.5


def test_a_ring_that_holds_all_leaves_nothing_to_measure(tmp_path: Path) -> None:
    data = timed_toy()
    vectors = np.random.default_rng(0).normal(size=(240, 8))
    stores = [publish(tmp_path / name, vectors, (DAY_S,)) for name in ("old", "new")]
    with pytest.raises(BenchError, match="a ring of 500"):
        measure(next_positives(data), *stores, tmp_path, ring_size=500)


def test_the_command_trains_two_models_and_writes_its_rows(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "load", lambda name, folder: timed_toy())
    out = tmp_path / "migration.json"
    models = ["--model", str(model_folder), "--new-model", str(model_folder), "--work", str(tmp_path / "work")]
    assert main(["migration", "--ring-size", "8", "--epochs", "1", *models, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert {row["state"] for row in report["results"]} == {REBUILT, MIGRATED, FORGOTTEN}
    assert report["results"][0]["map_error"] > 0.0


def test_a_ratio_has_the_interval_of_paired_draws() -> None:
    random = np.random.default_rng(0)
    theirs = random.random((400, 1))
    bootstrap = Bootstrap(np.arange(400))
    ratio, low, high = bootstrap.ratio(0.9 * theirs, theirs)
    np.testing.assert_allclose([ratio, low, high], 0.9)
    ratio, low, high = bootstrap.ratio(random.permutation(theirs), theirs)
    assert ratio[0] == pytest.approx(1.0) and low[0] < 0.97 < 1.03 < high[0]
