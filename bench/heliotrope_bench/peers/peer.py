"""What a peer is: an engine that stores rows [x ; b] and finds those with the largest inner product to [v ; 1]."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope import TextEmbedding

COUNT = 10
"""Items in an answer."""
LINKS, BUILD_WIDTH = 16, 100
"""M and ef_construction of every HNSW graph: Qdrant's and Chroma's defaults, above pgvector's."""
WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Search widths that are tried, narrowest first."""


@dataclass(frozen=True)
class Question:
    """What a user asks: `vector` (D,) is [v ; 1]; no row of `seen` may be in the answer."""

    user_id: str
    vector: NDArray[np.float32]
    seen: tuple[int, ...]


@dataclass(frozen=True)
class Search:
    """How a peer is asked. `filtered`: it leaves out what the user has seen; else so many more are fetched, and the
    client leaves them out."""

    width: int
    filtered: bool

    def limit(self, question: Question) -> int:
        """How many rows to ask for."""
        return COUNT if self.filtered else COUNT + len(question.seen)

    def __str__(self) -> str:
        return f"width {self.width}, {'its own filter' if self.filtered else 'over-fetch'}"


class Found(NamedTuple):
    """An answer: rows and their scores, best first."""

    rows: list[int]
    scores: list[float]


@dataclass(frozen=True)
class NewItem:
    """An item that arrives while the peers are measured: its row [x ; b] (D,), the text that x is of, and what the text
    encoder made of it, from which Heliotrope works out x. All are given a vector; nobody embeds.
    """

    row: int
    vector: NDArray[np.float32]
    text: str
    embedding: TextEmbedding | None = None


@dataclass(frozen=True)
class Site:
    """Where an engine is started: a folder of its own, the cores of its server (None: any), and how many callers ask at
    the same time."""

    folder: Path
    server_cpus: tuple[int, ...] | None
    callers: int


class Peer(ABC):
    """One engine, empty when made. Its methods are called in the process that holds it, on cores it was pinned to.

    `search` and `upsert` are coroutines where the engine is a server or has an asyncio API; else they block, and are
    called from threads (`threaded`).
    """

    name: ClassVar[str]
    kind: ClassVar[Literal["server", "in process"]]
    packages: ClassVar[tuple[str, ...]]
    """Modules that must be importable; `pip install 'heliotrope[peers]'` brings them."""
    filters: ClassVar[bool] = True
    """Whether it can leave out rows by itself."""
    widths: ClassVar[tuple[int, ...]] = WIDTHS
    threaded: ClassVar[bool] = False
    description: ClassVar[str]
    """Its index and how it is reached."""

    @abstractmethod
    def load(self, vectors: NDArray[np.float32], site: Site) -> Awaitable[None] | None:
        """Starts the engine, stores vectors (n, D) under their row numbers and builds the index."""

    def use(self, search: Search) -> Awaitable[None] | None:
        """Makes what can't be said with each request hold for all that follow."""
        return None

    @abstractmethod
    def prepare(self, question: Question, search: Search) -> Any:
        """What `search` takes: the request, as far as it can be made before the clock starts."""

    @abstractmethod
    def search(self, prepared: Any) -> Found | Awaitable[Found]:
        """The best COUNT rows that the user has not seen."""

    @abstractmethod
    def upsert(self, items: Sequence[NewItem]) -> Awaitable[None] | None:
        """Returns when the items can be found."""

    def record(self, user_id: str, row: int, event_id: str) -> Awaitable[None] | None:
        """An event: the client would work out the user's new vector. That is not counted, and nothing is stored."""
        return None

    def server_pid(self) -> int | None:
        """The process of a server; None when the engine runs in this one."""
        return None

    def close(self) -> Awaitable[None] | None:
        """Stops what `load` started; called once, also when `load` has failed half-way."""
        return None


def unseen(rows: Sequence[int], scores: Sequence[float], seen: frozenset[int]) -> Found:
    """The best COUNT of an answer that may hold what the user has seen."""
    kept = [(row, score) for row, score in zip(rows, scores, strict=True) if row not in seen][:COUNT]
    return Found([row for row, _ in kept], [score for _, score in kept])
