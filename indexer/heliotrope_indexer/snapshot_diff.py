"""What changed from one snapshot to another: items, vectors, answers, quality and where all of it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from heliotrope_indexer.snapshot import Snapshot

TEXT_FIELDS = ("title", "categories", "description")
"""What CatalogItem.text is made of."""
_EXAMPLES = 20
_QUERIES = 200
_QUERY_ITEMS = 20
_BLOCK = 16

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class ItemChanges:
    """Items by what became of them; the ids are examples, the first 20 in the order of the snapshot."""

    added: int
    removed: int
    changed: int
    """In any field."""
    changed_texts: int
    """In a field that the encoder reads."""
    changed_by_field: dict[str, int]
    added_ids: list[str]
    removed_ids: list[str]
    changed_ids: list[str]


@dataclass(frozen=True)
class VectorDrift:
    """How far the vectors of the shared items moved, |new - old| relative to the root mean square of |old|."""

    items: int
    aligned: bool
    """Measured after the rotation and factor that fit best: two snapshots that share no weights share no axes."""
    mean: float
    p50: float
    p90: float
    p99: float
    largest: float


@dataclass(frozen=True)
class SnapshotDiff:
    """From `old` to `new`; a value that both have stands as a pair."""

    old: str
    new: str
    items: ItemChanges
    rows: dict[str, tuple[int, int]]
    lineage: dict[str, tuple[Any, Any]]
    quality: dict[str, tuple[Any, Any]]
    drift: VectorDrift | None
    """None where the dimensions differ or no item is shared."""
    top_10_overlap: float | None
    """Share of the ten best items of simulated users that both give, live terms left out; None without shared items."""


def diff(old: Snapshot, new: Snapshot) -> SnapshotDiff:
    """Compares two snapshots in memory of a few times their vectors' size."""
    shared = _shared_rows(old, new)
    return SnapshotDiff(
        old=old.version,
        new=new.version,
        items=_item_changes(old, new, shared),
        rows={
            "items": (len(old), len(new)),
            "catalogue rows": (old.manifest.data.catalogue_rows, new.manifest.data.catalogue_rows),
            "event rows": (old.manifest.data.event_rows, new.manifest.data.event_rows),
            "rejected rows": (sum(old.manifest.data.rejects.values()), sum(new.manifest.data.rejects.values())),
            "dimensions": (old.manifest.dimension, new.manifest.dimension),
            "bytes": (old.manifest.total_bytes, new.manifest.total_bytes),
        },
        lineage={
            "built": (old.manifest.build_time, new.manifest.build_time),
            "model": (old.manifest.model_version, new.manifest.model_version),
            "variant": (old.manifest.model_variant, new.manifest.model_variant),
            "weights": (old.manifest.data.weights, new.manifest.data.weights),
            "events until": (old.manifest.data.events_until_time, new.manifest.data.events_until_time),
        },
        quality=_side_by_side(old.manifest.quality, new.manifest.quality),
        drift=drift_between(old.vectors[shared[0]], new.vectors[shared[1]], aligned=not same_space(old, new)),
        top_10_overlap=top_overlap(old, new, shared),
    )


def same_space(old: Snapshot, new: Snapshot) -> bool:
    """Whether both stand on the same trained weights, whose axes mean the same."""
    return new.manifest.data.weights is not None and old.manifest.data.weights == new.manifest.data.weights


