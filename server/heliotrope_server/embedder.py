"""The text encoder, run in a thread of its own so that it never holds up the event loop."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from heliotrope_export import TextEncoder
from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server.errors import EncoderNotLoadedError


class Embedder:
    """Wraps the encoder of a server, which may have none: then what needs it raises EncoderNotLoadedError."""

    def __init__(self, encoder: TextEncoder | None) -> None:
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")

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
        return (await self._encode(texts))[0]

    async def embed_items(self, items: Sequence[CatalogItem]) -> tuple[NDArray[np.float32], list[str]]:
        """Pooled output for items, (n, D), and the ids of those whose text was longer than the model reads."""
        pooled, truncated = await self._encode([item.text for item in items])
        return pooled, [item.item_id for item, cut in zip(items, truncated, strict=True) if cut]

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        if self._encoder is None:
            raise EncoderNotLoadedError(
                "ENCODER_NOT_LOADED", "this needs the text encoder; start the server with --model"
            )
        encoding = await asyncio.get_running_loop().run_in_executor(self._thread, self._encoder.encode, list(texts))
        return encoding.vectors, encoding.truncated
