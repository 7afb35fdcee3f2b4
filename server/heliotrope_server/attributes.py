"""What items carry, as columns by catalogue row, and which rows meet a condition.

Columns are made when a filter first asks for them: some 100 ms for the categories of a million items, once.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.attributes import PRICE
from heliotrope_indexer.snapshot import ItemColumns, item_table, joined_tables
from heliotrope_server.item_filter import Condition, LabelIn, NumberIn, ValueIn
from heliotrope_server.live_catalogue import LiveCatalogue

Made = TypeVar("Made")

_TABLED = 256
"""Items that are made a table in one step, of 2 ms, in which no other thread can go on."""


class AttributeTable:
    """Belongs to one LiveCatalogue and follows its delta.

    The snapshot is one block. The delta's blocks are merged as a binary counter carries, so that few upserts at a time
    leave few blocks, and no item is read more than log2 (delta) times.
    """

    def __init__(self, catalogue: LiveCatalogue) -> None:
        self._catalogue = catalogue
        self.base = Block(catalogue.snapshot.columns())
        self._delta: list[tuple[int, Block]] = []  # with the place of their first item, contiguous

    def follow(self, pause: Callable[[], None] = lambda: None) -> None:
        """Takes in what was added to the catalogue since the last call; calls `pause` between small steps."""
        delta = self._catalogue.delta
        known = sum(len(block) for _, block in self._delta)
        if known == len(delta):
            return
        start = known
        while self._delta and len(self._delta[-1][1]) <= len(delta) - start:
            start = self._delta.pop()[0]
        tables = []
        for first in range(start, len(delta), _TABLED):
            tables.append(item_table([entry.item for entry in delta[first : first + _TABLED]]))
            pause()
        self._delta.append((start, Block(ItemColumns(joined_tables(tables)))))

    def delta_meets(self, test: "Callable[[Block], NDArray[np.bool_]]", start: int) -> NDArray[np.bool_]:
        """A test of blocks for the items of the delta from place `start` on."""
        parts = [test(block)[max(start - first, 0) :] for first, block in self._delta if first + len(block) > start]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.bool_)

    def opening(self, at_s: float) -> float | None:
        """The last moment up to `at_s` at which an item's availability changed, -inf before the first; nothing changes
        between the two. None: every item is always available.
        """
        blocks = [self.base, *(block for _, block in self._delta)]
        bounds = [block.bounds for block in blocks if len(block.bounds)]
        if not bounds:
            return None
        places = [int(np.searchsorted(each, at_s, side="right")) for each in bounds]
        return max(float(each[place - 1]) if place else -np.inf for each, place in zip(bounds, places, strict=True))


class Block:
    """The columns of n items. Masks (n,) are new arrays; columns are kept."""

    def __init__(self, columns: ItemColumns) -> None:
        self._columns = columns
        self._made: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._columns)

    @property
    def bounds(self) -> NDArray[np.float64]:
        """The moments at which the availability of an item changes, ascending."""
        return self._kept("bounds", self._find_bounds)

    def available(self, at_s: float) -> NDArray[np.bool_]:
        """Which items are available at a time."""
        # Comparisons with NaN are false: what has no bound is within it.
        early = self._scalar("available_from") > at_s
        early |= self._scalar("available_until") <= at_s
        return ~early

    def meets(self, conditions: Sequence[Condition]) -> NDArray[np.bool_]:
        """Which items meet all conditions."""
        met = np.ones(len(self), dtype=np.bool_)
        for condition in conditions:
            met &= self._meets(condition)
        return met

    def _meets(self, condition: Condition) -> NDArray[np.bool_]:
        if isinstance(condition, NumberIn):
            if condition.attribute == PRICE:
                price = self._scalar("price")
                return (price >= condition.least) & (price <= condition.most)
            numbers = self._numbers(condition.attribute)
            within = (numbers.values >= condition.least) & (numbers.values <= condition.most)
            return self._mask([numbers.rows[within]], negated=False)
        if isinstance(condition, LabelIn):
            labels = self._kept(condition.kind, lambda: self._labels(condition.kind))
            return self._mask([labels.rows_of(condition.names)], condition.negated)
        return self._mask(self._holders(condition), condition.negated)

    def _holders(self, condition: ValueIn) -> list[NDArray[np.int32]]:
        """The rows that have one of the values, by type."""
        holders = []
        if condition.texts:
            holders.append(self._texts(condition.key).rows_of(condition.texts))
        if condition.numbers:
            numbers = self._numbers(condition.key)
            holders.append(numbers.rows[np.isin(numbers.values, condition.numbers)])
        if condition.flags:
            flags = self._flags(condition.key)
            holders.append(flags.rows[np.isin(flags.values, condition.flags)])
        return holders

    def _mask(self, holders: Sequence[NDArray[np.int32]], negated: bool) -> NDArray[np.bool_]:
        mask = np.full(len(self), negated)
        for rows in holders:
            mask[rows] = not negated
        return mask

    def _scalar(self, name: str) -> NDArray[np.float64]:
        return self._kept(name, lambda: self._columns.scalar(name))

    def _labels(self, kind: str) -> "_Labels":
        labels = self._columns.categories() if kind == "category" else self._columns.providers()
        return _Labels({name: code for code, name in enumerate(labels.names)}, labels.rows, labels.codes)

    def _texts(self, key: str) -> "_Labels":
        return self._of_key("text_attributes", key, lambda entries: _coded(entries.rows, entries.values), _NO_LABELS)

    def _numbers(self, key: str) -> "_Values":
        return self._of_key("number_attributes", key, lambda entries: _Values(*entries), _NO_VALUES)

    def _flags(self, key: str) -> "_Values":
        return self._of_key("flag_attributes", key, lambda entries: _Values(*entries), _NO_VALUES)

    def _of_key(self, kind: str, key: str, make: Callable[[Any], Made], nothing: Made) -> Made:
        """The column of a key; what is kept is bounded by the keys that there are, not by those that are asked for."""
        if key not in self._kept(kind, lambda: self._columns.keys(kind)):
            return nothing
        return self._kept((kind, key), lambda: make(self._columns.entries(kind, key)))

    def _find_bounds(self) -> NDArray[np.float64]:
        bounds = np.concatenate([self._scalar("available_from"), self._scalar("available_until")])
        found: NDArray[np.float64] = np.unique(bounds[~np.isnan(bounds)])
        return found

    def _kept(self, name: Hashable, make: Callable[[], Made]) -> Made:
        if name not in self._made:
            self._made[name] = make()
        made: Made = self._made[name]
        return made


class _Labels(NamedTuple):
    """Names by code, and for every entry its row and code, both (e,)."""

    codes_of: dict[str, int]
    rows: NDArray[np.int32]
    codes: NDArray[np.int32]

    def rows_of(self, names: Sequence[str]) -> NDArray[np.int32]:
        """The rows that have one of the names; one may stand twice."""
        wanted = np.zeros(len(self.codes_of), dtype=np.bool_)
        wanted[[self.codes_of[name] for name in names if name in self.codes_of]] = True
        return self.rows[wanted[self.codes]]


class _Values(NamedTuple):
    """Rows (e,) and their values (e,)."""

    rows: NDArray[np.int32]
    values: NDArray[Any]


_NO_LABELS = _Labels({}, np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32))
_NO_VALUES = _Values(np.empty(0, dtype=np.int32), np.empty(0))


def _coded(rows: NDArray[np.int32], texts: NDArray[Any]) -> _Labels:
    codes_of: dict[str, int] = {}
    codes = np.fromiter((codes_of.setdefault(text, len(codes_of)) for text in texts), np.int32, len(texts))
    return _Labels(codes_of, rows, codes)
