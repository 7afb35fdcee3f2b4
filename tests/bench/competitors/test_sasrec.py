"""SASRec on sequences with a known next item, and its causality."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import heliotrope_bench.competitors.sasrec as module
from heliotrope_bench.competitors.sasrec import sasrec, tune_sasrec
from heliotrope_bench.dataset import Dataset
from heliotrope_bench.holdout import hold_out
from tests.bench.toy_ratings import toy_dataset


def circles(users: int = 60, items: int = 12, events: int = 9) -> Dataset:
    """Every user walks around the same circle of items, each from another place."""
    data = toy_dataset(users, items, users * events)
    user = np.tile(np.arange(users), events)
    item = (user * 5 + np.repeat(np.arange(events), users)) % items
    return replace(data, user=user, item=item, value=np.full(len(user), 5.0), time=np.arange(len(user), dtype=float))


def test_it_learns_what_comes_next() -> None:
    holdout = hold_out(circles())
    scores = sasrec(holdout, blocks=1, dropout=0.1, positives_only=True, epochs=40)
    best = [int(row.argmax()) for row in scores]
    assert np.mean(np.array(best) == holdout.dataset.item[holdout.targets]) > 0.9


def test_a_drawn_part_stands_for_a_large_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEGATIVES", 20)
    holdout = hold_out(circles(users=120, items=48))
    scores = sasrec(holdout, blocks=1, dropout=0.1, positives_only=True, epochs=40)
    best = [int(row.argmax()) for row in scores]
    assert np.mean(np.array(best) == holdout.dataset.item[holdout.targets]) > 0.9


def test_equal_settings_train_alike() -> None:
    holdout = hold_out(toy_dataset(users=20, items=30, events=200))
    runs = [np.array(list(sasrec(holdout, blocks=2, dropout=0.5, positives_only=False, epochs=2))) for _ in range(2)]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-4, atol=1e-5)


def test_a_place_sees_nothing_behind_it() -> None:
    torch.manual_seed(0)
    model = module._SasRec(20, blocks=2, dropout=0.2).eval()
    items = torch.randint(0, 20, (3, module.WINDOW))
    changed = items.clone()
    changed[:, 30:] = (changed[:, 30:] + 1) % 20
    with torch.no_grad():
        before, after = model(items), model(changed)
    torch.testing.assert_close(before[:, :30], after[:, :30])
    assert (before[:, 30:] - after[:, 30:]).abs().min() > 0


def test_tuning_chooses_settings_and_epochs_alike_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET_FLOP", 3e9)
    holdout = hold_out(circles(users=30))
    grid = (
        {"blocks": 1, "dropout": 0.1, "positives_only": True},
        {"blocks": 1, "dropout": 0.9, "positives_only": True},
    )
    chosen = tune_sasrec(holdout, grid)
    assert chosen["epochs"] >= 1 and {key: chosen[key] for key in grid[0]} in grid
    assert tune_sasrec(holdout, grid) == chosen
