"""What a build is judged by: measured on what would be published, beside what is current."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.ann_index import MeasuredIndex, recall, served_queries
from heliotrope_indexer.events import EventTable
from heliotrope_indexer.neighbours import Neighbours
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.replay import Quality, Replay, hold_out
from heliotrope_indexer.snapshot import Snapshot
from heliotrope_indexer.snapshot_diff import VectorDrift, drift_between

REPLAY_CELLS = 10_000_000
"""Users times items that one replay may score at once: 40 MB a part."""
MIN_REPLAY_USERS = 50
"""However large the catalogue is."""
_FRESH_SEED = 1
"""The index was tuned on the queries of seed 0."""


@dataclass(frozen=True)
class Served:
    """Everything that scores come from, for n items and d dimensions: a draft's, or a snapshot's."""

    item_ids: Sequence[str]
    vectors: NDArray[np.float32]
    bias: NDArray[np.float32]
    prior: NDArray[np.float32]
    scoring_matrices: NDArray[np.float32]
    parameters: Parameters
    neighbours: Neighbours | None
    weights: str | None
    """Version of the trained weights."""


@dataclass(frozen=True)
class Compared:
    """A draft beside the current snapshot; pairs are (before, now), None where not both were measured."""

    version: str
    items: tuple[int, int]
    items_gone: int
    """Items of the current snapshot that the draft lacks."""
    events: tuple[int, int]
    held_out: tuple[Quality, Quality] | None
    """What each build measured with vectors that had not seen the held-out events."""
    replay: tuple[Quality, Quality] | None
    """Both as they would be served, on the same newest positive events of the same users. The draft has learned from
    these events, so this finds what is broken, not what is a little worse.
    """
    drift: VectorDrift | None


@dataclass(frozen=True)
class Figures:
    """All of it; `compared` is None where nothing was current."""

    recall_at_10: float
    recall_at_100: float
    compared: Compared | None


def fresh_recall(index: MeasuredIndex | None, draft: Served, counts: NDArray[np.float64]) -> tuple[float, float]:
    """recall@10 and @100 on queries that the index was not tuned on; 1 without an index, which means exact search."""
    if index is None:
        return 1.0, 1.0
    queries = served_queries(
        draft.vectors, draft.scoring_matrices, draft.prior, draft.parameters.kappas, weights=counts, seed=_FRESH_SEED
    )
    return recall(index.index, draft.vectors, draft.bias, queries, index.search)


def served_by(snapshot: Snapshot) -> Served:
    """What a snapshot serves."""
    return Served(
        snapshot.item_ids,
        snapshot.vectors.view(np.ndarray),
        snapshot.bias.view(np.ndarray),
        snapshot.prior.view(np.ndarray),
        snapshot.scoring_matrices.view(np.ndarray),
        snapshot.parameters,
        snapshot.neighbours,
        snapshot.manifest.data.weights,
    )


def compare(
    draft: Served,
    current: Snapshot,
    events: EventTable,
    event_rows: int,
    validation: dict[str, Any] | None,
    *,
    positive_rating: float,
    seed: int,
    replay_cells: int = REPLAY_CELLS,
) -> Compared:
    """Measures a draft beside the current snapshot; `events` are in rows of the draft."""
    before = served_by(current)
    old_rows = np.array(
        [-1 if (row := current.row_of(item_id)) is None else row for item_id in draft.item_ids], dtype=np.int64
    )
    shared = np.flatnonzero(old_rows >= 0)
    drift = drift_between(
        before.vectors[old_rows[shared]],
        draft.vectors[shared],
        aligned=draft.weights is None or draft.weights != before.weights,
    )
    return Compared(
        version=current.version,
        items=(len(current), len(draft.item_ids)),
        items_gone=len(current) - len(shared),
        events=(current.manifest.data.event_rows, event_rows),
        held_out=_both(_quality(current.manifest.quality.get("validation")), _quality(validation)),
        replay=_replayed(draft, before, old_rows, events, positive_rating, seed, replay_cells),
        drift=drift,
    )


def _replayed(
    draft: Served,
    before: Served,
    old_rows: NDArray[np.int64],
    events: EventTable,
    positive_rating: float,
    seed: int,
    replay_cells: int,
) -> tuple[Quality, Quality] | None:
    """Both on the events of the items that both have; None without a user to ask."""
    events = events.select(old_rows[events.row] >= 0)
    remaining, targets = hold_out(events, positive_rating)
    if not len(targets):
        return None
    targets = some_targets(targets, max(len(draft.item_ids), len(before.item_ids)), replay_cells, seed)
    return (
        _replay(before, replace(remaining, row=old_rows[remaining.row]), replace(targets, row=old_rows[targets.row])),
        _replay(draft, remaining, targets),
    )


def _replay(served: Served, remaining: EventTable, targets: EventTable) -> Quality:
    replay = Replay(remaining, targets, len(served.item_ids))
    scores = replay.scores(
        served.vectors, served.bias, served.prior, served.scoring_matrices, served.parameters, served.neighbours
    )
    return replay.quality(scores)


def some_targets(targets: EventTable, n: int, cells: int, seed: int) -> EventTable:
    """As many targets as can be scored on n items within `cells` scores, drawn at random."""
    users = max(cells // n, MIN_REPLAY_USERS)
    if len(targets) <= users:
        return targets
    return targets.select(np.sort(np.random.default_rng(seed).permutation(len(targets))[:users]))


def _both(before: Quality | None, now: Quality | None) -> tuple[Quality, Quality] | None:
    return None if before is None or now is None else (before, now)


def _quality(validation: dict[str, Any] | None) -> Quality | None:
    if not validation:
        return None
    return Quality(int(validation["users"]), float(validation["hr@10"]), float(validation["ndcg@10"]))
