"""Online residuals of young items against their formula, written down naively."""

import numpy as np
import pytest

from heliotrope_indexer.snapshot import CatalogItem, SnapshotStore, write_snapshot
from heliotrope_server import live_catalogue as live_catalogue_module
from heliotrope_server import residuals as residuals_module
from heliotrope_server.activation import Activation
from heliotrope_server.answerer import Question
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.live_catalogue import DeltaItem, LiveCatalogue
from heliotrope_server.live_view import live_view
from heliotrope_server.residuals import Residuals
from heliotrope_server.retriever import make_retriever
from heliotrope_server.scoring import Query, exact_scores, item_vectors
from tests.server import worlds

NOW_S = 1.7e9
YOUNG, KNOWN = "i4", "i5"  # the worlds know no event of an even item and 100 of an odd one
HALF = 2e-3  # what float16 keeps of a number


def clock():
    return NOW_S


def event(user, number, item, *, kind=EventKind.FAVORITE, age_s=0.0, undone=""):
    return UserEvent(user, f"{user}-{number}", kind, item, 1.0, round((NOW_S - age_s) * 1e6), undone)


def history(user, seed):
    """What a user did before: three events on known items."""
    items = np.random.default_rng(seed).integers(5, 90, size=3) * 2 + 1
    return [event(user, number, f"i{item}", age_s=5000.0 - number) for number, item in enumerate(items)]


def crowd(count, item=YOUNG):
    """Users with a history who then like one item."""
    return [
        each for n in range(count) for each in [*history(f"u{n}", n), event(f"u{n}", "like", item, age_s=600.0 - n)]
    ]


def naive_residual(served, events, item):
    """r_i from the definition, for users whose events are in order of time."""
    snapshot, young = served.snapshot, served.parameters.young
    total, users = np.zeros(served.dimension), set()
    for place, each in enumerate(events):
        if each.item_id != item or each.user_id in users:
            continue
        before = [other for other in events[:place] if other.user_id == each.user_id]
        interests = worlds.naive_interest_vectors(before, served, each.time_s)
        query = np.einsum("hd,hde->e", interests, snapshot.scoring_matrices.astype(np.float64))
        said = query - snapshot.query_mean
        total += said * min(1.0, young.max_query / np.linalg.norm(said))
        users.add(each.user_id)
    moved = young.step * total / (len(users) + served.known_events(item) + young.shrinkage)
    return moved * min(1.0, young.max_norm / np.linalg.norm(moved))


def residual(catalogue, item):
    row = catalogue.rows[item]
    return catalogue.served_vector(row) - catalogue.row_vector(row)


def make(tmp_path, **settings):
    settings.setdefault("young", worlds.YOUNG)
    return worlds.catalogue(tmp_path, **settings)


@pytest.mark.parametrize("count", [1, 3, 20])
async def test_a_young_item_moves_by_the_formula_and_a_known_one_does_not(tmp_path, count):
    served = make(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        events = crowd(count)
        await engine.record([*events, event("u0", "known", KNOWN)])
        wanted = naive_residual(served, events, YOUNG)
        assert np.abs(wanted).max() > 0.05
        np.testing.assert_allclose(residual(served, YOUNG), wanted, atol=HALF)
        assert not residual(served, KNOWN).any()


@pytest.mark.parametrize("with_index", [False, True])
async def test_scores_and_explanations_are_made_of_the_moved_vector(tmp_path, with_index):
    served = make(tmp_path, items=600, with_index=with_index, live_popularity_weight=0.0)
    served.upsert(DeltaItem(CatalogItem("new", "new"), np.ones(16, np.float32), None, 0.1, served.version, "none"))
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record([*crowd(5), *(event(f"u{n}", "new", "new") for n in range(5))])
        await engine.record(history("reader", 99))
        query_of = engine.profile("reader").interest_vectors(NOW_S, served.parameters)
        query = np.einsum("hd,hde->e", query_of, served.snapshot.scoring_matrices)
        question = Question("reader", 600, explain=True, include_seen=True, time_s=NOW_S)
        answer = (await engine.recommend(question)).result
        scores = dict(zip(answer.item_ids, answer.scores, strict=True))
        for item in (YOUNG, "new"):
            row = served.rows[item]
            assert np.abs(residual(served, item)).max() > 0.05
            wanted = query @ served.served_vector(row) + served.bias(row) + served.parameters.intercept
            assert scores[item] == pytest.approx(wanted, rel=1e-4)
        for score, parts in zip(answer.scores, answer.explanations, strict=True):
            assert abs(score - sum(part.value for part in parts)) <= 1e-5 * sum(abs(part.value) for part in parts)
        assert len(answer.item_ids) == len(set(answer.item_ids))


async def test_lists_and_freshness_see_the_moved_vector(tmp_path):
    served = make(tmp_path, live_popularity_weight=0.5)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record([*crowd(5), *crowd(5, "i8"), *history("reader", 99)])
        rows = np.array([served.rows[item] for item in ("i8", KNOWN, YOUNG, "i0")])
        live = live_view(served, engine.popularity.counts_at(NOW_S))
        wanted = np.stack([served.served_vector(row) for row in rows])
        assert np.abs(wanted - np.stack([served.row_vector(row) for row in rows])).max() > 0.05
        np.testing.assert_allclose(item_vectors(served, live, rows), wanted, rtol=1e-6)
        query = Query(np.ones(served.dimension, np.float32), len(served.item_ids), np.empty(0, np.int64))
        ranking = make_retriever(served).rank([query], live)[0]
        ranked = dict(zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True))
        found = exact_scores(served, live, query, rows)
        np.testing.assert_allclose(found, [ranked[row] for row in rows.tolist()], rtol=1e-4)


