"""Where jobs on a snapshot store keep their scratch and caches, and how one of them keeps the others out."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heliotrope_indexer.errors import StoreBusyError


def job_home(store: str) -> Path:
    """The store itself where it is a local folder; for one behind a URL, a folder of this user."""
    if "://" in store and not store.startswith("file://"):
        return Path.home() / ".cache" / "heliotrope"
    return Path(store.removeprefix("file://"))


def scratch_of(store: str) -> Path:
    """The scratch folder of builds into a store."""
    return job_home(store) / ".building"


@contextmanager
def alone(scratch: Path) -> Iterator[None]:
    """Holds the lock of a scratch folder; the system lets go of it when the process dies, however it dies.

    Raises StoreBusyError when another job holds it.
    """
    scratch.parent.mkdir(parents=True, exist_ok=True)
    with scratch.with_name(scratch.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusyError(f"another build is running in {scratch.parent}; wait for it to end") from error
        yield
