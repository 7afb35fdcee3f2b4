"""Each competitor against a naive formula, or on data with a known answer."""

import math

import numpy as np
import pytest

from heliotrope_bench.competitor import (
    COMPETITORS,
    als,
    chance,
    decayed_popularity,
    evaluate,
    item_knn,
    popularity,
    ranks,
)
from heliotrope_bench.holdout import Holdout, hold_out
from heliotrope_bench.ranking import metrics
from tests.bench.toy_ratings import toy_dataset


@pytest.fixture(scope="module")
def holdout() -> Holdout:
    return hold_out(toy_dataset())


def test_chance_is_ten_of_the_unseen(holdout: Holdout) -> None:
    row = metrics(ranks(chance(holdout), holdout))
    unseen = [40 - len(set(holdout.dataset.item[history].tolist())) for history in holdout.histories()]
    assert row["hr@10"] == pytest.approx(np.mean([10 / count for count in unseen]))


@pytest.mark.parametrize("positives_only", [False, True])
@pytest.mark.parametrize("half_life_s", [0.2, 30.0, 1e9])
def test_decayed_popularity_counts_what_came_before(holdout: Holdout, half_life_s: float, positives_only: bool) -> None:
    data = holdout.dataset
    scores = decayed_popularity(holdout, half_life_s=half_life_s, positives_only=positives_only)
    for target, row in zip(holdout.targets.tolist(), scores, strict=True):
        expected = np.zeros(40)
        before = [event for event in holdout.train.tolist() if event < target]
        for event in before:
            if data.positive[event] or not positives_only:
                age = data.time[before[-1]] - data.time[event]
                expected[data.item[event]] += math.exp2(-age / half_life_s)
        # The scale is free (a moving landmark); what counts is the order.
        if expected.max() > 0:
            np.testing.assert_allclose(row / row.max(), expected / expected.max(), rtol=1e-9, atol=1e-200)


def test_popularity_counts_the_train_events(holdout: Holdout) -> None:
    row = next(iter(popularity(holdout, positives_only=False)))
    items = holdout.dataset.item[holdout.train].tolist()
    assert row.tolist() == [items.count(item) for item in range(40)]


def test_item_knn_is_the_sum_of_cosines(holdout: Holdout) -> None:
    data = holdout.dataset
    seen = np.zeros((60, 40))
    seen[data.user[holdout.train], data.item[holdout.train]] = 1
    together = seen.T @ seen
    norm = np.sqrt(np.diag(together))
    cosine = together / (np.outer(norm, norm) + 2.0)
    np.fill_diagonal(cosine, 0)
    scores = item_knn(holdout, neighbours=40, shrink=2.0, positives_only=False)
    for history, row in zip(holdout.histories(), scores, strict=True):
        expected = cosine[sorted(set(data.item[history].tolist()))].sum(axis=0)
        np.testing.assert_allclose(row, expected, rtol=1e-4)


def test_als_finds_the_two_tastes(holdout: Holdout) -> None:
    data = holdout.dataset
    scores = als(holdout, factors=4, regularization=0.1, alpha=5.0, positives_only=False)
    for target, row in zip(holdout.targets.tolist(), scores, strict=True):
        own = data.user[target] % 2
        assert row[own::2].mean() > 5 * abs(row[1 - own :: 2].mean())


@pytest.mark.parametrize("competitor", COMPETITORS, ids=lambda competitor: competitor.name)
def test_every_competitor_is_tuned_and_measured(holdout: Holdout, competitor: object) -> None:
    from heliotrope_bench.competitor import Competitor

    assert isinstance(competitor, Competitor)
    short = Competitor(competitor.name, competitor.score, competitor.grid[:2])
    row, settings = evaluate(short, holdout, holdout.validation())
    assert settings in competitor.grid and row["n_users"] == len(holdout.targets)
