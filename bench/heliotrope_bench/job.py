"""Runs the other jobs as a user does: through the `heliotrope` command, as subprocesses."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from heliotrope_bench.errors import JobFailedError

READY = re.compile(r"^heliotrope: serving (?P<snapshot>\S+) on (?P<address>\S+:\d+) ")
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


def run_job(arguments: list[str], *, show: bool = True) -> None:
    """Runs `heliotrope ARGUMENTS` to its end; its progress is shown unless told otherwise.

    Raises JobFailedError, with the last line that it wrote when that was not shown.
    """
    result = subprocess.run(
        [sys.executable, "-m", "heliotrope", *arguments],
        env=environment(),
        stdout=None if show else subprocess.PIPE,
        stderr=None if show else subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        said = "" if show else f": {_last_line(result.stdout)}"
        raise JobFailedError(f"`heliotrope {arguments[0]}` ended with exit code {result.returncode}{said}")


class Server:
    """A `heliotrope serve` process with its own log file; started on entry, stopped with SIGTERM on exit.

    `address` and `snapshot` are known once it serves. `cpus` pins it and its shards to these cores; `source` is another
    checkout, whose server it is.
    """

    def __init__(
        self, arguments: list[str], *, log: Path, cpus: Iterable[int] | None = None, source: Path | None = None
    ) -> None:
        self._arguments = arguments
        self._environment = environment(source)
        self._log = log
        self._cpus = cpus
        self._process: subprocess.Popen[str] | None = None
        self.address = ""
        self.snapshot = ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        with self._log.open("w", encoding="utf-8") as log, pinned(self._cpus):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "heliotrope", "serve", *self._arguments],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Ctrl-C in a terminal must reach the benchmark alone: it stops the server in order.
                start_new_session=True,
            )
        # A server that neither serves nor ends would hold readline() for ever.
        watchdog = threading.Timer(START_TIMEOUT_S, self._process.kill)
        watchdog.start()
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                ready = READY.match(line)
                if ready:
                    self.address, self.snapshot = ready["address"], ready["snapshot"]
                    return self
        finally:
            watchdog.cancel()
        code = self._process.wait()
        self._process.stdout.close()
        said = _last_line(self._log.read_text(encoding="utf-8"))
        raise JobFailedError(f"`heliotrope serve` ended with exit code {code} before it served: {said}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process is not None and process.stdout is not None
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        process.stdout.close()
        if code != 0 and kind is None:
            said = _last_line(self._log.read_text(encoding="utf-8"))
            raise JobFailedError(f"`heliotrope serve` ended with exit code {code} after SIGTERM: {said}")


@contextmanager
def pinned(cpus: Iterable[int] | None) -> Iterator[None]:
    """What is started inside runs on these cores only, where the system can do that."""
    if cpus is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment(source: Path | None = None) -> dict[str, str]:
    """Our environment without HELIOTROPE_ variables: the jobs read their options from those, and ours are flags.

    With a `source` the jobs are those of that checkout.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HELIOTROPE_")}
    if source is not None:
        roots = [source.resolve() / root for root in ("proto", "export", "indexer", "server", "bench")]
        kept["PYTHONPATH"] = os.pathsep.join(map(str, roots))
    return kept


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"
