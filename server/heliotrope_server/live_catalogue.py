"""The catalogue that is served: an immutable snapshot, the items added since, and the items removed since.

Rows number the items: those of the snapshot first, then the delta in the order of arrival. A row is never reused; an
item that is replaced leaves its old row dead and gets a new one.

An item is served with x_i plus its online residual, if it has one (see residuals); profiles keep x_i alone until the
next snapshot.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.neighbours import Neighbours
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.snapshot import CatalogItem, Snapshot
from heliotrope_server.event import KIND_NAMES
from heliotrope_server.interest import GainTable
from heliotrope_server.item_numbers import ids_from, item_id_of, known_number, numbered
from heliotrope_server.passage import Passage, fitted_map
from heliotrope_server.served_ids import ServedIds, ServedRows

logger = logging.getLogger(__name__)

MAX_RESIDUALS = 4096
"""Items that may be served with an online residual: each is scored for every question, as the delta is."""
MAP_ITEMS = 20_000
"""Items that a map between two snapshots is fitted on, drawn evenly: a million would take 1.5 GB for a moment."""
MAPPED = 4
"""Snapshots before this one whose vectors stay mapped: for users who were last touched under an older one, all of a
folded sum goes through the map. What is mapped takes room on the disk, also where it is pruned from the store."""
_FIRST_CAPACITY = 256


@dataclass(frozen=True)
class DeltaItem:
    """An item added or replaced while serving. `pooled` (D,) is the encoder's output for its text.

    `residual` (d,) is what the item had beyond the projection of its text before it was replaced, in the space of
    snapshot `version`; None for a new item. `added_s` is when the item was first added, if nobody knew it then; else 0.
    """

    item: CatalogItem
    pooled: NDArray[np.float32]
    residual: NDArray[np.float32] | None
    bias: float
    version: str
    model_version: str
    added_s: float = 0.0


class MovedRows(NamedTuple):
    """Rows that are served with an online residual: of the snapshot (k,), with their served vectors (k, d), and of the
    delta (m,).
    """

    base: NDArray[np.int64]
    base_vectors: NDArray[np.float32]
    delta: NDArray[np.int64]


class LiveCatalogue:
    """One snapshot with its delta and tombstones. Mutated only on the event loop of the shard.

    `generation` is new for every instance, so that caches can tell that rows have changed their meaning; `revision`
    grows with every change to the delta.
    """

    _generations = 0

    def __init__(self, snapshot: Snapshot) -> None:
        LiveCatalogue._generations += 1
        self.generation = LiveCatalogue._generations
        self.revision = 0
        # Grows when an item that a profile may know gets, loses or changes its row.
        self.moves = 0
        self.snapshot = snapshot
        self.version = snapshot.version
        self.parameters: Parameters = snapshot.parameters
        self.gains = GainTable(snapshot.parameters, KIND_NAMES)
        self.dimension = int(snapshot.vectors.shape[1])
        self.prior = np.asarray(snapshot.prior)
        self.base_count = len(snapshot.item_ids)
        # x_i (n, d) and b_i (n,) of the snapshot as plain arrays: slicing a numpy.memmap costs microseconds more.
        self.base_vectors: NDArray[np.float32] = snapshot.vectors.view(np.ndarray)
        self.base_bias = snapshot.bias.view(np.ndarray)
        table = snapshot.neighbours
        self.neighbours = table and Neighbours(table.rows.view(np.ndarray), table.strengths.view(np.ndarray))
        self.item_ids = ServedIds(snapshot.item_ids)
        self.rows = ServedRows(snapshot.item_ids)
        self.alive: NDArray[np.bool_] = np.ones(self.base_count + _FIRST_CAPACITY, dtype=np.bool_)
        self.alive[self.base_count :] = False
        self.alive_count = self.base_count
        self.delta: list[DeltaItem] = []
        self._delta_vectors = np.zeros((_FIRST_CAPACITY, self.dimension), dtype=np.float32)
        self._delta_served = np.zeros_like(self._delta_vectors)
        self._delta_bias = np.zeros(_FIRST_CAPACITY, dtype=np.float32)
        counts = snapshot.event_counts
        self._event_counts: NDArray[np.float32] | None = None if counts is None else counts.view(np.ndarray)
        self._residuals: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._moved: MovedRows | None = None
        self._passages: dict[str, Passage] = {}
        # Row in the snapshot by item number, -1 for an item that it does not hold; filled as far as `_numbered`.
        self._base_rows: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._numbered = 0

    @property
    def size(self) -> int:
        """Number of rows, dead ones included."""
        return len(self.item_ids)

    @property
    def delta_vectors(self) -> NDArray[np.float32]:
        """Item vectors of the delta as served, (m, d)."""
        return self._delta_served[: len(self.delta)]

    @property
    def delta_own_vectors(self) -> NDArray[np.float32]:
        """Item vectors of the delta without online residuals, (m, d)."""
        return self._delta_vectors[: len(self.delta)]

    @property
    def delta_bias(self) -> NDArray[np.float32]:
        """Biases of the delta, (m,)."""
        return self._delta_bias[: len(self.delta)]

    def row_of(self, item_id: str) -> int | None:
        """Row of a living item."""
        return self.rows.get(item_id)

    def item(self, row: int) -> CatalogItem:
        return self.snapshot.item(row) if row < self.base_count else self.delta[row - self.base_count].item

    def living_rows(self, start: int = 0) -> Iterator[int]:
        """Rows that can be recommended, from `start` on."""
        return (row for row in range(start, self.size) if self.alive[row])

    def vector(self, item_id: str) -> NDArray[np.float32] | None:
        """x_i, (d,), as profiles see it: frozen for this snapshot, and kept when the item is removed or replaced."""
        row = self.snapshot.row_of(item_id)
        if row is not None:
            return _row(self.base_vectors, row)
        row = self.rows.get(item_id)
        if row is None:
            return self._removed_vector(item_id)
        return self.row_vector(row)

    def vectors(self, numbers: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """x_i of items by their numbers (n,), as `vector`: (n, d), and for which there is one, (n,); else zeros."""
        if len(numbers) and int(numbers.max()) >= self._numbered:
            self.number_rows()
        rows = self._base_rows[numbers]
        vectors, known = self.base_vectors[rows], rows >= 0
        for place in np.flatnonzero(~known).tolist():
            vector = self.vector(item_id_of(int(numbers[place])))
            known[place] = vector is not None
            vectors[place] = 0.0 if vector is None else vector
        return vectors, known

    def rows_of(self, numbers: NDArray[np.int32]) -> NDArray[np.int64]:
        """Rows of the living items among some numbers (n,)."""
        if len(numbers) and int(numbers.max()) >= self._numbered:
            self.number_rows()
        rows = self._base_rows[numbers].astype(np.int64)
        living = rows >= 0
        living[living] = self.alive[rows[living]]
        others = [self.rows.get(item_id_of(number)) for number in numbers[~living].tolist()]
        return np.concatenate([rows[living], np.array([row for row in others if row is not None], dtype=np.int64)])

    def row_table(self) -> NDArray[np.int32]:
        """Rows in the snapshot by item number, -1 for none: for every number that was given until now."""
        self.number_rows()
        return self._base_rows

    def served_vector(self, row: int) -> NDArray[np.float32]:
        """x_i with its online residual, (d,): what scores are made of."""
        if row >= self.base_count:
            return _row(self._delta_served, row - self.base_count)
        residual = self._residuals.get(self.item_ids[row])
        return self.row_vector(row) if residual is None else self.row_vector(row) + residual

    def moved_rows(self) -> MovedRows:
        """The rows that are served with a residual; another object whenever one of their vectors has changed."""
        if self._moved is None:
            moved = [row for item_id in self._residuals if (row := self.rows.get(item_id)) is not None]
            rows = [row for row in moved if row < self.base_count]
            vectors = self.base_vectors[rows] if rows else np.empty((0, self.dimension), dtype=np.float32)
            for place, row in enumerate(rows):
                vectors[place] += self._residuals[self.item_ids[row]]
            delta = [row for row in moved if row >= self.base_count]
            self._moved = MovedRows(np.array(rows, dtype=np.int64), vectors, np.array(delta, dtype=np.int64))
        return self._moved

    def served_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Vectors (k, d) and biases (k,) of rows that no snapshot row with a residual is among."""
        beyond = rows >= self.base_count
        if not beyond.any():
            return self.base_vectors[rows], self.base_bias[rows]
        within, places = np.where(beyond, 0, rows), rows[beyond] - self.base_count
        vectors, bias = self.base_vectors[within], self.base_bias[within]
        vectors[beyond], bias[beyond] = self._delta_served[places], self._delta_bias[places]
        return vectors, bias

    def known_events(self, item_id: str) -> int:
        """How many events of an item the snapshot was built from; 0 for one that it does not hold."""
        row = self.snapshot.row_of(item_id)
        return 0 if row is None or self._event_counts is None else int(self._event_counts[row])

    def set_residual(self, item_id: str, residual: NDArray[np.float32] | None) -> None:
        """Serves an item with x_i + residual (d,) from the next tick on; None: with x_i again.

        Beyond MAX_RESIDUALS the item whose residual is the oldest goes back to x_i.
        """
        if residual is None:
            if self._residuals.pop(item_id, None) is None:
                return
        else:
            self._residuals[item_id] = residual
            self._residuals.move_to_end(item_id)
        self._serve(item_id)
        if len(self._residuals) > MAX_RESIDUALS:
            oldest, _ = self._residuals.popitem(last=False)
            self._serve(oldest)

    def _serve(self, item_id: str) -> None:
        self._moved = None
        row = self.rows.get(item_id)
        if row is None or row < self.base_count:
            return
        place, residual = row - self.base_count, self._residuals.get(item_id)
        self._delta_served[place] = self._delta_vectors[place] + (0.0 if residual is None else residual)

    def row_vector(self, row: int) -> NDArray[np.float32]:
        """x_i, (d,), as profiles see it."""
        if row < self.base_count:
            return _row(self.base_vectors, row)
        return _row(self._delta_vectors, row - self.base_count)

    def kept_residual(self, item_id: str) -> NDArray[np.float32] | None:
        """What a living item of the delta kept of the row of this snapshot that it replaced, (d,); else None."""
        row = self.rows.get(item_id)
        if row is None or row < self.base_count:
            return None
        entry = self.delta[row - self.base_count]
        return entry.residual if entry.version == self.version else None

    def bias(self, row: int) -> float:
        if row < self.base_count:
            return float(self.base_bias[row])
        return float(self._delta_bias[row - self.base_count])

    def project(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encoder output (n, D) to item space (n, d)."""
        return self.snapshot.project(pooled)

    def upsert(self, entry: DeltaItem, vector: NDArray[np.float32] | None = None) -> bool:
        """Adds or replaces an item; it is found by the next search. Returns whether it was new.

        `vector` (d,) is the projection of its text, where that was worked out for many at once.
        """
        old_row = self.rows.get(entry.item.item_id)
        if old_row is not None:
            self._bury(old_row)
        self._reserve(len(self.delta) + 1)
        if vector is None:
            vector = self.project(entry.pooled[None, :])[0]
        if entry.residual is not None and entry.version == self.version:
            vector = vector + entry.residual
        place = len(self.delta)
        self._delta_vectors[place] = vector
        self._delta_bias[place] = entry.bias
        self.delta.append(entry)
        row = len(self.item_ids)
        self.item_ids.append(entry.item.item_id)
        self.rows[entry.item.item_id] = row
        self._serve(entry.item.item_id)
        self._moved = None
        self.alive[row] = True
        self.alive_count += 1
        self.revision += 1
        # An id without a number stands in no profile: a new item costs those who ask nothing.
        self.moves += old_row is not None or known_number(entry.item.item_id) is not None
        return old_row is None

    def delete(self, item_id: str) -> bool:
        """Removes an item from all later answers. Returns whether it was there."""
        row = self.rows.pop(item_id)
        if row is None:
            return False
        self._bury(row)
        self._moved = None
        self.revision += 1
        self.moves += 1
        return True

    def nearest(self, query: NDArray[np.float32], count: int) -> list[tuple[int, float]]:
        """Living rows with the largest cosine to `query` (d,), best first, by exact search."""
        delta = self.delta_vectors
        vectors = [self.base_vectors, delta] if len(delta) else [self.base_vectors]
        similarities = np.concatenate(
            [
                (block @ query) / np.maximum(np.linalg.norm(block, axis=1) * np.linalg.norm(query), 1e-12)
                for block in vectors
            ]
        )
        similarities[~self.alive[: len(similarities)]] = -np.inf
        best = np.argsort(-similarities, kind="stable")[: min(count, self.alive_count)]
        return [(int(row), float(similarities[row])) for row in best]

    def folded_map(self, version: str) -> NDArray[np.float32] | None:
        """The (d_old, d) matrix that carries vectors from another snapshot's space to this one, or None."""
        passage = self.passage(version)
        return None if passage is None else passage.matrix

    def passage(self, version: str) -> Passage | None:
        """How folded sums move from another snapshot's space to this one, or None."""
        passage = self._passages.get(version)
        if passage is None:
            logger.error("no map from snapshot %s to %s: folded sums of a profile are lost", version, self.version)
        return passage

    def learn_map(self, old: Snapshot, pause: Callable[[], None] = lambda: None) -> float | None:
        """Fits the map from another snapshot by least squares over MAP_ITEMS of the shared items, or all if fewer.

        Returns the relative error of the map on those items, or None (no map) when fewer items are shared than would
        determine it.
        """
        shared: list[tuple[int, int]] = []
        for old_row in _spread(len(old.vectors)):
            new_row = self.snapshot.row_of(old.item_ids[old_row])
            if new_row is not None:
                shared.append((old_row, new_row))
                if len(shared) >= MAP_ITEMS:
                    break
            pause()
        old_rows, new_rows = np.array(shared, np.int64).reshape(-1, 2).T
        counts = np.zeros(len(shared)) if self._event_counts is None else self._event_counts[new_rows]
        fitted = fitted_map(old.vectors.view(np.ndarray)[old_rows], self.base_vectors[new_rows], counts)
        if fitted is None:
            return None
        matrix, error = fitted
        half_lives_s = old.parameters.half_lives_s, self.parameters.half_lives_s
        self._passages[old.version] = Passage(old, self.snapshot, matrix, *half_lives_s)
        return error

    def take_passage(self, version: str, passage: Passage) -> None:
        """Takes over how folded sums move from another snapshot's space."""
        self._passages[version] = passage

    def succeed(self, old: "LiveCatalogue", pause: Callable[[], None] = lambda: None) -> float | None:
        """Learns the maps from a catalogue that this one will replace, and from those that it had replaced.

        Returns the error of the direct map, as learn_map.
        """
        if old.version == self.version:
            self._passages.update(old._passages)
            return 0.0
        error = self.learn_map(old.snapshot, pause)
        if error is not None:
            # The names of versions begin with their time.
            for age, (version, passage) in enumerate(sorted(old._passages.items(), reverse=True), start=1):
                onward = passage.onward(self._passages[old.version])
                self._passages.setdefault(version, onward if age < MAPPED else replace(onward, old=None))
        return error

    def number_rows(self, pause: Callable[[], None] = lambda: None) -> None:
        """Looks up the items that were numbered since the last time; profiles read vectors by number."""
        if self._numbered == numbered():
            return
        row_of = self.snapshot.row_of
        fresh = ids_from(self._numbered)
        end = self._numbered + len(fresh)
        if end > len(self._base_rows):
            # To twice the size: new numbers come one by one while events stream in.
            grown = np.empty(2 * end, dtype=np.int32)
            grown[: self._numbered] = self._base_rows[: self._numbered]
            self._base_rows = grown
        for number, item_id in enumerate(fresh, self._numbered):
            row = row_of(item_id)
            self._base_rows[number] = -1 if row is None else row
            pause()
        self._numbered = end

    def _removed_vector(self, item_id: str) -> NDArray[np.float32] | None:
        for place in range(len(self.delta) - 1, -1, -1):
            if self.delta[place].item.item_id == item_id:
                return _row(self._delta_vectors, place)
        return None

    def _bury(self, row: int) -> None:
        self.alive[row] = False
        self.alive_count -= 1

    def _reserve(self, count: int) -> None:
        capacity = len(self._delta_bias)
        if count <= capacity:
            return
        # New arrays, never resized in place: a search that runs in a thread keeps the ones it was given.
        self._delta_vectors = np.concatenate([self._delta_vectors, np.zeros_like(self._delta_vectors)])
        self._delta_served = np.concatenate([self._delta_served, np.zeros_like(self._delta_served)])
        self._delta_bias = np.concatenate([self._delta_bias, np.zeros_like(self._delta_bias)])
        self.alive = np.concatenate([self.alive, np.zeros(capacity, dtype=np.bool_)])


def _spread(count: int) -> Iterator[int]:
    """0 to count - 1, each once, in golden-section steps: however few are taken, they are spread over all."""
    step = max(1, round(0.618034 * count))
    while math.gcd(step, count) != 1:
        step += 1
    return (place * step % count for place in range(count))


def _row(matrix: NDArray[np.float32], row: int) -> NDArray[np.float32]:
    vector: NDArray[np.float32] = matrix[row]
    return vector
