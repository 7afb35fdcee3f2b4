"""Simulated users whose clicks follow a hidden taste, which differs from the weights of the snapshot that is served.

The hidden A*_h stretches the principal axes of the item vectors: A*_h = A_h V diag(1 + drift * g) V^T with g ~ N(0, 1).
All else is as it is served, item biases and live popularity included, so that with no drift there is nothing to learn.
A constant makes the mean click probability of the first lists what it is asked to be.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from heliotrope import Client
from heliotrope_bench.recall import SnapshotArrays

READ_ON = 0.85
"""Probability with which a user who looked at one place looks at the next."""


class Audience:
    """`interests` maps each user to their (H, d) interest vectors, as GetProfile returns them; `live_counts`: (n,)."""

    def __init__(
        self,
        arrays: SnapshotArrays,
        interests: Mapping[str, NDArray[np.float64]],
        live_counts: NDArray[np.float64],
        *,
        drift: float,
        seed: int,
    ) -> None:
        self.random = np.random.default_rng(seed)
        self._arrays = arrays
        self._interests = interests
        self._row_of = {item_id: row for row, item_id in enumerate(arrays.item_ids)}
        sample = np.asarray(arrays.vectors[:: max(1, len(arrays.item_ids) // 20_000)], dtype=np.float64)
        _, axes = np.linalg.eigh(sample.T @ sample)
        stretch = 1.0 + drift * self.random.normal(size=len(axes))
        self._hidden = arrays.scoring_matrices.astype(np.float64) @ (axes * stretch) @ axes.T
        self._beyond_taste = arrays.scores(np.zeros(arrays.scoring_matrices.shape[:2]), live_counts)
        self._constant = 0.0

    def calibrate(self, lists: Mapping[str, Sequence[str]], click_rate: float) -> None:
        """Chooses the constant so that the mean click probability of these lists is `click_rate`."""
        low, high = -40.0, 40.0
        for _ in range(60):
            self._constant = (low + high) / 2
            if self.click_rate(lists) < click_rate:
                low = self._constant
            else:
                high = self._constant

    def probabilities(self, user: str, item_ids: Sequence[str]) -> NDArray[np.float64]:
        """The true click probability of each item."""
        query = np.einsum("hd,hde->e", self._interests[user], self._hidden)
        rows = [self._row_of[item_id] for item_id in item_ids]
        scores = self._arrays.vectors[rows].astype(np.float64) @ query + self._beyond_taste[rows] + self._constant
        probabilities: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(scores, -60.0, 60.0)))
        return probabilities

    def click_rate(self, lists: Mapping[str, Sequence[str]]) -> float:
        """Mean true click probability of what each user is shown."""
        return float(np.mean([self.probabilities(user, items).mean() for user, items in lists.items()]))

    def best_lists(self, lists: Mapping[str, Sequence[str]], seen: Mapping[str, set[str]]) -> dict[str, list[str]]:
        """For each user as many items as in their list, by the hidden taste: the most that learning could reach."""
        best = {}
        for user, items in lists.items():
            probabilities = self.probabilities(user, self._arrays.item_ids)
            probabilities[[self._row_of[item_id] for item_id in seen[user]]] = -1.0
            rows = np.argsort(-probabilities, kind="stable")[: len(items)]
            best[user] = [self._arrays.item_ids[row] for row in rows.tolist()]
        return best

    def reaction(self, user: str, item_ids: Sequence[str]) -> dict[str, float]:
        """What a user does with a list: reads from the top, clicks or not, and stops somewhere."""
        read = 1
        while read < len(item_ids) and self.random.random() < READ_ON:
            read += 1
        seen = item_ids[:read]
        clicked = self.random.random(read) < self.probabilities(user, seen)
        return dict(zip(seen, clicked.astype(float).tolist(), strict=True))


def interests_of(client: Client, users: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """The interest vectors of users, (H, d) each."""
    return {
        user: np.array([vector.values for vector in client.get_profile(user).interest_vectors], dtype=np.float64)
        for user in users
    }


def live_counts_of(client: Client, arrays: SnapshotArrays, touched: Iterable[str]) -> NDArray[np.float64]:
    """The live event count of each item, (n,); only items that were touched can have one."""
    row_of = {item_id: row for row, item_id in enumerate(arrays.item_ids)}
    counts = np.zeros(len(arrays.item_ids))
    for item_id in set(touched):
        counts[row_of[item_id]] = client.get_item(item_id).live_event_count
    return counts


def lists_of(client: Client, users: Sequence[str], count: int) -> dict[str, list[str]]:
    """What each user is shown now."""
    return {user: [one.item_id for one in client.recommend(user, count=count).recommendations] for user in users}


def overlap(some: Mapping[str, Sequence[str]], others: Mapping[str, Sequence[str]]) -> float:
    """Mean share of each user's list that is also in their other list."""
    return float(np.mean([len(set(items) & set(others[user])) / len(items) for user, items in some.items()]))
