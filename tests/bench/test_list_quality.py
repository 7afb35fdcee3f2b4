import numpy as np
import pytest

from heliotrope_bench.holdout import hold_out
from heliotrope_bench.list_quality import list_figures
from tests.bench.toy_ratings import toy_dataset


def test_figures_by_hand() -> None:
    holdout = hold_out(toy_dataset())
    data = holdout.dataset
    users_of = [len(set(data.user[holdout.train][data.item[holdout.train] == item].tolist())) for item in range(40)]
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    top = np.full((2, 10), -1)
    top[0, :3] = (1, 2, 3)
    top[1, :2] = (3, 4)
    figures = list_figures(top, holdout, features)
    assert figures["coverage"] == 4 / 40
    listed = [1, 2, 3, 3, 4]
    assert figures["average_popularity"] == pytest.approx(np.mean([users_of[item] for item in listed]))
    users = len(set(data.user[holdout.train].tolist()))
    expected = np.mean([-np.log2((users_of[item] + 1) / (users + 1)) for item in listed])
    assert figures["novelty"] == pytest.approx(expected)
    pairs = [[(1, 2), (1, 3), (2, 3)], [(3, 4)]]
    distances = [np.mean([1 - features[a] @ features[b] for a, b in row]) for row in pairs]
    assert figures["diversity"] == pytest.approx(np.mean(distances), rel=1e-5)


def test_empty_lists_have_no_figures() -> None:
    figures = list_figures(np.full((3, 10), -1), hold_out(toy_dataset()), None)
    assert figures == {"coverage": 0.0, "novelty": None, "diversity": None, "average_popularity": None}
