import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliotrope_bench.ranking import TargetRank, metrics, place_in_list, rank_in_list, rank_in_scores


def naive(rank: int) -> tuple[float, float, float]:
    """HR@10, NDCG@10 and reciprocal rank of one relevant item at a rank from 1."""
    gain = sum(1 / math.log2(1 + place) for place in range(1, 11) if place == rank)
    return float(rank <= 10), gain / (1 / math.log2(2)), 1 / rank


@pytest.mark.parametrize("rank", [1, 2, 9, 10, 11, 500])
def test_without_ties_the_textbook_formulas(rank: int) -> None:
    row = metrics([TargetRank(rank - 1)])
    assert (row["hr@10"], row["ndcg@10"], row["mrr"]) == pytest.approx(naive(rank))


@given(st.lists(st.integers(0, 2), min_size=2, max_size=6), st.data())
def test_a_tie_is_worth_the_mean_over_all_orders(scores: list[int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(scores) - 1))
    orders = [
        order for order in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]
    expected = np.mean([naive(order.index(target) + 1) for order in orders], axis=0)
    none = np.array([], np.int64)
    row = metrics([rank_in_scores(np.array(scores, float), target, none)])
    assert (row["hr@10"], row["ndcg@10"], row["mrr"]) == pytest.approx(tuple(expected))
    falling = sorted(range(len(scores)), key=lambda item: -scores[item])
    listed = rank_in_list([str(item) for item in falling], [float(scores[item]) for item in falling], str(target))
    assert listed == rank_in_scores(np.array(scores, float), target, none)


def test_an_all_zero_scorer_scores_chance() -> None:
    seen = np.array([3, 4, 5])
    row = metrics([rank_in_scores(np.zeros(203), 7, seen)] * 5)
    assert row["hr@10"] == pytest.approx(10 / 200)
    assert row["hr@10_low"] == row["hr@10_high"] == pytest.approx(10 / 200)


def test_seen_items_do_not_count_as_above() -> None:
    scores = np.array([5.0, 4.0, 3.0, 3.0])
    assert rank_in_scores(scores, 2, np.array([0])) == TargetRank(above=1, tied=2)


def test_a_target_that_is_not_listed_counts_nothing() -> None:
    row = metrics([rank_in_list(["a"], [1.0], "b"), TargetRank(0)])
    assert (row["hr@10"], row["mrr"], row["targets"]) == (0.5, 0.5, 2)


def test_the_interval_is_that_of_the_bootstrap() -> None:
    ranks = [TargetRank(0)] * 120 + [TargetRank(None)] * 480
    row = metrics(ranks)
    margin = 1.96 * math.sqrt(0.2 * 0.8 / 600)
    assert row["hr@10_low"] == pytest.approx(0.2 - margin, abs=0.006)
    assert row["hr@10_high"] == pytest.approx(0.2 + margin, abs=0.006)
    assert metrics(ranks) == row


def test_a_list_in_an_order_of_its_own_counts_places() -> None:
    assert place_in_list(["a", "b", "c"], "c") == TargetRank(2, 1)
    assert place_in_list(["a", "b", "c"], "d") == TargetRank(None)
