"""A text is encoded once, whether this server or a rebuild beside it saw it first."""

from pathlib import Path

import numpy as np
import pytest

from heliotrope_indexer.embedding_cache import EmbeddingCache
from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server import embedder as module
from heliotrope_server.embedder import Embedder
from tests.indexer.conftest import WordEncoder


async def test_a_text_is_encoded_once_while_it_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECENT_TEXTS", 3)
    encoder = WordEncoder()
    embedder = Embedder(encoder)
    first = await embedder.embed(["a fox", "a hen", "a fox"])
    assert encoder.encoded == ["a fox", "a hen"]
    np.testing.assert_array_equal(first, WordEncoder().encode(["a fox", "a hen", "a fox"]).vectors)
    assert not np.shares_memory(first[0], first[2])
    await embedder.embed(["a cow", "a hen", "a dog"])
    assert encoder.encoded[2:] == ["a cow", "a dog"]
    # The least recently wanted had to go.
    await embedder.embed(["a hen", "a fox"])
    assert encoder.encoded[4:] == ["a fox"]
    embedder.close()


async def test_what_a_rebuild_embedded_is_known(tmp_path: Path) -> None:
    cache, long = tmp_path / "embeddings", "w " * 101
    encoder = WordEncoder()
    embedder = Embedder(encoder, cache)
    await embedder.embed(["before"])  # there is no cache yet
    with EmbeddingCache(cache) as kept:
        expected, _, _ = kept.embed(["t of a rebuild", long], WordEncoder())
    pooled, truncated = await embedder.embed_items(
        [CatalogItem("r", "t of a rebuild"), CatalogItem("l", long), CatalogItem("n", "new")]
    )
    assert encoder.encoded == ["before", "new"]
    np.testing.assert_array_equal(pooled[:2], expected)
    assert truncated == ["l"]
    embedder.close()


async def test_a_cache_that_cannot_be_read_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data.mdb").write_bytes(b"not a store" * 1000)
    encoder = WordEncoder()
    embedder = Embedder(encoder, tmp_path)
    for text in ("one", "two"):
        np.testing.assert_array_equal(await embedder.embed([text]), WordEncoder().encode([text]).vectors)
    assert encoder.encoded == ["one", "two"]
    assert [record.levelname for record in caplog.records] == ["WARNING"] and str(tmp_path) in caplog.text
    embedder.close()
