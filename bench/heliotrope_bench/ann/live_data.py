"""A catalogue of which some items are in the snapshot and the others come while it is served."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.snapshot_job import embedding_cache, export_model
from heliotrope_bench.synthetic_store import TextSpace, clustered_vectors, write_store
from heliotrope_bench.text_features import measured_features
from heliotrope_bench.titles import BIAS_SPREAD, principal_directions, titles
from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.features import feature_mean, features
from heliotrope_indexer.snapshot import Snapshot, SnapshotStore
from heliotrope_server.live_catalogue import DeltaItem

Data = Literal["alike", "other-kinds", "synthetic"]
SEED = 3


class LiveData(NamedTuple):
    """A snapshot, and what is added to it, in the order of arrival."""

    snapshot: Snapshot
    entries: list[DeltaItem]


def live_data(work: Path, data: Data, items: int, live: int, dimension: int, threads: int) -> LiveData:
    """A snapshot of `items`, and `live` more: real texts, drawn alike or in the order of their files, so that those to
    come are of kinds that the snapshot has not seen; or vectors around the same centres.

    What is embedded and built is kept in `work`.
    """
    name = f"{data}-{items}-of-{items + live}x{dimension}"
    if data == "synthetic":
        return _synthetic(work / "live" / name, items, live, dimension, threads)
    texts = titles(items + live) if data == "other-kinds" else _drawn(items + live)
    found = measured_features(texts, export_model(work), embedding_cache(work))
    pooled, model_version = found.pooled, found.model_version
    mean = feature_mean(pooled[:items])
    rows = features(pooled[:items], mean)
    projection = principal_directions(rows, dimension)
    store = work / "live" / name
    if not (store / "CURRENT").is_file():
        bias = np.random.default_rng(1).normal(scale=BIAS_SPREAD, size=items).astype(np.float32)
        space = TextSpace(projection, mean, model_version)
        write_store(store, texts[:items], rows @ projection.T, bias, threads=threads, text_space=space)
    snapshot = SnapshotStore(store).open()
    return LiveData(
        snapshot,
        [_entry(snapshot, place, text, pooled[place], None) for place, text in enumerate(texts[items:], items)],
    )


def _drawn(count: int) -> list[str]:
    texts = titles()
    return [texts[place] for place in np.random.default_rng(SEED).permutation(len(texts))[:count]]


def _synthetic(store: Path, items: int, live: int, dimension: int, threads: int) -> LiveData:
    vectors = clustered_vectors(items + live, dimension)
    if not (store / "CURRENT").is_file():
        bias = np.random.default_rng(1).normal(scale=0.2, size=items).astype(np.float32)
        write_store(store, [f"Item {row}" for row in range(items)], vectors[:items], bias, threads=threads)
    snapshot = SnapshotStore(store).open()
    # Texts that say nothing: what the items have beyond them is all.
    pooled = np.zeros(snapshot.projection.shape[1], dtype=np.float32)
    said = snapshot.project(pooled[None])[0]
    return LiveData(
        snapshot,
        [
            _entry(snapshot, place, f"Item {place}", pooled, vectors[place] - said)
            for place in range(items, items + live)
        ],
    )


def _entry(
    snapshot: Snapshot, place: int, title: str, pooled: NDArray[np.float32], residual: NDArray[np.float32] | None
) -> DeltaItem:
    """A new item, as UpsertItems makes it: its bias is 0."""
    item = CatalogItem(f"i{place}", title)
    return DeltaItem(item, pooled, residual, 0.0, snapshot.version, snapshot.manifest.model_version)
