"""Chooses the items of a list among candidates: maximal marginal relevance, limits on groups, exploration.

Maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998) takes, place by place, the candidate with the largest

    (1 - diversity) * relevance_i - diversity * max over those taken of cos(x_i, x_j),
    relevance_i = probability_i / largest probability

among those with relevance >= floor; when none of these is left, the others follow in the order of their scores.
A limit on a group (a category, a provider, ...) is obeyed by passing over what would break it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EXPLORE_POOL = 50


class Groups(NamedTuple):
    """Groups whose items may take a limited number of places. `members[i]` are the groups of candidate i."""

    members: Sequence[Sequence[int]]
    limits: Sequence[int]


class Draw(NamedTuple):
    """What exploration did to the last place of a list; `place` is the candidate that stands there now."""

    place: int
    propensity: float
    explored: bool


def choose_in_order(wanted: int, groups: Groups) -> list[int]:
    """The first `wanted` candidates that the limits admit: places among candidates that are sorted, best first.

    With every candidate in at most one group this is the list with the largest sum of scores (a partition matroid).
    """
    return _fill([], range(len(groups.members)), wanted, groups)


def choose_diverse(
    log_odds: NDArray[np.float64],
    vectors: NDArray[np.float32],
    wanted: int,
    groups: Groups,
    *,
    diversity: float,
    relevance_floor: float,
) -> list[int]:
    """`wanted` places among the candidates by the formula of the module; ties go to the better score.

    `log_odds` (m,) of the probabilities are sorted, best first; `vectors` (m, d). O(wanted m d).
    """
    count = len(log_odds)
    if not count:
        return []
    # sigmoid(l) / sigmoid(best), without overflow for log-odds far from 0.
    relevance = np.exp(np.logaddexp(0.0, -log_odds[0]) - np.logaddexp(0.0, -log_odds))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0.0, lengths, 1.0)
    member = np.zeros((count, len(groups.limits)), dtype=np.bool_)
    for place, codes in enumerate(groups.members):
        member[place, list(codes)] = True
    room = np.array(groups.limits, dtype=np.int64)
    closed = (relevance < relevance_floor) | member[:, room <= 0].any(axis=1)
    worth = (1.0 - diversity) * relevance
    nearest = np.zeros(count)
    chosen: list[int] = []
    while len(chosen) < wanted:
        values = np.where(closed, -np.inf, worth - diversity * nearest)
        best = int(values.argmax())
        if closed[best]:
            break
        similarity = unit @ unit[best]
        nearest = np.maximum(nearest, similarity) if chosen else similarity.astype(np.float64)
        chosen.append(best)
        closed[best] = True
        room[member[best]] -= 1
        full = member[best] & (room <= 0)
        if full.any():
            closed |= member[:, full].any(axis=1)
    return _fill(chosen, range(count), wanted, groups)


def explore(chosen: Sequence[int], wanted: int, groups: Groups, share: float, uniform: float) -> Draw | None:
    """Draws the last place of a list: with probability `share`, one of the next EXPLORE_POOL candidates, all alike.

    With m candidates to draw from, each of them stands there with probability share / m and the one that was chosen
    with 1 - share; `uniform` in [0, 1) decides both. Those that the limits would not admit behind the other items of
    the list can't be drawn. None when nothing can: the list is short, or it holds all there is.
    """
    if len(chosen) < wanted:
        return None
    taken = set(chosen)
    room = _room(chosen[:-1], groups)
    pool: list[int] = []
    for place, codes in enumerate(groups.members):
        if len(pool) == EXPLORE_POOL:
            break
        if place not in taken and all(room[code] > 0 for code in codes):
            pool.append(place)
    if not pool:
        return None
    if uniform >= share:
        return Draw(chosen[-1], 1.0 - share, False)
    drawn = min(int(uniform / share * len(pool)), len(pool) - 1)
    return Draw(pool[drawn], share / len(pool), True)


def _fill(chosen: list[int], places: Sequence[int], wanted: int, groups: Groups) -> list[int]:
    """Adds the first places that the limits admit until there are `wanted`."""
    room, taken = _room(chosen, groups), set(chosen)
    for place in places:
        if len(chosen) >= wanted:
            break
        codes = groups.members[place]
        if place not in taken and all(room[code] > 0 for code in codes):
            chosen.append(place)
            for code in codes:
                room[code] -= 1
    return chosen


def _room(chosen: Sequence[int], groups: Groups) -> list[int]:
    room = list(groups.limits)
    for place in chosen:
        for code in groups.members[place]:
            room[code] -= 1
    return room
