"""The leader: the one shard that learns, and that decides which weights all shards answer with."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import numpy as np

from heliotrope_server.errors import DataFolderError, WeightsUnchangedError
from heliotrope_server.learning.example import ExampleGroup
from heliotrope_server.learning.keeper import WeightKeeper
from heliotrope_server.learning.learner import Change, Decision, Learner
from heliotrope_server.learning.validation import Verdict
from heliotrope_server.learning.weight_store import KEPT_VERSIONS, Pointer, Promotion
from heliotrope_server.learning.weights import Weights
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.settings import LearningSettings

MAX_WAITING = 50_000
"""Examples that may wait to be learned from; what comes beyond that is dropped and counted."""

_REMEMBERED_WITHDRAWN = 64

logger = logging.getLogger(__name__)


class Leader:
    """Feeds a Learner and carries out what it decides: on disk first, then here, then on the other shards.

    `announce` tells the other shards to look at the weights folder; a shard that misses it looks by itself.
    Shadow weights and comparisons are in memory alone: a restart learns on from the active weights.
    """

    def __init__(
        self,
        keeper: WeightKeeper,
        settings: LearningSettings,
        wall_clock: Callable[[], float],
        announce: Callable[[], Awaitable[None]],
    ) -> None:
        self.stale_count = 0
        self.dropped_count = 0
        self._keeper = keeper
        self._settings = settings
        self._wall_clock = wall_clock
        self._announce = announce
        self._changing = asyncio.Lock()
        self._more = asyncio.Event()
        self.adopt(keeper.catalogue)

    def adopt(self, catalogue: LiveCatalogue) -> None:
        """Learns for another snapshot from now on, which the keeper has adopted already."""
        keeper = self._keeper
        self.promotions = self._read_promotions()
        self.learner = Learner(
            keeper.own, keeper.active, self._parent_of(keeper.active), item_scale(catalogue), self._settings
        )

    def start(self) -> None:
        self._task = asyncio.create_task(self._learn_for_ever())

    def stop(self) -> None:
        self._task.cancel()

    def take(self, group: ExampleGroup) -> None:
        """Queues examples."""
        if group.snapshot_version != self._keeper.catalogue.version:
            self.stale_count += group.size
        elif self.learner.waiting_count > MAX_WAITING:
            self.dropped_count += group.size
        else:
            self.learner.take(group, self._wall_clock())
            self._more.set()

    async def roll_back(self) -> tuple[int, int]:
        """Goes back from the active weights to their parent; returns the version now in use and the one withdrawn.

        Raises WeightsUnchangedError when the snapshot's own weights are in use.
        """
        async with self._changing:
            withdrawn = self._keeper.active
            parent = self._parent_of(withdrawn)
            if parent is None:
                raise WeightsUnchangedError(
                    "NO_LEARNED_WEIGHTS",
                    f"snapshot {self._keeper.catalogue.version} is served with its own weights; "
                    "there is nothing to go back from",
                )
            await self._withdraw(self.learner, parent)
            logger.warning("weights version %d taken back on request, %d in use", withdrawn.version, parent.version)
            return parent.version, withdrawn.version

    async def _learn_for_ever(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            try:
                await self._learn(self.learner)
            except Exception:
                logger.exception("learning failed; it starts again from the weights in use")
                self.adopt(self._keeper.catalogue)

    async def _learn(self, learner: Learner) -> None:
        while learner is self.learner and learner.waiting_count >= self._settings.learning_batch:
            decision = learner.learn()
            if decision is not None:
                async with self._changing:
                    await self._carry_out(decision, learner)
            await asyncio.sleep(0)

    async def _carry_out(self, decision: Decision, learner: Learner) -> None:
        # While this waited for the lock, the weights that were judged may have been taken back.
        if learner is not self.learner or learner.active is not self._keeper.active:
            return
        try:
            if decision.change is Change.PROMOTE:
                await self._promote(learner, decision.weights, decision.verdict)
            else:
                number = learner.active.version
                await self._withdraw(learner, decision.weights)
                text = _described(decision.verdict)
                logger.warning("weights version %d withdrawn, %d in use: %s", number, decision.weights.version, text)
        except OSError as error:
            logger.error("learned weights cannot be written, the ones in use stay: %s", error)

    async def _promote(self, learner: Learner, weights: Weights, verdict: Verdict) -> None:
        if not (np.isfinite(weights.matrices).all() and np.isfinite(weights.theta).all()):
            raise ValueError("learning led to weights that are not finite")
        store, pointer, parent = self._keeper.store, self._keeper.pointer, learner.active
        number = pointer.last_version + 1
        fresh = Weights(number, weights.matrices, weights.theta)
        promotion = Promotion(number, parent.version, self._wall_clock(), verdict)
        await asyncio.to_thread(store.save, fresh, promotion)
        self.promotions = [promotion, *self.promotions][:KEPT_VERSIONS]
        await self._switch(learner, fresh, pointer._replace(version=number, last_version=number), parent)
        logger.info("weights version %d promoted over %d: %s", number, parent.version, _described(verdict))

    async def _withdraw(self, learner: Learner, parent: Weights) -> None:
        pointer = self._keeper.pointer
        withdrawn = tuple(sorted({*pointer.withdrawn, pointer.version}))[-_REMEMBERED_WITHDRAWN:]
        pointer = pointer._replace(version=parent.version, withdrawn=withdrawn)
        await self._switch(learner, parent, pointer, self._parent_of(parent))

    async def _switch(self, learner: Learner, weights: Weights, pointer: Pointer, previous: Weights | None) -> None:
        """On disk first. When another snapshot is activated meanwhile, its weights are left alone."""
        if learner is not self.learner:
            return
        await asyncio.to_thread(self._keeper.store.point, pointer)
        if learner is not self.learner:
            return
        self._keeper.use(weights, pointer)
        learner.adopt(weights, previous)
        await self._announce()

    def _read_promotions(self) -> list[Promotion]:
        """The kept versions, newest first. What cannot be read is left out, which is said in the log."""
        found = []
        for version in self._keeper.store.versions():
            try:
                found.append(self._keeper.store.load(version)[1])
            except DataFolderError as error:
                logger.error("%s", error)
        return found

    def _parent_of(self, weights: Weights) -> Weights | None:
        """What to go back to; None for the snapshot's own weights. The own ones stand in for a parent that is gone."""
        if weights.version == 0:
            return None
        try:
            return self._keeper.load(self._keeper.store.load(weights.version)[1].parent)
        except DataFolderError as error:
            logger.error("going back from weights version %d means the snapshot's own: %s", weights.version, error)
            return self._keeper.own


def item_scale(catalogue: LiveCatalogue) -> float:
    """The mean |x_i|^2 of (a sample of) the snapshot's items."""
    vectors = catalogue.base_vectors[:: max(1, catalogue.base_count // 10_000)]
    return float(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64).mean())


def _described(verdict: Verdict) -> str:
    off_policy = "none" if verdict.off_policy is None else f"{verdict.off_policy.mean:+.4f}"
    return (
        f"log loss {verdict.challenger_loss:.4f} instead of {verdict.defender_loss:.4f} "
        f"(error {verdict.gain.standard_error:.4f}) on {verdict.examples} examples of {verdict.users} users; "
        f"off-policy gain {off_policy}"
    )
