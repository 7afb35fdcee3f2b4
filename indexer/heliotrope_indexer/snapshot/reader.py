"""Reads one snapshot folder: every array memory-mapped, so that all shards of a host share one copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.errors import SnapshotCorruptError, SnapshotFormatError, SnapshotNotFoundError
from heliotrope_indexer.features import features
from heliotrope_indexer.item_ids import ItemIds, hash_table
from heliotrope_indexer.manifest import (
    ID_FILES,
    INDEX_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    NEIGHBOUR_FILES,
    Manifest,
    check_size,
)
from heliotrope_indexer.neighbours import Neighbours
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.snapshot.item_table import ItemColumns, item_attributes

if TYPE_CHECKING:
    import faiss


class Snapshot:
    """An immutable catalogue with its vectors, scoring layer and index. Rows number the items from 0."""

    version: str
    manifest: Manifest
    path: Path
    item_ids: ItemIds
    """The n item ids in row order."""
    vectors: NDArray[np.float32]
    """(n, d): the item vectors x_i."""
    bias: NDArray[np.float32]
    """(n,): the item biases b_i."""
    projection: NDArray[np.float32]
    """(d, D): W."""
    feature_mean: NDArray[np.float32]
    """(D,): the catalogue mean of the L2-normalised pooled vectors."""
    prior: NDArray[np.float32]
    """(d,): the population prior."""
    scoring_matrices: NDArray[np.float32]
    """(H, d, d): A_h."""
    event_counts: NDArray[np.float32] | None
    """(n,): events of each item in the training data; None unless `parameters.young` is set."""
    query_mean: NDArray[np.float32] | None
    """(d,): the mean query of all positive events; None unless `parameters.young` is set."""

    neighbours: Neighbours | None
    """(n, k): None unless `parameters.neighbours` is set."""

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        """Opens the snapshot in the folder `path`.

        With `verify` every file is hashed; without, only lengths and shapes are checked.
        Raises SnapshotNotFoundError, SnapshotFormatError or SnapshotCorruptError.
        """
        self.path = path
        self.manifest = read_manifest(path)
        self.version = self.manifest.version
        for name, entry in self.manifest.files.items():
            if verify:
                self.manifest.check_file(path / name)
            else:
                check_size(path / name, entry)
        n, d, wide = self.manifest.n_items, self.manifest.dimension, self.manifest.feature_dimension
        self.vectors = self._array("vectors.npy", (n, d))
        self.bias = self._array("bias.npy", (n,))
        self.projection = self._array("projection.npy", (d, wide))
        self.feature_mean = self._array("feature_mean.npy", (wide,))
        self.prior = self._array("prior.npy", (d,))
        self.scoring_matrices = self._array("scoring_matrices.npy", (self.parameters.horizons, d, d))
        has_young = self.parameters.young is not None
        self.event_counts = self._array("event_counts.npy", (n,)) if has_young else None
        self.query_mean = self._array("query_mean.npy", (d,)) if has_young else None
        self.neighbours = self._read_neighbours(n) if self.parameters.neighbours is not None else None
        self._items = self._read_items()
        self.item_ids = self._read_ids(n)
        # Snapshots written before items had a provider lack the column.
        self._has_providers = "provider" in self._items.column_names

    @property
    def parameters(self) -> Parameters:
        """Half-lives, gains and weights that belong to these vectors."""
        return self.manifest.parameters

    def __len__(self) -> int:
        return self.manifest.n_items

    def row_of(self, item_id: str) -> int | None:
        """The row of an item, None when the catalogue does not hold it."""
        return self.item_ids.row_of(item_id)

    @property
    def items_table(self) -> pa.Table:
        """The catalogue as stored: one row an item, one column a field."""
        return self._items

    def item(self, row: int) -> CatalogItem:
        """The catalogue entry of a row; IndexError outside of 0 .. n - 1."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside of 0 .. {len(self) - 1}")
        title, description, categories = (
            self._items.column(name)[row].as_py() for name in ("title", "description", "categories")
        )
        provider = self._items.column("provider")[row].as_py() if self._has_providers else ""
        attributes = item_attributes(self._items, row)
        return CatalogItem(self.item_ids[row], title, description, tuple(categories), provider, attributes)

    def columns(self) -> ItemColumns:
        """Categories, providers and attributes of all items as arrays, read when they are asked for."""
        return ItemColumns(self._items)

    def category_codes(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """All categories as (names, offsets (n + 1,), codes): those of row i are `codes[offsets[i]:offsets[i + 1]]`."""
        column = _chunk(self._items.column("categories"))
        encoded = column.flatten().dictionary_encode()
        offsets = column.offsets.to_numpy().astype(np.int64)
        return encoded.dictionary.to_pylist(), offsets - offsets[0], encoded.indices.to_numpy().astype(np.int64)

    def provider_codes(self) -> tuple[list[str], NDArray[np.int64]]:
        """The provider of every row as (names, codes (n,)); "" among the names stands for none."""
        if not self._has_providers:
            return [""], np.zeros(len(self), dtype=np.int64)
        encoded = _chunk(self._items.column("provider")).dictionary_encode()
        return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)

    def index(self) -> faiss.Index | None:
        """The FAISS index over `[x_i ; b_i ; 0 pad]` (inner product), memory-mapped; None: search exactly."""
        if INDEX_FILE not in self.manifest.files:
            return None
        import faiss

        # IO_FLAG_MMAP copies the codes; the IFC flag really maps them.
        return faiss.read_index(str(self.path / INDEX_FILE), faiss.IO_FLAG_MMAP_IFC)

    def project(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Text vectors from pooled encoder output: (n, D) -> (n, d), `W normalise(normalise(pooled) - mean)`.

        The one formula by which a text becomes an item-like vector: items without events, declared interests
        and searches all go through it.
        """
        return features(pooled, self.feature_mean) @ self.projection.T

    def _read_neighbours(self, n: int) -> Neighbours:
        rows_file, strengths_file = NEIGHBOUR_FILES
        rows = self._loaded(rows_file)
        if rows.dtype != np.int32 or rows.ndim != 2 or len(rows) != n:
            raise SnapshotFormatError(
                f"{rows_file} of snapshot {self.version} is {rows.dtype} {rows.shape}; expected int32 ({n}, k)"
            )
        if rows.min(initial=0) < -1 or rows.max(initial=-1) >= n:
            raise SnapshotFormatError(f"{rows_file} of snapshot {self.version} names rows outside of -1 .. {n - 1}")
        return Neighbours(rows, self._array(strengths_file, rows.shape))

    def _read_ids(self, n: int) -> ItemIds:
        ids = _chunk(self._items.column("item_id"))
        hash_file, row_file = ID_FILES
        if hash_file not in self.manifest.files:
            return ItemIds(ids, *hash_table(ids.to_pylist()))
        hashes, rows = self._loaded(hash_file), self._loaded(row_file)
        if hashes.shape != (n,) or rows.shape != (n,) or hashes.dtype != np.uint64 or rows.dtype != np.int32:
            raise SnapshotFormatError(
                f"the hashes of ids of snapshot {self.version} are {hashes.dtype} {hashes.shape} and {rows.dtype} "
                f"{rows.shape}; expected uint64 and int32, both ({n},)"
            )
        if rows.min(initial=0) < 0 or rows.max(initial=0) >= n or (hashes[1:] < hashes[:-1]).any():
            raise SnapshotFormatError(
                f"the hashes of ids of snapshot {self.version} are out of order or beyond its rows"
            )
        return ItemIds(ids, hashes, rows)

    def _array(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        array = self._loaded(name)
        if array.shape != shape or array.dtype != np.float32:
            raise SnapshotFormatError(
                f"{name} of snapshot {self.version} is {array.dtype} {array.shape}; expected float32 {shape}"
            )
        return array

    def _loaded(self, name: str) -> NDArray[Any]:
        try:
            array: NDArray[Any] = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise SnapshotCorruptError(f"{name} of snapshot {self.version} is not an array: {error}") from error
        return array

    def _read_items(self) -> pa.Table:
        try:
            table = pa.ipc.open_file(pa.memory_map(str(self.path / ITEMS_FILE))).read_all()
        except (pa.ArrowException, OSError) as error:
            raise SnapshotCorruptError(f"{ITEMS_FILE} of snapshot {self.version} cannot be read: {error}") from error
        if table.num_rows != len(self):
            raise SnapshotFormatError(
                f"{ITEMS_FILE} of snapshot {self.version} has {table.num_rows} rows; expected {len(self)}"
            )
        return table.combine_chunks()


def _chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def read_manifest(path: Path) -> Manifest:
    """Reads and checks the manifest in a snapshot folder; the manifest names the folder."""
    try:
        text = (path / MANIFEST_FILE).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SnapshotNotFoundError(f"there is no snapshot at {path}: no {MANIFEST_FILE}") from error
    except (UnicodeDecodeError, OSError) as error:
        raise SnapshotCorruptError(f"{path / MANIFEST_FILE} cannot be read: {error}") from error
    return Manifest.parse(text, name=str(path / MANIFEST_FILE))
