"""Snapshot activation without a restart: load beside the active one, then swap between two batches."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from heliotrope_indexer.errors import IndexerError
from heliotrope_indexer.snapshot import Snapshot, SnapshotStore
from heliotrope_server.catalogue_log import Changes
from heliotrope_server.engine import Engine
from heliotrope_server.errors import SnapshotUnusableError
from heliotrope_server.folded_maps import kept_passage
from heliotrope_server.garbage import undisturbed
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.pace import Pace
from heliotrope_server.residuals import Heard
from heliotrope_server.serving import Habits
from heliotrope_server.succession import FEW_CHANGES, Succession

logger = logging.getLogger(__name__)

NO_MAP_ERROR = 1.0
NO_MODEL = "none"
"""`model_version` of a snapshot that no text model had a part in."""


class Activation:
    """One shard's part in a switch: it prepares beside what it serves, and commits when all shards have prepared.

    All work is done in a thread before the swap, which then exchanges pointers on the event loop.
    """

    def __init__(
        self, engine: Engine, store: SnapshotStore, prepare: Callable[[LiveCatalogue], None] | None = None
    ) -> None:
        """`prepare` does in a thread what a catalogue needs before it can be served."""
        self._prepare = prepare
        self._engine = engine
        self._store = store
        self._prepared: Succession | None = None
        self._preparing = asyncio.Lock()
        self._committing = asyncio.Lock()
        self._turning: asyncio.Task[None] | None = None

    @property
    def committing(self) -> bool:
        """Whether it swaps now, or prepares anew in order to."""
        return self._committing.locked()

    async def prepare(self, version: str) -> None:
        """Loads and warms a snapshot, with the live changes laid over it. Raises SnapshotUnusableError; the active one
        goes on serving.
        """
        async with self._preparing:
            self.abandon()
            try:
                with undisturbed():
                    self._prepared = await self._made_ready(version)
            except BaseException:
                self.abandon()
                raise
            self._engine.successor = self._prepared.catalogue

    def abandon(self) -> None:
        """Lets go of what is prepared: this shard or another could not."""
        self._engine.popularity.drop_layout()
        self._engine.successor = None
        if self._prepared is not None:
            retired: list[object] = [self._prepared]
            self._prepared = None
            _let_go(retired)

    async def _made_ready(self, version: str) -> Succession:
        """Ends on the event loop with nothing left to lay over."""
        engine = self._engine
        changes, habits = engine.changes.after(0), engine.answerer.serving.habits()
        engine.popularity.begin_layout()
        prepared = await asyncio.to_thread(self._load, version, changes, dict(engine.residuals.own), habits)
        # What came meanwhile: the most of it in the thread again, so that little is left for the loop.
        while len(late := engine.changes.after(changes.sequence)) > FEW_CHANGES:
            changes = late
            await asyncio.to_thread(engine.changes.lay_over, prepared.catalogue, changes, Pace())
        engine.changes.lay_over(prepared.catalogue, late)
        return prepared

    async def commit(self, version: str) -> float:
        """Swaps to the prepared snapshot; returns the relative error of the map for folded sums.

        A shard that was restarted since it prepared prepares anew. Raises SnapshotUnusableError when it can't.
        """
        async with self._committing:
            if self._prepared is None or self._prepared.catalogue.version != version:
                if self._engine.catalogue.version == version:
                    self.abandon()
                    return 0.0  # restarted after the switch was decided, and so with this version, or it has followed
                await self.prepare(version)
            prepared, self._prepared = self._prepared, None
            assert prepared is not None
            self._swap(prepared)
            return prepared.map_error

    def _swap(self, prepared: Succession) -> None:
        answerer = self._engine.answerer
        retired = [self._engine.catalogue, answerer.serving, answerer.segment_priors]
        started = time.perf_counter()
        self._engine.adopt(prepared.catalogue, prepared)
        logger.info(
            "serving snapshot %s (map error of folded sums %.4f; the event loop stood for %.1f ms)",
            *(prepared.catalogue.version, prepared.map_error, 1e3 * (time.perf_counter() - started)),
        )
        _let_go(retired)
        if self._turning is not None:
            self._turning.cancel()
        self._turning = asyncio.create_task(self._engine.store.turn_to(prepared.catalogue))

    def _load(self, version: str, changes: Changes, heard: Mapping[str, Heard], habits: Habits) -> Succession:
        engine, pace = self._engine, Pace()
        try:
            snapshot = self._store.open(version)
        except IndexerError as error:
            raise SnapshotUnusableError("SNAPSHOT_UNUSABLE", str(error), version=version) from error
        check_model(snapshot, engine)
        catalogue = LiveCatalogue(snapshot)
        map_error = catalogue.succeed(engine.catalogue, pace)
        # Pages of the vectors come in now, not with the first requests.
        np.asarray(snapshot.vectors).sum()
        catalogue.number_rows(pace)
        engine.changes.lay_over(catalogue, changes, pace)
        if self._prepare is not None:
            self._prepare(catalogue)
        carried = engine.residuals.carried_to(catalogue, heard, pace)
        counts = engine.popularity.laid_out_for(catalogue.item_ids, catalogue.alive, pace)
        serving = engine.answerer.serving_of(catalogue, counts)
        serving.warm(habits, engine.now_s(), pace)
        return Succession(serving, counts, carried, NO_MAP_ERROR if map_error is None else map_error)


def _let_go(retired: list[Any]) -> None:
    """Frees what is no longer served in a thread: unmapping gigabytes takes long."""
    asyncio.get_running_loop().run_in_executor(None, retired.clear)


def check_model(snapshot: Snapshot, engine: Engine) -> None:
    """Raises SnapshotUnusableError when the loaded encoder is not the one that the snapshot was built with, or there is
    none and live items have vectors of another.
    """
    wanted = snapshot.manifest.model_version
    if engine.embedder.model_version not in ("", wanted):
        raise SnapshotUnusableError(
            "MODEL_MISMATCH",
            f"snapshot {snapshot.version} was built with model {wanted}, this server has loaded "
            f"{engine.embedder.model_version}; restart it with the other --model",
            version=snapshot.version,
            model=wanted,
        )
    if not engine.embedder.model_version and wanted != NO_MODEL:
        # Without an encoder nobody can embed them anew. A snapshot that was made without one says nothing of texts.
        others = engine.changes.models(snapshot) - {wanted}
        if others:
            raise SnapshotUnusableError(
                "MODEL_MISMATCH",
                f"snapshot {snapshot.version} was built with model {wanted}, live items have vectors of "
                f"{', '.join(sorted(others))}; start the server with --model",
                version=snapshot.version,
                model=wanted,
            )


def learn_old_maps(store: SnapshotStore, catalogue: LiveCatalogue, versions: set[str]) -> None:
    """Fits the maps from snapshots that stored folded sums may still refer to."""
    for version in sorted(versions):
        try:
            old = store.open(version, verify=False)
        except IndexerError as error:
            passage = kept_passage(store, version, catalogue)
            if passage is None:
                logger.error("folded sums from snapshot %s can't be carried over: %s", version, error)
            else:
                catalogue.take_passage(version, passage)
            continue
        catalogue.learn_map(old)
