"""The record of live catalogue changes, shared by all shards of a host.

Shard 0 writes it; the others read it. State is what the log says: a shard that starts, or hears that the log has grown,
reads on from where it stopped.
"""

import logging
from array import array
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import xxhash
from numpy.typing import NDArray

from heliotrope_indexer.attributes import NO_ATTRIBUTES, Attributes
from heliotrope_indexer.catalogue_delta import AbsorbedDelta, CatalogueDelta
from heliotrope_indexer.snapshot import CatalogItem, Snapshot
from heliotrope_server.live_catalogue import DeltaItem, LiveCatalogue
from heliotrope_server.log_reader import LogReader

UPSERT = 1
DELETE = 2

logger = logging.getLogger(__name__)


class CatalogueChanges:
    """The net effect of the catalogue log: what to lay over a snapshot.

    A snapshot may have absorbed the log up to a change; then only later ones are laid over it. Which log that was is
    told by a running digest of its records.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reader = LogReader(folder)
        self.sequence = 0
        # Item id -> when it was first added, for items that nobody knew, in the order of time; deletion leaves it here,
        # so that adding an item again does not make it new.
        self.added_s: dict[str, float] = {}
        self._items: dict[str, DeltaItem] = {}
        self._deleted: set[str] = set()
        # Sequence number of the last change of each item that was ever changed.
        self._changed_at: dict[str, int] = {}
        # The digest of everything up to each change, in order; the last is that of `sequence`.
        self._digests = array("Q")
        self._digest = xxhash.xxh3_64()

    def catch_up(self, catalogue: LiveCatalogue | None = None) -> None:
        """Reads what is new in the log and, if given, applies it to a catalogue that is being served."""
        for frame in self._reader.frames(after_lsn=self.sequence):
            for offset, record in enumerate(frame.records):
                if frame.first_lsn + offset > self.sequence:
                    self.sequence = frame.first_lsn + offset
                    self._digest.update(msgpack.packb([self.sequence, record]))
                    self._digests.append(self._digest.intdigest())
                    self._take(record, catalogue)

    def lay_over(self, catalogue: LiveCatalogue) -> None:
        """Applies to a fresh catalogue what its snapshot has not absorbed: what was changed after its cut-off, or
        differs from what it holds.
        """
        absorbed = self.absorbed_by(catalogue.snapshot.manifest.data.absorbed)
        for item_id in self._deleted:
            if self._changed_at[item_id] > absorbed:
                catalogue.delete(item_id)
        for entry in self._not_absorbed(absorbed):
            row = catalogue.snapshot.row_of(entry.item.item_id)
            if row is None or catalogue.snapshot.item(row) != entry.item:
                catalogue.upsert(entry)

    def models(self, snapshot: Snapshot) -> set[str]:
        """Versions of the models whose vectors the items have that would be laid over a snapshot."""
        absorbed = self.absorbed_by(snapshot.manifest.data.absorbed)
        return {entry.model_version for entry in self._not_absorbed(absorbed)}

    def absorbed_by(self, absorbed: AbsorbedDelta | None) -> int:
        """Sequence number up to which a snapshot holds the changes of this very log; 0 when it is of another one."""
        if absorbed is None:
            return 0
        place = absorbed.until_lsn - self.sequence + len(self._digests) - 1
        if not 0 <= place < len(self._digests) or _hex(self._digests[place]) != absorbed.digest:
            logger.warning(
                "the snapshot has absorbed LSN %d of another catalogue log; this one, at %d, is laid over it whole",
                absorbed.until_lsn,
                self.sequence,
            )
            return 0
        return absorbed.until_lsn

    def delta(self) -> CatalogueDelta:
        """What a rebuild absorbs: everything up to now."""
        absorbed = None
        if self.sequence:
            absorbed = AbsorbedDelta(until_lsn=self.sequence, digest=_hex(self._digests[-1]))
        entries = self._items.values()
        pooled = {entry.item.item_id: (entry.model_version, entry.pooled) for entry in entries}
        return CatalogueDelta(tuple(entry.item for entry in entries), frozenset(self._deleted), absorbed, pooled)

    def live_items(self) -> list[DeltaItem]:
        """Items added or replaced since the start of the log, in order."""
        return list(self._items.values())

    def replace_pooled(self, pooled: dict[str, NDArray[np.float32]], model_version: str) -> None:
        """Takes encoder outputs of another model for the live items."""
        for item_id, vector in pooled.items():
            old = self._items[item_id]
            self._items[item_id] = replace(old, pooled=vector, residual=None, version="", model_version=model_version)

    def _not_absorbed(self, until: int) -> list[DeltaItem]:
        return [entry for item_id, entry in list(self._items.items()) if self._changed_at[item_id] > until]

    def _take(self, record: list[Any], catalogue: LiveCatalogue | None) -> None:
        self._changed_at[record[1]] = self.sequence
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


def _hex(digest: int) -> str:
    return f"{digest:016x}"


def _attributes(fields: list[Any] | None = None) -> Attributes:
    if fields is None:
        return NO_ATTRIBUTES
    *scalars, texts, numbers, flags = fields
    pairs = [tuple((key, value) for key, value in kind) for kind in (texts, numbers, flags)]
    return Attributes(*scalars, *pairs)
