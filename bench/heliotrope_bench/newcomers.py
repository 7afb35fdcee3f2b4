"""Items that come while a server runs: real texts with the vectors that an encoder made of them before."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliotrope import Item, TextEmbedding, make_item
from heliotrope_bench.text_features import embedded

LOT = "lot"
"""Attribute of every newcomer: the number of the call that brought it, as text."""


@dataclass(frozen=True)
class Newcomers:
    """m items n0, n1, ... in the order in which they come: their texts, and pooled vectors (m, D) of a model."""

    texts: Sequence[str]
    pooled: NDArray[np.float32]
    model_version: str

    @classmethod
    def embedded(cls, texts: Sequence[str], model: Path, cache: Path) -> "Newcomers":
        """Embeds what the cache does not know. Raises BenchError when the model or the cache can't be read."""
        return cls(texts, *embedded(texts, model, cache))

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def item_ids(self) -> list[str]:
        return [f"n{place}" for place in range(len(self))]

    def lot(self, number: int, start: int, count: int) -> list[Item]:
        """The next `count` items from place `start` on, marked as of this lot."""
        items = []
        for place in range(start, min(start + count, len(self))):
            embedding = TextEmbedding(model_version=self.model_version, values=self.pooled[place].tolist())
            marked = {LOT: str(number)}
            items.append(make_item(f"n{place}", self.texts[place], attributes=marked, text_embedding=embedding))
        return items
