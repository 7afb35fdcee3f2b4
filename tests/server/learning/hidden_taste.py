"""Simulated users of a served snapshot whose taste follows a hidden A*, not the one of the snapshot."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.snapshot import Snapshot

USERS = 60
USER_IDS = [f"user-{number}" for number in range(USERS)]

SNAPSHOT = {"items": 120, "dimension": 8, "vector_scale": 0.35, "live_popularity_weight": 0.0}
"""For worlds.publish: scores of a moderate size, so that there is something to learn from a click."""

LEARNING = {"promotion_examples": 600, "promotion_users": 20, "user_examples": 1_000_000, "learning_rate": 0.5}


class HiddenTaste:
    """Gives each shown item its true probability as a reward, in place of a drawn click: less noise, same direction."""

    def __init__(self, snapshot: Snapshot, *, seed: int = 0, drift: float = 0.5) -> None:
        rng = np.random.default_rng(seed)
        matrices = np.asarray(snapshot.scoring_matrices)
        noise = rng.normal(size=matrices.shape)
        noise *= drift * np.linalg.norm(matrices) / np.linalg.norm(noise)
        self._snapshot = snapshot
        self._hidden = matrices + noise

    def rewards(self, interests: NDArray[np.float32], item_ids: Sequence[str]) -> dict[str, float]:
        """interests: (H, d)."""
        query = np.einsum("hd,hde->e", interests, self._hidden)
        rows = [self._snapshot.row_of(item_id) for item_id in item_ids]
        scores = np.asarray(self._snapshot.vectors)[rows] @ query + np.asarray(self._snapshot.bias)[rows] - 1.5
        return dict(zip(item_ids, (1.0 / (1.0 + np.exp(-scores))).tolist(), strict=True))

    def events(self, seed: int = 1) -> list[tuple[str, str]]:
        """(user, item) pairs that give every user a taste of their own."""
        rng = np.random.default_rng(seed)
        return [(user, f"i{row}") for user in USER_IDS for row in rng.choice(100, 3, replace=False).tolist()]