def _shared_rows(old: Snapshot, new: Snapshot) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in both snapshots of the items that both hold, in the order of the new one."""
    places = pc.index_in(new.items_table["item_id"], value_set=old.items_table["item_id"])
    found = places.fill_null(-1).to_numpy().astype(np.int64)
    rows = np.flatnonzero(found >= 0)
    return found[rows], rows


def _item_changes(old: Snapshot, new: Snapshot, shared: tuple[NDArray[np.int64], NDArray[np.int64]]) -> ItemChanges:
    before, after = old.items_table.take(shared[0]), new.items_table.take(shared[1])
    fields = [name for name in dict.fromkeys([*before.column_names, *after.column_names]) if name not in ("item_id",)]
    changed = {name: _differ(before, after, name) for name in fields}
    none = np.zeros(len(shared[0]), dtype=np.bool_)
    anyhow = np.logical_or.reduce([none, *changed.values()])
    texts = np.logical_or.reduce([none, *(changed[name] for name in TEXT_FIELDS)])
    added = np.setdiff1d(np.arange(len(new)), shared[1], assume_unique=True)
    removed = np.setdiff1d(np.arange(len(old)), shared[0], assume_unique=True)
    return ItemChanges(
        added=len(added),
        removed=len(removed),
        changed=int(anyhow.sum()),
        changed_texts=int(texts.sum()),
        changed_by_field={name: int(differs.sum()) for name, differs in changed.items()},
        added_ids=new.item_ids.of(added[:_EXAMPLES].tolist()),
        removed_ids=old.item_ids.of(removed[:_EXAMPLES].tolist()),
        changed_ids=new.item_ids.of(shared[1][np.flatnonzero(anyhow)[:_EXAMPLES]].tolist()),
    )


def _differ(before: pa.Table, after: pa.Table, name: str) -> NDArray[np.bool_]:
    """Which items differ in a field, whatever its type; one that a snapshot lacks counts as empty there."""
    columns = [table[name] if name in table.column_names else None for table in (before, after)]
    one, other = columns
    if one is not None and other is not None and pa.types.is_string(one.type) and one.type == other.type:
        differs: NDArray[np.bool_] = pc.not_equal(one, other).fill_null(True).to_numpy().astype(np.bool_)
        return differs
    lists = [[None] * before.num_rows if column is None else column.to_pylist() for column in columns]
    # Empty in all its forms is the same: None, "", [].
    return np.array([(a or None) != (b or None) for a, b in zip(*lists, strict=True)], dtype=np.bool_)


def _side_by_side(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    # The gates of a version compare it with another one again.
    before, after = (_flat({name: part for name, part in each.items() if name != "gates"}) for each in (old, new))
    return {name: (before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])}


def _flat(quality: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and names of a nested dictionary by dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in quality.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float | str):
            flat[f"{prefix}{name}"] = value
    return flat


def drift_between(before: Vectors, after: Vectors, *, aligned: bool) -> VectorDrift | None:
    """The drift of shared items from (m, d) to (m, d'); None where the dimensions differ or no item is shared."""
    if before.shape != after.shape or not len(before):
        return None
    if aligned:
        # Orthogonal Procrustes with a factor (Schönemann and Carroll, 1970).
        left, sizes, right = np.linalg.svd(before.astype(np.float64).T @ after)
        factor = sizes.sum() / max(float(np.sum(before.astype(np.float64) ** 2)), 1e-12)
        after = after / np.float32(max(factor, 1e-12))
        before = before @ (left @ right).astype(np.float32)
    size = float(np.sqrt(np.mean(np.sum(before.astype(np.float64) ** 2, axis=1))))
    moved = np.linalg.norm(after - before, axis=1) / max(size, 1e-12)
    p50, p90, p99 = np.quantile(moved, (0.5, 0.9, 0.99))
    return VectorDrift(
        len(moved), aligned, *(round(float(value), 4) for value in (moved.mean(), p50, p90, p99, moved.max()))
    )


def top_overlap(
    old: Snapshot, new: Snapshot, shared: tuple[NDArray[np.int64], NDArray[np.int64]], *, seed: int = 0
) -> float | None:
    """Mean share of the ten best items that both give the same simulated users, by exact search.

    A user has touched 1 to 20 shared items: `sum_h v_h A_h` in the space of either snapshot, the bias added.
    """
    if not len(shared[0]):
        return None
    rng = np.random.default_rng(seed)
    # By id, so that the order of rows does not choose the users.
    order = np.argsort(np.array(new.item_ids.of(shared[1].tolist())), kind="stable")
    users = [
        order[rng.choice(len(order), size=min(int(length), len(order)), replace=False)]
        for length in rng.integers(1, _QUERY_ITEMS + 1, _QUERIES)
    ]
    tops = [
        _top_ids(snapshot, [rows[user] for user in users]) for snapshot, rows in ((old, shared[0]), (new, shared[1]))
    ]
    shares = [len(set(one) & set(other)) / min(len(one), len(other)) for one, other in zip(*tops, strict=True)]
    return round(float(np.mean(shares)), 4)


def _top_ids(snapshot: Snapshot, users: list[NDArray[np.int64]]) -> list[list[str]]:
    vectors, bias = snapshot.vectors.view(np.ndarray), snapshot.bias.view(np.ndarray)
    queries = np.zeros((len(users), vectors.shape[1]), dtype=np.float32)
    for query, rows in zip(queries, users, strict=True):
        for kappa, matrix in zip(snapshot.parameters.kappas, snapshot.scoring_matrices, strict=True):
            interest = (kappa * snapshot.prior + vectors[rows].sum(axis=0)) / (kappa + len(rows))
            query += interest @ matrix
    k = min(10, len(vectors))
    found: list[list[str]] = []
    for start in range(0, len(users), _BLOCK):
        scores = queries[start : start + _BLOCK] @ vectors.T + bias
        found += [snapshot.item_ids.of(top) for top in np.argpartition(-scores, k - 1, axis=1)[:, :k].tolist()]
    return found
