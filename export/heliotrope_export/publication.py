"""Publishing a folder at once: whoever looks sees the old one or the new one, never half of either.

The folder is written aside, in a `.NAME.partial-*` next to its destination, synced, and renamed. A process that dies
leaves only that; the next publication to the same destination removes it.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

AT_FDCWD = -100
RENAME_EXCHANGE = 2


class Workshop:
    """A place aside: `folder` is what will be published, `scratch` is thrown away."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "folder"
        self.scratch = root / "scratch"
        self.folder.mkdir()
        self.scratch.mkdir()

    def publish(self, destination: Path) -> None:
        """Syncs `folder` and moves it to `destination`, replacing a folder that is there."""
        for path in self.folder.rglob("*"):
            _sync(path)
        _sync(self.folder)
        if destination.exists():
            _replace(self.folder, destination)
        else:
            self.folder.rename(destination)
        _sync(destination.parent)


@contextmanager
def workshop(destination: Path) -> Iterator[Workshop]:
    """Opens a workshop beside `destination` and removes it at the end, along with those of processes that died."""
    parent = destination.parent
    parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}.partial-"
    for leftover in parent.glob(f"{prefix}*"):
        with _locked(leftover / "lock") as lock:
            if lock is not None:
                shutil.rmtree(leftover)
    root = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        # Held while this process lives, however it ends, so that nobody sweeps a workshop in use.
        with _locked(root / "lock"):
            yield Workshop(root)
    finally:
        shutil.rmtree(root)


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes] | None]:
    """The open file with an exclusive lock on it, or None where another process holds that."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def _replace(new: Path, old: Path) -> None:
    """Swaps two folders in one step (Linux), and in two where the system has no such call.

    Between the two steps a reader finds no folder, and a crash leaves the old one under its new name, beside it.
    """
    try:
        _exchange(new, old)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise
        aside = new.with_name("replaced")
        old.rename(aside)
        new.rename(old)


def _exchange(one: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE, which Python's os module does not offer."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, "renameat2 is not available")
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
