"""Snapshot activation without a restart: load beside the active one, then swap between two batches."""

import asyncio
import logging
from collections.abc import Callable

import numpy as np

from heliotrope_indexer.errors import IndexerError
from heliotrope_indexer.snapshot import Snapshot, SnapshotStore
from heliotrope_server.engine import Engine
from heliotrope_server.errors import SnapshotUnusableError
from heliotrope_server.folded_maps import kept_map
from heliotrope_server.live_catalogue import LiveCatalogue

logger = logging.getLogger(__name__)

NO_MAP_ERROR = 1.0
NO_MODEL = "none"
"""`model_version` of a snapshot that no text model had a part in."""


class Activation:
    """Two phases, so that several shards can swap together: every shard prepares, then every shard commits."""

    def __init__(
        self, engine: Engine, store: SnapshotStore, prepare: Callable[[LiveCatalogue], None] | None = None
    ) -> None:
        """`prepare` does in a thread what a catalogue needs before it can be served."""
        self._prepare = prepare
        self._engine = engine
        self._store = store
        self._prepared: tuple[LiveCatalogue, float] | None = None
        # Held by whoever switches the whole server: two switches at a time would leave shards with either.
        self.switching = asyncio.Lock()

    async def prepare(self, version: str) -> None:
        """Loads and warms a snapshot. Raises SnapshotUnusableError; the active one goes on serving."""
        self._prepared = await asyncio.to_thread(self._load, version)

    def commit(self, version: str) -> float:
        """Swaps to the prepared snapshot; returns the relative error of the map for folded sums."""
        if self._prepared is None and self._engine.catalogue.version == version:
            return 0.0  # restarted between the two phases: CURRENT named this version already
        if self._prepared is None or self._prepared[0].version != version:
            raise SnapshotUnusableError(
                "SNAPSHOT_NOT_PREPARED",
                f"snapshot {version!r} is not prepared on this shard",
                version=version,
            )
        catalogue, error = self._prepared
        self._prepared = None
        self._engine.adopt(catalogue)
        logger.info("serving snapshot %s (map error of folded sums %.4f)", version, error)
        return error

    def _load(self, version: str) -> tuple[LiveCatalogue, float]:
        try:
            snapshot = self._store.open(version)
        except IndexerError as error:
            raise SnapshotUnusableError("SNAPSHOT_UNUSABLE", str(error), version=version) from error
        check_model(snapshot, self._engine)
        catalogue = LiveCatalogue(snapshot)
        current = self._engine.catalogue
        map_error = catalogue.succeed(current)
        # Pages of the vectors and the index come in now, not with the first requests.
        np.asarray(snapshot.vectors).sum()
        snapshot.index()
        if self._prepare is not None:
            self._prepare(catalogue)
        return catalogue, NO_MAP_ERROR if map_error is None else map_error


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
            matrix = kept_map(store, version, catalogue)
            if matrix is None:
                logger.error("folded sums from snapshot %s can't be carried over: %s", version, error)
            else:
                catalogue.take_map(version, matrix)
            continue
        catalogue.learn_map(version, old.item_ids, old.vectors.view(np.ndarray))
