"""Makes damaged profiles anew from the event logs, which hold everything that a profile is made of.

Live popularity and what was said of young items hold the part of these users already, so only the profiles are made.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from heliotrope_server.data_source import CheckpointState, DataSource, checkpoint_state
from heliotrope_server.errors import BackupError
from heliotrope_server.event_records import RECORD_DELETE, LastRecords, apply_to_profile
from heliotrope_server.layout import log_folders
from heliotrope_server.peers import slot_of
from heliotrope_server.profile import ItemSpace, Profile
from heliotrope_server.profile_codec import encode_profile
from heliotrope_server.profile_store import MAP_BYTES
from heliotrope_server.record_log import DAMAGED_SUFFIX, read_log, segments
from heliotrope_server.settings import slots_of
from heliotrope_server.store_reader import MAX_DATABASES
from heliotrope_server.store_values import META_KEY, decode_meta, encode_meta
from heliotrope_server.verify_content import Report, check_entry


class Folding(NamedTuple):
    """How the server keeps profiles: `ring_size` events one by one, and all that are newer than `keep_after_s`."""

    ring_size: int
    keep_after_s: float


class Rebuilt(NamedTuple):
    """One profile; `event_count` None: the logs hold nothing of the user, and what was damaged is dropped."""

    user_id: str
    event_count: int | None


def rebuild_profiles(data: Path, index: int, space: ItemSpace, folding: Folding) -> list[Rebuilt]:
    """Makes those profiles of a shard anew that cannot be read, are older than the log says, or missing.

    The server of the shard is stopped; `space` is the catalogue that is served next. Returns nothing, and changes
    nothing, for a sound store. Raises BackupError where more than profiles is damaged, DataFolderError for a store
    whose pages are, and LogCorruptError.
    """
    source = DataSource(data)
    layout = source.layout
    shard = layout.shard_folder(data, index)
    until_lsn, damaged, sound = _profiles(source, (shard / "profiles").relative_to(data).as_posix())
    last = LastRecords(until_lsn)
    for record, lsn in _records([shard / "log"]):
        last.take(record, lsn)
    behind = last.behind(sound)
    if not damaged and not behind:
        return []
    own_slots, keep = slots_of(index, layout.shards), sound.keys() - behind.keys()
    made: dict[str, Profile] = {}
    earlier = ((record, 0) for record, _ in _records(log_folders(data)[: -layout.shards]))
    for record, lsn in chain(earlier, _records([shard / "log"])):
        user_id = record[2]
        if lsn > until_lsn:
            break
        # Also who is not in the store at all: the key of a damaged value may be what was damaged.
        if user_id in keep or slot_of(user_id) not in own_slots:
            continue
        if record[0] == RECORD_DELETE:
            made.pop(user_id, None)
            continue
        if user_id not in made:
            made[user_id] = Profile(user_id, space)
        apply_to_profile(record, lsn, made[user_id], space)
        made[user_id].fold(folding.ring_size, folding.keep_after_s, space)
    _write(shard / "profiles", damaged, made, space.version)
    lost = {key.decode(errors="replace") for key in damaged} - made.keys()
    return [
        *(Rebuilt(user_id, profile.event_count) for user_id, profile in sorted(made.items())),
        *(Rebuilt(user_id, None) for user_id in sorted(lost)),
    ]


def missing_records(data: Path) -> list[str]:
    """What the event logs have lost: profiles that are made of them may lack events."""
    missing = []
    for folder in log_folders(data):
        paths = segments(folder)
        if paths and int(paths[0].stem) > 1:
            missing.append(f"the records before {paths[0]}")
        missing += sorted(f"the records of {path}" for path in folder.glob(f"*{DAMAGED_SUFFIX}"))
    return missing


def _profiles(source: DataSource, folder: str) -> tuple[int, list[bytes], dict[str, int]]:
    """The LSN of the checkpoint, the keys of profiles that cannot be read, and the LSNs of the others by user."""
    state = CheckpointState()
    damaged: list[bytes] = []
    sound: dict[str, int] = {}
    for entry in source.store_entries(folder):
        try:
            lsn = check_entry(entry, Report())
            state = checkpoint_state(entry) or state
        except Exception as error:  # whatever decoding makes of damaged bytes
            if entry.database != "profiles":
                raise BackupError(
                    f"{folder}, {entry.database} {entry.key!r}: {type(error).__name__}: {error}: more than profiles is "
                    "damaged; name --backups to take the store from there"
                ) from error
            damaged.append(entry.key)
        else:
            if entry.database == "profiles":
                sound[entry.key.decode()] = lsn
    return state.lsn, damaged, sound


def _write(folder: Path, damaged: list[bytes], made: dict[str, Profile], version: str) -> None:
    """Puts profiles that were made in the space of a snapshot version in the place of damaged ones."""
    with closing(lmdb.open(str(folder), map_size=MAP_BYTES, max_dbs=MAX_DATABASES)) as environment:
        profiles_db, meta_db, segments_db = (environment.open_db(name) for name in (b"profiles", b"meta", b"segments"))
        with environment.begin(write=True) as transaction:
            raw = transaction.get(META_KEY, db=meta_db)
            if raw is None:
                raise BackupError(f"{folder} holds profiles and no checkpoint; name --backups")
            meta = decode_meta(raw)
            for key in damaged:
                transaction.delete(key, db=profiles_db)
                if key.decode(errors="replace") not in made:
                    transaction.delete(key, db=segments_db)
            for user_id, profile in made.items():
                transaction.put(user_id.encode(), encode_profile(profile), db=profiles_db)
            meta["folded_versions"] = sorted({*meta["folded_versions"], version})
            finished = meta["lsn"] == meta.get("shared_lsn", meta["lsn"])
            transaction.put(META_KEY, encode_meta(meta, finished=finished), db=meta_db)


def _records(logs: Iterable[Path]) -> Iterator[tuple[Any, int]]:
    """Every record of some logs with its LSN."""
    for folder in logs:
        for frame in read_log(folder):
            for lsn, record in enumerate(frame.records, frame.first_lsn):
                yield record, lsn
