"""A peer's server as a process group of its own, pinned, with its log in a file."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from heliotrope_bench.errors import PeerError
from heliotrope_bench.job import pinned

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05


class ServerProcess:
    """Starts `command` in `folder` and returns when `ready()` is true, or raises PeerError with the end of the log."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        cpus: Sequence[int] | None,
        ready: Callable[[], bool],
        *,
        user: str | None = None,
    ) -> None:
        self._log = folder / "server.log"
        with self._log.open("ab") as log, pinned(cpus):
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, user=user
            )
        self.pid = self._process.pid
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise PeerError(f"{Path(command[0]).name} did not start: {self.last_words()}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """SIGTERM to the server, SIGKILL to its group when it does not end."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)
                self._process.wait()

    def last_words(self) -> str:
        """The last line of the log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def listens(port: int) -> bool:
    """Whether someone accepts connections on a local port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
