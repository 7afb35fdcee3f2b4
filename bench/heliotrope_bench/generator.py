"""One process of the load generator: sends prepared calls and measures how long each takes.

Requests are serialised before the clock starts and replies are not parsed, so that the generator can load a server
that has a core of its own.
"""

import asyncio
import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from heliotrope_bench.errors import ServerLostError

CALL_TIMEOUT_S = 10.0
MAX_WAITING = 20_000
"""Calls that may wait for an answer in one generator; what comes on top fails as NOT_SENT, so memory is bounded."""

HIGHEST_US = 60_000_000


@dataclass(frozen=True)
class PreparedCall:
    """A method by its full name, the bytes of its request, and how many units of work it carries.

    `address` is that of the shard to call; None: the one that is under load.
    """

    method: str
    request: bytes
    units: int = 1
    address: str | None = None


@dataclass(frozen=True)
class Load:
    """What one generator does from `start` (time.monotonic, shared by the processes of one machine) on.

    Open loop: call i is due at `start + due_s[i]`, sent or not. Closed loop (`due_s` None): `concurrency` callers
    each send the next call when the last one is answered, for `duration_s`. What was due or sent in the first
    `warm_up_s` is not measured. `calls` are used in turn.

    With `streams`, calls are messages on so many bidirectional streams, answered in order; `concurrency` is how many
    may wait for an answer on all of them together.
    """

    address: str
    calls: Sequence[PreparedCall]
    start: float
    duration_s: float
    warm_up_s: float
    due_s: NDArray[np.float64] | None = None
    concurrency: int = 0
    once: bool = False
    cpus: tuple[int, ...] | None = None
    streams: int = 0


@dataclass(frozen=True)
class Outcome:
    """What one generator measured after the warm-up: answered calls and units, errors by code, and histograms.

    `latency` (encoded HDR histogram, in microseconds) counts from the time a call was due in the open loop and from
    its sending in the closed one; `lag` is by how much calls were sent late. `cpu_share` is the share of a core that
    the generator itself used, gRPC's own threads included (so it can pass 1 where they run beside the event loop): far
    below 1 on a core of its own, it was not what held the server back.
    """

    calls: int
    units: int
    errors: dict[str, int]
    measured_s: float
    latency: bytes
    lag: bytes
    cpu_share: float


