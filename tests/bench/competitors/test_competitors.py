"""Each competitor against a naive formula, or on data with a known answer."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

import heliotrope_bench.competitors.sasrec as sasrec_module
from heliotrope_bench.competitors import competitors, evaluate, tune
from heliotrope_bench.competitors.average_text import average_text
from heliotrope_bench.competitors.competitor import TRIALS, Competitor, best_of, ranks
from heliotrope_bench.competitors.counts import chance, decayed_popularity, popularity
from heliotrope_bench.competitors.ease import ease
from heliotrope_bench.competitors.factors import als, bpr
from heliotrope_bench.competitors.item_knn import item_knn
from heliotrope_bench.holdout import Holdout, hold_out
from heliotrope_bench.protocol import PROTOCOLS, Protocol
from heliotrope_bench.quality import measure_competitor
from heliotrope_bench.ranking import metrics
from tests.bench.toy_ratings import toy_dataset

LAST_POSITIVE = PROTOCOLS[0]


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


def test_bpr_finds_the_two_tastes(holdout: Holdout) -> None:
    data = holdout.dataset
    scores = bpr(holdout, factors=8, learning_rate=0.1, regularization=0.01, iterations=100, positives_only=False)
    for target, row in zip(holdout.targets.tolist(), scores, strict=True):
        own = data.user[target] % 2
        assert row[own::2].mean() > row[1 - own :: 2].mean()


@pytest.mark.parametrize("users", [20, 60])
def test_ease_is_the_closed_form(users: int) -> None:
    # Fewer users than items go through the Woodbury identity.
    holdout = hold_out(toy_dataset(users=users))
    data = holdout.dataset
    seen = np.zeros((users, 40))
    seen[data.user[holdout.train], data.item[holdout.train]] = 1
    inverse = np.linalg.inv(seen.T @ seen + 7.0 * np.eye(40))
    weights = np.eye(40) - inverse / np.diag(inverse)
    scores = ease(holdout, ridge=7.0, positives_only=False)
    for history, row in zip(holdout.histories(), scores, strict=True):
        taste = np.zeros(40)
        taste[data.item[history]] = 1
        np.testing.assert_allclose(row, taste @ weights, rtol=1e-3, atol=1e-5)


def test_ease_on_part_of_a_large_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[ease.__module__], "MAX_ITEMS", 10)
    holdout = hold_out(toy_dataset())
    counts = np.bincount(np.unique(holdout.dataset.user[holdout.train] * 40 + holdout.dataset.item[holdout.train]) % 40)
    scored = np.any([row != 0 for row in ease(holdout, ridge=7.0, positives_only=False)], axis=0)
    assert scored.sum() == 10 and counts[scored].min() >= counts[~scored].max()


def test_average_text_is_the_mean_of_the_last(holdout: Holdout) -> None:
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    data = holdout.dataset
    scores = average_text(holdout, features=features, last=3, positives_only=True)
    for history, row in zip(holdout.histories(), scores, strict=True):
        liked = [data.item[event] for event in history if data.positive[event]][-3:]
        expected = features @ features[liked].mean(axis=0) if liked else np.zeros(40)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


def test_the_best_ten_leave_ties_to_chance() -> None:
    scores = np.array([3.0, 2.0, 9.0] + [1.0] * 20)
    drawn = [set(best_of(scores, np.array([2]), np.random.default_rng(seed)).tolist()) for seed in range(30)]
    assert all(len(best) == 10 and {0, 1} < best and 2 not in best for best in drawn)
    assert set().union(*drawn) == set(range(23)) - {2}
    assert len(best_of(np.zeros(4), np.arange(2), np.random.default_rng(0))) == 2


FEATURES = np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)


@pytest.mark.parametrize("name", competitors(FEATURES))
def test_every_competitor_is_tuned_and_measured(holdout: Holdout, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    competitor = competitors(FEATURES)[name]
    assert len(competitor.settings) <= 2 * TRIALS
    monkeypatch.setattr(sasrec_module, "BUDGET_FLOP", 1e9)
    short = replace(competitor, settings=competitor.settings[:2])
    settings = tune(short, LAST_POSITIVE.validation(holdout, count=100))
    outcome = evaluate(short, holdout, settings)
    assert {key: settings[key] for key in competitor.settings[0]} in competitor.settings
    assert len(outcome.ranks) == len(holdout.targets)
    for best, history in zip(outcome.top, holdout.histories(), strict=True):
        assert not set(best.tolist()) & set(holdout.dataset.item[history].tolist())


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("name", competitors(FEATURES))
def test_tuning_never_sees_the_test_part(name: str, protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every event outside of the train part replaced by another, the same settings are chosen."""
    monkeypatch.setattr(sasrec_module, "BUDGET_FLOP", 1e8)
    data = toy_dataset()
    holdout = protocol.cut(data, None)
    other = np.random.default_rng(5)
    hidden = np.setdiff1d(np.arange(len(data)), holdout.train)
    item, value = data.item.copy(), data.value.copy()
    item[hidden] = other.integers(len(data.items), size=len(hidden))
    value[hidden] = 5.0
    changed = Holdout(replace(data, item=item, value=value), holdout.targets, holdout.train)
    competitor = competitors(FEATURES)[name]
    short = replace(competitor, settings=competitor.settings[:2])
    chosen = [tune(short, protocol.validation(one, count=30)) for one in (holdout, changed)]
    assert chosen[0] == chosen[1]


def test_the_test_part_is_opened_once(holdout: Holdout) -> None:
    asked: list[tuple[str, float]] = []

    def scorer(one: Holdout, *, wish: float) -> Iterator[NDArray[np.float64]]:
        asked.append((one.fingerprint, wish))
        for target in one.targets:
            row = np.zeros(40)
            row[one.dataset.item[target]] = wish
            yield row

    validation = LAST_POSITIVE.validation(holdout, count=20)
    grid = tuple({"wish": wish} for wish in (-1.0, 1.0, 0.0))
    outcomes = measure_competitor(Competitor("oracle", scorer, grid), {"": holdout}, validation)
    assert [wish for fingerprint, wish in asked if fingerprint == holdout.fingerprint] == [1.0]
    assert [wish for fingerprint, wish in asked if fingerprint == validation.fingerprint] == [-1.0, 1.0, 0.0]
    assert {rank.above for rank in outcomes[""][0].ranks} == {0} and outcomes[""][0].trials == 3
