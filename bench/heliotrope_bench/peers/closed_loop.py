"""Callers who each ask, wait for the answer and ask again, while events and items stream in at a fixed rate."""

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any

import numpy as np

from heliotrope_bench.peers.peer import NewItem, Peer

ITEMS_PER_CALL = 4
"""Items arrive in small batches, as from a feed; calls follow one another, since Milvus Lite takes no two at once."""


@dataclass(frozen=True)
class NewEvent:
    """An event that arrives while the peers are measured."""

    user_id: str
    row: int
    event_id: str


@dataclass(frozen=True)
class Stream:
    """What arrives from the start of the warm-up on: events one by one, items ITEMS_PER_CALL at a time."""

    events: Sequence[NewEvent] = ()
    events_per_s: float = 0.0
    items: Sequence[NewItem] = ()
    items_per_s: float = 0.0

    @property
    def batches(self) -> list[Sequence[NewItem]]:
        return [self.items[start : start + ITEMS_PER_CALL] for start in range(0, len(self.items), ITEMS_PER_CALL)]


@dataclass(frozen=True)
class Plan:
    """A closed loop: answers that come in the first `warm_up_s`, or after the end, are not counted."""

    callers: int
    warm_up_s: float
    duration_s: float
    stream: Stream = Stream()


@dataclass
class Tally:
    """What was counted after the warm-up; events and items from the start on, by when the loop ended."""

    begin: float
    end: float
    latencies_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    recorded: list[int] = field(default_factory=list)
    """Places in the stream of the events that were taken."""
    upserted: int = 0
    """How many items of the stream were taken, in its order."""
    upsert_s: list[float] = field(default_factory=list)

    def answered(self, sent: float) -> None:
        now = time.monotonic()
        if self.begin <= sent and now <= self.end:
            self.latencies_s.append(now - sent)

    def figures(self) -> dict[str, Any]:
        """Rates per second and percentiles in milliseconds."""
        length = self.end - self.begin
        times = np.array(self.latencies_s) * 1e3
        p50, p95, p99 = np.percentile(times, (50, 95, 99)) if len(times) else (np.nan,) * 3
        upserts = np.array(self.upsert_s) * 1e3
        return {
            "rate_per_s": len(times) / length,
            "p50_ms": float(p50),
            "p95_ms": float(p95),
            "p99_ms": float(p99),
            "errors": sum(self.errors.values()),
            "errors_by_kind": dict(self.errors),
            **({"upsert_p50_ms": float(np.median(upserts))} if len(upserts) else {}),
        }


def run(peer: Peer, requests: Sequence[Any], plan: Plan, runner: asyncio.Runner) -> Tally:
    """Runs one closed loop to its end; `requests` are used in turn."""
    start = time.monotonic()
    begin = start + plan.warm_up_s
    tally = Tally(begin, begin + plan.duration_s)
    turns = itertools.cycle(requests)
    if peer.threaded:
        _in_threads(peer, turns, plan, tally, start)
    else:
        runner.run(_in_tasks(peer, turns, plan, tally, start))
    return tally


async def _in_tasks(peer: Peer, turns: Iterator[Any], plan: Plan, tally: Tally, start: float) -> None:
    async def caller() -> None:
        while (sent := time.monotonic()) < tally.end:
            try:
                await peer.search(next(turns))  # type: ignore[misc]
            except Exception as error:
                tally.errors[type(error).__name__] += 1
            else:
                tally.answered(sent)

    async def feed() -> None:
        for place, batch in enumerate(plan.stream.batches):
            await asyncio.sleep(max(0.0, start + _due(place, plan) - time.monotonic()))
            if (sent := time.monotonic()) >= tally.end:
                return
            await _done(peer.upsert(batch))
            _took(tally, batch, sent)

    async def record(place: int, event: NewEvent) -> None:
        await _done(peer.record(event.user_id, event.row, event.event_id))
        tally.recorded.append(place)

    async def clicks(group: asyncio.TaskGroup) -> None:
        for place, event in enumerate(plan.stream.events):
            await asyncio.sleep(max(0.0, start + place / plan.stream.events_per_s - time.monotonic()))
            if time.monotonic() >= tally.end:
                return
            group.create_task(record(place, event))

    async with asyncio.TaskGroup() as group:
        group.create_task(feed())
        group.create_task(clicks(group))
        for _ in range(plan.callers):
            group.create_task(caller())


def _in_threads(peer: Peer, turns: Iterator[Any], plan: Plan, tally: Tally, start: float) -> None:
    """The same with a thread for each caller and one for the items. An engine of this kind takes no events."""

    def caller() -> None:
        while (sent := time.monotonic()) < tally.end:
            try:
                peer.search(next(turns))
            except Exception as error:
                tally.errors[type(error).__name__] += 1
            else:
                tally.answered(sent)

    def feed() -> None:
        for place, batch in enumerate(plan.stream.batches):
            time.sleep(max(0.0, start + _due(place, plan) - time.monotonic()))
            if (sent := time.monotonic()) >= tally.end:
                return
            peer.upsert(batch)
            _took(tally, batch, sent)

    failed: list[BaseException] = []

    def watched(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=watched, args=(work,)) for work in (feed, *[caller] * plan.callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    tally.recorded.extend(range(min(len(plan.stream.events), int((tally.end - start) * plan.stream.events_per_s))))


def _due(place: int, plan: Plan) -> float:
    return place * ITEMS_PER_CALL / plan.stream.items_per_s


def _took(tally: Tally, batch: Sequence[NewItem], sent: float) -> None:
    tally.upserted += len(batch)
    tally.upsert_s.append(time.monotonic() - sent)


async def _done(work: Any) -> None:
    if isawaitable(work):
        await work
