import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliotrope_server.list_choice import EXPLORE_POOL, Groups, choose_diverse, choose_in_order, explore


def world(seed, count=30, kinds=4, limit=2):
    """Sorted scores, vectors, and one limited group per candidate."""
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.normal(scale=1.5, size=count))[::-1].copy()
    vectors = rng.normal(size=(count, 5)).astype(np.float32)
    groups = Groups([[int(kind)] for kind in rng.integers(kinds, size=count)], [limit] * kinds)
    return scores, vectors, groups


def naive_mmr(scores, vectors, wanted, groups, diversity, floor):
    """The definition, word by word."""

    def probability(place):
        return 1.0 / (1.0 + math.exp(-scores[place]))

    def cosine(one, other):
        a, b = vectors[one].astype(float), vectors[other].astype(float)
        return float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))

    def admitted(place, chosen):
        return all(
            sum(code in groups.members[other] for other in chosen) < groups.limits[code]
            for code in groups.members[place]
        )

    best = max(probability(place) for place in range(len(scores)))
    chosen = []
    while len(chosen) < wanted:
        free = [place for place in range(len(scores)) if place not in chosen and admitted(place, chosen)]
        above = [place for place in free if probability(place) / best >= floor]
        if above:
            chosen.append(
                max(
                    above,
                    key=lambda place: (
                        (1 - diversity) * probability(place) / best
                        - diversity * max((cosine(place, other) for other in chosen), default=0.0)
                    ),
                )
            )
        elif free:
            chosen.append(free[0])
        else:
            break
    return chosen


@pytest.mark.parametrize("diversity", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("floor", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("limit", [1, 2, 30])
def test_the_choice_is_that_of_the_definition(diversity, floor, limit):
    for seed in range(5):
        scores, vectors, groups = world(seed, limit=limit)
        found = choose_diverse(scores, vectors, 10, groups, diversity=diversity, relevance_floor=floor)
        assert found == naive_mmr(scores, vectors, 10, groups, diversity, floor)


def test_without_diversity_the_order_is_that_of_the_scores():
    scores, vectors, _ = world(0)
    free = Groups([[] for _ in scores], [])
    assert choose_in_order(7, free) == list(range(7))
    assert choose_diverse(scores, vectors, 7, free, diversity=0.0, relevance_floor=0.0) == list(range(7))


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 6))
@settings(max_examples=60)
def test_with_one_group_each_the_walk_finds_the_best_sum_that_the_limits_admit(seed, limit, wanted):
    scores, _, groups = world(seed, count=9, kinds=3, limit=limit)
    scores = np.abs(scores)
    scores[::-1].sort()
    found = choose_in_order(wanted, groups)

    def admitted(places):
        return all(sum(groups.members[place] == [kind] for place in places) <= limit for kind in range(3))

    size = len(found)
    best = max(sum(scores[list(places)]) for places in itertools.combinations(range(9), size) if admitted(places))
    assert sum(scores[found]) == pytest.approx(best)
    # Shorter than wanted only when no longer list is admitted.
    if size < wanted:
        assert not any(admitted(places) for places in itertools.combinations(range(9), size + 1))


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60)
def test_no_limit_is_ever_broken_and_nobody_stands_twice(seed, diversity, floor):
    rng = np.random.default_rng(seed)
    scores, vectors, _ = world(seed, count=40)
    members = [rng.choice(6, size=rng.integers(0, 4), replace=False).tolist() for _ in scores]
    groups = Groups(members, rng.integers(0, 4, size=6).tolist())
    found = choose_diverse(scores, vectors, 12, groups, diversity=diversity, relevance_floor=floor)
    assert len(set(found)) == len(found)
    for code, limit in enumerate(groups.limits):
        assert sum(code in members[place] for place in found) <= limit


def test_diversity_makes_lists_less_alike_and_moves_nothing_above_the_floor():
    alike = {}
    for diversity in (0.0, 0.5, 1.0):
        cosines, lowest = [], []
        for seed in range(20):
            scores, vectors, _ = world(seed, count=60)
            free = Groups([[] for _ in scores], [])
            found = choose_diverse(scores, vectors, 8, free, diversity=diversity, relevance_floor=0.6)
            unit = vectors[found] / np.linalg.norm(vectors[found], axis=1, keepdims=True)
            cosines.append((unit @ unit.T)[np.triu_indices(8, 1)].mean())
            probabilities = 1 / (1 + np.exp(-scores))
            lowest.append(probabilities[found].min() / probabilities[0])
        alike[diversity] = np.mean(cosines)
        assert min(lowest) >= 0.6
    assert alike[0.0] > alike[0.5] > alike[1.0]


def test_vectors_of_length_zero_and_extreme_scores_are_no_trouble():
    scores = np.array([900.0, 0.0, -900.0])
    free = Groups([[], [], []], [])
    found = choose_diverse(scores, np.zeros((3, 4), dtype=np.float32), 3, free, diversity=0.5, relevance_floor=0.0)
    assert found == [0, 1, 2]
    empty = choose_diverse(scores[:0], np.zeros((0, 4), np.float32), 3, Groups([], []), diversity=1, relevance_floor=0)
    assert empty == []


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("candidates", [13, 200])
def test_drawn_items_come_as_often_as_their_propensity_says(share, candidates):
    rng = np.random.default_rng(7)
    groups = Groups([[0] if place in (9, 11) else [] for place in range(candidates)], [1])
    chosen = choose_in_order(10, groups)
    assert chosen == list(range(10))
    # Place 11 may be drawn: the last place, which holds the only member of the group, is the one that goes.
    pool = min(candidates - 10, EXPLORE_POOL)
    counts, propensities = np.zeros(candidates), np.zeros(candidates)
    draws = 20_000
    for uniform in rng.random(draws):
        draw = explore(chosen, 10, groups, share, uniform)
        assert draw.explored == (draw.place != 9)
        counts[draw.place] += 1
        propensities[draw.place] = draw.propensity
    reachable = [9, *range(10, 10 + pool)]
    assert propensities[9] == pytest.approx(1 - share)
    assert propensities[reachable].sum() == pytest.approx(1.0)
    # Seeded, so the same on every run; six standard errors.
    tolerance = 6 * np.sqrt(propensities[reachable] * (1 - propensities[reachable]) / draws)
    assert (np.abs(counts[reachable] / draws - propensities[reachable]) <= tolerance).all()
    assert counts.sum() == counts[reachable].sum()


def test_nothing_is_drawn_that_the_rest_of_the_list_rules_out():
    groups = Groups([[0], [], [0], [0], []], [1])
    assert explore([0, 1], 2, groups, 0.5, 0.1) == (4, 0.5, True)
    assert explore([0, 1], 2, groups, 0.5, 0.6) == (1, 0.5, False)


def test_a_list_that_holds_all_there_is_is_left_alone():
    assert explore([0, 1], 2, Groups([[], []], []), 0.5, 0.0) is None
    assert explore([0, 1], 3, Groups([[], []], []), 0.5, 0.0) is None
