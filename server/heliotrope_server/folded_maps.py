"""Maps of folded sums from snapshots that were pruned.

A profile's folded sum stays in the item space of the snapshot that it was last saved under, and is carried over when
the user returns. Before a snapshot goes, the map from it to one that stays is kept in its store, as
STORE/maps/<version>: d_old x d numbers, where the snapshot had millions. Where that one goes too, the maps are followed
in turn.
"""

import io
import logging
import zipfile
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.errors import IndexerError
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.live_catalogue import LiveCatalogue

logger = logging.getLogger(__name__)


def keep_map(store: SnapshotStore, version: str, targets: Iterable[LiveCatalogue]) -> str | None:
    """Keeps the map from a version to the first of the targets that shares enough items with it.

    Returns the version of that target; None: no sum could be carried over from it to any of them anyhow. Raises the
    IndexerError of a version that cannot be opened.
    """
    old = store.open(version)
    for target in targets:
        if target.learn_map(version, old.item_ids, old.vectors.view(np.ndarray)) is None:
            continue
        matrix = target.folded_map(version)
        assert matrix is not None, "it was learnt just now"
        packed = io.BytesIO()
        np.savez(packed, target=np.array(target.version), matrix=matrix)
        store.keep_map(version, packed.getvalue())
        return target.version
    return None


def kept_map(store: SnapshotStore, version: str, catalogue: LiveCatalogue) -> NDArray[np.float32] | None:
    """The (d_old, d) matrix from a version that was pruned to a catalogue; None, and logged, where the way is lost."""
    content = store.kept_map(version)
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as kept:
            target = str(kept["target"])
            matrix: NDArray[np.float32] = kept["matrix"].astype(np.float32)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        logger.error("the kept map of snapshot %s is damaged: %s", version, error)
        return None
    if target == catalogue.version:
        return matrix
    try:
        near = store.open(target, verify=False)
    except IndexerError:
        rest = kept_map(store, target, catalogue)
    else:
        error_of_map = catalogue.learn_map(target, near.item_ids, near.vectors.view(np.ndarray))
        rest = None if error_of_map is None else catalogue.folded_map(target)
    if rest is None:
        return None
    way: NDArray[np.float32] = matrix @ rest
    return way
