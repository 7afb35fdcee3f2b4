"""Ids and rows of the catalogue that is served: those of the snapshot, and what changed since."""

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

from heliotrope_indexer.item_ids import ItemIds


class ServedIds(Sequence[str]):
    """Ids by row: the n of the snapshot, then those of the delta in the order of arrival, dead ones included."""

    def __init__(self, base: ItemIds) -> None:
        self._base = base
        self._base_count = len(base)
        self._delta: list[str] = []

    def append(self, item_id: str) -> None:
        self._delta.append(item_id)

    def __len__(self) -> int:
        return self._base_count + len(self._delta)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        return self._base[row] if row < self._base_count else self._delta[row - self._base_count]

    def of(self, rows: Sequence[int]) -> list[str]:
        """The ids of rows."""
        if not self._delta or max(rows, default=0) < self._base_count:
            return self._base.of(rows)
        return [self[row] for row in rows]


class ServedRows(Mapping[str, int]):
    """The row of each living item by its id."""

    def __init__(self, base: ItemIds) -> None:
        self._base = base
        # None: removed, or never there.
        self._changed: dict[str, int | None] = {}
        self._count = len(base)

    def get(self, item_id: str, default: int | None = None) -> int | None:  # type: ignore[override]
        row = self._changed[item_id] if item_id in self._changed else self._base.row_of(item_id)
        return default if row is None else row

    def __getitem__(self, item_id: str) -> int:
        row = self.get(item_id)
        if row is None:
            raise KeyError(item_id)
        return row

    def __contains__(self, item_id: object) -> bool:
        return isinstance(item_id, str) and self.get(item_id) is not None

    def __setitem__(self, item_id: str, row: int) -> None:
        self._count += self.get(item_id) is None
        self._changed[item_id] = row

    def pop(self, item_id: str) -> int | None:
        """Removes an id; returns its row, None where it had none."""
        row = self.get(item_id)
        if row is not None:
            self._changed[item_id] = None
            self._count -= 1
        return row

    def __iter__(self) -> Iterator[str]:
        yield from (item_id for item_id in self._base if item_id not in self._changed)
        yield from (item_id for item_id, row in self._changed.items() if row is not None)

    def __len__(self) -> int:
        return self._count
