"""What the tests of the rebuild job share: a small deterministic encoder, a made-up shop, and where real data is."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from heliotrope_indexer.build import BuildRequest
from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.events import EventTable
from heliotrope_indexer.job_input import JobSources
from heliotrope_indexer.parameters import EVENT_TYPES, Parameters
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_indexer.source import Source

DATA = Path(os.environ.get("HELIOTROPE_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


@dataclass(frozen=True)
class Encoded:
    vectors: NDArray[np.float32]
    truncated: NDArray[np.bool_]


class WordEncoder:
    """Sums one fixed random vector per word: texts that share words are alike, as with a real encoder."""

    dimension = 16
    model_version = "words-1"
    variant = "fp32"

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, texts: Sequence[str]) -> Encoded:
        self.encoded.extend(texts)
        vectors = np.stack([sum((self._word(word) for word in text.lower().split()), np.zeros(16)) for text in texts])
        return Encoded(vectors.astype(np.float32), np.array([len(text.split()) > 100 for text in texts]))

    def _word(self, word: str) -> NDArray[np.float64]:
        return np.random.default_rng(zlib.crc32(word.encode("utf-8", "surrogatepass"))).normal(size=16)


@pytest.fixture
def encoder() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def steps() -> Steps:
    return Steps(quiet=True)


@pytest.fixture
def parameters() -> Parameters:
    return Parameters(half_lives_s=(3_600.0, 30 * 86_400.0), kappas=(1.0, 2.0))


def real(name: str) -> Path:
    """A real data file; where it is missing the test skips, except in CI."""
    path = DATA / name
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{path} must be there in CI")
        pytest.skip(f"no real data at {path} (set HELIOTROPE_DATA)")
    return path


def some_items(count: int) -> list[CatalogItem]:
    return [
        CatalogItem(
            f"i{row}", f"thing {row} of kind {row % 5}", "", (f"kind{row % 5}",), f"shop{row % 3}" if row % 3 else ""
        )
        for row in range(count)
    ]


def some_events(*, users: int = 40, items: int = 30, count: int = 600, seed: int = 0) -> EventTable:
    """Events of users who each prefer one kind of item; times include ties."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, count)
    row = rng.integers(0, items // 5, count) * 5 + np.where(
        rng.random(count) < 0.7, user % 5, rng.integers(0, 5, count)
    )
    kinds = [EVENT_TYPES.index(name) for name in ("rating", "click", "dislike")]
    kind = rng.choice(kinds, count, p=[0.8, 0.15, 0.05])
    value = np.where(kind == EVENT_TYPES.index("rating"), rng.integers(1, 6, count), 1.0)
    time = np.sort(1.5e9 + rng.integers(0, 5_000, count) * 600.0)
    return EventTable(
        user.astype(np.int64), row.astype(np.int64), kind.astype(np.int8), value, time, [f"u{n}" for n in range(users)]
    )


@pytest.fixture
def shop(tmp_path: Path) -> Callable[..., BuildRequest]:
    """Writes a small catalogue and events and returns a function that makes build requests on them."""
    events = some_events()
    catalogue, log = tmp_path / "items.csv", tmp_path / "events.csv"
    lines = [f"{item.item_id},{item.title},{'|'.join(item.categories)}" for item in some_items(30)]
    catalogue.write_text("id,title,genres\n" + "\n".join(lines) + "\n", encoding="utf-8")
    rows = [
        f"u{user},i{row},{EVENT_TYPES[kind]},{value},{time}"
        for user, row, kind, value, time in zip(
            events.user, events.row, events.kind, events.value, events.time, strict=True
        )
    ]
    log.write_text("user_id,item_id,type,value,timestamp\n" + "\n".join(rows) + "\n", encoding="utf-8")

    def request(**changes: object) -> BuildRequest:
        # What names a source goes there, the rest into the request itself.
        where: dict[str, object] = {
            "catalogue": Source(catalogue),
            "events": (Source(log),),
            "cache": tmp_path / "store" / "embeddings",
        }
        where |= {name: changes.pop(name) for name in (*where, "positive_rating") if name in changes}
        settings: dict[str, object] = {
            "sources": JobSources(**where),  # type: ignore[arg-type]
            "store": SnapshotStore(tmp_path / "store"),
            "scratch": tmp_path / "store" / ".building",
            "collaborative_dimension": 8,
            "text_dimension": 4,
            "threads": 1,
        }
        return BuildRequest(**{**settings, **changes})  # type: ignore[arg-type]

    return request
