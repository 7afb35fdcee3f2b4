import csv
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from heliotrope_bench.holdout import Holdout, hold_out
from heliotrope_bench.snapshot_job import write_catalogue, write_train_events
from tests.bench.toy_ratings import toy_dataset


def check_honesty(holdout: Holdout) -> None:
    data = holdout.dataset
    assert not set(holdout.targets.tolist()) & set(holdout.train.tolist())
    users = data.user[holdout.targets].tolist()
    assert len(set(users)) == len(users)
    for target, history in zip(holdout.targets.tolist(), holdout.histories(), strict=True):
        user = data.user[target]
        assert data.positive[target]
        assert len(history) and (data.user[history] == user).all()
        assert (history < target).all() and (data.time[history] <= data.time[target]).all()
        assert data.item[target] not in data.item[history]
        own = holdout.train[data.user[holdout.train] == user]
        assert own.tolist() == history.tolist()


@given(st.integers(0, 50))
def test_nothing_at_or_after_a_target_is_learnt_from(seed: int) -> None:
    holdout = hold_out(toy_dataset(users=20, items=30, events=200, seed=seed))
    check_honesty(holdout)
    validation = hold_out(holdout.dataset, holdout.train)
    check_honesty(validation)
    assert set(validation.targets.tolist()) <= set(holdout.train.tolist())


@given(st.integers(0, 50))
def test_the_target_is_the_last_positive_that_qualifies(seed: int) -> None:
    data = toy_dataset(users=20, items=30, events=200, seed=seed)
    held = {int(data.user[target]): int(target) for target in hold_out(data).targets}
    for user in range(20):
        own = np.flatnonzero(data.user == user).tolist()
        qualified = [
            position
            for place, position in enumerate(own)
            if data.positive[position] and place > 0 and data.item[position] not in data.item[own[:place]]
        ]
        assert held.get(user) == (qualified[-1] if qualified else None)


def test_the_events_file_holds_the_train_events_and_no_other(tmp_path: Path) -> None:
    holdout = hold_out(toy_dataset())
    write_train_events(holdout, tmp_path / "events.csv")
    with (tmp_path / "events.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["event_id"]) for row in rows] == holdout.train.tolist()
    data = holdout.dataset
    assert [row["item_id"] for row in rows] == [f"m{item}" for item in data.item[holdout.train]]
    write_catalogue(data, tmp_path / "catalogue.csv")
    assert (tmp_path / "catalogue.csv").read_text().splitlines()[:2] == ["item_id,title,categories", "m0,Film 0,Drama"]
