"""A process of its own for each peer: it holds the engine, or the clients of its server, and does as it is told."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from inspect import isawaitable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from heliotrope_bench.errors import PeerError
from heliotrope_bench.peers import closed_loop
from heliotrope_bench.peers.closed_loop import Plan, Tally
from heliotrope_bench.peers.peer import Peer, Question, Search, Site

CALL_TIMEOUT_S = 3_600.0
STOP_TIMEOUT_S = 30.0
SWITCH_INTERVAL_S = 0.0005
"""As in our server: with Python's 5 ms a caller in a thread would mostly wait for the interpreter."""


class Host:
    """The parent's side: every call is carried out in the process, one at a time.

    Between `resume` and `pause` the process and its server run; else they are stopped (SIGSTOP), so that one peer at a
    time has the cores. A failure there is a PeerError here.
    """

    def __init__(self, make: Callable[[], Peer], site: Site, cpus: Sequence[int] | None) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, site, cpus))
        self._process.start()
        theirs.close()
        self._closed = False

    def call(self, method: str, *arguments: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """What `Worker.method(*arguments)` returns. After `timeout_s` the peer is taken for stuck, and no call may
        follow."""
        try:
            self._pipe.send((method, arguments))
            if not self._pipe.poll(timeout_s):
                raise PeerError(f"it was stuck in {method}: no answer in {timeout_s:,.0f} s")
            failure, result = self._pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            raise PeerError(f"its process ended with exit code {self._process.exitcode} during {method}") from error
        if failure:
            raise PeerError(failure)
        return result

    def pause(self) -> None:
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def close(self) -> None:
        """Stops the engine and the process; what does not stop in time is killed. Once is enough, more do no harm."""
        if self._closed:
            return
        self._closed = True
        if self._process.is_alive():
            tree = self._tree()
            self.resume()
            self._pipe.close()
            self._process.join(STOP_TIMEOUT_S)
            for process in tree:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.join()
        self._process.close()

    def _tree(self) -> list[psutil.Process]:
        return _tree(self._process.pid)


class Worker:
    """The process's side."""

    def __init__(self, peer: Peer, site: Site, runner: asyncio.Runner) -> None:
        self._peer = peer
        self._site = site
        self._runner = runner
        self._requests: list[Any] = []
        self._empty_mib = _memory_mib(os.getpid())

    def load(self, vectors: Path) -> float:
        """Loads (n, D) float32 from a file; returns the seconds that took."""
        started = time.perf_counter()
        self._wait(self._peer.load(np.load(vectors), self._site))
        return time.perf_counter() - started

    def memory_mib(self) -> float:
        """Of the server and its children; of an engine in this process what the process has grown by since it began."""
        server = self._peer.server_pid()
        return _memory_mib(os.getpid()) - self._empty_mib if server is None else _memory_mib(server)

    def prepare(self, questions: Sequence[Question], search: Search) -> None:
        """Makes the requests that are asked from now on."""
        self._wait(self._peer.use(search))
        self._requests = [self._peer.prepare(question, search) for question in questions]

    def ask(self) -> tuple[list[list[int]], float]:
        """Asks every question once, one after the other; returns the rows found and the median seconds."""
        found, took = [], []
        for request in self._requests:
            started = time.perf_counter()
            found.append(self._wait(self._peer.search(request)).rows)
            took.append(time.perf_counter() - started)
        return found, float(np.median(took))

    def measure(self, plan: Plan) -> tuple[dict[str, Any], Tally]:
        """The figures of one closed loop, and what was counted."""
        server, own = self._peer.server_pid(), os.getpid()
        started, busy, own_busy = time.perf_counter(), _cpu_s(server or own), _cpu_s(own, alone=True)
        tally = closed_loop.run(self._peer, self._requests, plan, self._runner)
        length = time.perf_counter() - started
        figures = tally.figures()
        figures["server_cpu"] = (_cpu_s(server or own) - busy) / length
        # Over the warm-up too. An engine in this process shares its time with the callers.
        figures["rate_per_cpu_s"] = figures["rate_per_s"] / figures["server_cpu"]
        if server is not None:
            figures["client_cpu"] = (_cpu_s(own, alone=True) - own_busy) / length
        tally.latencies_s.clear()
        return figures, tally

    def peer(self, method: str, *arguments: Any) -> Any:
        """Calls something that only this peer has."""
        return self._wait(getattr(self._peer, method)(*arguments))

    def close(self) -> None:
        self._wait(self._peer.close())

    def _wait(self, work: Any) -> Any:
        async def done() -> Any:
            return await work

        return self._runner.run(done()) if isawaitable(work) else work


def _serve(pipe: Connection, make: Callable[[], Peer], site: Site, cpus: Sequence[int] | None) -> None:
    # Ctrl-C in a terminal must reach the benchmark alone: it stops the peers in order.
    os.setsid()
    if cpus is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner() as runner:
        worker = Worker(make(), site, runner)
        try:
            while True:
                method, arguments = pipe.recv()
                try:
                    failure, result = "", getattr(worker, method)(*arguments)
                except Exception as error:
                    kind = "" if isinstance(error, PeerError) else f"{type(error).__name__}: "
                    failure, result = f"{kind}{error}", None
                pipe.send((failure, result))
        except (EOFError, ConnectionError):
            pass  # The parent has closed its side, or is gone.
        finally:
            worker.close()


def _memory_mib(pid: int) -> float:
    """Proportional set size of a process and its children: memory that they share counts once."""
    size = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            part = process.memory_full_info()
            size += getattr(part, "pss", part.rss)
    return size / 2**20


def _cpu_s(pid: int, *, alone: bool = False) -> float:
    """CPU seconds that a process, and its children unless `alone`, have used."""
    seconds = 0.0
    for process in _tree(pid)[: 1 if alone else None]:
        with suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:2])
    return seconds


def _tree(pid: int | None) -> list[psutil.Process]:
    """A process, then all below it. PostgreSQL's come and go meanwhile, so any but the first may be gone."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]
