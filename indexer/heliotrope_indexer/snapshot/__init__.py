"""The snapshot artefact: its writer, its reader and the store that holds its versions."""

from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.snapshot.item_table import ItemColumns, item_table, joined_tables
from heliotrope_indexer.snapshot.reader import Snapshot
from heliotrope_indexer.snapshot.store import SnapshotStore
from heliotrope_indexer.snapshot.writer import write_snapshot

__all__ = [
    "CatalogItem",
    "ItemColumns",
    "Snapshot",
    "SnapshotStore",
    "item_table",
    "joined_tables",
    "write_snapshot",
]
