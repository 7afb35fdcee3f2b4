"""Where profiles rest: an LMDB file behind the event log, and a cache of the active ones in memory.

The log is the truth; the store is a checkpoint of it. A checkpoint is a consistent cut at one LSN, taken without
stopping intake: profiles that were dirty at the cut are encoded a few at a time, and one that is about to change is
encoded first (copy on write).

A large checkpoint is committed in several transactions, for LMDB holds every page that one writes in memory. The first
brings what is kept across users (popularity, residuals, segments, deletions) to the cut, and says so by `shared_lsn`;
the last one makes the cut the checkpoint. A store that was left between the two is whole again by the log: up to
`shared_lsn` a record goes into its profile only, and only if its LSN is after that of the profile.
"""

import asyncio
import heapq
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from heliotrope_server.errors import DataFolderError, ProfileDamagedError
from heliotrope_server.popularity import LivePopularity
from heliotrope_server.profile import ItemSpace, Profile
from heliotrope_server.profile_codec import decode_profile, encode_profile
from heliotrope_server.residuals import Heard, Residuals
from heliotrope_server.segments import SegmentMembers
from heliotrope_server.store_values import (
    META_KEY,
    POPULARITY_KEY,
    decode_counts,
    decode_heard,
    decode_meta,
    decode_segments,
    encode_counts,
    encode_heard,
    encode_meta,
    encode_segments,
)

MAP_BYTES = 1 << 40  # address space, not disk: LMDB's file grows as it is filled
SETTLED = 2_048  # profiles whose sums are kept, those that were read last: 8 bytes for each horizon and dimension
CHUNK = 256  # profiles that are written in one transaction: LMDB holds up to a page of 4 KB for each, for good

_SORTED = 1_024  # user ids that are sorted at once

_SLICE_S = 0.001
_DUTY = 0.2
"""A checkpoint works for a millisecond at a time and a fifth of the time: in one go it was what the slowest requests of
a busy shard waited for."""

logger = logging.getLogger(__name__)


class _Shared(NamedTuple):
    """What a checkpoint writes of what is kept across users, and who is deleted."""

    counts: bytes
    heard: dict[str, Heard | None]
    segments: dict[str, tuple[str, ...]]
    deleted: set[str]


