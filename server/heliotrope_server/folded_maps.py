"""Maps of folded sums from snapshots that were pruned.

A profile's folded sum stays in the item space of the snapshot that it was last saved under, and is carried over when
the user returns. Before a snapshot goes, the map from it to one that stays is kept in its store, as
STORE/maps/<version>: d_old x d numbers and the half-lives of the sums, where the snapshot had millions. Where that one
goes too, the maps are followed in turn.
"""

import io
import logging
import zipfile
from collections.abc import Iterable

import numpy as np

from heliotrope_indexer.errors import IndexerError
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.passage import Passage

logger = logging.getLogger(__name__)


def keep_map(store: SnapshotStore, version: str, targets: Iterable[LiveCatalogue]) -> str | None:
    """Keeps the map from a version to the first of the targets that shares enough items with it.

    Returns the version of that target; None: no sum could be carried over from it to any of them anyhow. Raises the
    IndexerError of a version that cannot be opened.
    """
    old = store.open(version)
    for target in targets:
        if target.learn_map(old) is None:
            continue
        passage = target.passage(version)
        assert passage is not None, "it was learnt just now"
        packed, half_lives_s = io.BytesIO(), (passage.old_half_lives_s, passage.new_half_lives_s)
        target_name = np.array(target.version)
        np.savez(packed, target=target_name, matrix=passage.matrix, old=half_lives_s[0], new=half_lives_s[1])
        store.keep_map(version, packed.getvalue())
        return target.version
    return None


def kept_passage(store: SnapshotStore, version: str, catalogue: LiveCatalogue) -> Passage | None:
    """The way from a version that was pruned to a catalogue; None, and logged, where it is lost."""
    content = store.kept_map(version)
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as kept:
            target = str(kept["target"])
            half_lives_s = tuple(kept["old"].tolist()), tuple(kept["new"].tolist())
            passage = Passage(None, catalogue.snapshot, kept["matrix"].astype(np.float32), *half_lives_s)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        logger.error("the kept map of snapshot %s is damaged: %s", version, error)
        return None
    if target == catalogue.version:
        return passage
    try:
        near = store.open(target, verify=False)
    except IndexerError:
        rest = kept_passage(store, target, catalogue)
    else:
        rest = None if catalogue.learn_map(near) is None else catalogue.passage(target)
    return None if rest is None else passage.onward(rest)
