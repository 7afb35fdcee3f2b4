"""The history of a store: which versions were current, in order, and so what a rollback goes back to.

    STORE/ACTIVATIONS   one JSON object a line, oldest first: {"time": ..., "how": ..., "version": ..., "reason": ...}

`reason` is there only where a server went back by itself.

CURRENT stays the truth. The line of a move is written just before CURRENT moves, so a crash between the two leaves a
line of something that did not happen; and a CURRENT that was moved by hand has no line. `standing` allows for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heliotrope_indexer.errors import SnapshotCorruptError
from heliotrope_indexer.manifest import VERSION_PATTERN

ACTIVATIONS_FILE = "ACTIVATIONS"
MAX_ACTIVATIONS = 1_000
"""Older lines are dropped: a file of 100 KB."""

How = Literal["publish", "activate", "roll back"]


class ActivationRecord(BaseModel):
    """One move of CURRENT."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: str
    """ISO 8601 UTC."""
    how: How
    version: Annotated[str, Field(pattern=VERSION_PATTERN.pattern)]
    reason: str = ""
    """Why a server went back to this version by itself."""


def parse(text: str, *, name: str) -> list[ActivationRecord]:
    """Reads a history. Raises SnapshotCorruptError naming the line that is none."""
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            records.append(ActivationRecord.model_validate_json(line))
        except ValidationError as error:
            raise SnapshotCorruptError(
                f"line {number} of {name} is no activation: {error.errors()[0]['msg']}; remove the file to begin a new "
                "history"
            ) from error
    return records


def appended(
    records: Sequence[ActivationRecord], current: str | None, version: str, how: How, reason: str = ""
) -> list[ActivationRecord]:
    """The history with one more move, from `current` (None: nothing was published yet) to `version`."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    kept = list(records)
    told = standing(kept, None)
    if current is not None and current not in told[-1:]:
        # What CURRENT says happened, though no line tells of it.
        kept.append(ActivationRecord(time=now, how="roll back" if current in told else "activate", version=current))
    if current != version:
        kept.append(ActivationRecord(time=now, how=how, version=version, reason=reason))
    return kept[-MAX_ACTIVATIONS:]


def render(records: Sequence[ActivationRecord]) -> bytes:
    """The content of the file."""
    return "".join(record.model_dump_json(exclude_defaults=True) + "\n" for record in records).encode()


def withdrawals(records: Sequence[ActivationRecord]) -> dict[str, ActivationRecord]:
    """The versions that servers went back from by themselves, each with the newest move that did so."""
    return {before.version: record for before, record in pairwise(records) if record.reason}


def standing(records: Sequence[ActivationRecord], current: str | None) -> list[str]:
    """The versions that stand, oldest first: a rollback takes away what came after the version it went back to.

    The last one is `current` (None: whatever the lines say).
    """
    stack: list[str] = []
    for record in records:
        _move(stack, record.version, back=record.how == "roll back")
    if current is not None:
        _move(stack, current, back=True)
    return stack


def _move(stack: list[str], version: str, *, back: bool) -> None:
    if back and version in stack:
        while stack[-1] != version:
            stack.pop()
    elif not stack or stack[-1] != version:
        stack.append(version)
