"""Moves all shards from one snapshot to another at one version barrier."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from heliotrope.internal.v1 import peer_pb2 as pb
from heliotrope_indexer.errors import IndexerError, SnapshotNotFoundError
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_indexer.snapshot.activations import ActivationRecord, How, withdrawals
from heliotrope_server.activation import Activation
from heliotrope_server.canary import Canary
from heliotrope_server.engine import Engine
from heliotrope_server.errors import OverloadedError, RequestError, ShardUnreachableError, SnapshotUnusableError
from heliotrope_server.peers import Peer, Peers
from heliotrope_server.servicers.routing import passed_on

SERVED_FILE = "SERVED"
"""In the data folder. CURRENT of the store says what the next server starts with, and a build moves it without asking
this one."""
FOLLOW_INTERVAL_S = 0.5
FAILED_FOLLOW_WAIT_S = 10.0
"""Each try reads and hashes a whole snapshot."""
COMMIT_PATIENCE_S = 60.0
"""For a shard that dies between the two phases to be back with the version that was decided."""
ABANDON_TIMEOUT_S = 2.0

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Switch:
    """Used on the leader alone: two switches at a time would leave shards with either.

    Every shard prepares; if one can't, all let go and nothing has changed. Then the version is written down, in the
    store and in DATA/SERVED, and every shard commits. From the moment it is written down a shard that dies comes up
    with it, and one that misses the commit follows. A switch that has begun ends, also when the caller has gone.
    """

    def __init__(
        self,
        engine: Engine,
        activation: Activation,
        canary: Canary,
        store: SnapshotStore,
        peers: Peers,
        served: Path,
    ) -> None:
        self._engine = engine
        self._activation = activation
        self._canary = canary
        self._store = store
        self._peers = peers
        self._served = served
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[object]] = set()
        # What was served before the active version; None: nobody knows.
        self._before: str | None = None
        # The version that the last switch went back from by itself, and the move; None if it was another switch.
        self.withdrawal: tuple[str, ActivationRecord] | None = None

    async def activate(self, version: str, timeout_s: float) -> tuple[str, str, float]:
        """Serves a version, or the one that CURRENT names if it is empty.

        Returns it, the one served before, and the error of the map for folded sums. Raises SnapshotUnusableError or
        ShardUnreachableError, with nothing changed.
        """

        async def switched() -> tuple[str, str, float]:
            async with self._lock:
                previous = self._engine.catalogue.version
                try:
                    wanted = version or self._store.current()
                except IndexerError as error:
                    raise SnapshotUnusableError("SNAPSHOT_UNUSABLE", str(error)) from error
                map_error = await self._switch(wanted, "activate", timeout_s)
                return wanted, previous, map_error

        return await self._finished(switched())

    async def roll_back(self, timeout_s: float) -> str:
        """Serves what was current before; returns it. Raises as `activate`."""

        async def switched() -> str:
            async with self._lock:
                try:
                    # The store remembers, so that a rollback works after a restart as well.
                    version = await asyncio.to_thread(self._store.previous, self._engine.catalogue.version)
                except SnapshotNotFoundError as error:
                    raise SnapshotUnusableError("NO_PREVIOUS_SNAPSHOT", str(error)) from error
                except IndexerError as error:
                    raise SnapshotUnusableError("SNAPSHOT_UNUSABLE", str(error)) from error
                await self._switch(version, "roll back", timeout_s)
                return version

        return await self._finished(switched())

    async def withdraw(self, version: str, reason: str) -> None:
        """Goes back from a version that answers badly, if it is still served, to what was served before it."""

        async def switched() -> None:
            async with self._lock:
                if self._engine.catalogue.version != version:
                    return
                logger.error("snapshot %s is withdrawn: %s", version, reason)
                try:
                    before = self._before
                    if before is None:
                        before = await asyncio.to_thread(self._store.previous, version)
                except IndexerError as error:
                    raise SnapshotUnusableError("NO_PREVIOUS_SNAPSHOT", str(error)) from error
                await self._switch(before, "roll back", COMMIT_PATIENCE_S, reason)

        await self._finished(switched())

    async def begin(self) -> None:
        """Reads what the last switch was."""
        try:
            await asyncio.to_thread(self._read_history)
        except (IndexerError, OSError) as error:
            logger.warning("whether a snapshot was withdrawn is unknown: %s", error)

    def _read_history(self) -> None:
        history = self._store.history()
        found = [(version, record) for version, record in withdrawals(history).items() if record is history[-1]]
        self.withdrawal = found[0] if found else None

    async def _switch(self, version: str, how: How, timeout_s: float, reason: str = "") -> float:
        await self._prepare(version, timeout_s)
        previous = self._engine.catalogue.version
        await asyncio.to_thread(self._store.activate, version, how=how, reason=reason)
        await asyncio.to_thread(self._read_history)
        await asyncio.to_thread(write_served, self._served, version)
        watched = how == "activate" and version != previous
        error = await self._activation.commit(version)
        if version != previous:
            self._before = previous if watched else None
            self._canary.begin(watched=watched)
        others = [self._committed(peer, version, watched=watched) for peer in self._peers.others]
        outcomes = await asyncio.gather(*others, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            error = max(error, outcome)
        return error

    async def _prepare(self, version: str, timeout_s: float) -> None:
        """Raises, with nothing prepared anywhere, what the first of the shards says that can't."""
        request = pb.PrepareSnapshotRequest(snapshot_version=version)
        shards = [self._peers.own_index, *(peer.index for peer in self._peers.others)]
        outcomes = await asyncio.gather(
            self._activation.prepare(version),
            *(
                passed_on(peer, peer.internal.PrepareSnapshot(request, timeout=timeout_s, wait_for_ready=True))
                for peer in self._peers.others
            ),
            return_exceptions=True,
        )
        failed = [
            (shard, outcome)
            for shard, outcome in zip(shards, outcomes, strict=True)
            if isinstance(outcome, BaseException)
        ]
        if not failed:
            return
        self._activation.abandon()
        # One that does not answer lets go with the next preparation.
        await asyncio.gather(
            *(
                peer.internal.AbandonSnapshot(pb.AbandonSnapshotRequest(), timeout=ABANDON_TIMEOUT_S)
                for peer in self._peers.others
            ),
            return_exceptions=True,
        )
        shard, error = failed[0]
        if not isinstance(error, RequestError):
            raise error
        refusal = RequestError(error.reason, f"shard {shard}: {error.message}", **{**error.metadata, "shard": shard})
        refusal.code = error.code
        raise refusal

    async def _committed(self, peer: Peer, version: str, *, watched: bool) -> float:
        """Has a shard swap, waiting for one that is restarting; returns the error of its map for folded sums."""
        request = pb.CommitSnapshotRequest(snapshot_version=version, watched=watched)
        until_s = time.monotonic() + COMMIT_PATIENCE_S
        while True:
            left_s = max(0.1, until_s - time.monotonic())
            call = peer.internal.CommitSnapshot(request, timeout=left_s, wait_for_ready=True)
            try:
                return float((await passed_on(peer, call)).folded_migration_error)
            except (ShardUnreachableError, OverloadedError):
                # It died with the call; the next one waits for it to be back.
                if time.monotonic() >= until_s:
                    raise
                await asyncio.sleep(0.05)

    async def _finished(self, work: "Awaitable[T]") -> T:
        """The outcome of work that goes on when the caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)


def write_served(path: Path, version: str) -> None:
    """Writes down which version the shards of a server serve.

    Versions have one length, so this is one write in place: never half a version, and possible on a full disk. It need
    not be durable: the supervisor writes it anew when it starts.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(descriptor, version.encode("ascii"), 0)
    finally:
        os.close(descriptor)


async def follow_for_ever(engine: Engine, activation: Activation, canary: Canary, served: Path) -> None:
    """Has a shard serve what is written down in `served` when it missed the commit: it was stopped or cut off, or the
    leader died.

    Only what was written down at the last look already: the commit says whether to watch, so it goes first.
    """
    last = ""
    while True:
        wait_s = FOLLOW_INTERVAL_S
        try:
            version = served.read_text(encoding="ascii")
            if version == last != engine.catalogue.version and not activation.committing:
                await activation.commit(version)
                canary.begin(watched=False)
            last = version
        except (SnapshotUnusableError, OSError) as error:
            logger.error("this shard cannot serve what the others do: %s", error)
            wait_s = FAILED_FOLLOW_WAIT_S
        await asyncio.sleep(wait_s)
