"""Collects the requests that wait together and works on them together.

A request never waits for others: the batch is whatever has arrived since the last one started. Under load batches grow
by themselves, and idle there is nothing to wait for.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from heliotrope_server.errors import DeadlinePassedError, OverloadedError

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

    async def submit(self, question: Q, *, deadline_s: float = float("inf")) -> Timed[R]:
        """Answers one question. `deadline_s` is on the clock of time.monotonic()."""
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
            loop.call_soon(self._run)
        return await entry.future

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
        work_ns = time.perf_counter_ns() - start_ns
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(Timed(result, start_ns - entry.arrived_ns, work_ns))
