"""The weights artefact: what `heliotrope train` learned, on its way into a snapshot.

A folder of arrays and `weights.json`, which names their hashes, how they were trained and how well. Items are named by
id, so that a later catalogue takes over what was learned of them; an item that training did not know stands on its
text.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heliotrope_indexer.errors import WeightsError
from heliotrope_indexer.manifest import NEIGHBOUR_FILES, FileEntry, file_sha256
from heliotrope_indexer.neighbours import Neighbours
from heliotrope_indexer.parameters import Parameters

FORMAT_VERSION = 1
MANIFEST_FILE = "weights.json"
ITEMS_FILE = "items.json"
ARRAY_FILES = (
    "feature_mean.npy",
    "projection.npy",
    "prior.npy",
    "scoring_matrices.npy",
    "residuals.npy",
    "biases.npy",
)

Matrix = NDArray[np.float32]


class WeightsManifest(BaseModel):
    """`weights.json`."""

    model_config = ConfigDict(frozen=True)

    format_version: int = FORMAT_VERSION
    model_version: str
    model_variant: str
    parameters: Parameters
    settings: dict[str, Any]
    """The training settings, defaults included."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Epochs, seconds, quality on the validation part, what is degenerate."""
    events: Annotated[int, Field(ge=0)]
    events_until_time: str | None = None
    """Time of the newest event used, ISO 8601 UTC."""
    input_hash: str
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Weights:
    """Learned parts for m items, d dimensions, H horizons and D text features."""

    manifest: WeightsManifest
    item_ids: tuple[str, ...]
    """(m,) items with events in training."""
    feature_mean: Matrix
    """(D,): the mean that W was trained with."""
    projection: Matrix
    """(d, D): W."""
    prior: Matrix
    """(d,)."""
    scoring_matrices: Matrix
    """(H, d, d)."""
    residuals: Matrix
    """(m, d)."""
    biases: Matrix
    """(m,)."""
    neighbours: Neighbours | None
    """(m, k) among the m items; None unless the parameters have them."""

    @property
    def version(self) -> str:
        """The SHA-256 of the manifest, which holds the hash of everything else."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()

    def item_vectors(self, item_ids: Sequence[str], features: Matrix) -> tuple[Matrix, Matrix]:
        """x_i = W f_i + r_i (n, d) and b_i (n,) of a catalogue with text features (n, D); r and b are 0 for items that
        training did not know.
        """
        places = {item_id: place for place, item_id in enumerate(self.item_ids)}
        known = np.array([places.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
        vectors: Matrix = features @ self.projection.T
        bias = np.zeros(len(item_ids), dtype=np.float32)
        vectors[known >= 0] += self.residuals[known[known >= 0]]
        bias[known >= 0] = self.biases[known[known >= 0]]
        return np.ascontiguousarray(vectors, dtype=np.float32), bias

    def item_neighbours(self, item_ids: Sequence[str]) -> Neighbours | None:
        """The neighbours of a catalogue's items, among them."""
        if self.neighbours is None:
            return None
        rows = {item_id: row for row, item_id in enumerate(item_ids)}
        row_of = np.array([rows.get(item_id, -1) for item_id in self.item_ids], dtype=np.int64)
        places = np.full(len(item_ids), -1, dtype=np.int64)
        places[row_of[row_of >= 0]] = np.flatnonzero(row_of >= 0)
        return self.neighbours.renumbered(places, row_of)


