"""Reads rows from CSV of any delimiter, JSON Lines and Parquet, plain or gzipped.

A row comes out as `Row(line, values)`. What cannot be read as a row goes to the reject log with its line
number. A file whose columns are mapped by number (`item_id=0,title=1`) has no header line; typed headers as
in atomic files (`item_id:token`, `class:token_seq`) lose their type, and `token_seq` columns are lists
separated by spaces.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heliotrope_indexer.errors import ColumnError, SourceError
from heliotrope_indexer.rejects import RejectLog

_LONGEST_QUOTED_ROW = 50
"""Physical lines that one quoted field may span; then the quote counts as never closed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: values by column name (or by position as text, "0", "1", ..., in a file without a header)."""

    line: int
    values: Mapping[str, Any]


@dataclass
class Source:
    """One input file with its column mapping, our names -> `+`-joined names of the file."""

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    delimiter: str | None = None
    rows_read: int = 0
    """Rows seen so far, the rejected ones included; complete when `rows` is exhausted."""
    list_columns: set[str] = field(default_factory=set)
    """Columns that a typed header declares as space-separated lists; known once the first row is out."""

    @property
    def may_omit_columns(self) -> bool:
        """Whether each row brings its own columns, as JSON objects do: a missing one is a matter of the
        row.
        """
        return self.path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson", ".json"))

    @property
    def holds_texts_only(self) -> bool:
        """Whether a value has no type of its own, as in CSV."""
        return not self.may_omit_columns and not self._holds_columns

    @property
    def _holds_columns(self) -> bool:
        return self.path.name.removesuffix(".gz").endswith((".parquet", ".pq"))

    def rows(self, rejects: RejectLog) -> Iterator[Row]:
        """Yields the rows. Raises SourceError when the file as a whole cannot be read."""
        if not self.path.is_file():
            raise SourceError(f"there is no file {self.path}")
        try:
            if self._holds_columns:
                yield from self._parquet()
            elif self.may_omit_columns:
                yield from self._json_lines(rejects)
            else:
                yield from self._delimited(rejects)
        except (OSError, EOFError, gzip.BadGzipFile) as error:
            raise SourceError(f"{self.path} cannot be read: {error}") from error

    def size(self) -> tuple[int, int]:
        """About how many rows the file has, and bytes of their text: its lines, or what Parquet's footer says.

        Raises SourceError when the file cannot be read.
        """
        name = self.path.name.removesuffix(".gz")
        try:
            if name.endswith((".parquet", ".pq")):
                import pyarrow.parquet as pq

                metadata = pq.read_metadata(self.path)
                groups = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
                return metadata.num_rows, sum(groups)
            rows = length = 0
            with (gzip.open if self.path.name.endswith(".gz") else open)(self.path, "rb") as file:
                while chunk := file.read(1 << 20):
                    rows, length = rows + chunk.count(b"\n"), length + len(chunk)
            return rows, length
        except (OSError, EOFError, ValueError) as error:
            raise SourceError(f"{self.path} cannot be read: {error}") from error

    def resolve(self, names: Sequence[str], aliases: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Which file columns make up each of our columns, from the mapping or else from well-known names.

        `names` are the columns of the file. Columns of ours that the file lacks are left out.
        Raises ColumnError for a mapping to a column that is not there.
        """
        resolved: dict[str, list[str]] = {}
        unknown = self.columns.keys() - aliases.keys()
        if unknown:
            raise ColumnError(f"cannot map {sorted(unknown)[0]!r}: the columns are {', '.join(aliases)}")
        for ours, known in aliases.items():
            wanted = self.columns.get(ours)
            if wanted is not None:
                parts = wanted.split("+")
                missing = [part for part in parts if part not in names]
                if missing and self.may_omit_columns:
                    parts = [part for part in parts if part in names]
                elif missing:
                    raise ColumnError(
                        f"{self.path} has no column {missing[0]!r} for {ours}; it has {', '.join(names)[:200]}"
                    )
                if parts:
                    resolved[ours] = parts
            else:
                found = next((name for name in known if name in names), None)
                if found is not None:
                    resolved[ours] = [found]
        return resolved

    def _parquet(self) -> Iterator[Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(self.path)
            line = 0
            for batch in file.iter_batches(16_384):
                for values in batch.to_pylist():
                    line += 1
                    self.rows_read += 1
                    yield Row(line, values)
        except pa.ArrowException as error:
            raise SourceError(f"{self.path} is not a readable Parquet file: {error}") from error

    def _json_lines(self, rejects: RejectLog) -> Iterator[Row]:
        for line, text in self._lines():
            if not text.strip():
                continue
            self.rows_read += 1
            if _undecodable(text):
                rejects.add(self.path, line, "undecodable", "not UTF-8", text)
                continue
            try:
                values = json.loads(text)
            except (ValueError, RecursionError) as error:
                rejects.add(self.path, line, "bad_json", str(error), text)
                continue
            if not isinstance(values, dict):
                rejects.add(self.path, line, "bad_json", f"a {type(values).__name__}, not an object", text)
                continue
            yield Row(line, values)

    def _delimited(self, rejects: RejectLog) -> Iterator[Row]:
        lines = list(self._lines())
        if not lines:
            raise SourceError(f"{self.path} is empty")
        delimiter = self.delimiter or _guess_delimiter(lines[0][1])
        numbered = bool(self.columns) and all(
            part.isdigit() for value in self.columns.values() for part in value.split("+")
        )
        at = 0
        names: list[str] | None = None
        if not numbered:
            names = self._header(_split(lines[0][1], delimiter))
            at = 1
        while at < len(lines):
            line, text = lines[at]
            at += 1
            if not text.strip():
                continue
            self.rows_read += 1
            fields, used = _parse(lines, at - 1, delimiter)
            if fields is None:
                rejects.add(
                    self.path,
                    line,
                    "bad_quoting",
                    f"a quoted field is not closed or not followed by a delimiter within {_LONGEST_QUOTED_ROW} lines",
                    text,
                )
                continue
            at += used - 1
            if any(_undecodable(value) for value in fields):
                rejects.add(self.path, line, "undecodable", "not UTF-8", text)
                continue
            if names is None:
                names = [str(number) for number in range(len(fields))]
            if len(fields) != len(names):
                rejects.add(
                    self.path,
                    line,
                    "wrong_column_count",
                    f"{len(fields)} columns; expected {len(names)}",
                    text,
                )
                continue
            yield Row(line, dict(zip(names, fields, strict=True)))

    def _header(self, fields: list[str]) -> list[str]:
        names = []
        for value in fields:
            name, _, kind = value.strip().partition(":")
            names.append(name)
            if kind == "token_seq":
                self.list_columns.add(name)
        return names

    def _lines(self) -> Iterator[tuple[int, str]]:
        opener = gzip.open if self.path.name.endswith(".gz") else open
        with opener(self.path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                yield number, raw.rstrip(b"\r\n").decode("utf-8", "surrogateescape")


def _guess_delimiter(first_line: str) -> str:
    for delimiter in ("::", "\t", ",", ";", "|"):
        if delimiter in first_line:
            return delimiter
    return ","


def _split(text: str, delimiter: str) -> list[str]:
    # Quotes mean something in comma-separated files only: tab-separated titles carry them as plain
    # characters.
    if delimiter not in (",", ";"):
        return text.split(delimiter)
    return next(csv.reader([text], delimiter=delimiter, strict=True), [])


def _parse(lines: Sequence[tuple[int, str]], at: int, delimiter: str) -> tuple[list[str] | None, int]:
    """The fields of the row that begins at `lines[at]` and how many lines it takes; None when no row can
    be made.
    """
    text = lines[at][1]
    for used in range(1, _LONGEST_QUOTED_ROW + 1):
        try:
            return _split(text, delimiter), used
        except csv.Error as error:
            if "unexpected end of data" not in str(error) or at + used >= len(lines):
                return None, 1
            text += "\n" + lines[at + used][1]
    return None, 1


def _undecodable(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else False
