"""The data folder: which generation of stores is current, and how it is cut into shards.

    DATA/LOCK                      held by the server that runs
    DATA/layout.json               the current generation; written aside and renamed
    DATA/catalogue/                the catalogue log, shared by all shards
    DATA/weights/                  learned weights, shared by all shards (see learning.weight_store)
    DATA/<generation>/shard-000/   log/, profiles/ and impressions/ of one shard, and the LOCK of its process

A user belongs to a hash slot and a shard owns a range of slots. Starting with another number of shards copies every
profile into a new generation; the logs of the old one stay, because the next rebuild reads them.
"""

import asyncio
import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from heliotrope_indexer.snapshot import Snapshot
from heliotrope_server.embedder import Embedder
from heliotrope_server.engine import Engine
from heliotrope_server.errors import DataFolderError, ProfileDamagedError
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.peers import slot_of
from heliotrope_server.popularity import LivePopularity
from heliotrope_server.profile_store import ProfileStore
from heliotrope_server.record_log import sync_folder
from heliotrope_server.residuals import Residuals
from heliotrope_server.settings import EngineSettings, slots_of
from heliotrope_server.version_token import VersionClock

FORMAT_VERSION = 1
LAYOUT_FILE = "layout.json"
DRAIN_PATIENCE_S = 30.0

FoldedMaps = Callable[[LiveCatalogue, set[str]], None]

logger = logging.getLogger(__name__)


class Layout(BaseModel):
    """`ancestors` maps each earlier generation, oldest first, to the last LSN of each of its shards."""

    model_config = ConfigDict(frozen=True)

    format_version: int = FORMAT_VERSION
    generation: str
    shards: int
    ancestors: dict[str, dict[int, int]] = {}

    def shard_folder(self, data: Path, index: int) -> Path:
        return data / self.generation / f"shard-{index:03d}"

    def clock(self, index: int) -> VersionClock:
        return VersionClock(self.generation, index, self.ancestors)


