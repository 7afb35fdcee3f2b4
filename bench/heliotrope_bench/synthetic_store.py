"""Snapshots of any size for benchmarks of the machinery, where what the items are about does not matter."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.ann_index import EXACT_UP_TO, build_index, served_queries
from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.snapshot import SnapshotStore, write_snapshot

HALF_LIVES_S = (300.0, 30 * 86_400.0)
SPREAD = 0.7
"""Standard deviation of items around the centre of their kind, whose own is 1."""
_BLOCK = 50_000


class TextSpace(NamedTuple):
    """How a text becomes an item vector: projection (d, D) and feature mean (D,), for pooled output of a model."""

    projection: NDArray[np.float32]
    feature_mean: NDArray[np.float32]
    model_version: str


def synthetic_store(folder: Path, items: int, dimension: int, *, threads: int = 2) -> Path:
    """A store with one seeded snapshot of so many items, made on first use.

    Vectors gather around as many centres as the root of the number of items.
    """
    store = folder / f"{items}x{dimension}"
    if (store / "CURRENT").is_file():
        return store
    vectors = clustered_vectors(items, dimension)
    bias = np.random.default_rng(1).normal(scale=0.2, size=items).astype(np.float32)
    return write_store(store, [f"Item {row}" for row in range(items)], vectors, bias, threads=threads)


def write_store(
    store: Path,
    titles: Sequence[str],
    vectors: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    threads: int = 2,
    text_space: TextSpace | None = None,
) -> Path:
    """A store with one snapshot of items i0, i1, ... with these titles, vectors (n, d) and biases (n,).

    Plain scoring matrices and parameters; an index where `build` makes one, measured as it does. Without a `text_space`
    a server of it takes no new texts.
    """
    items, dimension = vectors.shape
    matrices = np.repeat(np.eye(dimension, dtype=np.float32)[None], len(HALF_LIVES_S), axis=0)
    prior = np.zeros(dimension, np.float32)
    parameters = Parameters(half_lives_s=HALF_LIVES_S, kappas=(1.0, 1.0), live_popularity_weight=0.1)
    index, quality = None, dict[str, Any]()
    if items > EXACT_UP_TO:
        queries = served_queries(vectors, matrices, prior, parameters.kappas)
        started = time.perf_counter()
        measured = build_index(vectors, bias, queries, threads=threads)
        quality = {**measured.summary(), "build_s": time.perf_counter() - started}
        index = measured.index
        parameters = parameters.model_copy(update={"search": measured.search})
    draft = store.parent / f".draft-{store.name}"
    write_snapshot(
        draft,
        items=[CatalogItem(f"i{row}", title) for row, title in enumerate(titles)],
        vectors=vectors,
        bias=bias,
        prior=prior,
        scoring_matrices=matrices,
        parameters=parameters,
        index=index,
        quality=quality,
        projection=text_space and text_space.projection,
        feature_mean=text_space and text_space.feature_mean,
        model_version=text_space.model_version if text_space else "none",
    )
    SnapshotStore(store).publish(draft)
    return store


def clustered_vectors(items: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """(items, dimension), mean squared length about 1."""
    generator = np.random.default_rng(seed)
    scale = 1.0 / np.sqrt(dimension * (1.0 + SPREAD**2))
    centres = generator.normal(size=(max(int(np.sqrt(items)), 1), dimension)).astype(np.float32)
    vectors = np.empty((items, dimension), np.float32)
    for begin in range(0, items, _BLOCK):
        block = vectors[begin : begin + _BLOCK]
        block[:] = centres[generator.integers(len(centres), size=len(block))]
        block += np.float32(SPREAD) * generator.standard_normal(block.shape, dtype=np.float32)
    vectors *= np.float32(scale)
    return vectors
