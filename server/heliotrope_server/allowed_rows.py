"""Which catalogue rows a filter admits, kept from request to request.

The same few filters come again and again, so what they admit is kept: for the snapshot, whose rows never change, as
bits; for the delta as a mask that grows with it. A change to the catalogue costs a kept filter what changed.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.attributes import AttributeTable, Block
from heliotrope_server.item_filter import Condition, ItemFilter
from heliotrope_server.live_catalogue import LiveCatalogue

LISTED = 20_000
"""Rows up to which they are kept one by one, for exact scoring."""
KEPT = 256
"""Filters that are kept: at most 125 KB of bits and 160 KB of rows each with a million items."""


class BaseRows:
    """Rows of the snapshot, from a mask (n,): `bits` as FAISS wants them, the `count`, and the `rows` if few."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.size = len(mask)
        self.bits = np.packbits(mask, bitorder="little")
        self.count = int(np.count_nonzero(mask))
        self.rows: NDArray[np.int64] | None = np.flatnonzero(mask) if self.count <= LISTED else None

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(n,), made anew."""
        mask: NDArray[np.bool_] = np.unpackbits(self.bits, count=self.size, bitorder="little").view(np.bool_)
        return mask


class AllowedRows(NamedTuple):
    """Rows that a question may be answered with: of the snapshot, and of the delta as a mask (m,)."""

    base: BaseRows
    delta: NDArray[np.bool_]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """All of them, by row (n + m,)."""
        return np.concatenate([self.base.mask, self.delta])

    def contains(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some rows (k,) are among them."""
        base = rows < self.base.size
        inside = np.where(base, rows, 0)
        bits = self.base.bits[inside >> 3] >> (inside & 7).astype(np.uint8) & 1
        found: NDArray[np.bool_] = bits.astype(np.bool_)
        if len(self.delta):
            found = np.where(base, found, self.delta[np.where(base, 0, rows - self.base.size)])
        return found


class RowFilters:
    """The rows of one LiveCatalogue by filter and time. Belongs to the event loop of its shard."""

    def __init__(self, catalogue: LiveCatalogue) -> None:
        self._catalogue = catalogue
        self._table = AttributeTable(catalogue)
        self._kept: OrderedDict[_Key, AllowedRows] = OrderedDict()

    def allowed(self, asked: ItemFilter | None, at_s: float) -> AllowedRows | None:
        """What a question at a time may be answered with; None: with every row."""
        conditions = () if asked is None else asked.conditions
        unavailable = asked is not None and asked.include_unavailable
        self._table.follow()
        opening = None if unavailable else self._table.opening(at_s)
        if not conditions and opening is None:
            return None
        found = self._of(conditions, opening)
        whole = found.base.count == found.base.size and bool(found.delta.all())
        return None if whole else found

    def asked(self) -> list[tuple[Condition, ...]]:
        """The conditions of the filters that were asked for lately, of each once."""
        return list(dict.fromkeys(conditions for conditions, _ in self._kept))

    def ask_again(self, asked: Iterable[tuple[Condition, ...]], at_s: float, pause: Callable[[], None]) -> None:
        """Makes what questions without a filter, and with those of another catalogue, will need at a time."""
        self._table.follow(pause)
        opening = self._table.opening(at_s)
        for conditions in asked:
            if conditions or opening is not None:
                self._of(conditions, opening)
            pause()

    def _of(self, conditions: tuple[Condition, ...], opening: float | None) -> AllowedRows:
        """`opening` None: available or not."""
        key = (conditions, opening)
        kept = self._kept.get(key)
        grown = len(self._catalogue.delta)
        if kept is None:
            kept = AllowedRows(self._base(conditions, opening), np.empty(0, dtype=np.bool_))
            self._kept[key] = kept
        else:
            self._kept.move_to_end(key)
        if len(kept.delta) < grown:

            def test(block: Block) -> NDArray[np.bool_]:
                return _meets(block, conditions, opening)

            delta = np.concatenate([kept.delta, self._table.delta_meets(test, len(kept.delta))])
            kept = self._kept[key] = AllowedRows(kept.base, delta)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return kept

    def _base(self, conditions: tuple[Condition, ...], opening: float | None) -> BaseRows:
        if conditions and opening is not None:
            # Both halves serve other questions too: other times, and other filters.
            return BaseRows(self._of(conditions, None).base.mask & self._of((), opening).base.mask)
        return BaseRows(_meets(self._table.base, conditions, opening))


_Key = tuple[tuple[Condition, ...], float | None]


def _meets(block: Block, conditions: tuple[Condition, ...], opening: float | None) -> NDArray[np.bool_]:
    met = block.meets(conditions)
    if opening is not None:
        met &= block.available(opening)
    return met