def poisson_arrivals(rate_per_s: float, duration_s: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """(N,) ascending arrival times in [0, duration_s) of a Poisson process, drawn in advance."""
    expected = rate_per_s * duration_s
    gaps = generator.exponential(1 / rate_per_s, size=int(expected + 10 * expected**0.5 + 20))
    times = np.cumsum(gaps)
    return times[times < duration_s]


def histogram(encoded: Sequence[bytes] = ()) -> HdrHistogram:
    """A histogram of 1 us to 60 s with three digits, with encoded ones added."""
    total = HdrHistogram(1, HIGHEST_US, 3)
    for part in encoded:
        total.decode_and_add(part)
    return total


def ready() -> None:
    """Returns once this process has imported all that it needs."""


def generate(load: Load) -> Outcome:
    """Runs one generator to its end; called in a process of its own."""
    pin(load.cpus)
    return asyncio.run(_Generator(load).run())


def pin(cpus: tuple[int, ...] | None) -> None:
    """Keeps this process to these cores, where the system can do that; None: it may run on any."""
    if cpus is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


class _Generator:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._calls = self._units = self._waiting = 0
        self._errors: Counter[str] = Counter()
        self._latency, self._lag = histogram(), histogram()
        self._measure_from = load.start + load.warm_up_s
        self._last_answer = self._measure_from

    async def run(self) -> Outcome:
        load = self._load
        async with AsyncExitStack() as channels:
            channel_of = {}
            for address in {load.address, *(call.address or load.address for call in load.calls)}:
                channel = await channels.enter_async_context(grpc.aio.insecure_channel(address))
                await asyncio.wait_for(channel.channel_ready(), CALL_TIMEOUT_S)
                channel_of[address] = channel
            self._methods: dict[tuple[str | None, str], Any] = {
                (address, method): channel_of[address or load.address].unary_unary(method)
                for address, method in {(call.address, call.method) for call in load.calls}
            }
            await asyncio.sleep(max(0.0, load.start - time.monotonic()))
            began, used = time.monotonic(), time.process_time()
            if load.due_s is not None:
                await self._open_loop(load.due_s)
            elif load.streams:
                await self._stream_loop(channel_of[load.address])
            else:
                await self._closed_loop()
            cpu_share = (time.process_time() - used) / max(time.monotonic() - began, 1e-9)
        end = self._last_answer if load.once else load.start + load.duration_s
        return Outcome(
            self._calls,
            self._units,
            dict(self._errors),
            max(end - self._measure_from, 1e-9),
            self._latency.encode(),
            self._lag.encode(),
            cpu_share,
        )

    async def _open_loop(self, due_s: NDArray[np.float64]) -> None:
        calls, tasks = self._load.calls, set[asyncio.Task[None]]()
        for number, offset in enumerate(due_s.tolist()):
            due = self._load.start + offset
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            elif number % 32 == 0:
                # Late: let answers in, or they would seem slower than they were.
                await asyncio.sleep(0)
            if self._waiting >= MAX_WAITING:
                if due >= self._measure_from:
                    self._errors["NOT_SENT"] += 1
                continue
            task = asyncio.create_task(self._send(calls[number % len(calls)], due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)

    async def _closed_loop(self) -> None:
        calls, end = self._load.calls, self._load.start + self._load.duration_s
        next_call = 0

        async def caller() -> None:
            nonlocal next_call
            while time.monotonic() < end and not (self._load.once and next_call >= len(calls)):
                call = calls[next_call % len(calls)]
                next_call += 1
                await self._send(call, None)

        await asyncio.gather(*(caller() for _ in range(self._load.concurrency)))

    async def _stream_loop(self, channel: grpc.aio.Channel) -> None:
        load = self._load
        end, numbers = load.start + load.duration_s, itertools.count()
        window = max(1, load.concurrency // load.streams)
        open_stream: Any = channel.stream_stream(load.calls[0].method)

        async def one_stream() -> None:
            stream = open_stream(timeout=load.duration_s + CALL_TIMEOUT_S)
            sent: deque[tuple[float, int]] = deque()

            async def send() -> None:
                call = load.calls[next(numbers) % len(load.calls)]
                sent.append((time.monotonic(), call.units))
                await stream.write(call.request)

            try:
                for _ in range(window):
                    await send()
                while sent:
                    if await stream.read() is grpc.aio.EOF:
                        raise ServerLostError(f"the server ended a stream with {len(sent)} questions unanswered")
                    at, units = sent.popleft()
                    self._answered(at, at, time.monotonic(), units)
                    if time.monotonic() < end:
                        await send()
                await stream.done_writing()
                await stream.read()
            except grpc.aio.AioRpcError as error:
                self._errors[error.code().name] += max(1, len(sent))

        await asyncio.gather(*(one_stream() for _ in range(load.streams)))

    async def _send(self, call: PreparedCall, due: float | None) -> None:
        sent = time.monotonic()
        due = sent if due is None else due
        self._waiting += 1
        try:
            await self._methods[call.address, call.method](call.request, timeout=CALL_TIMEOUT_S)
            code = None
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        self._waiting -= 1
        if code is None:
            self._answered(due, sent, time.monotonic(), call.units)
        elif due >= self._measure_from:
            self._errors[code] += 1

    def _answered(self, due: float, sent: float, now: float, units: int) -> None:
        load = self._load
        if due < self._measure_from:
            return
        self._last_answer = now
        if not load.once and load.due_s is None and now > load.start + load.duration_s:
            return
        self._calls += 1
        self._units += units
        self._latency.record_value(min(HIGHEST_US, max(1, int((now - due) * 1e6))))
        self._lag.record_value(min(HIGHEST_US, max(1, int((sent - due) * 1e6))))
