"""Every protocol on small data: nothing of a target or after it is known when it is asked for."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliotrope_bench.dataset import Dataset
from heliotrope_bench.holdout import Holdout
from heliotrope_bench.protocol import PROTOCOLS, Protocol, hold_items_out, hold_users_out, split_by_time, warm_items

NAMED = {protocol.name: protocol for protocol in PROTOCOLS}


def small(seed: int) -> Dataset:
    from tests.bench.toy_ratings import toy_dataset

    return toy_dataset(users=20, items=30, events=300, seed=seed)


def check_honesty(holdout: Holdout) -> None:
    data = holdout.dataset
    targets = holdout.targets.tolist()
    assert targets == sorted(set(targets))
    assert not set(targets) & set(holdout.train.tolist())
    assert (np.diff(holdout.replayed) > 0).all() and (np.diff(holdout.train) > 0).all()
    for target, history in zip(targets, holdout.histories(), strict=True):
        user = data.user[target]
        naive = [event for event in holdout.replayed.tolist() if event < target and data.user[event] == user]
        assert history.tolist() == naive
        assert data.positive[target] and data.item[target] not in data.item[history]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
@given(seed=st.integers(0, 1_000))
@settings(max_examples=20)
def test_no_protocol_knows_its_targets(protocol: Protocol, seed: int) -> None:
    holdout = protocol.cut(small(seed), None)
    for variant in protocol.variants(holdout).values():
        check_honesty(variant)
    validation = protocol.validation(holdout, count=10)
    check_honesty(validation)
    known = set(holdout.train.tolist())
    assert len(validation.targets) <= 10
    assert (
        set(validation.targets.tolist()) | set(validation.train.tolist()) | set(validation.replayed.tolist()) <= known
    )


def test_the_time_split_asks_for_every_new_positive_from_then_on() -> None:
    data = small(3)
    holdout = split_by_time(data)
    split = data.time[holdout.train].max()
    expected = [
        event
        for event in range(len(data))
        if data.time[event] > split
        and data.positive[event]
        and data.item[event] not in data.item[:event][data.user[:event] == data.user[event]]
    ]
    assert holdout.targets.tolist() == expected
    assert 0.7 < len(holdout.train) / len(data) <= 0.8
    variants = NAMED["time-split"].variants(holdout)
    assert variants["frozen"].replayed.tolist() == holdout.train.tolist()
    assert variants["live"].replayed.tolist() == list(range(len(data)))


def test_cold_items_are_unknown_and_then_know_five_events() -> None:
    data = small(4)
    holdout = hold_items_out(data)
    cold = set(data.item[holdout.targets].tolist())
    assert cold and not cold & set(data.item[holdout.train].tolist())
    variants = warm_items(holdout)
    warm = variants["5 events"]
    assert warm.targets.tolist() == variants["no event, later targets"].targets.tolist()
    for target in warm.targets.tolist():
        before = warm.replayed[(warm.replayed < target) & (data.item[warm.replayed] == data.item[target])]
        assert len(before) == 5


def test_cold_users_come_with_their_last_events() -> None:
    data = small(5)
    holdout = hold_users_out(data)
    assert not set(holdout.users.tolist()) & set(data.user[holdout.train].tolist())
    for name, variant in NAMED["cold-users"].variants(holdout).items():
        count = int(name.split()[0])
        for target, history in zip(variant.targets.tolist(), variant.histories(), strict=True):
            own = [event for event in range(target) if data.user[event] == data.user[target]]
            assert history.tolist() == own[len(own) - count :]


def test_only_who_has_segments_is_asked_with_them() -> None:
    data = small(5)
    assert not any("segments" in name for name in NAMED["cold-users"].variants(hold_users_out(data)))
    data = replace(data, segments=[("all",)] * len(data.user_ids))
    variants = NAMED["cold-users"].variants(hold_users_out(data))
    with_them, without = variants["0 events, segments known"], variants["0 events"]
    assert with_them.segments_known and not without.segments_known
    assert with_them.fingerprint == without.fingerprint


def test_splits_are_told_apart() -> None:
    data = small(6)
    prints = [
        variant.fingerprint
        for protocol in PROTOCOLS
        for variant in protocol.variants(protocol.cut(data, None)).values()
    ]
    assert len(set(prints)) == len(prints)
    assert PROTOCOLS[0].cut(data, None).fingerprint == prints[0]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_degenerate_data_have_no_targets(protocol: Protocol) -> None:
    data = small(7)
    none = replace(data, value=np.zeros(len(data)))
    one_event = replace(data, user=data.user[:1], item=data.item[:1], value=data.value[:1], time=data.time[:1])
    for degenerate in (none, one_event):
        holdout = protocol.cut(degenerate, None)
        for variant in protocol.variants(holdout).values():
            check_honesty(variant)
            assert len(variant.targets) <= 1
        assert not len(protocol.validation(holdout, count=10).targets)
