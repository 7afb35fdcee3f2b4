"""Content-addressed cache of text embeddings: an unchanged text is embedded once, ever.

The key hashes model version, variant and text, so nothing in it can be stale. Vectors are committed batch
by batch while the encoder works: a killed job resumes where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import lmdb
import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.errors import EmbeddingCacheError

_MAP_SIZE = 1 << 38
"""An upper bound on the file, not an allocation: 256 GiB are 170 million texts of 384 dimensions."""
_BATCH = 512


class Encoded(Protocol):
    """What an encoder returns: vectors (n, D), not normalised, and which texts were cut."""

    @property
    def vectors(self) -> NDArray[np.float32]: ...
    @property
    def truncated(self) -> NDArray[np.bool_]: ...


class Encoder(Protocol):
    """The part of `heliotrope_export.TextEncoder` that the cache needs."""

    @property
    def dimension(self) -> int: ...
    @property
    def model_version(self) -> str: ...
    @property
    def variant(self) -> str: ...
    def encode(self, texts: Sequence[str]) -> Encoded: ...


class KnownText(NamedTuple):
    """What an encoder made of a text: a vector (D,), not normalised, and whether the end of the text was cut off."""

    vector: NDArray[np.float32]
    truncated: bool


class EmbeddingCache:
    """An LMDB file of pooled float32 vectors; several jobs and servers may use it at the same time."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        """Opens the cache folder, or creates it. Raises EmbeddingCacheError when that fails."""
        self.path = path
        try:
            if not readonly:
                path.mkdir(parents=True, exist_ok=True)
            self._store = lmdb.open(str(path), map_size=_MAP_SIZE, readahead=False, readonly=readonly)
            # A reader that was killed would keep pages from being used again.
            self._store.reader_check()
        except (lmdb.Error, OSError) as error:
            raise EmbeddingCacheError(f"the embedding cache {path} cannot be opened: {error}") from error

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether a job has made a cache there."""
        return (path / "data.mdb").exists()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()

    def embed(
        self, texts: Sequence[str], encoder: Encoder, *, progress: Callable[[int], None] | None = None
    ) -> tuple[NDArray[np.float32], int, int]:
        """Pooled vectors (n, D) of all texts, how many texts were newly encoded and how many are cut short.

        `progress` is told how many further texts are done. Raises EmbeddingCacheError for a damaged entry.
        """
        width = encoder.dimension
        keys = [_key(encoder.model_version, encoder.variant, text) for text in texts]
        vectors = np.empty((len(texts), width), dtype=np.float32)
        cut = np.zeros(len(texts), dtype=np.bool_)
        rows: dict[bytes, list[int]] = {}
        for row, (key, known) in enumerate(zip(keys, self._look_up(keys, width), strict=True)):
            if known is None:
                rows.setdefault(key, []).append(row)
            else:
                vectors[row], cut[row] = known
        missing = list(rows)
        if progress and len(texts) > len(missing):
            progress(len(texts) - sum(map(len, rows.values())))
        # Neighbours in length share a batch, so that little padding is computed.
        missing.sort(key=lambda key: len(texts[rows[key][0]]))
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            encoded = encoder.encode([texts[rows[key][0]] for key in batch])
            with self._store.begin(write=True) as transaction:
                for at, key in enumerate(batch):
                    vector = np.ascontiguousarray(encoded.vectors[at], dtype=np.float32)
                    transaction.put(key, bytes([bool(encoded.truncated[at])]) + vector.tobytes())
                    vectors[rows[key]] = vector
                    cut[rows[key]] = encoded.truncated[at]
            if progress:
                progress(sum(len(rows[key]) for key in batch))
        return vectors, len(missing), int(cut.sum())

    def known(self, texts: Sequence[str], encoder: Encoder) -> list[KnownText | None]:
        """What is kept of each text, None for one that was never embedded. Raises EmbeddingCacheError."""
        return list(
            self._look_up([_key(encoder.model_version, encoder.variant, text) for text in texts], encoder.dimension)
        )

    def _look_up(self, keys: Sequence[bytes], width: int) -> Iterator[KnownText | None]:
        try:
            with self._store.begin(buffers=True) as transaction:
                for key in keys:
                    value = transaction.get(key)
                    yield None if value is None else self._decoded(value, width)
        except lmdb.Error as error:
            raise EmbeddingCacheError(f"the embedding cache {self.path} cannot be read: {error}") from error

    def _decoded(self, value: memoryview, width: int) -> KnownText:
        if len(value) != 1 + 4 * width:
            raise EmbeddingCacheError(
                f"an entry of {self.path} has {len(value)} bytes; expected {1 + 4 * width}: remove the folder"
            )
        return KnownText(np.frombuffer(bytes(value[1:]), dtype=np.float32), bool(value[0]))


def _key(model_version: str, variant: str, text: str) -> bytes:
    return hashlib.sha256("\0".join((model_version, variant, text)).encode("utf-8", "surrogatepass")).digest()
