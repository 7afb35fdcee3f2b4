"""A text is embedded once, ever."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np
import pytest

from heliotrope_indexer.embedding_cache import EmbeddingCache
from heliotrope_indexer.errors import EmbeddingCacheError
from tests.indexer.conftest import Encoded, WordEncoder


def test_a_text_is_embedded_once_across_runs(tmp_path: Path, encoder: WordEncoder) -> None:
    texts = ["a red fox", "a blue fox", "a red fox", "ein Käse 🧀"]
    with EmbeddingCache(tmp_path) as cache:
        first, newly, _ = cache.embed(texts, encoder)
    assert newly == 3
    assert sorted(encoder.encoded) == sorted(set(texts))
    done: list[int] = []
    with EmbeddingCache(tmp_path) as cache:
        again, newly, _ = cache.embed([*texts, "new"], encoder, progress=done.append)
    assert newly == 1
    assert encoder.encoded[3:] == ["new"]
    assert sum(done) == 5
    np.testing.assert_array_equal(again[:4], first)
    np.testing.assert_array_equal(first, WordEncoder().encode(texts).vectors)


def test_another_model_or_variant_has_other_entries(tmp_path: Path, encoder: WordEncoder) -> None:
    other = WordEncoder()
    other.variant = "int8"
    with EmbeddingCache(tmp_path) as cache:
        cache.embed(["x"], encoder)
        assert cache.embed(["x"], other)[1] == 1


def test_what_was_done_before_a_crash_is_kept(tmp_path: Path) -> None:
    class Crashing(WordEncoder):
        def encode(self, texts: list[str]) -> Encoded:  # type: ignore[override]
            if self.encoded:
                raise RuntimeError("power cut")
            return super().encode(texts)

    texts = [f"text {number}" for number in range(1_200)]
    with EmbeddingCache(tmp_path) as cache:
        with pytest.raises(RuntimeError, match="power cut"):
            cache.embed(texts, Crashing())
        assert cache.embed(texts, WordEncoder())[1] == 1_200 - 512


def test_truncated_texts_are_counted_from_the_cache_too(tmp_path: Path, encoder: WordEncoder) -> None:
    with EmbeddingCache(tmp_path) as cache:
        assert cache.embed(["w " * 101, "short"], encoder)[2] == 1
        assert cache.embed(["w " * 101, "short"], encoder)[2] == 1


def test_a_damaged_cache_is_refused(tmp_path: Path, encoder: WordEncoder) -> None:
    with EmbeddingCache(tmp_path / "a") as cache:
        cache.embed(["x"], encoder)
    with lmdb.open(str(tmp_path / "a")) as store, store.begin(write=True) as transaction:
        for key, _ in transaction.cursor():
            transaction.put(key, b"short")
    with EmbeddingCache(tmp_path / "a") as cache, pytest.raises(EmbeddingCacheError, match="5 bytes; expected 65"):
        cache.embed(["x"], encoder)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "data.mdb").write_bytes(b"not a database" * 1_000)
    with pytest.raises(EmbeddingCacheError, match="cannot be opened"):
        EmbeddingCache(tmp_path / "b")
