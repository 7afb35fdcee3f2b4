"""The manifest: what a snapshot consists of, where it came from and how good it was measured to be."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heliotrope_indexer.catalogue_delta import AbsorbedDelta
from heliotrope_indexer.errors import SnapshotCorruptError, SnapshotFormatError
from heliotrope_indexer.parameters import Parameters

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
ARRAY_FILES = (
    "vectors.npy",
    "bias.npy",
    "projection.npy",
    "feature_mean.npy",
    "prior.npy",
    "scoring_matrices.npy",
)
YOUNG_FILES = ("event_counts.npy", "query_mean.npy")
"""Arrays of a snapshot whose parameters say how young items move."""
NEIGHBOUR_FILES = ("neighbours.npy", "neighbour_strengths.npy")
"""Arrays of a snapshot whose parameters have neighbours."""
ID_FILES = ("id_hashes.npy", "id_rows.npy")
"""Where each item id is: see item_ids. Snapshots of earlier versions lack them."""
ITEMS_FILE = "items.arrow"
INDEX_FILE = "index.faiss"
VERSION_PATTERN = re.compile(r"^\d{8}T\d{6}Z-[0-9a-f]{12}$")


class FileEntry(BaseModel):
    """One file of the snapshot."""

    model_config = ConfigDict(frozen=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class DataSummary(BaseModel):
    """What went into the snapshot. `input_hash` names the whole input: equal hash, equal snapshot."""

    model_config = ConfigDict(frozen=True)

    catalogue_rows: int = 0
    event_rows: int = 0
    events_until_time: str | None = None
    """Time of the newest event used, ISO 8601 UTC; None without events."""
    rejects: dict[str, int] = Field(default_factory=dict)
    """Rows that could not be used, counted by reason."""
    input_hash: str | None = None
    weights: str | None = None
    """Version of the trained weights; None where there were none."""
    absorbed: AbsorbedDelta | None = None
    """The changes of a server's catalogue log that are in it; None: none."""


class Manifest(BaseModel):
    """`manifest.json`. The last 12 hex digits of `version` hash all of this but version and build time."""

    model_config = ConfigDict(frozen=True)

    format_version: int = FORMAT_VERSION
    version: str
    build_time: str
    n_items: Annotated[int, Field(ge=1)]
    dimension: Annotated[int, Field(ge=1)]
    feature_dimension: Annotated[int, Field(ge=1)]
    model_version: str
    model_variant: str
    parameters: Parameters
    data: DataSummary = Field(default_factory=DataSummary)
    quality: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FileEntry]

    @classmethod
    def parse(cls, text: str, *, name: str) -> Manifest:
        """Reads a manifest and proves that it is whole; `name` is what error messages call it.

        Raises SnapshotFormatError for another format version, SnapshotCorruptError for all else that is
        wrong.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise SnapshotCorruptError(f"{name} is not valid JSON: {error}") from error
        if not isinstance(raw, dict):
            raise SnapshotCorruptError(f"{name} holds a {type(raw).__name__}, not an object")
        if raw.get("format_version") != FORMAT_VERSION:
            raise SnapshotFormatError(
                f"{name} has format version {raw.get('format_version')!r}; this reader knows {FORMAT_VERSION}"
            )
        version = raw.get("version")
        if not isinstance(version, str) or not VERSION_PATTERN.match(version):
            raise SnapshotFormatError(f"{name} names version {version!r}, not <yyyymmddThhmmssZ>-<12 hex digits>")
        if not version.endswith(content_hash(raw)[:12]):
            raise SnapshotCorruptError(f"{name} was changed: its content no longer hashes to version {version}")
        try:
            manifest = cls.model_validate(raw)
        except ValidationError as error:
            raise SnapshotCorruptError(
                f"{name} is invalid: {error.errors()[0]['loc']} {error.errors()[0]['msg']}"
            ) from error
        # Also keeps a manifest from object storage from naming a file outside of its folder.
        optional = {INDEX_FILE, *YOUNG_FILES, *NEIGHBOUR_FILES, *ID_FILES}
        unknown = manifest.files.keys() - {ITEMS_FILE, *ARRAY_FILES, *optional}
        if unknown:
            raise SnapshotFormatError(f"{name} lists the unknown file {sorted(unknown)[0]!r}")
        young = () if manifest.parameters.young is None else YOUNG_FILES
        neighbours = () if manifest.parameters.neighbours is None else NEIGHBOUR_FILES
        ids = ID_FILES if manifest.files.keys() & set(ID_FILES) else ()
        missing = {ITEMS_FILE, *ARRAY_FILES, *young, *neighbours, *ids} - manifest.files.keys()
        if missing:
            raise SnapshotCorruptError(f"{name} lists no {sorted(missing)[0]}")
        return manifest

    @property
    def total_bytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(entry.bytes for entry in self.files.values())

    def check_file(self, path: Path) -> None:
        """Raises SnapshotCorruptError unless the file at `path` is byte for byte what the manifest lists."""
        entry = self.files[path.name]
        check_size(path, entry)
        found = file_sha256(path)
        if found != entry.sha256:
            raise SnapshotCorruptError(
                f"{path.name} of snapshot {self.version} is corrupt: sha256 {found[:12]}..., "
                f"the manifest says {entry.sha256[:12]}..."
            )


def check_size(path: Path, entry: FileEntry) -> None:
    """Raises SnapshotCorruptError for a missing file or another length: cheap enough for every open."""
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise SnapshotCorruptError(f"{path.name} is missing from {path.parent}") from error
    if size != entry.bytes:
        raise SnapshotCorruptError(f"{path} has {size} bytes, the manifest says {entry.bytes}")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(raw: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON of a manifest without its version and build time.

    It is taken over the JSON as stored, not over the model, so that a later field with a default does not
    change the hash of an old snapshot.
    """
    content = {key: value for key, value in raw.items() if key not in ("version", "build_time")}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