def write_weights(
    folder: Path,
    *,
    item_ids: Sequence[str],
    arrays: Mapping[str, Matrix],
    neighbours: Neighbours | None,
    parameters: Parameters,
    model_version: str,
    model_variant: str,
    settings: Mapping[str, Any],
    training: Mapping[str, Any],
    events: int,
    events_until_time: str | None,
    input_hash: str,
) -> None:
    """Writes all files into `folder`, which is created; `arrays` are those of ARRAY_FILES without their ending.

    Raises WeightsError for values that are not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ARRAY_FILES:
        array = np.ascontiguousarray(arrays[name.removesuffix(".npy")], dtype=np.float32)
        if not np.isfinite(array).all():
            raise WeightsError(f"training ended with values in {name} that are not finite; lower the learning rate")
        np.save(folder / name, array, allow_pickle=False)
    tables = () if neighbours is None else NEIGHBOUR_FILES
    if neighbours is not None:
        for name, table in zip(tables, (neighbours.rows, neighbours.strengths), strict=True):
            np.save(folder / name, table, allow_pickle=False)
    (folder / ITEMS_FILE).write_text(json.dumps(list(item_ids)), encoding="utf-8")
    manifest = WeightsManifest(
        model_version=model_version,
        model_variant=model_variant,
        parameters=parameters,
        settings=dict(settings),
        training=dict(training),
        events=events,
        events_until_time=events_until_time,
        input_hash=input_hash,
        files={
            name: FileEntry(sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size)
            for name in (ITEMS_FILE, *ARRAY_FILES, *tables)
        },
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def publish_weights(draft: Path, folder: Path) -> None:
    """Puts a complete draft in the place of `folder`. A crash leaves the old one, the new one, or (between two renames)
    the old one beside as FOLDER.old.
    """
    for path in (*draft.iterdir(), draft):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_weights(folder: Path) -> Weights:
    """Reads and checks a weights folder. Raises WeightsError for anything missing, changed or of another format."""
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise WeightsError(f"{folder} holds no weights: {error.strerror} ({MANIFEST_FILE})") from error
    try:
        raw = json.loads(text)
        if not isinstance(raw, dict) or raw.get("format_version") != FORMAT_VERSION:
            found = raw.get("format_version") if isinstance(raw, dict) else None
            raise WeightsError(f"{folder} has weights format {found!r}; this reader knows {FORMAT_VERSION}")
        manifest = WeightsManifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(f"{folder / MANIFEST_FILE} is invalid: {first['loc']} {first['msg']}") from error
    except ValueError as error:
        raise WeightsError(f"{folder / MANIFEST_FILE} is not valid JSON: {error}") from error
    tables = () if manifest.parameters.neighbours is None else NEIGHBOUR_FILES
    for name in (ITEMS_FILE, *ARRAY_FILES, *tables):
        path = folder / name
        if name not in manifest.files or not path.is_file() or file_sha256(path) != manifest.files[name].sha256:
            raise WeightsError(f"{path} is missing or has other bytes than {MANIFEST_FILE} says")
    arrays = {name.removesuffix(".npy"): np.load(folder / name, allow_pickle=False) for name in ARRAY_FILES}
    item_ids = tuple(json.loads((folder / ITEMS_FILE).read_text(encoding="utf-8")))
    _check_shapes(folder, manifest, len(item_ids), arrays)
    neighbours = Neighbours(*(np.load(folder / name, allow_pickle=False) for name in tables)) if tables else None
    if neighbours is not None:
        _check_neighbours(folder, neighbours, len(item_ids))
    return Weights(manifest, item_ids, **arrays, neighbours=neighbours)


def _check_shapes(folder: Path, manifest: WeightsManifest, m: int, arrays: Mapping[str, Matrix]) -> None:
    d, wide = arrays["projection"].shape
    horizons = manifest.parameters.horizons
    expected = {
        "feature_mean": (wide,),
        "projection": (d, wide),
        "prior": (d,),
        "scoring_matrices": (horizons, d, d),
        "residuals": (m, d),
        "biases": (m,),
    }
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise WeightsError(f"{folder / name}.npy has the shape {arrays[name].shape}; expected {shape}")


def _check_neighbours(folder: Path, neighbours: Neighbours, m: int) -> None:
    rows, strengths = neighbours.rows, neighbours.strengths
    if rows.ndim != 2 or len(rows) != m or rows.shape != strengths.shape:
        raise WeightsError(f"{folder} has neighbours {rows.shape} and strengths {strengths.shape}; expected ({m}, k)")
    if rows.dtype != np.int32 or rows.min(initial=0) < -1 or rows.max(initial=-1) >= m:
        raise WeightsError(f"{folder} has neighbours outside of -1 .. {m - 1}")
    if strengths.dtype != np.float32 or not np.isfinite(strengths).all():
        raise WeightsError(f"{folder} has strengths of neighbours that are not finite float32")
