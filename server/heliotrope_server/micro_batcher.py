"""Collects the requests that wait together and works on them together.

Idle, a question is worked on at once. Under load the event loop turns a few times more before a batch starts, for as
long as that brings in questions that have already reached the socket: gRPC hands them over one turn at a time, so
without this every batch holds one question (`docs/decisions/0001-micro-batches.md`).

Nobody waits in vain: a question that would be answered after its deadline is refused when it comes. Nor does anybody
wait for another's flood: clients take turns, and each may have as many questions waiting as there are places left for
all others, so that a newcomer always finds one (A. K. Choudhury, E. L. Hahne, "Dynamic queue length thresholds for
shared-memory packet switches", 1998).
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from heliotrope_server.errors import DeadlinePassedError, OverloadedError, RequestError

BARREN_TURNS = 20
"""Turns of the event loop without a new question after which a batch starts; a turn takes microseconds."""
BUSY_NS = 5_000_000
"""A question that comes this soon after a batch is taken to have company."""
NEWEST_SHARE = 0.1
"""Weight of the newest batch in the measured time of a question."""
LEAST_RETRY_S = 0.01

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

    At most `max_waiting` questions wait; what does not fit, or would be too late, is refused with OverloadedError. One
    whose deadline has passed by the time its batch starts all the same is dropped before any work. A RequestError in
    the place of an answer reaches the caller of that question, an exception of `work` every caller of the batch.
    """

    def __init__(
        self, work: Callable[[Sequence[Q]], Sequence[R | RequestError]], *, max_batch: int = 64, max_waiting: int = 2048
    ) -> None:
        self._work = work
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        # By client, in the order of their turns; a client without a waiting question is not there.
        self._queues: dict[str, deque[_Entry[Q, R]]] = {}
        self._waiting = 0
        self._scheduled = False
        self._last_end_ns = 0
        self._busy_s = self._answered = self._question_s = 0.0

    def submit(self, question: Q, *, client: str = "", deadline_s: float = float("inf")) -> "asyncio.Future[Timed[R]]":
        """The answer to be of one question. `deadline_s` is on the clock of time.monotonic()."""
        return self.submit_all([question], client=client, deadline_s=deadline_s)[0]

    def submit_all(
        self, questions: Sequence[Q], *, client: str = "", deadline_s: float = float("inf")
    ) -> "list[asyncio.Future[Timed[R]]]":
        """The answers to be of questions that one client asks at once: all are admitted or none."""
        queue = self._queues.get(client)
        self._admit(len(questions), 0 if queue is None else len(queue), deadline_s)
        loop, now_ns = asyncio.get_running_loop(), time.perf_counter_ns()
        entries = [_Entry(question, deadline_s, now_ns, loop.create_future()) for question in questions]
        if queue is None:
            self._queues[client] = deque(entries)
        else:
            queue.extend(entries)
        self._waiting += len(entries)
        if not self._scheduled and entries:
            self._scheduled = True
            busy = now_ns - self._last_end_ns < BUSY_NS
            loop.call_soon(self._gather, loop, self._waiting, 0 if busy else BARREN_TURNS)
        return [entry.future for entry in entries]

    def _admit(self, count: int, own: int, deadline_s: float) -> None:
        """Refuses questions of a client that has `own` waiting, unless they fit and will be in time."""
        # A batch that is larger than all places is admitted when nobody waits, or it never would be.
        if self._waiting and own + count > self._max_waiting - self._waiting:
            raise OverloadedError(
                f"{self._waiting} questions wait, {own} of them this client's; it may have as many as there are places "
                f"left of {self._max_waiting}",
                retry_after_s=max(LEAST_RETRY_S, self._waiting * self._question_s),
                limit=self._max_waiting,
            )
        wait_s, left_s = self._waiting * self._question_s, deadline_s - time.monotonic()
        if 0.0 < left_s < wait_s:
            raise OverloadedError(
                f"{self._waiting} questions wait, which takes {wait_s:.3f} s; the deadline is in {left_s:.3f} s",
                retry_after_s=max(LEAST_RETRY_S, wait_s - left_s),
                value=f"{wait_s:.3f}",
                limit=f"{left_s:.3f}",
            )

    def _gather(self, loop: asyncio.AbstractEventLoop, before: int, barren: int) -> None:
        """Turns the event loop until a batch is full or nothing more comes in."""
        waiting = self._waiting
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
            entry = self._next()
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

    def _next(self) -> _Entry[Q, R]:
        """Takes one question of the client whose turn it is."""
        client, queue = next(iter(self._queues.items()))
        del self._queues[client]
        entry = queue.popleft()
        if queue:
            self._queues[client] = queue
        self._waiting -= 1
        return entry

    def _answer(self, batch: list[_Entry[Q, R]], start_ns: int) -> None:
        try:
            results = self._work([entry.question for entry in batch])
        except Exception as error:
            for entry in batch:
                entry.future.set_exception(error)
            return
        end_ns = time.perf_counter_ns()
        # Since the last batch where one followed the other: what taking questions in and replies out costs counts too.
        busy_ns = end_ns - max(self._last_end_ns, batch[0].arrived_ns)
        # Both fade alike, so that a full batch, where a question costs least, counts for as many questions as it holds.
        self._busy_s += NEWEST_SHARE * (busy_ns / 1e9 - self._busy_s)
        self._answered += NEWEST_SHARE * (len(batch) - self._answered)
        self._question_s = self._busy_s / self._answered
        self._last_end_ns = end_ns
        work_ns = end_ns - start_ns
        for entry, result in zip(batch, results, strict=True):
            if isinstance(result, RequestError):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(Timed(result, start_ns - entry.arrived_ns, work_ns))
