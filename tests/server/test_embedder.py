"""A text is encoded once, whether this server or a rebuild beside it saw it first."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from heliotrope_indexer.embedding_cache import EmbeddingCache
from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server import embedder as module
from heliotrope_server.embedder import Embedder
from heliotrope_server.errors import OverloadedError
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


class HeldEncoder(WordEncoder):
    """Encodes only while `free` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.busy = threading.Event(), threading.Event()

    def encode(self, texts):
        self.busy.set()
        assert self.free.wait(30.0)
        return super().encode(texts)


async def test_a_question_does_not_wait_for_a_catalogue() -> None:
    encoder = HeldEncoder()
    embedder = Embedder(encoder)
    catalogue = asyncio.create_task(embedder.embed([f"text {number}" for number in range(200)]))
    await asyncio.to_thread(encoder.busy.wait, 30.0)
    question = asyncio.create_task(embedder.embed(["a question"]))
    await asyncio.sleep(0)
    encoder.free.set()
    await question
    assert "text 0" in encoder.encoded and encoder.encoded.index("a question") < 100
    np.testing.assert_array_equal(await catalogue, WordEncoder().encode([f"text {n}" for n in range(200)]).vectors)
    embedder.close()


async def test_what_would_wait_too_long_is_refused_with_a_hint_and_admitted_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = HeldEncoder()
    embedder = Embedder(encoder)
    encoder.free.set()
    await embedder.embed(["how long a text takes is measured here"])
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    encoder.free.clear()
    # Alone it is admitted, however long it takes.
    first = asyncio.create_task(embedder.embed(["the first"]))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="with the 26 of this call") as refused:
        await embedder.embed(["the second"])
    assert refused.value.retry_after_s > 0.0
    encoder.free.set()
    await first
    await embedder.embed(["the second"])
    assert encoder.encoded[1:] == ["the first", "the second"]
    embedder.close()
