"""Collects the requests that wait together and works on them together.

Idle, a question is worked on at once. Under load the event loop turns a few times more before a batch starts, for as
long as that brings in questions that have already reached the socket: gRPC hands them over one turn at a time, so
without this every batch holds one question (`docs/decisions/0001-micro-batches.md`).
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from heliotrope_server.errors import DeadlinePassedError, OverloadedError

BARREN_TURNS = 20
"""Turns of the event loop without a new question after which a batch starts; a turn takes microseconds."""
BUSY_NS = 5_000_000
"""A question that comes this soon after a batch is taken to have company."""

Q = TypeVar("Q")
R = TypeVar("R")


class Timed(NamedTuple, Generic[R]):
    """A result with the nanoseconds it waited and the nanoseconds its batch took."""

    result: R
    queue_ns: int
    work_ns: int


class _Entry(NamedTuple, Generic[Q, R]):
    question: Q
    deadline_s: float
    arrived_ns: int
    future: "asyncio.Future[Timed[R]]"


class MicroBatcher(Generic[Q, R]):
    """`work` answers a batch of questions in order; it runs on the event loop and must take milliseconds at most.

    More than `max_waiting` questions are refused with OverloadedError; one whose deadline has passed by the time its
    batch starts is dropped before any work. An exception of `work` reaches every caller of the batch.
    """

    def __init__(
        self, work: Callable[[Sequence[Q]], Sequence[R]], *, max_batch: int = 64, max_waiting: int = 2048
    ) -> None:
        self._work = work
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: deque[_Entry[Q, R]] = deque()
        self._scheduled = False
        self._last_end_ns = 0

    def submit(self, question: Q, *, deadline_s: float = float("inf")) -> "asyncio.Future[Timed[R]]":
        """The answer to be of one question. `deadline_s` is on the clock of time.monotonic()."""
        if len(self._waiting) >= self._max_waiting:
            raise OverloadedError(
                f"{len(self._waiting)} requests wait; at most {self._max_waiting} are admitted",
                retry_after_s=0.05,
                limit=self._max_waiting,
            )
        loop = asyncio.get_running_loop()
        entry = _Entry(question, deadline_s, time.perf_counter_ns(), loop.create_future())
        self._waiting.append(entry)
        if not self._scheduled:
            self._scheduled = True
            busy = entry.arrived_ns - self._last_end_ns < BUSY_NS
            loop.call_soon(self._gather, loop, 1, 0 if busy else BARREN_TURNS)
        return entry.future

    def _gather(self, loop: asyncio.AbstractEventLoop, before: int, barren: int) -> None:
        """Turns the event loop until a batch is full or nothing more comes in."""
        waiting = len(self._waiting)
        if waiting > before:
            barren = 0
        if barren >= BARREN_TURNS or waiting >= self._max_batch:
            self._run()
            return
        # gRPC's own thread needs the core to hand over the next request.
        os.sched_yield()
        loop.call_soon(self._gather, loop, waiting, barren + 1)

    def _run(self) -> None:
        self._scheduled = False
        start_ns, now_s = time.perf_counter_ns(), time.monotonic()
        batch: list[_Entry[Q, R]] = []
        while self._waiting and len(batch) < self._max_batch:
            entry = self._waiting.popleft()
            if entry.future.done():
                continue  # the caller has gone
            if entry.deadline_s < now_s:
                entry.future.set_exception(
                    DeadlinePassedError("DEADLINE_PASSED", "the deadline passed before the request was started")
                )
                continue
            batch.append(entry)
        if self._waiting:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)
        if batch:
            self._answer(batch, start_ns)

    def _answer(self, batch: list[_Entry[Q, R]], start_ns: int) -> None:
        try:
            results = self._work([entry.question for entry in batch])
        except Exception as error:
            for entry in batch:
                entry.future.set_exception(error)
            return
        self._last_end_ns = time.perf_counter_ns()
        work_ns = self._last_end_ns - start_ns
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(Timed(result, start_ns - entry.arrived_ns, work_ns))
