"""Impressions: what was shown to whom, remembered until feedback comes or the window is over.

Feedback follows the *cascade assumption* (Craswell et al. 2008) unless it says otherwise: a user reads from the top and
stops at the last item that they chose. So an item above that place which is not named was seen and left, and an item
below it was not seen and teaches nothing.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.answerer import Answer
from heliotrope_server.errors import InvalidArgumentError, UnknownRequestError
from heliotrope_server.learning.example import ExampleGroup
from heliotrope_server.learning.weights import Weights
from heliotrope_server.live_catalogue import LiveCatalogue

MAX_PLACES = 100
"""Places of an answer that feedback can name."""


class Impression(NamedTuple):
    """One answer as it was given; the tuples are parallel. `interests` is (H, d).

    `counts` (k,) are the decayed event counts of its items and `weights_version` says what scored it; both are None
    when nothing is learned. `logged`: it is in the impression log.
    """

    user_id: str
    time_s: float
    snapshot_version: str
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    propensities: tuple[float, ...]
    interests: NDArray[np.float32]
    counts: NDArray[np.float64] | None
    weights_version: int | None
    logged: bool


class Judgement(NamedTuple):
    """What one call of feedback said that is new: places of the answer, in order, with their rewards.

    `implied` of them were passed over, `duplicates` were named before and are not among them.
    """

    impression: Impression
    places: list[int]
    rewards: list[float]
    implied: int
    duplicates: int


class ImpressionMemory:
    """The newest answers of one shard: at most `limit`, none older than `window_s`. Belongs to the event loop."""

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        # Tens of thousands of these live for minutes. As exact tuples of strings, numbers and arrays the garbage
        # collector lets go of them after one look; lists and sets in them would be looked at in each of its rounds.
        self._impressions: OrderedDict[str, tuple[Any, ...]] = OrderedDict()
        self._judged: dict[str, _Judged] = {}

    def __len__(self) -> int:
        return len(self._impressions)

    def note(
        self,
        request_id: str,
        user_id: str,
        answer: Answer,
        counts: NDArray[np.float64] | None,
        weights_version: int | None,
        now_s: float,
        logged: bool,
    ) -> None:
        """Remembers an answer; `counts` (k,) are those of `answer.rows`, at most the first MAX_PLACES."""
        self._impressions[request_id] = (
            user_id,
            now_s,
            answer.snapshot_version,
            tuple(answer.item_ids[:MAX_PLACES]),
            tuple(answer.scores[:MAX_PLACES]),
            tuple(answer.propensities[:MAX_PLACES]),
            answer.interests.copy(),  # a view into an array of the whole micro-batch
            counts,
            weights_version,
            logged,
        )
        self._expire(now_s)

    def judge(self, user_id: str, request_id: str, rewards: Mapping[str, float], now_s: float) -> Judgement:
        """Takes in feedback; `rewards` are in [0, 1].

        Raises UnknownRequestError, or InvalidArgumentError for an item that was not shown; then nothing is taken in.
        """
        self._expire(now_s)
        remembered = self._impressions.get(request_id)
        if remembered is None or remembered[0] != user_id:
            raise UnknownRequestError(
                "UNKNOWN_REQUEST",
                f"{request_id[:64]!r} is no remembered answer for this user: a shard remembers its newest "
                f"{self._limit} answers, none for longer than {self._window_s:g} s",
                limit=self._limit,
                window_s=self._window_s,
            )
        impression = Impression(*remembered)
        shown = impression.item_ids
        place_of = {item_id: place for place, item_id in enumerate(shown)}
        for item_id in rewards:
            if item_id not in place_of:
                raise InvalidArgumentError(
                    "ITEM_NOT_SHOWN",
                    f"{item_id[:64]!r} is not among the first {len(shown)} items of that answer",
                    item_id=item_id[:256],
                    limit=MAX_PLACES,
                )
        named, passed = self._judged.setdefault(request_id, _Judged(set(), set()))
        fresh = {place_of[item_id]: reward for item_id, reward in rewards.items() if item_id not in named}
        duplicates = len(rewards) - len(fresh)
        implied = 0
        if fresh and all(reward > 0.0 for reward in rewards.values()):
            for place in range(max(fresh)):
                item_id = shown[place]
                if place not in fresh and item_id not in named and item_id not in passed:
                    fresh[place] = 0.0
                    passed.add(item_id)
                    implied += 1
        named.update(rewards)
        places = sorted(fresh)
        return Judgement(impression, places, [fresh[place] for place in places], implied, duplicates)

    def forget(self, user_id: str) -> None:
        """Drops what was shown to a user."""
        for request_id in [key for key, remembered in self._impressions.items() if remembered[0] == user_id]:
            del self._impressions[request_id]
            self._judged.pop(request_id, None)

    def _expire(self, now_s: float) -> None:
        impressions, earliest_s = self._impressions, now_s - self._window_s
        while impressions:
            oldest = next(iter(impressions))
            if len(impressions) <= self._limit and impressions[oldest][1] >= earliest_s:
                return
            del impressions[oldest]
            self._judged.pop(oldest, None)


class _Judged(NamedTuple):
    """The items of one answer that feedback has named, and those that it has passed over."""

    named: set[str]
    passed: set[str]


def live_features(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """phi of n items, (n, K), from their decayed event counts (n,): the terms that theta weighs."""
    features: NDArray[np.float64] = np.log1p(counts)[:, None]
    return features


def example_group(judgement: Judgement, catalogue: LiveCatalogue, weights: Weights) -> ExampleGroup | None:
    """The judged places as numbers; None when the catalogue no longer holds what was shown.

    `weights` are those that scored it: what they do not explain of a score is its offset.
    """
    impression, places = judgement.impression, judgement.places
    if impression.counts is None:
        raise ValueError("this impression was noted for the log alone")
    rows = [catalogue.row_of(impression.item_ids[place]) for place in places]
    if impression.snapshot_version != catalogue.version or None in rows:
        return None
    vectors = np.stack([catalogue.served_vector(row) for row in rows if row is not None])
    features = live_features(impression.counts[places])
    learned = weights.scores(np.repeat(impression.interests[None], len(places), axis=0), vectors, features)
    return ExampleGroup(
        impression.user_id,
        impression.snapshot_version,
        impression.interests,
        vectors,
        features,
        np.array([impression.scores[place] for place in places]) - learned,
        np.array([impression.propensities[place] for place in places]),
        np.array(judgement.rewards),
    )