def lock_data(data: Path) -> IO[bytes]:
    """Takes the data folder for this process; keep the file open. Raises DataFolderError when another server has it."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        file = (data / "LOCK").open("ab")
    except OSError as error:
        raise DataFolderError(f"the data folder {data} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise DataFolderError(f"the data folder {data} is in use by another server") from error
    return file


async def lock_shard(folder: Path, patience_s: float) -> IO[bytes]:
    """Takes a shard's folder, waiting for a shard whose supervisor was killed to finish its drain.

    Raises DataFolderError when it has not let go after `patience_s`.
    """
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return lock_data(folder)
        except DataFolderError:
            if time.monotonic() > deadline_s:
                raise
        await asyncio.sleep(0.1)


def read_layout(data: Path) -> Layout | None:
    """The current layout; None for a folder that no server has used yet."""
    try:
        text = (data / LAYOUT_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        raw = json.loads(text)
        if raw["format_version"] != FORMAT_VERSION:
            raise DataFolderError(
                f"{data} has format version {raw['format_version']}; this server reads {FORMAT_VERSION}"
            )
        return Layout.model_validate(raw)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataFolderError(f"{data / LAYOUT_FILE} is damaged: {error}") from error


def open_layout(
    data: Path, shards: int, snapshot: Snapshot, settings: EngineSettings, folded_maps: FoldedMaps
) -> Layout:
    """The layout for `shards` shards: new, as it is, or cut anew from another number.

    `folded_maps` is what Engine.start needs to read profiles that were folded under another snapshot.
    """
    layout = read_layout(data)
    if layout is None and any(data.glob("g-*")):
        # Not to be taken for a new folder: the server would begin with nobody in it.
        raise DataFolderError(
            f"{data} holds generations but no {LAYOUT_FILE}: a restore was not finished, or the file was lost; "
            "empty the folder and restore a backup"
        )
    if layout is not None and layout.shards == shards:
        _remove_abandoned(data, layout)
        return layout
    if layout is None:
        fresh = Layout(generation=new_generation(), shards=shards)
    else:
        logger.info("cutting %d shards into %d", layout.shards, shards)
        fresh = asyncio.run(_reshard(data, layout, shards, snapshot, settings, folded_maps))
    write_layout(data, fresh)
    return fresh


async def _reshard(
    data: Path,
    old: Layout,
    shards: int,
    snapshot: Snapshot,
    settings: EngineSettings,
    folded_maps: FoldedMaps,
) -> Layout:
    """Copies every profile of `old` to the stores of a new generation. A crash leaves the old one current."""
    _remove_abandoned(data, old)
    generation = new_generation()
    last_lsns: dict[int, int] = {}
    fresh = Layout(generation=generation, shards=shards)
    stores = [ProfileStore(fresh.shard_folder(data, index) / "profiles", cache_profiles=1) for index in range(shards)]
    owner = {slot: index for index in range(shards) for slot in slots_of(index, shards)}
    popularity = LivePopularity(snapshot.parameters.popularity_half_life_s)
    residuals = [Residuals() for _ in range(shards)]
    for index in range(old.shards):
        with await lock_shard(old.shard_folder(data, index), DRAIN_PATIENCE_S):
            catalogue = LiveCatalogue(snapshot)
            engine = Engine(
                old.shard_folder(data, index), data / "catalogue", catalogue, Embedder(None), old.clock(index), settings
            )
            await engine.start(folded_maps)
            await engine.stop(close_store=False)
            last_lsns[index] = engine.applied_lsn
            for user_id in list(engine.store.user_ids()):
                try:
                    profile = engine.profile(user_id)
                except ProfileDamagedError as error:
                    raise DataFolderError(
                        f"{old.shards} shards cannot be cut into {shards}: {error}; start with --shards "
                        f"{old.shards}, or run `heliotrope repair` (docs/backup.md)"
                    ) from error
                profile.lsn = 0
                stores[owner[slot_of(user_id)]].adopt(profile)
            popularity.merge_peer(index, *engine.popularity.changes(0), engine.popularity.landmark_s, {})
            for item_id, heard in engine.residuals.own.items():
                for user_id, said in zip(heard.users, heard.said, strict=True):
                    residuals[owner[slot_of(user_id)]].put(user_id, item_id, said, heard.known)
            for store, part in zip(stores, residuals, strict=True):
                part.space = engine.residuals.space
                await store.checkpoint(0, LivePopularity(popularity.half_life_s), part, catalogue.version)
            engine.store.close()
    popularity.absorb_peers()
    await stores[0].checkpoint(0, popularity, residuals[0], snapshot.version)
    for store in stores:
        store.close()
    return fresh.model_copy(update={"ancestors": {**old.ancestors, old.generation: last_lsns}})


def write_layout(data: Path, layout: Layout) -> None:
    """Makes a layout the current one, durably."""
    aside = data / f".{LAYOUT_FILE}"
    with aside.open("w", encoding="utf-8") as file:
        file.write(layout.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.rename(data / LAYOUT_FILE)
    sync_folder(data)


def _remove_abandoned(data: Path, layout: Layout) -> None:
    """Removes generations that were being made when a server died."""
    known = {layout.generation, *layout.ancestors}
    for path in data.glob("g-*"):
        if path.name not in known:
            shutil.rmtree(path)


def new_generation() -> str:
    """A name that no other generation has."""
    return f"g-{uuid.uuid4().hex[:12]}"


def log_folders(data: Path) -> list[Path]:
    """Every event log of the folder, of all generations, oldest generation first. Raises DataFolderError."""
    return [folder / "log" for folder in _shard_folders(data)]


def impression_folders(data: Path) -> list[Path]:
    """Every impression log of the folder that exists, as log_folders: what `read_impressions` reads."""
    return [folder / "impressions" for folder in _shard_folders(data) if (folder / "impressions").is_dir()]


def _shard_folders(data: Path) -> list[Path]:
    layout = read_layout(data)
    if layout is None:
        raise DataFolderError(f"{data} is no data folder of a server: it has no {LAYOUT_FILE}")
    generations: list[tuple[str, Any]] = [
        *((generation, range(len(shards))) for generation, shards in layout.ancestors.items()),
        (layout.generation, range(layout.shards)),
    ]
    return [data / generation / f"shard-{index:03d}" for generation, shards in generations for index in shards]
