"""Where profiles rest: an LMDB file behind the event log, and a cache of the active ones in memory.

The log is the truth; the store is a checkpoint of it. A checkpoint is a consistent cut at one LSN, taken without
stopping intake: profiles that were dirty at the cut are encoded a few at a time, and one that is about to change is
encoded first (copy on write).
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np

from heliotrope_server.errors import DataFolderError
from heliotrope_server.event import UserEvent
from heliotrope_server.event_ring import EventRing
from heliotrope_server.interest import InterestSums
from heliotrope_server.popularity import LivePopularity
from heliotrope_server.profile import ItemSpace, Profile
from heliotrope_server.residuals import Heard, Residuals
from heliotrope_server.segments import SegmentMembers

FORMAT_VERSION = 1
PROFILE_FORMAT_VERSION = 2
MAP_BYTES = 1 << 40  # address space, not disk: LMDB's file grows as it is filled
SETTLED = 4_096  # profiles whose sums are kept, those that were read last: 8 bytes for each horizon and dimension
PLAIN_KEY_ID = 0  # every stored record names the key it is encrypted under; 0 is none

_META_KEY = b"checkpoint"
_POPULARITY_KEY = b"popularity"
_SLICE_S = 0.001
_DUTY = 0.2
"""A checkpoint works for a millisecond at a time and a fifth of the time: in one go it was what the slowest requests of
a busy shard waited for."""

logger = logging.getLogger(__name__)


class ProfileStore:
    """Profiles of one shard. Belongs to the event loop; only the LMDB transaction of a checkpoint runs in a thread."""

    def __init__(self, folder: Path, *, cache_profiles: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._cache_profiles = cache_profiles
        try:
            self._env = lmdb.open(str(folder), map_size=MAP_BYTES, max_dbs=4, subdir=True)
        except lmdb.Error as error:
            raise DataFolderError(f"the profile store in {folder} cannot be opened: {error}") from error
        self._profiles_db = self._env.open_db(b"profiles")
        self._meta_db = self._env.open_db(b"meta")
        self._heard_db = self._env.open_db(b"heard")
        self._segments_db = self._env.open_db(b"segments")
        self.segments = SegmentMembers()
        self._load_segments()
        self._cache: OrderedDict[str, Profile] = OrderedDict()
        self._settled: OrderedDict[str, Profile] = OrderedDict()
        self._dirty: set[str] = set()
        self._deleted: set[str] = set()
        self._cut: set[str] = set()
        self._encoded: dict[str, bytes | None] = {}
        meta = self._read_meta()
        self.checkpoint_lsn: int = meta["lsn"]
        self._folded_versions: set[str] = set(meta["folded_versions"])
        self._saved_popularity_version = -1
        # How many wait for a checkpoint to end.
        self.hurried = 0

    def get(self, user_id: str, space: ItemSpace) -> Profile | None:
        """The profile to be read, settled for `space`, or None for an unknown user."""
        profile = self._current(user_id, space)
        if profile is not None:
            profile.settle(space)
            self._settled[user_id] = profile
            self._settled.move_to_end(user_id)
        return profile

    def _current(self, user_id: str, space: ItemSpace) -> Profile | None:
        profile = self._cache.get(user_id)
        if profile is None:
            if user_id in self._deleted or self._encoded.get(user_id, b"") is None:
                return None
            with self._env.begin(db=self._profiles_db) as transaction:
                blob = transaction.get(user_id.encode())
            if blob is None:
                return None
            profile = decode_profile(user_id, blob, space)
            self._cache[user_id] = profile
        elif profile.generation != space.generation:
            profile.rederive(space)
        self._cache.move_to_end(user_id)
        return profile

    def edit(self, user_id: str, space: ItemSpace) -> Profile:
        """The profile, new for an unknown user, about to be changed."""
        if user_id in self._cut:
            self._preserve(user_id)
        profile = self._cache.get(user_id)
        if profile is not None and profile.generation == space.generation:
            self._cache.move_to_end(user_id)
            self._dirty.add(user_id)
            return profile
        profile = self._current(user_id, space)
        if profile is None:
            profile = self._cache[user_id] = Profile(user_id, space)
            self._deleted.discard(user_id)
        self._dirty.add(user_id)
        return profile

    def adopt(self, profile: Profile) -> None:
        """Takes over a profile from another store; it is stored with the next checkpoint."""
        self._cache[profile.user_id] = profile
        self._dirty.add(profile.user_id)
        if profile.segments:
            self.segments.change(profile.user_id, (), profile.segments)

    def delete(self, user_id: str) -> None:
        """Forgets the user: at once in memory, in the store with the next checkpoint."""
        self._preserve(user_id)
        self._cache.pop(user_id, None)
        self._settled.pop(user_id, None)
        self._dirty.discard(user_id)
        self._deleted.add(user_id)

    def count(self) -> int:
        """Profiles in the store as of the last checkpoint, plus those that are not in it yet."""
        with self._env.begin() as transaction:
            stored: int = transaction.stat(self._profiles_db)["entries"]
            keys = {user_id: user_id.encode() for user_id in self._dirty | self._deleted}
            known = {user_id for user_id, key in keys.items() if transaction.get(key, db=self._profiles_db) is not None}
        return stored + len(self._dirty - known) - len(self._deleted & known)

    def user_ids(self) -> Iterator[str]:
        """Every user of the store; call after a checkpoint."""
        with self._env.begin(db=self._profiles_db) as transaction:
            for key in transaction.cursor().iternext(keys=True, values=False):
                yield bytes(key).decode()

    @property
    def dirty_count(self) -> int:
        return len(self._dirty) + len(self._deleted)

    @property
    def folded_versions(self) -> set[str]:
        """Snapshot versions in whose space some stored folded sum may still be."""
        return set(self._folded_versions)

    async def checkpoint(
        self,
        lsn: int,
        popularity: LivePopularity,
        residuals: Residuals,
        snapshot_version: str,
        *,
        paced: bool = False,
    ) -> None:
        """Makes the state at `lsn`, which is the state when it starts, durable. One at a time, and never cancelled.

        `paced` leaves most of the time to others, unless somebody is `hurried` meanwhile.
        """
        unchanged = popularity.version == self._saved_popularity_version and not residuals.dirty
        if not self._dirty and not self._deleted and unchanged:
            await self._rest()
            return
        self._cut, self._dirty = self._dirty, set()
        deleted, self._deleted = self._deleted, set()
        self._encoded = dict.fromkeys(deleted)
        # One value for all counts: 4 ms for 100,000 items, where a key for each would hold the interpreter for 300.
        counts = msgpack.packb(popularity.own)
        saved_version, landmark_s, half_life_s = popularity.version, popularity.landmark_s, popularity.half_life_s
        heard, residual_space = residuals.take_dirty(), residuals.space
        segments = self.segments.take_dirty()
        self._folded_versions.add(snapshot_version)
        while self._cut:
            until = time.perf_counter() + _SLICE_S
            while self._cut and time.perf_counter() < until:
                self._encode(self._cut.pop())
            await asyncio.sleep(_SLICE_S / _DUTY if paced and not self.hurried else 0.0)
        meta = {
            "format_version": FORMAT_VERSION,
            "lsn": lsn,
            "landmark_s": landmark_s,
            "half_life_s": half_life_s,
            "folded_versions": sorted(self._folded_versions),
            "residual_space": residual_space,
        }
        try:
            await asyncio.get_running_loop().run_in_executor(
                None, self._commit, self._encoded, counts, heard, segments, meta
            )
        except lmdb.Error as error:
            # Nothing is lost: the log still holds everything since the last checkpoint. The next one tries again.
            logger.error("the checkpoint at LSN %d failed: %s", lsn, error)
            self._dirty |= {user_id for user_id, blob in self._encoded.items() if blob and user_id in self._cache}
            self._deleted |= deleted - self._cache.keys()
            self._saved_popularity_version = -1
            residuals.put_back(heard)
            self.segments.put_back(segments)
        else:
            self.checkpoint_lsn = lsn
            self._saved_popularity_version = saved_version
        self._encoded = {}
        self._evict()
        await self._rest()

    def load_popularity(self, popularity: LivePopularity) -> None:
        """Restores the counts as of the last checkpoint, with the half-life that they were kept by."""
        meta = self._read_meta()
        popularity.landmark_s = meta["landmark_s"]
        popularity.half_life_s = meta.get("half_life_s", popularity.half_life_s)
        with self._env.begin(db=self._meta_db) as transaction:
            raw = transaction.get(_POPULARITY_KEY)
        popularity.own = {} if raw is None else msgpack.unpackb(raw)

    def load_residuals(self, residuals: Residuals) -> None:
        """Restores what users said of young items, in the space of the snapshot that was served then."""
        residuals.space = self._read_meta().get("residual_space", "")
        with self._env.begin(db=self._heard_db) as transaction:
            for key, blob in transaction.cursor():
                residuals.own[bytes(key).decode()] = _decode_heard(blob)

    def _load_segments(self) -> None:
        with self._env.begin(db=self._segments_db) as transaction:
            for key, blob in transaction.cursor():
                self.segments.put(bytes(key).decode(), msgpack.unpackb(blob))

    def close(self) -> None:
        self._env.close()

    def _preserve(self, user_id: str) -> None:
        if user_id in self._cut:
            self._cut.discard(user_id)
            self._encode(user_id)

    def _encode(self, user_id: str) -> None:
        self._encoded[user_id] = encode_profile(self._cache[user_id])

    def _commit(
        self,
        profiles: dict[str, bytes | None],
        counts: bytes,
        heard: dict[str, Heard | None],
        segments: dict[str, tuple[str, ...]],
        meta: dict[str, Any],
    ) -> None:
        kept = [(user_id.encode(), blob) for user_id, blob in profiles.items() if blob is not None]
        with self._env.begin(write=True) as transaction:
            for user_id, blob in profiles.items():
                if blob is None:
                    transaction.delete(user_id.encode(), db=self._profiles_db)
            # In C: a loop here would fight the event loop for the interpreter.
            transaction.cursor(self._profiles_db).putmulti(kept)
            for item_id, entry in heard.items():
                if entry is None:
                    transaction.delete(item_id.encode(), db=self._heard_db)
                else:
                    transaction.put(item_id.encode(), _encode_heard(entry), db=self._heard_db)
            for user_id, names in segments.items():
                if names:
                    transaction.put(user_id.encode(), msgpack.packb(names), db=self._segments_db)
                else:
                    transaction.delete(user_id.encode(), db=self._segments_db)
            transaction.put(_POPULARITY_KEY, counts, db=self._meta_db)
            transaction.put(_META_KEY, msgpack.packb(meta), db=self._meta_db)

    def _evict(self) -> None:
        surplus = len(self._cache) - self._cache_profiles
        if surplus <= 0:
            return
        clean = [user_id for user_id in self._cache if user_id not in self._dirty]
        for user_id in clean[:surplus]:
            del self._cache[user_id]
            self._settled.pop(user_id, None)

    async def _rest(self) -> None:
        """Lets the profiles go to rest that were read longest ago. Not while reading: one batch may read very many."""
        while len(self._settled) > SETTLED:
            until = time.perf_counter() + _SLICE_S
            while len(self._settled) > SETTLED and time.perf_counter() < until:
                self._settled.popitem(last=False)[1].rest()
            await asyncio.sleep(0)

    def _read_meta(self) -> dict[str, Any]:
        with self._env.begin(db=self._meta_db) as transaction:
            raw = transaction.get(_META_KEY)
        if raw is None:
            return {"lsn": 0, "landmark_s": 0.0, "folded_versions": []}
        meta: dict[str, Any] = msgpack.unpackb(raw)
        if meta["format_version"] != FORMAT_VERSION:
            raise DataFolderError(
                f"the profile store has format version {meta['format_version']}; this server reads {FORMAT_VERSION}"
            )
        return meta


def encode_profile(profile: Profile) -> bytes:
    """A profile as msgpack, without what is empty. The sums of the ring are not stored: they are derived on reading."""
    folded = profile.folded
    pooled = profile.declared_pooled
    body = {
        "lsn": profile.lsn,
        "events": profile.events.dump() if profile.events else None,
        "undone": dict(profile.undone),
        "folded": None
        if folded is None
        else (folded.landmark_s, folded.masses, folded.sums.shape[1], folded.sums.tobytes()),
        "folded_version": profile.folded_version,
        "folded_count": profile.folded_count,
        "folded_newest_s": profile.folded_newest_s,
        "folded_ids": profile.folded_ids.tobytes(),
        "folded_items": list(profile.folded_items),
        "folded_times_us": list(profile.folded_items.values()),
        "counted_apart": profile.counted_apart(),
        "segments": profile.segments,
        "declared": profile.declared_interests,
        "declared_pooled": None if pooled is None else (pooled.shape, pooled.tobytes()),
        "declared_model": profile.declared_model_version,
    }
    packed = msgpack.packb({name: value for name, value in body.items() if value})
    blob: bytes = msgpack.packb((PROFILE_FORMAT_VERSION, PLAIN_KEY_ID, packed))
    return blob


def decode_profile(user_id: str, blob: bytes, space: ItemSpace) -> Profile:
    """The inverse of encode_profile, for `space`; reads format 1 too. Raises DataFolderError for others."""
    version, key_id, packed = msgpack.unpackb(blob)
    if not 1 <= version <= PROFILE_FORMAT_VERSION or key_id != PLAIN_KEY_ID:
        raise DataFolderError(
            f"the stored profile has format version {version} and key id {key_id}; "
            f"this server reads 1 to {PROFILE_FORMAT_VERSION} and {PLAIN_KEY_ID}"
        )
    body = msgpack.unpackb(packed)
    profile = Profile(user_id, space)
    profile.lsn = body.get("lsn", 0)
    if version == 1:
        events = [
            UserEvent(user_id, event_id, kind, item_id, value, time_us)
            for event_id, kind, item_id, value, time_us in body["events"]
        ]
        profile.restore(events, body.get("counted", {}))
    else:
        if "events" in body:
            profile.events = EventRing.load(user_id, body["events"])
        profile.restore([], body.get("counted_apart", {}))
    if body.get("undone"):
        profile.undone = body["undone"]
    if body.get("folded") is not None:
        landmark_s, masses, dimension, sums = body["folded"]
        profile.folded = InterestSums(len(masses), dimension, landmark_s)
        profile.folded.masses = list(masses)
        profile.folded.sums = np.frombuffer(sums, dtype=np.float64).reshape(len(masses), dimension).copy()
    profile.folded_version = body.get("folded_version", "")
    profile.folded_count = body.get("folded_count", 0)
    profile.folded_newest_s = body.get("folded_newest_s", 0.0)
    if body.get("folded_items"):
        profile.folded_ids = np.frombuffer(body["folded_ids"], dtype=np.uint64)
        folded_items = body["folded_items"]
        # Profiles written before each user counted once per item know no times: what they counted decays away.
        times_us = body.get("folded_times_us", [0] * len(folded_items))
        profile.folded_items = dict(zip(folded_items, times_us, strict=True))
    # Profiles written before there were segments have none.
    profile.segments = tuple(body.get("segments", ()))
    profile.declared_interests = tuple(body.get("declared", ()))
    if body.get("declared_pooled") is not None:
        shape, pooled = body["declared_pooled"]
        profile.declared_pooled = np.frombuffer(pooled, dtype=np.float32).reshape(shape)
    profile.declared_model_version = body.get("declared_model", "")
    profile.rederive(space)
    return profile


def _encode_heard(heard: Heard) -> bytes:
    """What users said of an item; each user's part names its key, as every record of a user does."""
    parts = [(user_id, PLAIN_KEY_ID, said.tobytes()) for user_id, said in zip(heard.users, heard.said, strict=True)]
    blob: bytes = msgpack.packb((FORMAT_VERSION, heard.known, parts))
    return blob


def _decode_heard(blob: bytes) -> Heard:
    version, known, parts = msgpack.unpackb(blob)
    if version != FORMAT_VERSION or any(key_id != PLAIN_KEY_ID for _, key_id, _ in parts):
        raise DataFolderError(f"the store of young items has format version {version} or keys unknown to this server")
    said = np.stack([np.frombuffer(packed, dtype=np.float16) for _, _, packed in parts])
    return Heard(tuple(user_id for user_id, _, _ in parts), said, known)
