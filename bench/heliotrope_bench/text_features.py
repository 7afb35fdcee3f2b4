"""The text features of a catalogue, as the rebuild job computes and caches them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.dataset import Dataset
from heliotrope_bench.errors import BenchError
from heliotrope_export import ExportError, TextEncoder
from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.embedding_cache import EmbeddingCache
from heliotrope_indexer.errors import IndexerError
from heliotrope_indexer.features import feature_mean, features


class TextFeatures(NamedTuple):
    """Features (n, D) of texts and the outputs (n, D) of the model that they come from, the mean (D,) that they are
    centred on, and the version of the model.
    """

    rows: NDArray[np.float32]
    pooled: NDArray[np.float32]
    mean: NDArray[np.float32]
    model_version: str


def text_features(data: Dataset, model: Path, cache: Path) -> NDArray[np.float32]:
    """(items, D) features of unit length, centred on the catalogue; texts that the cache knows are not embedded again.

    Raises BenchError when the model or the cache can't be read.
    """
    texts = [CatalogItem(item.item_id, item.title, categories=item.categories).text for item in data.items]
    return features_of(texts, model, cache)


def features_of(texts: Sequence[str], model: Path, cache: Path) -> NDArray[np.float32]:
    """The same for any texts, centred on their own mean: (texts, D)."""
    return measured_features(texts, model, cache).rows


def measured_features(
    texts: Sequence[str], model: Path, cache: Path, *, mean: NDArray[np.float32] | None = None
) -> TextFeatures:
    """The same with all that is needed to give other texts theirs; `mean` (D,): that of other texts, not their own."""
    pooled, model_version = embedded(texts, model, cache)
    centre = feature_mean(pooled) if mean is None else mean
    return TextFeatures(features(pooled, centre), pooled, centre, model_version)


def embedded(texts: Sequence[str], model: Path, cache: Path) -> tuple[NDArray[np.float32], str]:
    """What the model makes of texts (n, D), not normalised, and its version; what the cache knows is not embedded.

    Raises BenchError when the model or the cache can't be read.
    """
    try:
        encoder = TextEncoder.open(model, threads=2)
        with EmbeddingCache(cache) as store:
            pooled, _, _ = store.embed(texts, encoder)
    except (ExportError, IndexerError) as error:
        raise BenchError(str(error)) from error
    return pooled, encoder.model_version
