"""What a store remembers of its current versions: rollbacks, crashes, and a CURRENT that was moved by hand."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliotrope_indexer.errors import SnapshotCorruptError, SnapshotFormatError, SnapshotNotFoundError
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.snapshot import SnapshotStore, write_snapshot
from heliotrope_indexer.snapshot.activations import MAX_ACTIVATIONS, ActivationRecord, appended, standing
from tests.indexer.conftest import some_items

PLAIN = Parameters(half_lives_s=(1.0,), kappas=(1.0,))


def publish(store: SnapshotStore, folder: Path, seed: int) -> str:
    write_snapshot(folder, items=some_items(3), vectors=np.full((3, 2), seed + 1.0), parameters=PLAIN)
    return store.publish(folder)


@pytest.fixture(params=["folder", "url"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SnapshotStore:
    if request.param == "folder":
        return SnapshotStore(tmp_path / "store")
    fsspec.filesystem("memory").store.clear()
    return SnapshotStore("memory://bucket/history", cache=tmp_path / "cache")


def test_rollbacks_go_back_one_by_one(store: SnapshotStore, tmp_path: Path) -> None:
    first, second, third = (publish(store, tmp_path / f"draft{seed}", seed) for seed in range(3))
    store.activate(first)
    assert store.standing() == [first, second, third, first]
    assert [store.roll_back() for _ in range(3)] == [third, second, first]
    with pytest.raises(SnapshotNotFoundError, match="knows of no version that was current before"):
        store.roll_back()
    assert store.current() == first
    assert [record.how for record in store.history()] == ["publish"] * 3 + ["activate"] + ["roll back"] * 3


def test_a_rollback_starts_from_what_is_served(store: SnapshotStore, tmp_path: Path) -> None:
    first, second, third = (publish(store, tmp_path / f"draft{seed}", seed) for seed in range(3))
    assert (store.previous(), store.previous(third), store.previous(second)) == (second, second, first)
    with pytest.raises(SnapshotNotFoundError):
        store.previous(first)


def test_removed_versions_are_passed_over(store: SnapshotStore, tmp_path: Path) -> None:
    first, second, third = (publish(store, tmp_path / f"draft{seed}", seed) for seed in range(3))
    with pytest.raises(SnapshotFormatError, match="is the current version"):
        store.remove(third)
    size = sum(file.bytes for file in store.manifest(second).files.values())
    assert size < store.remove(second) < size + 10_000
    assert store.versions() == sorted((first, third), reverse=True)
    with pytest.raises(SnapshotNotFoundError):
        store.remove(second)
    assert store.roll_back() == first


def test_an_interrupted_removal_is_finished_by_the_next(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "store")
    first, second, _ = (publish(store, tmp_path / f"draft{seed}", seed) for seed in range(3))
    (tmp_path / "store" / first).rename(tmp_path / "store" / f".removing-{first}")
    assert first not in store.versions()
    store.remove(second)
    assert not list((tmp_path / "store").glob(".removing-*"))


def test_a_crash_between_history_and_current_changes_nothing(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "store")
    first, second = (publish(store, tmp_path / f"draft{seed}", seed) for seed in range(2))
    pointer = (tmp_path / "store" / "CURRENT").read_bytes()
    third = publish(store, tmp_path / "draft2", 2)
    (tmp_path / "store" / "CURRENT").write_bytes(pointer)
    assert store.standing() == [first, second]
    store.activate(third)
    assert store.standing() == [first, second, third]
    store.roll_back()
    (tmp_path / "store" / "CURRENT").write_text(third)
    assert store.standing() == [first, second, third]


def test_a_store_without_a_history_begins_one(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "store")
    first = publish(store, tmp_path / "draft0", 0)
    (tmp_path / "store" / "ACTIVATIONS").unlink()
    second = publish(store, tmp_path / "draft1", 1)
    assert store.standing() == [first, second]
    assert store.roll_back() == first


def test_a_damaged_history_is_named(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "store")
    first, _ = (publish(store, tmp_path / f"draft{seed}", seed) for seed in range(2))
    path = tmp_path / "store" / "ACTIVATIONS"
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(SnapshotCorruptError, match=r"line 3 of .*ACTIVATIONS"):
        store.activate(first)
    path.unlink()
    store.activate(first)


def test_a_damaged_pointer_is_mended_by_the_next_publication(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "store")
    publish(store, tmp_path / "draft0", 0)
    (tmp_path / "store" / "CURRENT").write_bytes(b"\xff")
    with pytest.raises(SnapshotCorruptError):
        store.current()
    second = publish(store, tmp_path / "draft1", 1)
    assert store.current() == second


VERSIONS = [f"20260101T00000{number}Z-{number:012x}" for number in range(5)]


@given(st.lists(st.integers(min_value=0, max_value=5), max_size=30))
def test_the_history_agrees_with_a_stack(moves: list[int]) -> None:
    """5 stands for a rollback, other numbers for activations; the naive stack is the oracle."""
    records: list[ActivationRecord] = []
    stack: list[str] = []
    for move in moves:
        current = stack[-1] if stack else None
        if move < 5:
            version = VERSIONS[move]
            records = appended(records, current, version, "activate")
            if current != version:
                stack.append(version)
        elif len(stack) > 1:
            # The nearest earlier one, as the store finds it.
            records = appended(records, current, stack[-2], "roll back")
            stack.pop()
        if stack:
            assert standing(records, stack[-1]) == stack


def test_the_history_is_bounded() -> None:
    records: list[ActivationRecord] = []
    for move in range(MAX_ACTIVATIONS + 10):
        records = appended(records, records[-1].version if records else None, VERSIONS[move % 2], "activate")
    assert len(records) == MAX_ACTIVATIONS
