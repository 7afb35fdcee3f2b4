"""Small real disks for the tests of storage faults."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.process_world import LONG


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A night's rounds take longer than any test of a short run may hang."""
    if LONG:
        for item in items:
            item.add_marker(pytest.mark.timeout(4 * 3600))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator["SmallDisk"]:
    """A file system of 16 MiB, in memory. Mounting needs root; elsewhere the test is skipped with the reason."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class SmallDisk:
    """`fill` leaves no room but for `spare` bytes, 0: not for a single block; `free` gives it back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, spare: int = 0) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                os.truncate(self._ballast, max(self._ballast.stat().st_size - spare, 0))

    def free(self) -> None:
        self._ballast.unlink()
