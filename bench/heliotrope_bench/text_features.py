"""The text features of a catalogue, as the rebuild job computes and caches them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.dataset import Dataset
from heliotrope_bench.errors import BenchError
from heliotrope_export import ExportError, TextEncoder
from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.embedding_cache import EmbeddingCache
from heliotrope_indexer.errors import IndexerError
from heliotrope_indexer.features import feature_mean, features


def text_features(data: Dataset, model: Path, cache: Path) -> NDArray[np.float32]:
    """(items, D) features of unit length, centred on the catalogue; texts that the cache knows are not embedded again.

    Raises BenchError when the model or the cache can't be read.
    """
    texts = [CatalogItem(item.item_id, item.title, categories=item.categories).text for item in data.items]
    return features_of(texts, model, cache)


def features_of(texts: Sequence[str], model: Path, cache: Path) -> NDArray[np.float32]:
    """The same for any texts, centred on their own mean: (texts, D)."""
    try:
        with EmbeddingCache(cache) as store:
            pooled, _, _ = store.embed(texts, TextEncoder.open(model, threads=2))
    except (ExportError, IndexerError) as error:
        raise BenchError(str(error)) from error
    return features(pooled, feature_mean(pooled))
