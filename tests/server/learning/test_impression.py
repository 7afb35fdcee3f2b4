import numpy as np
import pytest

from heliotrope_server.answerer import Question
from heliotrope_server.errors import InvalidArgumentError, UnknownRequestError
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.learning.example import make_batch
from heliotrope_server.learning.impression import ImpressionMemory, example_group, live_features
from heliotrope_server.learning.weights import Weights
from tests.server import worlds

NOW_S = 1.7e9


def clock():
    return NOW_S


async def answered(engine, user="u", count=6):
    return (await engine.recommend(Question(user, count))).result


@pytest.fixture
async def engine(tmp_path):
    served = worlds.catalogue(tmp_path, items=50)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as started:
        events = [UserEvent("u", "e1", EventKind.CLICK, "i3", 1.0, round(NOW_S * 1e6))]
        events += [
            UserEvent(f"f{n}", f"e{n}", EventKind.CLICK, f"i{n % 9}", 1.0, round(NOW_S * 1e6)) for n in range(40)
        ]
        await started.record(events)
        yield started


def weights_of(engine):
    return Weights(0, engine.answerer.scoring_matrices, engine.answerer.theta)


def note(memory, engine, answer, request_id="r", user="u", now_s=NOW_S):
    counts = engine.popularity.counts_of(answer.rows, now_s)
    memory.note(request_id, user, answer, counts, 0, now_s, False)


async def test_examples_carry_the_very_score_that_was_served(engine):
    answer = await answered(engine)
    memory = ImpressionMemory(10, 60.0)
    note(memory, engine, answer)
    judgement = memory.judge("u", "r", {answer.item_ids[5]: 1.0}, NOW_S)
    group = example_group(judgement, engine.catalogue, weights_of(engine))
    batch = make_batch([group])
    np.testing.assert_allclose(batch.scores(weights_of(engine)), answer.scores, rtol=1e-5)
    # Under other weights, it is the score that those would have given.
    other = Weights(1, engine.answerer.scoring_matrices * np.float32(0.5), np.array([0.9]))
    engine.answerer.use_weights(other.matrices, other.theta)
    again = (await engine.recommend(Question("u", 50))).result
    scores = dict(zip(again.item_ids, again.scores, strict=True))
    expected = [scores[item_id] for item_id in answer.item_ids]
    np.testing.assert_allclose(batch.scores(other), expected, rtol=1e-4, atol=1e-5)


async def test_what_stands_above_the_last_chosen_item_was_seen_and_left(engine):
    answer = await answered(engine)
    memory = ImpressionMemory(10, 60.0)
    note(memory, engine, answer)
    judgement = memory.judge("u", "r", {answer.item_ids[3]: 1.0, answer.item_ids[1]: 0.5}, NOW_S)
    assert judgement.places == [0, 1, 2, 3]
    assert judgement.rewards == [0.0, 0.5, 0.0, 1.0]
    assert (judgement.implied, judgement.duplicates) == (2, 0)


async def test_an_explicit_zero_means_that_only_what_is_named_counts(engine):
    answer = await answered(engine)
    memory = ImpressionMemory(10, 60.0)
    note(memory, engine, answer)
    judgement = memory.judge("u", "r", {answer.item_ids[4]: 1.0, answer.item_ids[2]: 0.0}, NOW_S)
    assert (judgement.places, judgement.rewards, judgement.implied) == ([2, 4], [0.0, 1.0], 0)


async def test_each_item_of_an_answer_counts_once_but_a_passed_over_one_can_still_be_chosen(engine):
    answer = await answered(engine)
    memory = ImpressionMemory(10, 60.0)
    note(memory, engine, answer)
    chosen = {answer.item_ids[2]: 1.0}
    assert memory.judge("u", "r", chosen, NOW_S).places == [0, 1, 2]
    again = memory.judge("u", "r", chosen, NOW_S)
    assert (again.places, again.duplicates) == ([], 1)
    late = memory.judge("u", "r", {answer.item_ids[0]: 1.0}, NOW_S)
    assert (late.places, late.rewards, late.implied) == ([0], [1.0], 0)
    further = memory.judge("u", "r", {answer.item_ids[4]: 1.0}, NOW_S)
    assert (further.places, further.implied) == ([3, 4], 1)


async def test_feedback_on_what_is_not_remembered_names_the_window(engine):
    answer = await answered(engine)
    memory = ImpressionMemory(2, 60.0)
    for number in range(3):
        note(memory, engine, answer, f"r{number}", now_s=NOW_S + number)
    assert len(memory) == 2
    for user, request_id, now_s in (
        ("u", "r0", NOW_S),
        ("u", "other", NOW_S),
        ("v", "r1", NOW_S),
        ("u", "r2", NOW_S + 63),
    ):
        with pytest.raises(UnknownRequestError, match="its newest 2 answers, none for longer than 60 s"):
            memory.judge(user, request_id, {answer.item_ids[0]: 1.0}, now_s)
    assert len(memory) == 0


async def test_an_item_that_was_not_shown_refuses_the_whole_feedback(engine):
    answer = await answered(engine)
    memory = ImpressionMemory(2, 60.0)
    note(memory, engine, answer)
    with pytest.raises(InvalidArgumentError, match="not among the first 6 items"):
        memory.judge("u", "r", {answer.item_ids[0]: 1.0, "elsewhere": 1.0}, NOW_S)
    assert memory.judge("u", "r", {answer.item_ids[0]: 1.0}, NOW_S).places == [0]


async def test_a_forgotten_user_leaves_no_impression(engine):
    answer = await answered(engine)
    memory = ImpressionMemory(10, 60.0)
    note(memory, engine, answer, "r1")
    note(memory, engine, answer, "r2", user="v")
    memory.forget("u")
    assert len(memory) == 1


async def test_another_snapshot_makes_an_impression_stale(engine, tmp_path):
    answer = await answered(engine)
    memory = ImpressionMemory(10, 60.0)
    note(memory, engine, answer)
    judgement = memory.judge("u", "r", {answer.item_ids[0]: 1.0}, NOW_S)
    other = worlds.catalogue(tmp_path / "other", items=40, seed=5)
    assert example_group(judgement, other, weights_of(engine)) is None


def test_live_features_are_what_theta_weighs():
    assert live_features(np.array([0.0, np.e - 1])).tolist() == [[0.0], [1.0]]
