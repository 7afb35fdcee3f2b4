"""Neighbours: the regression is EASE where the candidates are all items, and the table is followed by the replay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heliotrope_indexer import neighbours as module
from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.errors import SnapshotFormatError
from heliotrope_indexer.events import EventTable
from heliotrope_indexer.neighbours import Neighbours, fit_neighbours, liked_items
from heliotrope_indexer.parameters import Neighbourhood, Parameters
from heliotrope_indexer.replay import Replay, event_gains, hold_out
from heliotrope_indexer.snapshot import Snapshot, write_snapshot
from tests.indexer.conftest import some_events

ITEMS, RIDGE = 30, 5.0
PARAMETERS = Parameters(half_lives_s=(3600.0,), kappas=(1.0,))


def taken(events: EventTable) -> np.ndarray:
    matrix = np.zeros((len(events.user_ids), ITEMS))
    matrix[events.user, events.row] = 1.0
    return matrix


def test_with_all_items_as_candidates_it_is_ease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", ITEMS)
    events = some_events(users=60, count=4_000)
    matrix = taken(events)
    # Steck (2019), equation 8: B = -P / diag(P), its diagonal 0.
    inverse = np.linalg.inv(matrix.T @ matrix + RIDGE * np.eye(ITEMS))
    ease = -inverse / np.diag(inverse)
    np.fill_diagonal(ease, 0.0)
    occur = (matrix.T @ matrix) > 0
    assert occur.all(), "each pair must occur for the candidates to be all items"
    found = fit_neighbours(events, ITEMS, ridge=RIDGE).matrix().toarray()
    np.testing.assert_allclose(found, np.maximum(ease, 0.0), atol=1e-6)


def test_the_strongest_are_kept_and_a_repeat_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    events = some_events()
    monkeypatch.setattr(module, "KEPT", ITEMS)
    everything = fit_neighbours(events, ITEMS, ridge=RIDGE).matrix().toarray()
    monkeypatch.setattr(module, "KEPT", 4)
    twice = events.select(np.repeat(np.arange(len(events)), 2))
    kept = fit_neighbours(twice, ITEMS, ridge=RIDGE)
    assert kept.rows.shape == (ITEMS, 4)
    for item in range(ITEMS):
        np.testing.assert_allclose(kept.strengths[item], np.sort(everything[item])[::-1][:4], atol=1e-6)
        assert (np.diff(kept.strengths[item]) <= 0).all()


def test_no_events_and_one_user_give_tables_without_nan() -> None:
    events = some_events()
    none = fit_neighbours(events.select(np.zeros(len(events), bool)), ITEMS, ridge=RIDGE)
    assert (none.rows == -1).all()
    assert not none.strengths.any()
    one = fit_neighbours(events.select(events.user == 0), ITEMS, ridge=RIDGE)
    assert np.isfinite(one.strengths).all()


def test_liked_items_are_the_newest_distinct_ones() -> None:
    user, row = np.array([0, 0, 0, 1, 0]), np.array([3, 4, 3, 5, 6])
    time = np.array([1.0, 2.0, 3.0, 4.0, 2.5])
    found = liked_items(user, row, time, 3, 8, 2).toarray()
    assert np.flatnonzero(found[0]).tolist() == [3, 6]
    assert np.flatnonzero(found[1]).tolist() == [5]
    assert not found[2].any()
    assert found.max() == 1.0


def test_replay_adds_what_liked_items_say() -> None:
    remaining, targets = hold_out(some_events(), 4.0)
    table = fit_neighbours(remaining.select(event_gains(remaining, PARAMETERS) > 0), ITEMS, ridge=RIDGE)
    parameters = PARAMETERS.model_copy(update={"neighbours": Neighbourhood(items=3, weight=2.0)})
    replay = Replay(remaining, targets, ITEMS)
    zero = np.zeros((ITEMS, 2), np.float32)
    rest = (zero, np.zeros(ITEMS, np.float32), np.zeros(2, np.float32), np.zeros((1, 2, 2), np.float32))
    assert not replay.scores(*rest, PARAMETERS, table).any()
    scores = replay.scores(*rest, parameters, table)
    strengths = table.matrix().toarray()
    for place in range(0, replay.users, 5):
        own = (remaining.user == targets.user[place]) & (event_gains(remaining, parameters) > 0)
        newest: list[int] = []
        for row in remaining.row[own][::-1].tolist():
            if row not in newest:
                newest.append(row)
        if len(set(remaining.time[own])) == own.sum():
            np.testing.assert_allclose(scores[place], 2.0 * strengths[newest[:3]].sum(axis=0), rtol=1e-5, atol=1e-7)


def test_renumbered_follows_items_into_another_catalogue() -> None:
    table = Neighbours(np.array([[1, 2], [0, -1], [1, 0]], np.int32), np.array([[3, 2], [1, 0], [5, 4]], np.float32))
    # The other catalogue holds: a new item, item 2, item 0; item 1 is gone.
    moved = table.renumbered(np.array([-1, 2, 0]), np.array([2, -1, 1]))
    assert moved.rows.tolist() == [[-1, -1], [-1, 2], [-1, 1]]
    assert moved.strengths.tolist() == [[0, 0], [0, 4], [0, 2]]


def test_a_snapshot_brings_neighbours_back_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    parameters = PARAMETERS.model_copy(update={"neighbours": Neighbourhood(items=3, weight=2.0)})
    table = Neighbours(np.array([[1, -1], [0, -1], [-1, -1]], np.int32), np.array([[3, 0], [1, 0], [0, 0]], np.float32))
    given = {
        "items": [CatalogItem(name, name) for name in "abc"],
        "vectors": np.eye(3, 2),
        "parameters": parameters,
    }
    write_snapshot(tmp_path / "one", **given, neighbours=table)  # type: ignore[arg-type]
    found = Snapshot(tmp_path / "one").neighbours
    assert found is not None
    np.testing.assert_array_equal(found.rows, table.rows)
    np.testing.assert_array_equal(found.strengths, table.strengths)
    with pytest.raises(SnapshotFormatError, match="one of the two is missing"):
        write_snapshot(tmp_path / "two", **given)  # type: ignore[arg-type]
    with pytest.raises(SnapshotFormatError, match="from -1 to 2"):
        write_snapshot(tmp_path / "three", **given, neighbours=replace(table, rows=table.rows + 2))  # type: ignore[arg-type]
