"""Writes one snapshot folder from arrays; `SnapshotStore.publish` then makes it visible."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.errors import SnapshotFormatError
from heliotrope_indexer.item_ids import hash_table
from heliotrope_indexer.manifest import (
    ARRAY_FILES,
    FORMAT_VERSION,
    ID_FILES,
    INDEX_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    NEIGHBOUR_FILES,
    DataSummary,
    FileEntry,
    Manifest,
    content_hash,
    file_sha256,
)
from heliotrope_indexer.neighbours import Neighbours
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.snapshot.item_table import item_table

if TYPE_CHECKING:
    import faiss


def write_snapshot(
    folder: Path,
    *,
    items: Sequence[CatalogItem],
    vectors: ArrayLike,
    parameters: Parameters,
    bias: ArrayLike | None = None,
    projection: ArrayLike | None = None,
    feature_mean: ArrayLike | None = None,
    prior: ArrayLike | None = None,
    scoring_matrices: ArrayLike | None = None,
    event_counts: ArrayLike | None = None,
    query_mean: ArrayLike | None = None,
    neighbours: Neighbours | None = None,
    index: faiss.Index | None = None,
    data: DataSummary | None = None,
    quality: Mapping[str, Any] | None = None,
    model_version: str = "none",
    model_variant: str = "none",
    build_time: datetime | None = None,
) -> Manifest:
    """Writes a complete snapshot into the folder `folder` (created) and returns its manifest.

    Shapes: vectors (n, d), bias (n,) default 0, projection (d, D) default identity with D = d, feature_mean
    (D,) default 0, prior (d,) default 0, scoring_matrices (H, d, d) default identity / H; event_counts (n,) and
    query_mean (d,) belong to parameters for young items and are needed with them, as `neighbours` (n, k) are with
    parameters for neighbours.
    Every file is synced to disk and the manifest is written last. To make it visible:

        write_snapshot(folder, items=items, vectors=vectors, parameters=parameters)
        version = SnapshotStore(store).publish(folder)

    Raises SnapshotFormatError for shapes that do not fit, values that are not finite, double or empty ids.
    """
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise SnapshotFormatError(f"vectors must be (items, dimension), both at least 1, not {matrix.shape}")
    n, d = matrix.shape
    horizons = parameters.horizons
    weights = np.asarray(np.eye(d) if projection is None else projection)
    wide = weights.shape[-1]
    scoring = np.stack([np.eye(d) / horizons] * horizons) if scoring_matrices is None else scoring_matrices
    arrays = {
        "vectors.npy": _checked("vectors", matrix, (n, d)),
        "bias.npy": _checked("bias", np.zeros(n) if bias is None else bias, (n,)),
        "projection.npy": _checked("projection", weights, (d, wide)),
        "feature_mean.npy": _checked("feature_mean", np.zeros(wide) if feature_mean is None else feature_mean, (wide,)),
        "prior.npy": _checked("prior", np.zeros(d) if prior is None else prior, (d,)),
        "scoring_matrices.npy": _checked("scoring_matrices", scoring, (horizons, d, d)),
    }
    assert arrays.keys() == set(ARRAY_FILES)
    if parameters.young is not None:
        if event_counts is None or query_mean is None:
            raise SnapshotFormatError("parameters for young items need event_counts and query_mean: one is missing")
        arrays["event_counts.npy"] = _checked("event_counts", event_counts, (n,))
        arrays["query_mean.npy"] = _checked("query_mean", query_mean, (d,))
    if (neighbours is None) != (parameters.neighbours is None):
        raise SnapshotFormatError("neighbours and their parameters come together: one of the two is missing")
    tables: dict[str, NDArray[Any]] = {} if neighbours is None else _neighbour_tables(neighbours, n)
    _check_items(items, n)
    tables |= dict(zip(ID_FILES, hash_table(item.item_id for item in items), strict=True))
    if (index is None) != (parameters.search is None):
        raise SnapshotFormatError("an index and its search parameters come together: one of the two is missing")
    if index is not None and parameters.search is not None:
        inside = n - parameters.search.head
        if index.ntotal != inside or index.d < d + 1:
            raise SnapshotFormatError(f"the index holds ({index.ntotal}, {index.d}); expected ({inside}, >= {d + 1})")

    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (*arrays.items(), *tables.items()):
        np.save(folder / name, array, allow_pickle=False)
    _write_items(folder / ITEMS_FILE, items)
    if index is not None:
        import faiss

        faiss.write_index(index, str(folder / INDEX_FILE))
    names = [ITEMS_FILE, *arrays, *tables, *([INDEX_FILE] if index is not None else [])]
    files = {}
    for name in names:
        sync(folder / name)
        files[name] = FileEntry(sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size)
    time = (build_time or datetime.now(UTC)).astimezone(UTC)
    draft = Manifest(
        format_version=FORMAT_VERSION,
        version="",
        build_time=time.isoformat(timespec="seconds"),
        n_items=n,
        dimension=d,
        feature_dimension=wide,
        model_version=model_version,
        model_variant=model_variant,
        parameters=parameters,
        data=data or DataSummary(),
        quality=dict(quality or {}),
        files=files,
    )
    raw = draft.model_dump(mode="json")
    raw["version"] = f"{time:%Y%m%dT%H%M%SZ}-{content_hash(raw)[:12]}"
    (folder / MANIFEST_FILE).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    sync(folder / MANIFEST_FILE)
    sync(folder)
    return Manifest.parse(json.dumps(raw), name=str(folder / MANIFEST_FILE))


def sync(path: Path) -> None:
    """Forces a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked(name: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.shape != shape:
        raise SnapshotFormatError(f"{name} has shape {array.shape}; expected {shape}")
    if not np.isfinite(array).all():
        raise SnapshotFormatError(f"{name} holds values that are not finite")
    return array


def _neighbour_tables(neighbours: Neighbours, n: int) -> dict[str, NDArray[Any]]:
    rows = np.ascontiguousarray(neighbours.rows, dtype=np.int32)
    if rows.ndim != 2 or len(rows) != n or rows.min(initial=0) < -1 or rows.max(initial=-1) >= n:
        raise SnapshotFormatError(f"neighbours must be ({n}, k) rows from -1 to {n - 1}")
    strengths = _checked("neighbour strengths", neighbours.strengths, rows.shape)
    return dict(zip(NEIGHBOUR_FILES, (rows, strengths), strict=True))


def _check_items(items: Sequence[CatalogItem], n: int) -> None:
    if len(items) != n:
        raise SnapshotFormatError(f"{len(items)} items but {n} vectors")
    seen: set[str] = set()
    for row, item in enumerate(items):
        if not item.item_id or item.item_id in seen:
            raise SnapshotFormatError(f"item {row} has the id {item.item_id!r}, which is empty or already taken")
        seen.add(item.item_id)


def _write_items(path: Path, items: Sequence[CatalogItem]) -> None:
    table = item_table(items)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