async def test_profiles_keep_the_vector_that_the_snapshot_knows(tmp_path):
    served = make(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        events = crowd(4)
        await engine.record(events)
        own = [each for each in events if each.user_id == "u3"]
        wanted = worlds.naive_interest_vectors(own, served, NOW_S)
        found = engine.profile("u3").interest_vectors(NOW_S, served.parameters)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


async def test_an_imported_history_is_not_heard_of_an_item_that_has_learned_from_it(tmp_path, monkeypatch):
    learned = worlds.YOUNG.model_copy(update={"learned_until_s": NOW_S - 300.0})
    served = make(tmp_path, young=learned)
    known = {"i5": 2, "i7": 2}
    monkeypatch.setattr(served, "known_events", lambda item: known.get(item, 0))
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record([*crowd(3, "i4"), *crowd(3, "i5")])
        # Before that moment only the item without events in training is moved by them.
        assert residual(served, "i4").any()
        assert not residual(served, "i5").any()
        await engine.record([*history("late", 9), event("late", "like", "i7", age_s=100.0)])
        assert residual(served, "i7").any()


async def test_a_user_speaks_once_and_only_with_something_to_say(tmp_path):
    served = make(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record([event("nobody", 1, YOUNG)])
        assert not residual(served, YOUNG).any()
        await engine.record(crowd(2))
        once = residual(served, YOUNG)
        again = [event("u0", f"again{n}", YOUNG, kind=EventKind.CLICK) for n in range(20)]
        await engine.record([*again, *again, event("u1", "no", YOUNG, kind=EventKind.DISLIKE)])
        np.testing.assert_array_equal(residual(served, YOUNG), once)


async def test_undo_and_deletion_take_back_exactly_what_a_user_said(tmp_path):
    served = make(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record(crowd(2))
        two = residual(served, YOUNG)
        more = [*history("more", 50), event("more", "like", YOUNG), event("more", "again", YOUNG)]
        await engine.record(more)
        three = residual(served, YOUNG)
        assert np.abs(three - two).max() > 0.01
        await engine.record([event("more", "x", "", kind=EventKind.UNDO, undone="more-like")])
        np.testing.assert_array_equal(residual(served, YOUNG), three)  # the other event stands
        await engine.record([event("more", "y", "", kind=EventKind.UNDO, undone="more-again")])
        np.testing.assert_array_equal(residual(served, YOUNG), two)
        await engine.forget("u0")
        await engine.forget("u1")
        assert not residual(served, YOUNG).any()
        assert not engine.residuals.own


@pytest.mark.parametrize("crash", [False, True])
async def test_a_restart_brings_residuals_back(tmp_path, crash):
    served = make(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock, crash=crash) as engine:
        await engine.record(crowd(3))
        await engine.checkpoint()
        await engine.record([*crowd(6, "i8"), event("u9", 1, "i8")])
        await engine.forget("u1")
        await engine.record(history("late", 70))
        await engine.record([event("late", 9, YOUNG)])
        wanted = {item: residual(served, item) for item in (YOUNG, "i8")}
    again = LiveCatalogue(SnapshotStore(tmp_path / "store").open())
    async with worlds.engine(tmp_path, again, wall_clock=clock):
        for item, value in wanted.items():
            np.testing.assert_array_equal(residual(again, item), value)


async def test_shards_that_tell_each_other_serve_what_one_shard_would(tmp_path):
    one, first, second = make(tmp_path), *(LiveCatalogue(SnapshotStore(tmp_path / "store").open()) for _ in "ab")
    whole, left, right = Residuals(), Residuals(), Residuals()
    for subject, catalogue in ((whole, one), (left, first), (right, second)):
        subject.bind(catalogue)
    rng = np.random.default_rng(0)

    def say(user, item):
        interests = rng.normal(size=(2, 16)).astype(np.float32)
        for subject in (whole, left if user % 2 else right):
            assert subject.wants(f"u{user}", item, NOW_S)
            subject.add(f"u{user}", item, interests)

    def exchange(since):
        seen = left.version, right.version
        left.merge_peer(1, *right.changes(since[1]))
        right.merge_peer(0, *left.changes(since[0]))
        for item in (YOUNG, "i8"):
            for catalogue in (first, second):
                np.testing.assert_allclose(residual(catalogue, item), residual(one, item), rtol=1e-5, atol=1e-6)
        return seen

    for user in range(8):
        say(user, YOUNG if user < 6 else "i8")
    since = exchange((0, 0))
    assert left.changes(since[0])[0] == []
    say(11, YOUNG)
    whole.remove("u6", ["i8"])
    right.remove("u6", ["i8"])
    assert right.changes(since[1])[1] == [0]
    exchange(since)
    left.forget_peer(1)
    left.merge_peer(1, *right.changes(0))
    np.testing.assert_allclose(residual(first, YOUNG), residual(one, YOUNG), rtol=1e-5, atol=1e-6)


def publish_rotated(store, draft, counts):
    """The same snapshot in a rotated space, with other event counts."""
    old = store.open()
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(old.vectors.shape[1],) * 2))
    write_snapshot(
        draft,
        items=[CatalogItem(item_id, old.item(row).title) for row, item_id in enumerate(old.item_ids)],
        vectors=old.vectors @ rotation,
        bias=old.bias,
        prior=old.prior @ rotation,
        scoring_matrices=np.einsum("ed,hef,fg->hdg", rotation, old.scoring_matrices, rotation),
        event_counts=counts,
        query_mean=old.query_mean @ rotation,
        parameters=old.parameters,
    )
    return store.publish(draft), rotation


@pytest.mark.parametrize("running", [True, False])
async def test_a_swap_carries_over_what_the_new_snapshot_has_not_learnt(tmp_path, running):
    served = make(tmp_path)
    store = SnapshotStore(tmp_path / "store")
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record([*crowd(4), *(event(f"u{n}", "learnt", "i8") for n in range(4))])
        before = residual(served, YOUNG)
        counts = served.snapshot.event_counts.copy()
        counts[served.rows["i8"]] = 4.0
        version, rotation = publish_rotated(store, tmp_path / "rotated", counts)
        if running:
            activation = Activation(engine, store)
            await activation.prepare(version)
            await activation.commit(version)
            after = engine.catalogue
    if not running:
        after = LiveCatalogue(store.open())
        engine = worlds.engine(tmp_path, after, wall_clock=clock)
        # As a shard starts: with the maps from the snapshots that its store still refers to.
        after.learn_map(served.snapshot)
        async with engine:
            pass
    assert after.version == version
    np.testing.assert_allclose(residual(after, YOUNG), before @ rotation, atol=2 * HALF)
    assert not residual(after, "i8").any()


async def test_without_a_map_what_was_said_is_dropped(tmp_path):
    served = make(tmp_path)
    residuals = Residuals()
    residuals.bind(served)
    residuals.add("u", YOUNG, np.ones((2, 16), np.float32))
    other = make(tmp_path / "other", items=5, seed=3)  # too few items to fit a map
    residuals.bind(other)
    assert not residuals.own
    assert residuals.take_dirty() == {YOUNG: None}
    assert not residual(other, YOUNG).any()


async def test_a_snapshot_without_parameters_hears_nothing(tmp_path):
    served = make(tmp_path, young=None)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record(crowd(3))
        assert not engine.residuals.own
        assert not residual(served, YOUNG).any()


def test_the_items_that_have_been_silent_for_longest_give_way(tmp_path, monkeypatch):
    for module in (live_catalogue_module, residuals_module):
        monkeypatch.setattr(module, "MAX_RESIDUALS", 3)
    served = make(tmp_path)
    residuals = Residuals()
    residuals.bind(served)
    for number in range(5):
        residuals.add("u", f"i{2 * number}", np.full((2, 16), 1.0 + number, np.float32))
    residuals.merge_peer(1, ["i100"], [1], np.ones((1, 16), np.float32))
    assert list(residuals.own) == ["i4", "i6", "i8"]
    assert [bool(residual(served, f"i{item}").any()) for item in (0, 2, 4, 6, 8, 100)] == [False] * 3 + [True] * 3
    assert len(served.moved_rows()[0]) == 3


def test_an_item_hears_no_more_users_than_its_limit(tmp_path):
    served = make(tmp_path)
    residuals = Residuals()
    residuals.bind(served)
    for number in range(residuals_module.MAX_USERS):
        residuals.add(f"u{number}", YOUNG, np.ones((2, 16), np.float32))
    assert not residuals.wants("one-more", YOUNG, NOW_S)


async def test_a_replaced_item_keeps_its_residual_and_a_deleted_one_leaves(tmp_path):
    served = make(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.record(crowd(3))
        before = residual(served, YOUNG)
        served.upsert(DeltaItem(CatalogItem(YOUNG, "x"), np.ones(16, np.float32), None, 0.0, served.version, "none"))
        engine.popularity.grow(served.size)
        np.testing.assert_allclose(residual(served, YOUNG), before, rtol=1e-5, atol=1e-6)
        assert not len(served.moved_rows()[0])
        served.delete(YOUNG)
        answer = (await engine.recommend(Question("u0", 200, include_seen=True))).result
        assert YOUNG not in answer.item_ids
