"""What the jobs read before they differ: catalogue, events, and the text features of the items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.catalogue import read_catalogue
from heliotrope_indexer.catalogue_delta import CatalogueDelta, items_hash
from heliotrope_indexer.embedding_cache import EmbeddingCache, Encoder
from heliotrope_indexer.errors import EmptyCatalogueError, SettingsError
from heliotrope_indexer.events import EventTable, read_events
from heliotrope_indexer.features import feature_mean, features
from heliotrope_indexer.manifest import file_sha256
from heliotrope_indexer.parameters import EVENT_TYPES
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.rejects import RejectLog
from heliotrope_indexer.snapshot import Snapshot
from heliotrope_indexer.source import Source

LIKED_TYPES = ("click", "purchase", "favorite", "share")
"""Event types that are positive whatever their value; a rating is from a number of stars on."""


@dataclass(frozen=True)
class JobSources:
    """Where the input of a job is."""

    catalogue: Source | Snapshot
    """A file, or a snapshot whose items are taken as they are."""
    events: tuple[Source, ...]
    cache: Path
    """Folder of the embedding cache."""
    positive_rating: float | None = None
    """Stars that count as liked; None: 4/5 of the highest rating."""
    delta: CatalogueDelta | None = None
    """Changes of a server to lay over the catalogue."""

    def check(self) -> None:
        """Raises SettingsError unless every file is there."""
        for source in self._files:
            if not source.path.is_file():
                raise SettingsError(f"there is no file {source.path}")

    def hash_with(self, encoder: Encoder, settings: Mapping[str, Any]) -> str:
        """SHA-256 of everything that decides what comes of the job."""
        self.check()
        content: dict[str, Any] = {
            "model": [encoder.model_version, encoder.variant],
            "sources": [[file_sha256(s.path), s.path.suffixes, dict(s.columns), s.delimiter] for s in self._files],
            "positive_rating": self.positive_rating,
            "settings": settings,
        }
        if isinstance(self.catalogue, Snapshot):
            # Of what comes of it, so that a snapshot that holds all changes is not built again.
            content["items"] = items_hash(self.changed(_snapshot_items(self.catalogue)))
        if self.delta is not None and self.delta.absorbed is not None:
            content["absorbed"] = self.delta.absorbed.model_dump()
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def read_catalogue(self, rejects: RejectLog) -> tuple[list[CatalogItem], int]:
        """All items with the changes laid over, and how many rows the catalogue has."""
        if isinstance(self.catalogue, Snapshot):
            return self.changed(_snapshot_items(self.catalogue)), len(self.catalogue)
        items = read_catalogue(self.catalogue, rejects)
        return self.changed(items), self.catalogue.rows_read

    def size(self) -> tuple[int, int, int]:
        """About how many items there will be, bytes of their texts, and how many events; reads the files once."""
        if isinstance(self.catalogue, Snapshot):
            items, length = len(self.catalogue), self.catalogue.items_table.nbytes
        else:
            items, length = self.catalogue.size()
        added = () if self.delta is None else self.delta.items
        texts = sum(len(item.text) for item in added)
        return items + len(added), length + texts, sum(source.size()[0] for source in self.events)

    def changed(self, items: list[CatalogItem]) -> list[CatalogItem]:
        """Items with the changes of the server. Raises EmptyCatalogueError when all are deleted."""
        if self.delta is None:
            return items
        laid = self.delta.laid_over(items)
        if not laid:
            raise EmptyCatalogueError(f"all {len(items)} items of the catalogue are deleted on the server")
        return laid

    @property
    def _files(self) -> list[Source]:
        return [*([self.catalogue] if isinstance(self.catalogue, Source) else []), *self.events]


@dataclass(frozen=True)
class JobInput:
    """What was read: n items, their text features, E events."""

    items: list[CatalogItem]
    catalogue_rows: int
    """Rows of the catalogue, rejected ones included."""
    events: EventTable
    pooled: NDArray[np.float32]
    """(n, D) as they come from the encoder."""
    feature_mean: NDArray[np.float32]
    """(D,)."""
    features: NDArray[np.float32]
    """(n, D)."""
    newly_embedded: int
    truncated: int
    rejects: dict[str, int]
    highest_rating: float
    positive: NDArray[np.bool_]
    """(E,) which events are positive: what a recommendation is to bring about."""

    @property
    def events_until_time(self) -> str | None:
        """Time of the newest event, ISO 8601 UTC."""
        if not len(self.events):
            return None
        return datetime.fromtimestamp(float(self.events.time[-1]), UTC).isoformat(timespec="seconds")


def read_input(sources: JobSources, rejected: Path, encoder: Encoder, steps: Steps) -> JobInput:
    """Reads and embeds everything; rows that cannot be used are written to `rejected`."""
    with RejectLog(rejected) as rejects:
        with steps.step("read the catalogue"):
            items, catalogue_rows = sources.read_catalogue(rejects)
        with steps.step("read the events"):
            rows = {item.item_id: row for row, item in enumerate(items)}
            events = read_events(sources.events, rows, rejects)
        counts = rejects.counts
    # What a server has of its live items, from its own encoder or from whoever sent them.
    known = {} if sources.delta is None else sources.delta.known_vectors(encoder.model_version)
    texts = [item.text for item in items if item.item_id not in known]
    with EmbeddingCache(sources.cache) as cache, steps.step("embed texts", len(texts)) as advance:
        pooled, newly, truncated = cache.embed(texts, encoder, progress=advance)
    if known:
        embedded = iter(pooled)
        pooled = np.stack([known[item.item_id] if item.item_id in known else next(embedded) for item in items])
    mean = feature_mean(pooled)
    highest = highest_rating(events)
    stars = sources.positive_rating if sources.positive_rating is not None else 0.8 * highest
    return JobInput(
        items=items,
        catalogue_rows=catalogue_rows,
        events=events,
        pooled=pooled,
        feature_mean=mean,
        features=features(pooled, mean),
        newly_embedded=newly,
        truncated=truncated,
        rejects=counts,
        highest_rating=highest,
        positive=positive_events(events, stars),
    )


def _snapshot_items(snapshot: Snapshot) -> list[CatalogItem]:
    return [snapshot.item(row) for row in range(len(snapshot))]


def positive_events(events: EventTable, positive_rating: float) -> NDArray[np.bool_]:
    """(E,) which events are positive."""
    liked = [EVENT_TYPES.index(name) for name in LIKED_TYPES]
    rated = events.kind == EVENT_TYPES.index("rating")
    positive: NDArray[np.bool_] = np.isin(events.kind, liked) | (rated & (events.value >= positive_rating))
    return positive


def highest_rating(events: EventTable) -> float:
    """The most stars that anybody gave; 5 without ratings."""
    ratings = events.value[events.kind == EVENT_TYPES.index("rating")]
    return float(ratings.max()) if len(ratings) and ratings.max() > 0 else 5.0
