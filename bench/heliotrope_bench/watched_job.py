"""Runs a job as a user does and watches what each of its stages takes.

The job names a stage on standard error when it ends. So a stage counts from the end of the one before: the first one
holds the start of the process too.
"""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from heliotrope_bench.errors import JobFailedError
from heliotrope_bench.job import environment

COMMAND = (sys.executable, "-m", "heliotrope")
SAMPLE_S = 0.02
"""Between two looks at the memory: what is held for less may be missed."""
REST = "exit"
"""Name of what comes after the last stage."""
_STAGE = re.compile(r"^(?P<name>\S.*?)\s+━")
"""A finished progress bar."""


@dataclass(frozen=True)
class Stage:
    """Wall and CPU seconds of one stage, and the largest resident memory during it that is no mapped file, in MiB."""

    name: str
    seconds: float
    cpu_s: float
    peak_mib: float


def watch_job(arguments: Sequence[str]) -> list[Stage]:
    """Runs `heliotrope ARGUMENTS` to its end; the stages are those that it names, in order.

    Raises JobFailedError with the last line that it wrote.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        # Wide enough for every progress bar to stay on its line.
        env={**environment(), "COLUMNS": "200"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    memory = _MemoryPeak(process.pid)
    stages, said, cpu_s = [], "it wrote nothing", 0.0
    assert process.stderr is not None
    with process, memory:
        for line in process.stderr:
            said = line.strip() or said
            found = _STAGE.match(line)
            if found:
                now, used = time.perf_counter(), _cpu_seconds(process.pid)
                stages.append(Stage(found["name"], now - started, used - cpu_s, memory.take() / 2**20))
                started, cpu_s = now, used
        # Its standard error is closed: what is left is the end of the process.
        code = process.wait()
    stages.append(Stage(REST, time.perf_counter() - started, 0.0, memory.take() / 2**20))
    if code != 0:
        raise JobFailedError(f"`heliotrope {arguments[0]}` ended with exit code {code}: {said}")
    return stages


class _MemoryPeak:
    """Looks at the memory of a process again and again while it is entered."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._peak = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def take(self) -> int:
        """The peak in bytes since the last call."""
        with self._lock:
            peak, self._peak = self._peak, 0
        return peak

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            try:
                size = self._process.memory_info()
            except psutil.NoSuchProcess:
                return
            with self._lock:
                self._peak = max(self._peak, size.rss - size.shared)


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
