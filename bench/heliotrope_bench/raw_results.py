"""Reads what `write_report` wrote: one file of raw results with its conditions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heliotrope_bench.errors import ResultError


class Git(BaseModel):
    """The working tree that was measured; None outside of one."""

    revision: str | None
    changed: bool | None


class Machine(BaseModel):
    """What it was measured on, and how busy that was when the file was written."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    load_average: list[float] = Field(min_length=1)

    @property
    def busy(self) -> bool:
        """More waited for the cores than a benchmark and its server on their own make wait."""
        return self.load_average[0] > 2 * self.cores


class RawResults(BaseModel):
    """One file. `name` is the file's, without its ending; `results` are the rows of its table."""

    model_config = ConfigDict(frozen=True)

    name: str = ""
    command: list[str] = Field(min_length=3)
    git: Git
    machine: Machine
    versions: dict[str, str]
    settings: dict[str, Any]
    results: list[dict[str, Any]] = Field(min_length=1)

    @property
    def kind(self) -> str:
        """The bench command that wrote it, such as "load"."""
        return self.command[2]


def read_raw_results(path: Path) -> RawResults:
    """Raises ResultError, which names the file, where it is no such file or can't be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"cannot read {path}: {error}") from error
    try:
        found = RawResults.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ResultError(
            f"{path} holds no raw results of a bench command: {where + ': ' if where else ''}{problem['msg']}"
        ) from error
    return found.model_copy(update={"name": path.stem})


def read_folder(folder: Path) -> Sequence[RawResults]:
    """All `*.json` of a folder, by name. Raises ResultError for a broken file and where there is none."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ResultError(f"there are no raw results (*.json) in {folder}: run a bench command with --out {folder}/...")
    return [read_raw_results(path) for path in paths]


@contextmanager
def as_written_by(file: RawResults) -> Iterator[None]:
    """Reading rows that lack what the command of this kind writes raises ResultError, which names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(
            f"{file.name}.json is not what `heliotrope bench {file.kind}` writes: {type(error).__name__} {error}"
        ) from error
