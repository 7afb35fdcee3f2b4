"""Runs a real server, as a user would start it, for the tests."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

START_TIMEOUT_S = 60.0


class RunningServer:
    """A `heliotrope serve` process. `address` is where it listens; `messages` is what it wrote to standard error.

    A test that fails before it stops its server leaves it in `running`; tests/conftest.py kills what is there."""

    running: ClassVar[set["RunningServer"]] = set()

    def __init__(self, store: Path, data: Path, *options: str) -> None:
        self._process = subprocess.Popen(
            serve_command(store, data, *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.running.add(self)
        self.messages: list[str] = []
        self._reader = threading.Thread(target=self._collect, daemon=True)
        self._reader.start()
        # A server that hangs while starting is ended, so that readline returns and the test fails with its messages.
        watchdog = threading.Timer(START_TIMEOUT_S, self._process.kill)
        watchdog.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        watchdog.cancel()
        if " on " not in line:
            self._process.wait()
            self._reader.join()
            raise AssertionError(f"the server did not start: {''.join(self.messages)}")
        self.ready_line = line.strip()
        self.address = line.split(" on ")[1].split(" ")[0]

    def shard_pids(self) -> list[int]:
        """Process ids of the shards that run now. Fails when the server itself has ended."""
        if self._process.poll() is not None:
            self._reader.join()
            raise AssertionError(f"the server ended with {self._process.returncode}: {''.join(self.messages)}")
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def stop(self) -> int:
        """SIGTERM, and the exit code after the drain."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(timeout=60)
        self._reader.join()
        assert self._process.stdout is not None and self._process.stderr is not None
        self._process.stdout.close()
        self._process.stderr.close()
        self.running.discard(self)
        return code

    def discard(self) -> None:
        """SIGKILL to the whole process group, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.stop()

    def kill_supervisor(self) -> None:
        """SIGKILL to the supervisor alone; its shards notice and drain by themselves."""
        self._process.kill()
        self.stop()

    def kill_everything(self) -> None:
        """SIGKILL to the supervisor and every shard at once."""
        for pid in [self._process.pid, *self.shard_pids()]:
            os.kill(pid, signal.SIGKILL)
        self.stop()

    def _collect(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.messages.append(line)


def serve_command(store: Path, data: Path, *options: str) -> list[str]:
    arguments = ["--snapshots", str(store), "--data", str(data), *options]
    if "--port" not in options:
        arguments += ["--port", "0"]
    return [sys.executable, "-m", "heliotrope", "serve", *arguments]


@contextmanager
def running_server(store: Path, data: Path, *options: str) -> Iterator[RunningServer]:
    """A server for the length of a test; it must drain and exit 0."""
    server = RunningServer(store, data, *options)
    try:
        yield server
    finally:
        code = server.stop()
    assert code == 0, "".join(server.messages)


def refused_start(store: Path, data: Path, *options: str) -> tuple[int, str]:
    """Exit code and standard error of a server that can't start."""
    done = subprocess.run(serve_command(store, data, *options), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr
