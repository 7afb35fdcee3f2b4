"""The weights that one shard answers with: the snapshot's own, or those that were learned for it."""

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np

from heliotrope_server.answerer import Answerer
from heliotrope_server.errors import DataFolderError
from heliotrope_server.learning.weight_store import Pointer, WeightStore
from heliotrope_server.learning.weights import Weights
from heliotrope_server.live_catalogue import LiveCatalogue

_RECENT = 8

logger = logging.getLogger(__name__)


class WeightKeeper:
    """Follows the weights folder. Belongs to the event loop; a swap is one assignment between two batches."""

    def __init__(self, folder: Path, answerer: Answerer) -> None:
        self._folder = folder
        self._answerer = answerer
        self.adopt(answerer.catalogue)

    def adopt(self, catalogue: LiveCatalogue) -> None:
        """Takes another snapshot, which the answerer serves with its own weights, and what was learned for it."""
        self.catalogue = catalogue
        self.store = WeightStore(self._folder, catalogue.version)
        self.own = self.active = Weights(0, np.asarray(self._answerer.scoring_matrices), self._answerer.theta)
        self.pointer = Pointer()
        self._recent: OrderedDict[int, Weights] = OrderedDict({0: self.own})
        self._stamp: tuple[int, int] | None = None
        self.catch_up()
        logger.info("snapshot %s is served with weights version %d", catalogue.version, self.active.version)

    def catch_up(self) -> bool:
        """Uses the version that the folder names, if that has changed; returns whether it has.

        Weights that cannot be read are not used: the ones in use stay, which is said in the log.
        """
        stamp = self.store.stamp()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            pointer = self.store.pointer()
            self.use(self.load(pointer.version), pointer)
        except (DataFolderError, OSError, ValueError) as error:
            logger.error("the learned weights cannot be used: %s", error)
            return False
        return True

    def load(self, version: int) -> Weights:
        """One version; 0 are the snapshot's own. Raises DataFolderError."""
        return self.own if version == 0 else self.store.load(version)[0]

    def use(self, weights: Weights, pointer: Pointer) -> None:
        """Answers with these weights from now on. Raises ValueError when they do not fit the snapshot."""
        self._answerer.use_weights(weights.matrices, weights.theta)
        self.active, self.pointer = weights, pointer
        self._recent[weights.version] = weights
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)

    def recent(self, version: int) -> Weights | None:
        """A version of this snapshot's weights that was in use lately."""
        return self.active if version == self.active.version else self._recent.get(version)
