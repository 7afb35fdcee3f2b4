"""A tiny catalogue with a tiny encoder, made by the real jobs: a server of it takes new items and starts in seconds."""

import csv
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import psutil
import pytest

from heliotrope_export.exporter import export_model
from heliotrope_indexer.snapshot import SnapshotStore
from tests.end_to_end.running_server import RunningServer
from tests.export.tiny_encoder import save_tiny_encoder

ITEMS = 40
LONG = bool(os.environ.get("HELIOTROPE_LONG_FAULTS"))
"""Set to run as many rounds as a night has time for."""


class World:
    """The files of the tiny catalogue: `model`, `catalogue` and a `store` with one snapshot. Read-only."""

    def __init__(self, folder: Path) -> None:
        self.model, self.catalogue, self.store = folder / "model", folder / "items.csv", folder / "store"

    def build_command(self, store: Path, *options: str) -> list[str]:
        files = ["--model", str(self.model), "--catalogue", str(self.catalogue), "--out", str(store)]
        return [sys.executable, "-m", "heliotrope", "build", *files, *options]

    def server(self, data: Path, *options: str, store: Path | None = None) -> RunningServer:
        return RunningServer(store or self.store, data, "--model", str(self.model), *options)


def tiny_world(factory: pytest.TempPathFactory) -> World:
    """Made once for all tests of a run."""
    return _made(factory.getbasetemp())


def item_ids(count: int = ITEMS) -> list[str]:
    return [f"i{number}" for number in range(count)]


def open_files(server: RunningServer) -> int:
    """Descriptors of all shards together."""
    return sum(psutil.Process(pid).num_fds() for pid in server.shard_pids())


def memory_bytes(server: RunningServer) -> int:
    """Resident memory of all shards that no file backs."""
    return sum(psutil.Process(pid).memory_full_info().uss for pid in server.shard_pids())


@cache
def _made(base: Path) -> World:
    folder = base / "tiny-world"
    folder.mkdir()
    export_model(str(save_tiny_encoder(folder / "source")), folder / "model", variants=("fp32",))
    world = World(folder)
    with world.catalogue.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["item_id", "title", "description"])
        rows.writerows([one, f"title {number}", f"about {number * 7919}"] for number, one in enumerate(item_ids()))
    done = subprocess.run(world.build_command(world.store), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert SnapshotStore(str(world.store)).current()
    return world
