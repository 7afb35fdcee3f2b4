"""Small synthetic worlds for the tests of the server: real snapshots and real engines, seeded."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.ann_index import train_index
from heliotrope_indexer.attributes import NO_ATTRIBUTES, Attributes, AttributeValue
from heliotrope_indexer.index_rows import head_rows, index_rows
from heliotrope_indexer.neighbours import Neighbours
from heliotrope_indexer.parameters import LogOddsCurve, Neighbourhood, Parameters, SearchParameters, YoungItems
from heliotrope_indexer.snapshot import CatalogItem, SnapshotStore, write_snapshot
from heliotrope_server.embedder import Embedder
from heliotrope_server.engine import Engine
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.record_log import RecordLog
from heliotrope_server.retriever import Retriever, make_retriever
from heliotrope_server.settings import EngineSettings
from heliotrope_server.version_token import VersionClock

DAY_S = 86_400.0
NEIGHBOUR_ITEMS = 12
"""Newest liked items that speak for their neighbours, in a world that has them."""
YOUNG = YoungItems(below_events=3, step=0.8, shrinkage=2.0, max_query=2.0, max_norm=1.5)


def publish(
    store: Path,
    *,
    items: int = 200,
    dimension: int = 16,
    seed: int = 0,
    with_index: bool = False,
    head: int = 0,
    intercept: float = -1.5,
    live_popularity_weight: float = 0.3,
    first_item: int = 0,
    half_lives_s: tuple[float, ...] = (3600.0, 30 * DAY_S),
    vector_scale: float = 1.0,
    labelled: bool = False,
    attributed: bool = False,
    young: YoungItems | None = None,
    neighbour_weight: float = 0.0,
    probability: LogOddsCurve | None = None,
) -> str:
    """Publishes a seeded snapshot with two horizons and full scoring matrices; returns its version.

    With a `neighbour_weight` every item but each third names 5 others.

    With `labelled` item r has the categories c(r % 7) and even or odd, and the provider p(r % 5), p0 meaning none; with
    `attributed` it has those and `attributes_of`.
    """
    rng = np.random.default_rng(seed)
    vectors = rng.normal(scale=vector_scale, size=(items, dimension)).astype(np.float32)
    bias = rng.normal(scale=0.2, size=items).astype(np.float32)
    horizons = len(half_lives_s)
    index, search = None, None
    if with_index:
        rows = index_rows(vectors, bias)
        index = train_index(rows, bias, 16, rows.shape[1], head_rows(bias, head))
        search = SearchParameters(nprobe=12, candidates=64, head=head)
    parameters = Parameters(
        half_lives_s=half_lives_s,
        kappas=tuple(0.5 + horizon for horizon in range(horizons)),
        live_popularity_weight=live_popularity_weight,
        popularity_half_life_s=3 * DAY_S,
        intercept=intercept,
        probability=probability,
        search=search,
        young=young,
        neighbours=Neighbourhood(items=NEIGHBOUR_ITEMS, weight=neighbour_weight) if neighbour_weight else None,
    )
    folder = store.parent / f".draft-{seed}-{items}-{dimension}"
    write_snapshot(
        folder,
        items=[item(first_item + row, labelled=labelled, attributed=attributed) for row in range(items)],
        vectors=vectors,
        bias=bias,
        prior=rng.normal(scale=0.3, size=dimension),
        scoring_matrices=rng.normal(scale=0.4, size=(horizons, dimension, dimension)) + np.eye(dimension),
        # Every second item is unknown to the snapshot.
        event_counts=np.arange(items) % 2 * 100.0,
        query_mean=rng.normal(scale=0.1, size=dimension),
        neighbours=_neighbours(items, seed) if neighbour_weight else None,
        parameters=parameters,
        index=index,
    )
    return SnapshotStore(store).publish(folder)


def _neighbours(items: int, seed: int) -> Neighbours:
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.choice(items, 5, replace=False) for _ in range(items)]).astype(np.int32)
    strengths = rng.exponential(size=rows.shape).astype(np.float32)
    rows[::3], strengths[::3] = -1, 0.0
    return Neighbours(rows, strengths)


def item(number: int, *, labelled: bool = False, attributed: bool = False) -> CatalogItem:
    if not labelled and not attributed:
        return CatalogItem(f"i{number}", f"title {number}")
    categories = (f"c{number % 7}", "odd" if number % 2 else "even")
    provider = f"p{number % 5}" if number % 5 else ""
    attributes = attributes_of(number) if attributed else NO_ATTRIBUTES
    return CatalogItem(f"i{number}", f"title {number}", "", categories, provider, attributes)


def attributes_of(number: int) -> Attributes:
    """Every third item has no price; one in eleven is available from 2001 on, one in thirteen before it."""
    values: dict[str, AttributeValue] = {"year": 1900 + number % 120}
    if number % 4:
        values["studio"] = f"s{number % 6}"
    if number % 10 == 0:
        values["adult"] = number % 20 == 0
    return Attributes.of(
        values,
        price=number / 10 if number % 3 else None,
        available_from_s=1e9 if number % 11 == 0 else None,
        available_until_s=1e9 if number % 13 == 0 and number % 11 else None,
    )


def catalogue(folder: Path, **settings: Any) -> LiveCatalogue:
    """The catalogue of a freshly published snapshot below `folder`."""
    publish(folder / "store", **settings)
    return LiveCatalogue(SnapshotStore(folder / "store").open())


@asynccontextmanager
async def engine(
    folder: Path,
    served: LiveCatalogue,
    *,
    wall_clock: Callable[[], float] = time.time,
    log_factory: Callable[[Path], RecordLog] = RecordLog,
    make_retriever: Callable[[LiveCatalogue], Retriever] = make_retriever,
    crash: bool = False,
    **settings: Any,
) -> AsyncIterator[Engine]:
    """A started engine on `folder`; with `crash` it is dropped as a kill would drop it, without a last checkpoint."""
    settings.setdefault("checkpoint_interval_s", 3600.0)
    subject = Engine(
        folder / "shard",
        folder / "catalogue",
        served,
        Embedder(None),
        VersionClock("g-test", 0, {}),
        EngineSettings(**settings),
        wall_clock=wall_clock,
        log_factory=log_factory,
        make_retriever=make_retriever,
    )
    await subject.start()
    try:
        yield subject
    finally:
        if crash:
            subject._checkpointer.cancel()
            await asyncio.sleep(0)
            subject.store.close()
            subject._log.close()
        else:
            await subject.stop()


def random_events(
    rng: np.random.Generator, count: int, *, users: int = 5, items: int = 200, now_s: float = 1.7e9, days: float = 6.0
) -> list[UserEvent]:
    """Events of all kinds but undo, at distinct ids and random times."""
    kinds = rng.integers(EventKind.VIEW, EventKind.HIDE + 1, size=count)
    return [
        UserEvent(
            f"u{rng.integers(users)}",
            f"e{number}",
            int(kind),
            f"i{rng.integers(items)}",
            float(rng.integers(0, 11)) / 2 if kind == EventKind.RATING else float(rng.integers(1, 4)),
            round((now_s - rng.uniform(0, days * DAY_S)) * 1e6),
        )
        for number, kind in enumerate(kinds)
    ]


def naive_interest_vectors(events: Sequence[UserEvent], space: LiveCatalogue, time_s: float) -> NDArray[np.float64]:
    """v_h(t) straight from the definition, for a user without undone events: the oracle of the incremental sums."""
    parameters = space.parameters
    unique = {event.event_id: event for event in events}
    read_s = max([time_s, *(event.time_s for event in unique.values())])
    vectors = []
    for half_life_s, kappa in zip(parameters.half_lives_s, parameters.kappas, strict=True):
        total, mass = kappa * space.prior.astype(np.float64), kappa
        for event in unique.values():
            x = space.vector(event.item_id)
            if x is None:
                continue
            gain = parameters.gain(EventKind(event.kind).parameter_name, event.value)
            weight = gain * 2.0 ** (-(read_s - event.time_s) / half_life_s)
            total = total + weight * x.astype(np.float64)
            mass += abs(weight)
        vectors.append(total / mass)
    return np.array(vectors)
