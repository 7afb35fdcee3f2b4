"""The text encoder, run in a thread of its own so that it never holds up the event loop.

A text is encoded only if nobody has encoded it lately: neither this server, nor a rebuild beside it. Calls take turns,
a few texts at a time, so that a question does not wait for a catalogue; more than can be encoded soon is refused.
"""

import asyncio
import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliotrope_export import Encoding, TextEncoder
from heliotrope_indexer.embedding_cache import EmbeddingCache, KnownText
from heliotrope_indexer.errors import EmbeddingCacheError
from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server.errors import EncoderMemoryError, EncoderNotLoadedError, OverloadedError

logger = logging.getLogger(__name__)

RECENT_TEXTS = 4096
"""Texts whose vectors are kept: 6 MiB of 384 dimensions."""
PATIENCE_S = 5.0
"""Texts that would be embedded later than this are refused."""
NICENESS = 10
"""Of the encoder's thread, where threads have one: requests that need no encoder go first."""
_TURN = 32
"""Texts of one call that are encoded before another call has its turn."""
_OVERHEAD = 16
"""What a text costs beside its characters, in characters."""
_NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")
"""What ONNX Runtime, C++ and CUDA say of it."""


class Embedder:
    """Wraps the encoder of a server, which may have none: then what needs it raises EncoderNotLoadedError."""

    def __init__(self, encoder: TextEncoder | None, rebuilds: Path | None = None) -> None:
        """`rebuilds` is the embedding cache that rebuilds keep, if there is one; it is only read."""
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder", initializer=_stand_back)
        self._waiting = 0  # characters, those that are being encoded included
        self._s_per_character = 0.0
        self._recent: OrderedDict[str, KnownText] = OrderedDict()
        self._rebuilds = rebuilds
        self._cache: EmbeddingCache | None = None

    @property
    def model_version(self) -> str:
        """Empty without an encoder."""
        return "" if self._encoder is None else self._encoder.model_version

    @property
    def description(self) -> str:
        """Provider and variant, such as "CPUExecutionProvider int8"; empty without an encoder."""
        return "" if self._encoder is None else self._encoder.description

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Pooled encoder output, (n, D)."""
        return np.stack([known.vector for known in await self._known(texts)])

    async def embed_items(self, items: Sequence[CatalogItem]) -> tuple[NDArray[np.float32], list[str]]:
        """Pooled output for items, (n, D), and the ids of those whose text was longer than the model reads."""
        found = await self._known([item.text for item in items])
        truncated = [item.item_id for item, known in zip(items, found, strict=True) if known.truncated]
        return np.stack([known.vector for known in found]), truncated

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _known(self, texts: Sequence[str]) -> list[KnownText]:
        if self._encoder is None:
            raise EncoderNotLoadedError(
                "ENCODER_NOT_LOADED", "this needs the text encoder; start the server with --model"
            )
        with self._admitted(sum(map(len, texts)) + _OVERHEAD * len(texts)):
            loop, found = asyncio.get_running_loop(), list[KnownText]()
            for start in range(0, len(texts), _TURN):
                turn = texts[start : start + _TURN]
                found += await loop.run_in_executor(self._thread, self._timed, self._encoder, turn)
            return found

    @contextmanager
    def _admitted(self, characters: int) -> Iterator[None]:
        """Counts texts as waiting while the block runs. Raises OverloadedError when they would wait too long."""
        wait_s = (self._waiting + characters) * self._s_per_character
        if self._waiting and wait_s > PATIENCE_S:
            raise OverloadedError(
                f"the encoder is busy with {self._waiting} characters; with the {characters} of this call it would "
                f"take {wait_s:.1f} s, more than {PATIENCE_S} s",
                retry_after_s=wait_s - PATIENCE_S,
                value=round(wait_s, 3),
                limit=PATIENCE_S,
            )
        self._waiting += characters
        try:
            yield
        finally:
            self._waiting -= characters

    def _timed(self, encoder: TextEncoder, texts: Sequence[str]) -> list[KnownText]:
        start = time.monotonic()
        found = self._encode(encoder, texts)
        took = (time.monotonic() - start) / (sum(map(len, texts)) + _OVERHEAD * len(texts))
        self._s_per_character += 0.2 * (took - self._s_per_character) if self._s_per_character else took
        return found

    def _encode(self, encoder: TextEncoder, texts: Sequence[str]) -> list[KnownText]:
        """In the thread of the encoder, which alone uses what is kept."""
        found = {text: self._recent[text] for text in texts if text in self._recent}
        unknown = [text for text in dict.fromkeys(texts) if text not in found]
        if unknown:
            found |= self._of_rebuilds(encoder, unknown)
        unknown = [text for text in unknown if text not in found]
        if unknown:
            encoding = _encoded(encoder, unknown)
            rows = zip(encoding.vectors, encoding.truncated, strict=True)
            found |= zip(unknown, (KnownText(vector.copy(), bool(cut)) for vector, cut in rows), strict=True)
        self._recent |= found
        for text in found:
            self._recent.move_to_end(text)
        while len(self._recent) > RECENT_TEXTS:
            self._recent.popitem(last=False)
        return [found[text] for text in texts]

    def _of_rebuilds(self, encoder: TextEncoder, texts: list[str]) -> dict[str, KnownText]:
        """Those of the texts that a rebuild has embedded. A cache that cannot be read is told once and left alone."""
        try:
            if self._cache is None and self._rebuilds is not None and EmbeddingCache.exists(self._rebuilds):
                self._cache = EmbeddingCache(self._rebuilds, readonly=True)
            if self._cache is None:
                return {}
            found = zip(texts, self._cache.known(texts, encoder), strict=True)
            return {text: known for text, known in found if known is not None}
        except EmbeddingCacheError as error:
            logger.warning("every new text is encoded: %s", error)
            self._rebuilds = self._cache = None
            return {}


def _encoded(encoder: TextEncoder, texts: list[str]) -> Encoding:
    """Raises EncoderMemoryError where there is no memory for these texts: the next ones may need less, or find more."""
    try:
        return encoder.encode(texts)
    except Exception as error:
        # ONNX Runtime raises classes of its own that only their message tells apart.
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _NO_MEMORY):
            raise
        characters = sum(map(len, texts))
        logger.error("the encoder found no memory for %d texts of %d characters: %s", len(texts), characters, error)
        raise EncoderMemoryError(
            "ENCODER_OUT_OF_MEMORY",
            f"the encoder found no memory for {len(texts)} texts of {characters} characters; send fewer or shorter "
            "ones, or try again later",
            value=characters,
        ) from error


def _stand_back() -> None:
    # Linux has a niceness for each thread; elsewhere it would be that of the process.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
