"""The record of live catalogue changes, shared by all shards of a host.

Shard 0 writes it; the others read it. State is what the log says: a shard that starts, or hears that the log has grown,
reads on from where it stopped.
"""

from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.attributes import NO_ATTRIBUTES, Attributes
from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server.live_catalogue import DeltaItem, LiveCatalogue
from heliotrope_server.record_log import read_log

UPSERT = 1
DELETE = 2


class CatalogueChanges:
    """The net effect of the catalogue log: what to lay over a snapshot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sequence = 0
        # Item id -> when it was first added, for items that nobody knew, in the order of time; deletion leaves it here,
        # so that adding an item again does not make it new.
        self.added_s: dict[str, float] = {}
        self._items: dict[str, DeltaItem] = {}
        self._deleted: set[str] = set()

    def catch_up(self, catalogue: LiveCatalogue | None = None) -> None:
        """Reads what is new in the log and, if given, applies it to a catalogue that is being served."""
        for frame in read_log(self.folder, after_lsn=self.sequence):
            for offset, record in enumerate(frame.records):
                if frame.first_lsn + offset > self.sequence:
                    self._take(record, catalogue)
                    self.sequence = frame.first_lsn + offset

    def lay_over(self, catalogue: LiveCatalogue) -> None:
        """Applies everything to a fresh catalogue. An item whose text the snapshot already holds is absorbed."""
        for item_id in self._deleted:
            catalogue.delete(item_id)
        for item_id, entry in self._items.items():
            row = catalogue.snapshot.row_of(item_id)
            if row is None or catalogue.snapshot.item(row) != entry.item:
                catalogue.upsert(entry)

    def live_items(self) -> list[DeltaItem]:
        """Items added or replaced since the start of the log, in order."""
        return list(self._items.values())

    def replace_pooled(self, pooled: dict[str, NDArray[np.float32]], model_version: str) -> None:
        """Takes encoder outputs of another model for the live items."""
        for item_id, vector in pooled.items():
            old = self._items[item_id]
            self._items[item_id] = replace(old, pooled=vector, residual=None, version="", model_version=model_version)

    def _take(self, record: list[Any], catalogue: LiveCatalogue | None) -> None:
        if record[0] == DELETE:
            self._items.pop(record[1], None)
            self._deleted.add(record[1])
            if catalogue is not None:
                catalogue.delete(record[1])
            return
        entry = decode_upsert(record)
        if entry.added_s:
            self.added_s.setdefault(entry.item.item_id, entry.added_s)
        self._deleted.discard(entry.item.item_id)
        self._items.pop(entry.item.item_id, None)
        self._items[entry.item.item_id] = entry
        if catalogue is not None:
            catalogue.upsert(entry)


def encode_upsert(entry: DeltaItem) -> list[Any]:
    item = entry.item
    # An item without attributes is written as by a server that knew none, which can still read it.
    attributes = [] if item.attributes == NO_ATTRIBUTES else [astuple(item.attributes)]
    return [
        UPSERT,
        item.item_id,
        item.title,
        item.description,
        list(item.categories),
        entry.pooled.tobytes(),
        None if entry.residual is None else entry.residual.astype(np.float32).tobytes(),
        entry.bias,
        entry.version,
        entry.model_version,
        item.provider,
        entry.added_s,
        *attributes,
    ]


def decode_upsert(record: list[Any]) -> DeltaItem:
    _, item_id, title, description, categories, pooled, residual, bias, version, model_version, *rest = record
    # Records of a server that knew no providers end here, those of items without attributes two fields later.
    provider, added_s, *attributes = rest or ("", 0.0)
    return DeltaItem(
        CatalogItem(item_id, title, description, tuple(categories), provider, _attributes(*attributes)),
        np.frombuffer(pooled, dtype=np.float32),
        None if residual is None else np.frombuffer(residual, dtype=np.float32),
        bias,
        version,
        model_version,
        added_s,
    )


def _attributes(fields: list[Any] | None = None) -> Attributes:
    if fields is None:
        return NO_ATTRIBUTES
    *scalars, texts, numbers, flags = fields
    pairs = [tuple((key, value) for key, value in kind) for kind in (texts, numbers, flags)]
    return Attributes(*scalars, *pairs)
