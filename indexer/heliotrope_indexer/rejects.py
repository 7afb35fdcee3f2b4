"""Rows that could not be used: each is written down with its line and counted by reason; none is dropped
silently.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

_ROW_LIMIT = 300


class RejectLog:
    """Writes rejected rows to a JSON Lines file: `{"file", "line", "reason", "detail", "row"}`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._counts: Counter[str] = Counter()
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, file: Path, line: int, reason: str, detail: str, row: object) -> None:
        """Rejects the row that begins in `line` (from 1; of a Parquet file: the row number from 1)."""
        self._counts[reason] += 1
        entry = {
            "file": str(file),
            "line": line,
            "reason": reason,
            "detail": _printable(detail),
            "row": _printable(str(row)),
        }
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        self._file.flush()

    @property
    def counts(self) -> dict[str, int]:
        """Rejected rows by reason, the most frequent first."""
        return dict(self._counts.most_common())


def _printable(text: str) -> str:
    # Undecodable bytes are carried as lone surrogates, which no UTF-8 file can hold.
    return text[:_ROW_LIMIT].encode("utf-8", "backslashreplace").decode("utf-8")
