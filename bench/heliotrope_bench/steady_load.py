"""One process that asks the same server at a steady rate until it is told to stop, and keeps when each call was due.

As `generator` in the open loop, but without an end that is known in advance, and with every latency kept: what happened
to the server meanwhile is laid over them afterwards. Answers are read: a list that is too short counts as failed.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Event as StopEvent
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from heliotrope.v1.recommendation_pb2 import RecommendResponse
from heliotrope_bench.errors import ServerLostError
from heliotrope_bench.generator import CALL_TIMEOUT_S, MAX_WAITING, PreparedCall, pin

SHORT, NOT_SENT = "SHORT_LIST", "NOT_SENT"
START_TIMEOUT_S, END_TIMEOUT_S = 60.0, 2 * CALL_TIMEOUT_S


@dataclass(frozen=True)
class Samples:
    """N calls by when they were due, on time.monotonic().

    `due_s` (N,) ascending; `latency_s` (N,) from then, `lag_s` (N,) by how much each was sent late, `failed` (N,);
    `codes` counts the failed ones by gRPC code, SHORT_LIST for an answer with too few items.
    """

    due_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    lag_s: NDArray[np.float64]
    failed: NDArray[np.bool_]
    codes: dict[str, int]

    def between(self, start_s: float, end_s: float) -> "Samples":
        """Those that were due in [start, end); `codes` stay those of all."""
        first, last = np.searchsorted(self.due_s, (start_s, end_s))
        part = slice(int(first), int(last))
        return Samples(self.due_s[part], self.latency_s[part], self.lag_s[part], self.failed[part], self.codes)


class SteadyLoad:
    """Asks from entry until `stop`. `calls` are sent in turn, at random moments of a mean `rate_per_s`; each is
    answered by a list of `count` items, or has failed.
    """

    def __init__(
        self,
        address: str,
        calls: Sequence[PreparedCall],
        rate_per_s: float,
        count: int,
        *,
        cpus: tuple[int, ...] | None,
        seed: int,
    ) -> None:
        context = get_context("spawn")
        self._stop = context.Event()
        self._results, results = context.Pipe(duplex=False)
        arguments = (address, list(calls), rate_per_s, count, cpus, seed, self._stop, results)
        self._process = context.Process(target=_generate, args=arguments, daemon=True)
        self._results_there = results

    def __enter__(self) -> Self:
        self._process.start()
        # Ours alone from here on, so that a generator that dies ends the pipe.
        self._results_there.close()
        self._receive(START_TIMEOUT_S)
        return self

    def stop(self) -> Samples:
        """Ends the load; all that was sent. Raises ServerLostError when the generator is gone."""
        self._stop.set()
        samples = self._receive(END_TIMEOUT_S)
        assert isinstance(samples, Samples)
        return samples

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._process.join(END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._results.close()

    def _receive(self, timeout_s: float) -> Any:
        try:
            if self._results.poll(timeout_s):
                return self._results.recv()
        except EOFError:
            pass
        raise ServerLostError(f"the generator of the load said nothing for {timeout_s:g} s, or died")


def _generate(
    address: str,
    calls: list[PreparedCall],
    rate_per_s: float,
    count: int,
    cpus: tuple[int, ...] | None,
    seed: int,
    stop: StopEvent,
    results: Any,
) -> None:
    pin(cpus)
    generator = _Generator(calls, rate_per_s, count, np.random.default_rng(seed))
    results.send(asyncio.run(generator.run(address, stop, lambda: results.send("ready"))))
    results.close()


class _Generator:
    def __init__(self, calls: list[PreparedCall], rate_per_s: float, count: int, random: np.random.Generator) -> None:
        self._calls, self._rate, self._count, self._random = calls, rate_per_s, count, random
        self._rows: list[tuple[float, float, float, bool]] = []
        self._codes: Counter[str] = Counter()
        self._waiting = 0

    async def run(self, address: str, stop: StopEvent, ready: Any) -> Samples:
        async with grpc.aio.insecure_channel(address) as channel:
            await asyncio.wait_for(channel.channel_ready(), CALL_TIMEOUT_S)
            methods: dict[str, Any] = {call.method: channel.unary_unary(call.method) for call in self._calls}
            ready()
            tasks = set[asyncio.Task[None]]()
            due, number = time.monotonic(), 0
            while not stop.is_set():
                due += float(self._random.exponential(1 / self._rate))
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                call = self._calls[number % len(self._calls)]
                number += 1
                if self._waiting >= MAX_WAITING:
                    self._note(due, due, NOT_SENT)
                    continue
                task = asyncio.create_task(self._send(methods[call.method], call.request, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                await asyncio.wait(tasks)
        due_s, latency_s, lag_s, failed = zip(*sorted(self._rows), strict=True) if self._rows else ((), (), (), ())
        return Samples(
            np.array(due_s), np.array(latency_s), np.array(lag_s), np.array(failed, np.bool_), dict(self._codes)
        )

    async def _send(self, method: Any, request: bytes, due: float) -> None:
        sent = time.monotonic()
        self._waiting += 1
        code = ""
        try:
            reply = await method(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        self._waiting -= 1
        answered = time.monotonic()
        if not code and len(RecommendResponse.FromString(reply).recommendations) < self._count:
            code = SHORT
        self._note(due, sent, code, answered)

    def _note(self, due: float, sent: float, code: str, answered: float | None = None) -> None:
        if code:
            self._codes[code] += 1
        now = time.monotonic() if answered is None else answered
        self._rows.append((due, now - due, sent - due, bool(code)))
