"""Two snapshots side by side, on data with known differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heliotrope_indexer.manifest import DataSummary
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.snapshot import Snapshot, write_snapshot
from heliotrope_indexer.snapshot_diff import diff
from tests.indexer.conftest import some_items

N, D = 300, 6


def snapshot(folder: Path, parameters: Parameters, **changes: Any) -> Snapshot:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "items": some_items(N),
        "vectors": rng.normal(size=(N, D)),
        "bias": rng.normal(size=N) * 0.1,
        "data": DataSummary(catalogue_rows=N, weights="w"),
        "quality": {"recall_at_10": 0.98, "validation": {"hr@10": 0.2}, "degenerate": [], "gates": {"previous": "v"}},
    }
    write_snapshot(folder, parameters=parameters, **(arrays | changes))
    return Snapshot(folder)


def test_a_snapshot_beside_itself(tmp_path: Path, parameters: Parameters) -> None:
    one = snapshot(tmp_path / "a", parameters)
    found = diff(one, one)
    assert (found.items.added, found.items.removed, found.items.changed) == (0, 0, 0)
    assert found.drift is not None and (found.drift.largest, found.drift.aligned) == (0.0, False)
    assert found.top_10_overlap == 1.0
    assert found.quality == {"recall_at_10": (0.98, 0.98), "validation.hr@10": (0.2, 0.2)}


def test_items_are_matched_by_id_and_compared_field_by_field(tmp_path: Path, parameters: Parameters) -> None:
    items = some_items(N)
    after = [*items[10:], *(replace(item, item_id=f"new{row}") for row, item in enumerate(items[:4]))]
    after[0] = replace(after[0], title="other")
    after[1] = replace(after[1], provider="other")
    after[2] = replace(after[2], categories=("x", "y"))
    order = np.random.default_rng(1).permutation(len(after))
    old = snapshot(tmp_path / "a", parameters)
    vectors = np.vstack([np.asarray(old.vectors)[10:], np.ones((4, D))])[order]
    bias = np.concatenate([np.asarray(old.bias)[10:], np.zeros(4)])[order]
    new = snapshot(tmp_path / "b", parameters, items=[after[row] for row in order], vectors=vectors, bias=bias)
    found = diff(old, new)
    assert (found.items.added, found.items.removed) == (4, 10)
    assert (found.items.changed, found.items.changed_texts) == (3, 2)
    fields = {name: count for name, count in found.items.changed_by_field.items() if count}
    assert fields == {"title": 1, "provider": 1, "categories": 1}
    assert set(found.items.added_ids) == {"new0", "new1", "new2", "new3"}
    assert set(found.items.changed_ids) == {items[row].item_id for row in (10, 11, 12)}
    assert found.drift is not None and (found.drift.items, found.drift.largest) == (N - 10, 0.0)


@pytest.mark.parametrize("moved", [0.0, 0.1])
def test_drift_is_measured_beyond_a_rotation_unless_the_weights_are_shared(
    tmp_path: Path, parameters: Parameters, moved: float
) -> None:
    old = snapshot(tmp_path / "a", parameters)
    rng = np.random.default_rng(2)
    rotation, _ = np.linalg.qr(rng.normal(size=(D, D)))
    x = np.asarray(old.vectors)
    direction = rng.normal(size=x.shape)
    size = np.sqrt(np.mean(np.sum(x**2, axis=1)))
    step = moved * size * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    other = snapshot(tmp_path / "b", parameters, vectors=(x + step) @ rotation, data=DataSummary(weights="other"))
    found = diff(old, other)
    assert found.drift is not None and found.drift.aligned
    assert found.drift.mean == pytest.approx(moved, abs=0.01)
    assert found.top_10_overlap is not None
    assert (found.top_10_overlap == 1.0) == (moved == 0.0)
    same = snapshot(tmp_path / "c", parameters, vectors=(x + step) @ rotation)
    turned = diff(old, same).drift
    assert turned is not None and not turned.aligned and turned.mean > 0.5


def test_what_cannot_be_compared_is_left_out(tmp_path: Path, parameters: Parameters) -> None:
    old = snapshot(tmp_path / "a", parameters)
    wider = snapshot(tmp_path / "b", parameters, vectors=np.ones((N, D + 1)))
    assert diff(old, wider).drift is None
    foreign = snapshot(
        tmp_path / "c", parameters, items=[replace(item, item_id=f"x{item.item_id}") for item in some_items(N)]
    )
    found = diff(old, foreign)
    assert (found.drift, found.top_10_overlap) == (None, None)
    assert (found.items.added, found.items.removed) == (N, N)
