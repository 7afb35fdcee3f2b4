"""Training: the formula is the served one, nothing later leaks in, equal seeds give equal weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heliotrope_indexer import training
from heliotrope_indexer.events import EventTable
from heliotrope_indexer.parameters import EVENT_TYPES
from heliotrope_indexer.replay import Replay, hold_out
from heliotrope_indexer.training import Trainer, first_sights
from heliotrope_indexer.training_job import one_epoch, positive_events
from heliotrope_indexer.training_settings import TrainingSettings
from heliotrope_indexer.training_windows import TARGETS, Windows
from tests.indexer.conftest import some_events

ITEMS, AXES = 30, 6
QUICK = TrainingSettings(dimension=8, batch_targets=64, learning_rate=0.02, epochs=4)


def some_text() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(ITEMS, AXES)).astype(np.float32)


def some_trainer(events: EventTable, settings: TrainingSettings = QUICK) -> Trainer:
    torch.set_num_threads(1)
    return Trainer(events, some_text(), positive_events(events, 4.0), settings, highest_rating=5.0)


def trained(events: EventTable, settings: TrainingSettings = QUICK, epochs: int = 3) -> Trainer:
    trainer = some_trainer(events, settings)
    for _ in range(epochs):
        one_epoch(trainer)
    return trainer


def test_every_event_is_a_target_once_and_sees_only_what_lies_before_it() -> None:
    events = some_events(users=3, count=600)
    windows = Windows(events, np.ones(len(events), np.float32), context=100)
    asked: list[int] = []
    for batch in windows.batches(100, np.random.default_rng(0)):
        assert batch.target.shape[1] <= TARGETS
        for window in range(len(batch.event)):
            own = batch.event[window][batch.valid[window]]
            assert len(set(events.user[own])) == 1
            for target, place, weight in zip(
                batch.target[window], batch.place[window], batch.weight[window], strict=True
            ):
                if weight:
                    asked.append(int(target))
                    assert own[place] == target
                    before = np.flatnonzero((events.user == events.user[target]) & (np.arange(len(events)) < target))
                    np.testing.assert_array_equal(own[:place], before[len(before) - place :])
                    assert place >= min(100, len(before))
    assert sorted(asked) == list(range(len(events)))


def test_many_targets_are_gone_through_in_parts_and_a_round_of_parts_leaves_none_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "EPOCH_TARGETS", 250)
    events = some_events()
    trainer = some_trainer(events)
    asked: list[np.ndarray] = []
    whole = trainer._windows.batches

    def watched(*arguments: object) -> object:
        for batch in whole(*arguments):
            asked.append(batch.target[batch.weight > 0])
            yield batch

    monkeypatch.setattr(trainer._windows, "batches", watched)
    rounds = []
    for _ in range(2):
        asked.clear()
        for _ in range(3):
            before = len(asked)
            windows = sum(done for done, _, _ in trainer.train_epoch())
            assert windows <= trainer.batches
            assert 0 < sum(map(len, asked[before:])) <= 300
        rounds.append(np.concatenate(asked))
    first, second = (np.sort(each).tolist() for each in rounds)
    counting = positive_events(events, 4.0) | (events.kind == EVENT_TYPES.index("rating"))
    assert first == second == np.flatnonzero(counting & first_sights(events, ITEMS)).tolist()
    assert rounds[0].tolist() != rounds[1].tolist()


def test_the_query_in_training_is_the_query_that_is_served() -> None:
    events = some_events()
    remaining, targets = hold_out(events, 4.0)
    trainer = trained(remaining, QUICK.model_copy(update={"rating_center": 0.5}))
    # The served weights are the averaged ones.
    trainer.model.load_state_dict(trainer._averaged.state_dict())
    learned, model = trainer.learned(), trainer.model
    replay = Replay(remaining, targets, ITEMS)
    served = sum(
        replay.interest(learned.arrays["vectors"], learned.parameters, learned.arrays["prior"], horizon)
        @ learned.arrays["matrices"][horizon]
        for horizon in range(learned.parameters.horizons)
    )
    for user in range(0, replay.users, 7):
        own = np.flatnonzero(remaining.user == targets.user[user])
        rows = torch.from_numpy(remaining.row[own])
        with torch.no_grad():
            x, _ = model.items(rows, torch.from_numpy(some_text())[rows], torch.ones(len(own), 1))
            gains = model.gains(
                torch.from_numpy(remaining.kind[own].astype(np.int64)),
                torch.from_numpy(remaining.value[own].astype(np.float32)),
            )
            ages = torch.from_numpy((targets.time[user] - remaining.time[own]).astype(np.float32))
            query = model.queries(x[None], gains[None], ages[None], torch.zeros(1, 1), torch.ones(1, 1, len(own)))
        np.testing.assert_allclose(query[0, 0].numpy(), served[user], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 1.0 - 1e-9])
def test_with_every_item_drawn_the_loss_is_the_softmax_over_all_items_with_events(dropout: float) -> None:
    """With all items dropped, what is trained is how items without events are served."""
    events = some_events(users=4, count=60)
    settings = QUICK.model_copy(
        update={
            "negatives": 20_000,
            "l2": 0.0,
            "residual_l2": 0.0,
            "residual_dropout": dropout,
            "other_weight": 1.0,
            "context": 4_096,
        }
    )
    trainer = trained(events, settings, epochs=1)
    model = trainer.model
    batch = next(trainer._windows.batches(10_000, np.random.default_rng(0)))
    with torch.no_grad():
        loss, weight = trainer._loss(batch)
    chosen = np.bincount(events.row, minlength=ITEMS) > 0
    assert 0 < chosen.sum() < ITEMS
    arrays = model.arrays(some_text(), chosen & (dropout == 0.0))
    parameters = model.parameters_served(np.ones(len(EVENT_TYPES), bool))
    total = 0.0
    for target in batch.target[batch.weight > 0]:
        before = np.arange(len(events)) < target
        seen = events.row[before & (events.user == events.user[target])]
        asked = events.select(np.array([target]))
        replay = Replay(events.select(before), asked, ITEMS)
        query = sum(
            replay.interest(arrays["vectors"], parameters, arrays["prior"], horizon) @ arrays["matrices"][horizon]
            for horizon in range(parameters.horizons)
        )
        at = int(np.searchsorted(trainer._count_times, target, side="right")) - 1
        scores = (query @ arrays["vectors"].T)[0] + arrays["bias"]
        if dropout == 0.0:
            scores = scores + parameters.live_popularity_weight * trainer._count_table[at].numpy()
        own = scores[events.row[target]]
        scores[seen] = -np.inf
        scores[~chosen] = -np.inf
        total += float(np.log(np.exp(scores - own).sum() + (events.row[target] in seen)))
    assert float(loss) == pytest.approx(total / weight, rel=1e-3)


def test_live_counts_are_those_of_the_replay() -> None:
    events = some_events()
    trainer = some_trainer(events)
    parameters = trainer.learned().parameters
    for place in (0, 100, 400):
        at = int(trainer._count_times[place])
        replay = Replay(events.select(np.arange(len(events)) < at), events.select(np.array([at])), ITEMS)
        # Events of the very same time are before the target in the table and not yet in a replay.
        if (events.time == events.time[at]).sum() == 1:
            expected = np.log1p(replay.live_counts(parameters)[0])
            np.testing.assert_allclose(trainer._count_table[place].numpy(), expected, atol=1e-5)


def test_training_learns_what_users_like() -> None:
    remaining, targets = hold_out(some_events(), 4.0)
    replay = Replay(remaining, targets, ITEMS)
    trainer = some_trainer(remaining)

    def hit_rate() -> float:
        learned = trainer.learned()
        arrays, parameters = learned.arrays, learned.parameters
        return replay.quality(
            replay.scores(arrays["vectors"], arrays["bias"], arrays["prior"], arrays["matrices"], parameters)
        ).hit_rate_at_10

    first_loss = one_epoch(trainer)
    for _ in range(6):
        loss = one_epoch(trainer)
    assert loss < first_loss
    # Chance is 10 of the 15 to 25 items that a user has not seen; users turn to 6 of 30 in most of their events.
    shuffled = np.random.default_rng(0).permutation(ITEMS)
    learned = trainer.learned()
    mixed = replay.scores(
        learned.arrays["vectors"][shuffled],
        learned.arrays["bias"][shuffled],
        learned.arrays["prior"],
        learned.arrays["matrices"],
        learned.parameters,
    )
    assert hit_rate() > replay.quality(mixed).hit_rate_at_10 + 0.1


def test_equal_seeds_give_equal_weights_and_a_state_goes_on_as_if_nothing_had_happened() -> None:
    events = some_events()
    one, two, other = (
        trained(events),
        trained(events, epochs=1),
        trained(events, QUICK.model_copy(update={"seed": 1})),
    )
    resumed = some_trainer(events)
    resumed.restore(two.state())
    for _ in range(2):
        one_epoch(resumed)
    for name, array in one.learned().arrays.items():
        np.testing.assert_array_equal(array, resumed.learned().arrays[name])
    assert one.learned().parameters == resumed.learned().parameters
    assert not np.array_equal(one.learned().arrays["vectors"], other.learned().arrays["vectors"])


@pytest.mark.parametrize(
    ("switch", "untouched"),
    [("bias", "bias"), ("residual", "residual"), ("prior", "prior")],
)
def test_what_is_switched_off_is_zero(switch: str, untouched: str) -> None:
    events = some_events()
    assert trained(events).learned().arrays[untouched].any()
    assert not trained(events, QUICK.model_copy(update={switch: False})).learned().arrays[untouched].any()


def test_switches_of_parameters() -> None:
    events = some_events()
    off = QUICK.model_copy(
        update={"decay": False, "negative_feedback": False, "popularity": False, "rating_center": 0.5}
    )
    parameters = trained(events, off).learned().parameters
    assert min(parameters.half_lives_s) > 1e10
    assert parameters.live_popularity_weight == 0.0
    for kind in EVENT_TYPES:
        assert parameters.gain(kind, 1.0) >= 0.0
    on = trained(events, QUICK.model_copy(update={"rating_center": 0.5})).learned().parameters
    assert on.gain("rating", 1.0) < 0.0 < on.gain("rating", 5.0)
    assert on.gain("dislike", 1.0) < 0.0


def test_an_item_without_events_stands_on_its_text() -> None:
    events = some_events()
    events = events.select(events.row != 7)
    arrays = trained(events).learned().arrays
    assert not arrays["residual"][7].any()
    assert arrays["bias"][7] == 0.0
    np.testing.assert_allclose(arrays["vectors"][7], some_text()[7] @ arrays["projection"].T, rtol=1e-5)


def test_an_item_without_events_finds_those_who_like_its_kind() -> None:
    """Users each prefer one of five kinds, which is what the texts say."""
    events = some_events(count=1_500)
    cold = np.array([7, 18])
    events = events.select(~np.isin(events.row, cold))
    kinds = (np.arange(ITEMS) % 5)[:, None] == np.arange(5)
    text = np.concatenate([kinds, np.zeros((ITEMS, AXES - 5))], axis=1).astype(np.float32)
    trainer = Trainer(events, text, positive_events(events, 4.0), QUICK, highest_rating=5.0)
    for _ in range(8):
        one_epoch(trainer)
    learned = trainer.learned()
    users = np.arange(40)
    now = np.full(len(users), events.time[-1] + 1.0)
    # Any item will do as a target: only the scores are looked at.
    asked = EventTable(users, users * 0, users.astype(np.int8) * 0, now * 0, now, events.user_ids)
    arrays, parameters = learned.arrays, learned.parameters
    scores = Replay(events, asked, ITEMS).scores(
        arrays["vectors"], arrays["bias"], arrays["prior"], arrays["matrices"], parameters
    )
    known = learned.known
    for item in cold:
        fans = users % 5 == item % 5
        higher = (scores[:, known] > scores[:, [item]]).mean(axis=1)
        # To others it is an average item; a fifth of the items are of its kind, and to fans it is one of those.
        assert higher[fans].mean() < 0.3
        assert higher[fans].mean() < higher[~fans].mean() - 0.15


DEGENERATE = {
    "one user": lambda events: events.select(events.user == 0),
    "one item": lambda events: events.select(events.row == events.row[0]),
    "one event": lambda events: events.select(np.array([5])),
    "all negative": lambda events: EventTable(
        events.user,
        events.row,
        np.full_like(events.kind, EVENT_TYPES.index("hide")),
        np.ones(len(events)),
        events.time,
        events.user_ids,
    ),
    "constant times": lambda events: EventTable(
        events.user, events.row, events.kind, events.value, np.full(len(events), 1.5e9), events.user_ids
    ),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_events_train_without_nan(name: str) -> None:
    learned = trained(DEGENERATE[name](some_events())).learned()
    for array in learned.arrays.values():
        assert np.isfinite(array).all()


def test_identical_texts_train_without_nan() -> None:
    events = some_events()
    trainer = Trainer(
        events, np.zeros((ITEMS, AXES), np.float32), positive_events(events, 4.0), QUICK, highest_rating=5.0
    )
    one_epoch(trainer)
    assert np.isfinite(trainer.learned().arrays["vectors"]).all()
