"""What all peers hold and are asked: real texts as rows [x ; b], users with a past, and items that arrive later."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliotrope import TextEmbedding
from heliotrope_bench.errors import DatasetError
from heliotrope_bench.peers.heliotrope_server import OurData, row_of
from heliotrope_bench.peers.peer import NewItem
from heliotrope_bench.peers.readers import Readers
from heliotrope_bench.recall import SnapshotArrays
from heliotrope_bench.text_features import measured_features
from heliotrope_bench.titles import titles, titles_store

LONGEST_NEW_TEXT = 60
"""Characters of a text that arrives while the peers are measured."""


@dataclass(frozen=True)
class Catalogue:
    """Rows (n + m, D) of the n items of a snapshot and of the m `new_items` behind them; what users have seen."""

    ours: OurData
    version: str
    arrays: SnapshotArrays
    build_s: float | None
    """What the index of the snapshot took, on two threads; None where there are so few items that it has none."""
    rows: NDArray[np.float32]
    new_items: Sequence[NewItem]
    readers: Readers
    seen: dict[str, set[int]]

    @property
    def base(self) -> int:
        """n."""
        return len(self.arrays.item_ids)

    @classmethod
    def read(
        cls, work: Path, model: Path, *, items: int, dimension: int, new_items: int, users: int, events_per_user: int
    ) -> "Catalogue":
        """Makes the store in `work` on first use. Raises DatasetError when there are not so many texts."""
        store = titles_store(work, model, items, dimension)
        version = (store / "CURRENT").read_text(encoding="utf-8").strip()
        arrays = SnapshotArrays.read(store, version)
        texts = [text for text in titles(None)[items:] if len(text) <= LONGEST_NEW_TEXT][:new_items]
        if len(texts) < new_items:
            raise DatasetError(
                f"{new_items:,} items are to arrive, and only {len(texts):,} texts of up to {LONGEST_NEW_TEXT} "
                f"characters are left behind the first {items:,}"
            )
        rows = np.hstack([arrays.vectors, arrays.bias[:, None]])
        embeddings: list[TextEmbedding] = []
        if texts:
            mean, projection = (np.load(store / version / f"{name}.npy") for name in ("feature_mean", "projection"))
            found = measured_features(texts, model, work / "embeddings", mean=mean)
            arriving = found.rows @ projection.T
            rows = np.vstack([rows, np.hstack([arriving, np.zeros((len(texts), 1), np.float32)])])
            embeddings = [TextEmbedding(model_version=found.model_version, values=vector) for vector in found.pooled]
        readers = Readers(arrays.vectors, users)
        past = readers.past(events_per_user)
        seen: dict[str, set[int]] = {user_id: set() for user_id in readers.user_ids}
        for event in past:
            seen[event.user_id].add(row_of(event.item_id))
        return cls(
            OurData(store, past),
            version,
            arrays,
            arrays.quality.get("build_s"),
            np.ascontiguousarray(rows, np.float32),
            [
                NewItem(items + place, rows[items + place], text, embedding)
                for place, (text, embedding) in enumerate(zip(texts, embeddings, strict=True))
            ],
            readers,
            seen,
        )
