"""A copy of a snapshot whose items carry two numbers to filter by: one has nothing to do with taste, one has."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.attributes import Attributes
from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.snapshot import Snapshot, SnapshotStore, write_snapshot

CHANCE, TASTE = "chance", "taste"
"""Keys of numbers spread over [0, 1): `taste <= share` keeps whole neighbourhoods, `chance <= share` any rows."""
_ANCHORS = 1_000
"""Neighbourhoods: each item belongs to the one of so many drawn items that it is nearest to."""
_BLOCK = 50_000


def attributed_store(source: Snapshot, store: Path) -> Path:
    """Made on first use; vectors, biases, settings and the index are those of the source."""
    if (store / "CURRENT").is_file():
        return store
    n, rng = len(source), np.random.default_rng(0)
    chance, taste = rng.random(n), _neighbourhoods(np.asarray(source.vectors), rng)
    items = [
        CatalogItem(item_id, item_id, attributes=Attributes.of({CHANCE: float(one), TASTE: float(other)}))
        for item_id, one, other in zip(source.item_ids.of(list(range(n))), chance, taste, strict=True)
    ]
    draft = store.parent / f".draft-{store.name}"
    write_snapshot(
        draft,
        items=items,
        vectors=source.vectors,
        bias=source.bias,
        projection=source.projection,
        feature_mean=source.feature_mean,
        prior=source.prior,
        scoring_matrices=source.scoring_matrices,
        parameters=source.parameters.model_copy(update={"young": None, "neighbours": None}),
        index=source.index(),
        quality=source.manifest.quality,
    )
    SnapshotStore(store).publish(draft)
    return store


def _neighbourhoods(vectors: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
    """A number in [0, 1) for each row (n,), the same for all rows that are nearest to the same anchor."""
    anchors = vectors[rng.choice(len(vectors), size=min(_ANCHORS, len(vectors)), replace=False)]
    half = (anchors**2).sum(axis=1) / 2.0
    numbers = rng.permutation(len(anchors)) / len(anchors)
    nearest = [
        np.argmax(vectors[start : start + _BLOCK] @ anchors.T - half, axis=1)
        for start in range(0, len(vectors), _BLOCK)
    ]
    found: NDArray[np.float64] = numbers[np.concatenate(nearest)]
    return found
