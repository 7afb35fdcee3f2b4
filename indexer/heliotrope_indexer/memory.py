"""How much memory a build needs, estimated before it starts, and how it stays within a limit.

The figures per row are upper ends of what was measured. With 15,000 to 60,000 items of 256 or 384 features the estimate
lay 1.4 to 1.5 times above the peak; with 4,000 items and a real encoder 2.2 times, most of it room for a replay that
so few items do not fill. What can be cut is that replay of held-out events, which then asks fewer users.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from heliotrope_indexer.errors import MemoryLimitError
from heliotrope_indexer.gate_figures import MIN_REPLAY_USERS, REPLAY_CELLS

_ITEM_BYTES = 600
"""Of an item beside its text: Python objects, ids, hashes."""
_TEXT_COPIES = 3
"""As a line, as a field, in the Arrow table."""
_EVENT_BYTES = 550
"""Of an event while it is read."""
_FEATURE_COPIES = 3
"""Pooled, features, and features on the mean of the weights."""
_VECTOR_COPIES = 6
_INDEX_COPIES = 4
_CELL_BYTES = 44
"""Eleven float32 tables of users by items."""
_YOUNG_BYTES = 200_000_000
_ENCODER_BYTES = 150_000_000
"""Of one batch inside the encoder."""


@dataclass(frozen=True)
class BuildSize:
    """What decides the memory of a build."""

    items: int
    catalogue_bytes: int
    events: int
    feature_dimension: int
    """D."""
    dimension: int
    """d."""
    indexed: bool


@dataclass(frozen=True)
class MemoryPlan:
    """An estimate in bytes by part, and the replay that it allows for."""

    parts: dict[str, int]
    replay_cells: int
    """Users times items."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in self.parts.items())
        return f"about {_gigabytes(self.total)} ({parts})"


def plan_memory(size: BuildSize, limit: int | None) -> MemoryPlan:
    """What a build will need, with as much replay as the limit leaves room for.

    Raises MemoryLimitError, naming estimate and limit, when even the least does not fit.
    """
    plans = [_plan(size, REPLAY_CELLS // cut) for cut in ((1, 2, 4, 8) if size.events else (1,))]
    fitting = [plan for plan in plans if limit is None or plan.total <= limit]
    if fitting:
        return fitting[0]
    raise MemoryLimitError(
        f"this build needs {plans[-1]}; --max-memory is {_gigabytes(limit or 0)}: raise it, or lower --dimension"
    )


def check_memory(limit: int | None, done: str) -> None:
    """Raises MemoryLimitError when this process holds more than the limit after a step of the build."""
    held = held_bytes()
    if limit is not None and held > limit:
        raise MemoryLimitError(
            f"after {done!r} the build holds {_gigabytes(held)}, --max-memory is {_gigabytes(limit)}: stopped, nothing "
            "is published; what was embedded is kept"
        )


def held_bytes() -> int:
    """Resident memory of this process; where /proc is missing, its peak."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _plan(size: BuildSize, cells: int) -> MemoryPlan:
    n = size.items
    vectors = 4 * n * size.dimension
    parts = {
        "process and model": held_bytes() + _ENCODER_BYTES,
        "catalogue": _ITEM_BYTES * n + _TEXT_COPIES * size.catalogue_bytes,
        "events": _EVENT_BYTES * size.events,
        "text features": _FEATURE_COPIES * 4 * n * size.feature_dimension,
        "item vectors": _VECTOR_COPIES * vectors,
        "replay or index": max(
            max(_CELL_BYTES * max(cells, MIN_REPLAY_USERS * n), _YOUNG_BYTES) if size.events else 0,
            _INDEX_COPIES * vectors if size.indexed else 0,
        ),
    }
    return MemoryPlan(parts, cells)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
