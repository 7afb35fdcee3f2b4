"""What a model folder says about itself: `manifest.json`.

MODEL_DIR/
├── manifest.json        this
├── tokenizer.json       a `tokenizers` file
├── model.fp32.onnx      one graph per published variant: token ids in, pooled vectors out
├── model.fp16.onnx
└── model.int8.onnx
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heliotrope_export.errors import ModelCorruptError, ModelFormatError, ModelNotFoundError

FORMAT_VERSION: Literal[1] = 1
# Raised whenever the conversion changes in a way that moves vectors, so that nothing cached before is reused.
RECIPE_VERSION = 1

MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"

VariantName = Literal["fp32", "fp16", "int8"]
VARIANTS: tuple[VariantName, ...] = ("fp32", "fp16", "int8")
Pooling = Literal["mean", "cls"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A frozen part of the manifest. An unknown field is an error: it would mean something to its writer."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(Record):
    """Size and hash of one file of the folder."""

    sha256: Sha256
    bytes: int = Field(ge=1)


class Agreement(Record):
    """How close a variant's vectors are to those of the PyTorch model, on the sentences shipped with this package."""

    sentences: int = Field(ge=1, description="how many texts were compared")
    cosine_min: float
    cosine_mean: float
    overlap_at_10: float = Field(ge=0, le=1, description="mean share of the 10 nearest neighbours that stay the same")
    provider: str = Field(description="the ONNX Runtime execution provider that the figures were measured on")


class VariantRecord(Record):
    """One published graph."""

    file: FileRecord
    agreement: Agreement
    fused_operators: dict[str, int] = Field(description="what the transformer optimiser fused, by operator")


class Source(Record):
    """Where the weights came from."""

    name: str = Field(description="name of the folder or of the distribution")
    kind: Literal["folder", "package"]
    version: str | None = Field(description="version of the distribution")
    architecture: str = Field(description="model_type of its config.json")
    files: dict[str, Sha256] = Field(description="every file that the vectors depend on")


class VectorSpace(Record):
    """What a text becomes, whichever variant computes it."""

    model_version: str = Field(pattern=r"^[0-9a-f]{16}$")
    recipe_version: int
    dimension: int = Field(ge=1)
    max_tokens: int = Field(ge=3)
    pooling: Pooling
    pad_token_id: int = Field(ge=0)


class Manifest(Record):
    """The whole of manifest.json."""

    format_version: Literal[1] = FORMAT_VERSION
    created_time: str = Field(description="ISO 8601, UTC")
    space: VectorSpace
    source: Source
    libraries: dict[str, str] = Field(description="versions that did the conversion")
    tokenizer: FileRecord
    variants: dict[VariantName, VariantRecord] = Field(min_length=1)

    def file(self, name: str) -> FileRecord:
        """The record of tokenizer.json or of a variant's graph."""
        files = {variant_file(variant): record.file for variant, record in self.variants.items()}
        return {TOKENIZER_FILE: self.tokenizer, **files}[name]


def variant_file(variant: VariantName) -> str:
    return f"model.{variant}.onnx"


def model_version(
    source_files: dict[str, str], *, max_tokens: int, pooling: Pooling, recipe_version: int = RECIPE_VERSION
) -> str:
    """Sixteen hex digits that name the vector space: the source's bytes and the settings that shape its vectors.

    The published variants are not part of it. They approximate the same space, so that a catalogue embedded with int8
    and a query embedded with fp16 belong together, and publishing one more variant invalidates nothing.
    """
    parts = {
        "recipe_version": recipe_version,
        "source_files": source_files,
        "max_tokens": max_tokens,
        "pooling": pooling,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks manifest.json; of the other files it reads nothing.

    Raises:
        ModelNotFoundError: no such folder, or nothing in it that calls itself a model.
        ModelFormatError: written by a release with another format.
        ModelCorruptError: not JSON, or fields missing, unknown or out of range.
    """
    path = folder / MANIFEST_FILE
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        what = "has no manifest.json" if folder.is_dir() else "does not exist"
        raise ModelNotFoundError(
            f"no model at {folder}: the folder {what}; create it with `heliotrope export MODEL --out {folder}`"
        ) from None
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ModelCorruptError(f"{path} is not JSON: {error}") from error
    found = fields.get("format_version") if isinstance(fields, dict) else None
    if found != FORMAT_VERSION:
        raise ModelFormatError(
            f"{path} has format_version {found!r}; this release reads {FORMAT_VERSION}: export the model again"
        )
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelCorruptError(f"{path}: {where}: {first['msg']}") from error


def check_files(folder: Path, manifest: Manifest, names: list[str], *, hashes: bool = True) -> None:
    """Compares files of the folder, and the version that the manifest claims, with what the manifest records.

    `hashes=False` compares sizes only, which costs nothing.

    Raises:
        ModelCorruptError: naming the file and the difference.
    """
    space = manifest.space
    expected = model_version(
        manifest.source.files,
        max_tokens=space.max_tokens,
        pooling=space.pooling,
        recipe_version=space.recipe_version,
    )
    if space.model_version != expected:
        raise ModelCorruptError(
            f"{folder / MANIFEST_FILE} was edited: model_version is {space.model_version}, its fields give {expected}"
        )
    for name in names:
        record, path = manifest.file(name), folder / name
        if not path.is_file():
            raise ModelCorruptError(f"{path} is missing")
        if (size := path.stat().st_size) != record.bytes:
            raise ModelCorruptError(f"{path} has {size} bytes; its manifest says {record.bytes}")
        if hashes and (digest := sha256_of(path)) != record.sha256:
            raise ModelCorruptError(f"{path} is damaged: sha256 {digest}; its manifest says {record.sha256}")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_record(path: Path) -> FileRecord:
    return FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)