class ProfileStore:
    """Profiles of one shard. Belongs to the event loop; only the LMDB transaction of a checkpoint runs in a thread.

    Raises DataFolderError for a folder that cannot be opened, is damaged, or is of a later format. A single profile
    that is damaged shows when it is read: then `get` and `edit` raise ProfileDamagedError, for this user alone, until
    the profile is deleted.
    """

    def __init__(self, folder: Path, *, cache_profiles: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._cache_profiles = cache_profiles
        self._most_settled = min(SETTLED, cache_profiles)
        self.segments = SegmentMembers()
        with self._opening():
            self._env = lmdb.open(str(folder), map_size=MAP_BYTES, max_dbs=4, subdir=True)
            self._profiles_db = self._env.open_db(b"profiles")
            self._meta_db = self._env.open_db(b"meta")
            self._heard_db = self._env.open_db(b"heard")
            self._segments_db = self._env.open_db(b"segments")
            self._load_segments()
            meta = self._read_meta()
        self._cache: dict[str, Profile] = {}
        # Those of the cache that have their sums, in the order of reading.
        self._settled: OrderedDict[str, Profile] = OrderedDict()
        self._rests_soon = False
        self._dirty: set[str] = set()
        self._deleted: set[str] = set()
        # Why the profiles that were found damaged cannot be read.
        self._damaged: dict[str, str] = {}
        # The checkpoint that is being taken: who is still to be encoded, who is encoded already, and who was deleted.
        self._cut: set[str] = set()
        self._encoded: dict[str, bytes] = {}
        self._leaving: set[str] = set()
        self.checkpoint_lsn: int = meta["lsn"]
        # Up to here the store holds what is kept across users: later than the rest if a checkpoint was broken off.
        self.shared_lsn: int = meta.get("shared_lsn", self.checkpoint_lsn)
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
            if len(self._settled) > self._most_settled and not self._rests_soon:
                # Not at once: whoever reads a batch holds what was read for it until the event loop is free again.
                self._rests_soon = True
                asyncio.get_running_loop().call_soon(self._rest)
        return profile

    def _current(self, user_id: str, space: ItemSpace) -> Profile | None:
        profile = self._cache.get(user_id)
        if profile is None:
            if user_id in self._deleted or user_id in self._leaving:
                return None
            profile = self._stored(user_id, space)
            if profile is None:
                return None
            self._cache[user_id] = profile
        elif profile.generation != space.generation:
            profile.rederive(space)
        return profile

    def _stored(self, user_id: str, space: ItemSpace) -> Profile | None:
        """The profile as of the last checkpoint."""
        fault = self._damaged.get(user_id)
        if fault is None:
            try:
                with self._env.begin(db=self._profiles_db) as transaction:
                    blob = transaction.get(user_id.encode())
                return None if blob is None else decode_profile(user_id, blob, space)
            except Exception as error:  # of LMDB, or whatever decoding makes of damaged bytes
                fault = self._damaged[user_id] = f"{type(error).__name__}: {error}"
                logger.error(
                    "the profile of user %r in %s cannot be read (%s); other users are served. Its events are in the "
                    "log: stop the server and run `heliotrope repair` (docs/backup.md)",
                    user_id,
                    self._folder,
                    fault,
                )
        raise ProfileDamagedError(
            "PROFILE_DAMAGED",
            f"the stored profile of user {user_id[:64]!r} cannot be read ({fault}); it can be repaired or deleted",
            user_id=user_id[:256],
        )

    def damaged(self, user_ids: set[str], space: ItemSpace) -> dict[str, ProfileDamagedError]:
        """Those of some users whose profiles cannot be read, with the error; the others are in memory from now on."""
        found: dict[str, ProfileDamagedError] = {}
        for user_id in user_ids:
            if user_id in self._cache:
                continue
            try:
                self._current(user_id, space)
            except ProfileDamagedError as error:
                found[user_id] = error
        return found

    def edit(self, user_id: str, space: ItemSpace) -> Profile:
        """The profile, new for an unknown user, about to be changed."""
        if user_id in self._cut:
            self._preserve(user_id)
        profile = self._cache.get(user_id)
        if profile is not None and profile.generation == space.generation:
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

    async def turn_to(self, space: ItemSpace) -> None:
        """Re-derives for another snapshot the profiles that were read last, in the time that requests leave: who comes
        back meanwhile is turned at once, by `get`.
        """
        until = time.perf_counter() + _SLICE_S
        for user_id in reversed(list(self._settled)):
            profile = self._settled.get(user_id)
            if profile is not None and profile.generation != space.generation:
                profile.rederive(space)
                profile.settle(space)
            if time.perf_counter() >= until:
                await self._pause(paced=True)
                until = time.perf_counter() + _SLICE_S

    def delete(self, user_id: str) -> None:
        """Forgets the user: at once in memory, in the store with the next checkpoint."""
        self._preserve(user_id)
        self._cache.pop(user_id, None)
        self._settled.pop(user_id, None)
        self._dirty.discard(user_id)
        self._damaged.pop(user_id, None)
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
            return
        self._cut, self._dirty = self._dirty, set()
        self._leaving, self._deleted = self._deleted, set()
        saved_version = popularity.version
        self._folded_versions.add(snapshot_version)
        meta = {
            "landmark_s": popularity.landmark_s,
            "half_life_s": popularity.half_life_s,
            "folded_versions": sorted(self._folded_versions),
            "residual_space": residuals.space,
        }
        # One value for all counts: 4 ms for 100,000 items, where a key for each would hold the interpreter for 300.
        counts = encode_counts(popularity.own)
        shared = _Shared(counts, residuals.take_dirty(), self.segments.take_dirty(), self._leaving)
        cut = list(self._cut)
        try:
            await self._write(cut, shared, meta, lsn, paced)
        except lmdb.Error as error:
            # Nothing is lost: the log still holds everything since the last checkpoint. The next one tries again.
            logger.error("the checkpoint at LSN %d failed: %s", lsn, error)
            self._dirty |= self._cache.keys() & set(cut)
            self._deleted |= self._leaving - self._cache.keys()
            self._saved_popularity_version = -1
            residuals.put_back(shared.heard)
            self.segments.put_back(shared.segments)
        else:
            self.checkpoint_lsn = lsn
            self._saved_popularity_version = saved_version
        self._cut, self._encoded, self._leaving = set(), {}, set()
        self._evict()

    async def _write(self, cut: list[str], shared: _Shared, meta: dict[str, Any], lsn: int, paced: bool) -> None:
        """Writes the cut: what is shared first, then the profiles by key, so that each page is written once.

        Copies of profiles that have changed since the cut go before all others: while events come fast, they would
        soon be as many as the profiles.
        """
        first: _Shared | None = shared

        async def write(others: Iterable[str]) -> bool:
            """Writes all copies there are and some of those that come by key; returns whether these were the last."""
            nonlocal first
            copied = sorted(self._encoded)
            blobs = await self._encode_many(chain(copied, islice(others, max(0, CHUNK - len(copied)))), paced)
            last = not self._cut and not self._encoded
            commit = partial(self._commit_in_parts, blobs, first, meta, lsn, last)
            await asyncio.get_running_loop().run_in_executor(None, commit)
            first = None
            return last

        # Sorted in parts, for all at once would hold the loop; merged as they are taken.
        parts = []
        for start in range(0, len(cut), _SORTED):
            parts.append(sorted(cut[start : start + _SORTED]))
            await self._pause(paced)
            if len(self._encoded) >= CHUNK:
                await write(())
        by_key = (user_id for user_id in heapq.merge(*parts) if user_id in self._cut)
        while not await write(by_key):
            pass

    async def _encode_many(self, users: Iterable[str], paced: bool) -> list[tuple[bytes, bytes]]:
        """Keys and values of profiles as of the cut."""
        blobs: list[tuple[bytes, bytes]] = []
        until = time.perf_counter() + _SLICE_S
        for user_id in users:
            self._preserve(user_id)
            blobs.append((user_id.encode(), self._encoded.pop(user_id)))
            if time.perf_counter() >= until:
                await self._pause(paced)
                until = time.perf_counter() + _SLICE_S
        return blobs

    async def _pause(self, paced: bool) -> None:
        await asyncio.sleep(_SLICE_S / _DUTY if paced and not self.hurried else 0.0)

    def load_popularity(self, popularity: LivePopularity) -> None:
        """Restores the counts as of the last checkpoint, with the half-life that they were kept by."""
        with self._opening():
            meta = self._read_meta()
            popularity.landmark_s = meta["landmark_s"]
            popularity.half_life_s = meta.get("half_life_s", popularity.half_life_s)
            with self._env.begin(db=self._meta_db) as transaction:
                raw = transaction.get(POPULARITY_KEY)
            popularity.own = {} if raw is None else decode_counts(raw)

    def load_residuals(self, residuals: Residuals) -> None:
        """Restores what users said of young items, in the space of the snapshot that was served then."""
        with self._opening():
            residuals.space = self._read_meta().get("residual_space", "")
            with self._env.begin(db=self._heard_db) as transaction:
                for key, value in transaction.cursor():
                    item_id = bytes(key).decode()
                    residuals.own[item_id] = decode_heard(item_id, value)

    def _load_segments(self) -> None:
        with self._env.begin(db=self._segments_db) as transaction:
            for key, value in transaction.cursor():
                user_id = bytes(key).decode()
                self.segments.put(user_id, decode_segments(user_id, value))

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """Turns whatever LMDB and decoding make of a damaged store into one line with the way out."""
        try:
            yield
        except DataFolderError:
            raise  # of a later format
        except Exception as error:
            raise DataFolderError(
                f"the profile store in {self._folder} cannot be opened: {type(error).__name__}: {error}; if it is "
                "damaged, `heliotrope verify` says where, and `heliotrope repair` or `heliotrope restore` bring back a "
                "backup (docs/backup.md)"
            ) from error

    def close(self) -> None:
        self._env.close()

    def _preserve(self, user_id: str) -> None:
        if user_id in self._cut:
            self._cut.discard(user_id)
            self._encoded[user_id] = encode_profile(self._cache[user_id])

    def _commit_in_parts(
        self, blobs: list[tuple[bytes, bytes]], shared: _Shared | None, meta: dict[str, Any], lsn: int, last: bool
    ) -> None:
        """Commits part of the checkpoint at `lsn`; with the end of the `last` one it is the checkpoint."""
        for start in range(0, max(1, len(blobs)), CHUNK):
            whole = last and start + CHUNK >= len(blobs)
            reached = {"lsn": lsn if whole else self.checkpoint_lsn, "shared_lsn": lsn}
            packed = encode_meta({**meta, **reached}, finished=whole)
            self._commit(blobs[start : start + CHUNK], None if start else shared, packed)

    def _commit(self, blobs: list[tuple[bytes, bytes]], shared: _Shared | None, meta: bytes) -> None:
        """One transaction."""
        with self._env.begin(write=True) as transaction:
            if shared is not None:
                self._put_shared(transaction, shared)
            # In C: a loop here would fight the event loop for the interpreter.
            transaction.cursor(self._profiles_db).putmulti(blobs)
            transaction.put(META_KEY, meta, db=self._meta_db)

    def _put_shared(self, transaction: Any, shared: _Shared) -> None:
        for user_id in shared.deleted:
            transaction.delete(user_id.encode(), db=self._profiles_db)
        for item_id, entry in shared.heard.items():
            if entry is None:
                transaction.delete(item_id.encode(), db=self._heard_db)
            else:
                transaction.put(item_id.encode(), encode_heard(item_id, entry), db=self._heard_db)
        for user_id, names in shared.segments.items():
            if names:
                transaction.put(user_id.encode(), encode_segments(user_id, names), db=self._segments_db)
            else:
                transaction.delete(user_id.encode(), db=self._segments_db)
        transaction.put(POPULARITY_KEY, shared.counts, db=self._meta_db)

    def _evict(self) -> None:
        """Those that came first go, but for who has changed or was read of late."""
        surplus = max(0, len(self._cache) - self._cache_profiles)
        idle = (user_id for user_id in self._cache if user_id not in self._dirty and user_id not in self._settled)
        for user_id in list(islice(idle, surplus)):
            del self._cache[user_id]

    def _rest(self) -> None:
        """Lets the profiles go to rest that were read longest ago."""
        until = time.perf_counter() + _SLICE_S
        while len(self._settled) > self._most_settled:
            if time.perf_counter() >= until:
                asyncio.get_running_loop().call_soon(self._rest)
                return
            self._settled.popitem(last=False)[1].rest()
        self._rests_soon = False

    def _read_meta(self) -> dict[str, Any]:
        with self._env.begin(db=self._meta_db) as transaction:
            raw = transaction.get(META_KEY)
        if raw is None:
            return {"lsn": 0, "landmark_s": 0.0, "folded_versions": []}
        return decode_meta(raw)
