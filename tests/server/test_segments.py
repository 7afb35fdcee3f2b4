"""Segments: newcomers start from what the members like, no single member shows, and nothing is lost or left behind."""

import numpy as np
import pytest

from heliotrope_server.answerer import SOURCE_DECLARED, SOURCE_PERSONAL, SOURCE_POPULAR, SOURCE_SEGMENT, Question
from heliotrope_server.errors import InvalidArgumentError
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.explanation import PRIOR
from heliotrope_server.interest import interest_vectors
from heliotrope_server.profile_codec import encode_profile
from heliotrope_server.profile_store import ProfileStore
from heliotrope_server.segments import MIN_MEMBERS, MOST_OF_ALL, RENEWED_S, SHRINKAGE, SegmentPriors
from tests.server import worlds

NOW_S = 1.7e9


class Clock:
    def __init__(self):
        self.now_s = NOW_S

    def __call__(self):
        return self.now_s


def click(user, item, number=0):
    return UserEvent(user, f"{user}-{item}-{number}", EventKind.CLICK, item, 1.0, int((NOW_S - 60) * 1e6), "")


async def fill(engine, segment, members, items):
    for user in members:
        await engine.set_segments(user, [segment])
        await engine.record([click(user, item) for item in items])


async def source(engine, user):
    return (await engine.recommend(Question(user, 5))).result.sources[0]


async def test_a_newcomer_starts_from_what_the_members_like(tmp_path):
    served = worlds.catalogue(tmp_path, live_popularity_weight=0.0)
    async with worlds.engine(tmp_path, served, wall_clock=Clock()) as engine:
        await fill(engine, "jazz", [f"j{number}" for number in range(8)], ["i1", "i2"])
        await fill(engine, "rock", [f"r{number}" for number in range(8)], ["i50", "i51"])
        for user in ("new", "member", "both"):
            await engine.set_segments(user, ["jazz", "rock"] if user == "both" else ["jazz"])
        answer = (await engine.recommend(Question("new", 20, explain=True))).result
        assert set(answer.sources) == {SOURCE_SEGMENT}
        population = served.prior.astype(float)
        taste = np.mean([served.vector("i1"), served.vector("i2")], axis=0)
        prior = engine.profile("new").prior
        assert np.dot(prior - population, taste - population) > 0.0
        other = engine.profile("both").prior
        rock = engine.answerer.segment_priors._prior("rock", NOW_S)
        np.testing.assert_allclose(other, (prior + rock) / 2, rtol=1e-5)
        for score, parts in zip(answer.scores, answer.explanations, strict=True):
            assert score == pytest.approx(sum(part.value for part in parts), rel=1e-5, abs=1e-5)
            assert any(part.kind == PRIOR and part.value for part in parts)
        assert await source(engine, "nobody") == SOURCE_POPULAR
        assert await source(engine, "j1") == SOURCE_PERSONAL
        assert answer.item_ids != (await engine.recommend(Question("nobody", 20))).result.item_ids


async def test_few_members_make_no_prior_and_it_is_renewed_after_a_while(tmp_path):
    served, clock = worlds.catalogue(tmp_path), Clock()
    async with worlds.engine(tmp_path, served, wall_clock=clock) as engine:
        await engine.set_segments("new", ["jazz"])
        # Members without events do not count.
        for number in range(10):
            await engine.set_segments(f"silent{number}", ["jazz"])
        await fill(engine, "jazz", [f"j{number}" for number in range(MIN_MEMBERS - 1)], ["i1"])
        await fill(engine, "rock", [f"r{number}" for number in range(MIN_MEMBERS)], ["i50"])
        assert await source(engine, "new") == SOURCE_POPULAR
        await fill(engine, "jazz", ["one-more"], ["i1"])
        assert await source(engine, "new") == SOURCE_SEGMENT
        before = engine.profile("new").prior
        await engine.record([click("one-more", "i9")])
        np.testing.assert_array_equal(engine.profile("new").prior, before)
        clock.now_s += RENEWED_S
        assert np.abs(engine.profile("new").prior - before).max() > 0.0


async def test_one_member_moves_the_prior_within_the_bound(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=Clock()) as engine:
        await fill(engine, "jazz", [f"j{number}" for number in range(MIN_MEMBERS)], ["i1", "i2"])
        await fill(engine, "rock", [f"r{number}" for number in range(8)], ["i50"])

        def read():
            priors = SegmentPriors(served, engine.store)
            return priors._prior("jazz", NOW_S), priors._taste("", MOST_OF_ALL, NOW_S).mean

        before, everybody = read()
        await engine.set_segments("attacker", ["jazz"])
        await engine.record([click("attacker", "i77", number) for number in range(500)])
        after, everybody_now = read()
        own = engine.profile("attacker").interest_vectors(NOW_S, served.parameters)[1]
        away = np.linalg.norm(own - everybody - (before - served.prior)) / (SHRINKAGE + MIN_MEMBERS + 1)
        shift = np.linalg.norm(everybody_now - everybody)
        assert 0.0 < shift <= np.linalg.norm(own - everybody) / (MIN_MEMBERS + 8 + 1) * (1 + 1e-5)
        assert 0.0 < np.linalg.norm(after - before) <= (away + shift) * (1 + 1e-5)


async def test_the_only_segment_is_compared_with_the_population(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=Clock()) as engine:
        await fill(engine, "all", [f"j{number}" for number in range(MIN_MEMBERS)], ["i1", "i2"])
        totals = [engine.profile(f"j{number}").total for number in range(MIN_MEMBERS)]
        parameters = served.parameters
        mean = np.mean(
            [
                interest_vectors(total, served.prior, NOW_S, parameters.half_lives_s, parameters.kappas)[1]
                for total in totals
            ],
            axis=0,
        )
        share = MIN_MEMBERS / (SHRINKAGE + MIN_MEMBERS)
        expected = served.prior + share * (mean - served.prior)
        np.testing.assert_allclose(SegmentPriors(served, engine.store)._prior("all", NOW_S), expected, rtol=1e-5)
        await fill(engine, "rock", [f"r{number}" for number in range(MIN_MEMBERS)], ["i50"])
        assert np.abs(SegmentPriors(served, engine.store)._prior("all", NOW_S) - expected).max() > 1e-3


@pytest.mark.parametrize("crash", [False, True])
async def test_membership_survives_a_restart_and_ends_with_the_profile(tmp_path, crash):
    clock = Clock()
    async with worlds.engine(tmp_path, worlds.catalogue(tmp_path), wall_clock=clock, crash=crash) as engine:
        await fill(engine, "jazz", [f"j{number}" for number in range(MIN_MEMBERS + 1)], ["i1"])
        await engine.checkpoint()
        await engine.set_segments("new", ["jazz", "jazz", "vinyl"])
        await engine.set_segments("j0", [])
    async with worlds.engine(tmp_path, worlds.catalogue(tmp_path), wall_clock=clock) as engine:
        assert engine.profile("new").segments == ("jazz", "vinyl")
        assert engine.profile("j0").segments == ()
        assert set(engine.store.segments.newest("jazz", 99)) == {"new", *(f"j{number}" for number in range(1, 6))}
        assert await source(engine, "new") == SOURCE_SEGMENT
        await engine.forget("new")
        await engine.forget("j1")
        assert engine.store.segments.newest("vinyl", 9) == []
        assert engine.profile("new").segments == ()
        clock.now_s += RENEWED_S
        await engine.set_segments("other", ["jazz"])
        # One of the five that were needed is gone.
        assert await source(engine, "other") == SOURCE_POPULAR
    async with worlds.engine(tmp_path, worlds.catalogue(tmp_path), wall_clock=clock) as engine:
        assert set(engine.store.segments.newest("jazz", 99)) == {"other", *(f"j{number}" for number in range(2, 6))}


async def test_declared_interests_go_before_segments(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=Clock()) as engine:
        await fill(engine, "jazz", [f"j{number}" for number in range(MIN_MEMBERS)], ["i1"])
        await engine.set_segments("new", ["jazz"])
        pooled = np.ones((1, served.dimension), dtype=np.float32)
        engine._apply_declared("new", ["a text"], "none", pooled, engine.applied_lsn)
        assert await source(engine, "new") == SOURCE_DECLARED
        np.testing.assert_allclose(engine.profile("new").prior, served.project(pooled)[0], rtol=1e-6)


async def test_what_cannot_be_a_segment_is_named_and_changes_nothing(tmp_path):
    async with worlds.engine(tmp_path, worlds.catalogue(tmp_path), wall_clock=Clock()) as engine:
        await engine.set_segments("u", ["kept"])
        with pytest.raises(InvalidArgumentError, match="17 segments; a user belongs to at most 16"):
            await engine.set_segments("u", [f"s{number}" for number in range(17)])
        for name in ("", "x" * 257):
            with pytest.raises(InvalidArgumentError, match="segment must have 1 to 256 bytes"):
                await engine.set_segments("u", [name])
        assert engine.profile("u").segments == ("kept",)


async def test_another_store_takes_membership_over_with_the_profile(tmp_path):
    served = worlds.catalogue(tmp_path)
    async with worlds.engine(tmp_path, served, wall_clock=Clock()) as engine:
        await engine.set_segments("u", ["jazz"])
        store = ProfileStore(tmp_path / "other", cache_profiles=1)
        store.adopt(engine.profile("u"))
        await store.checkpoint(0, engine.popularity, engine.residuals, served.version)
        assert encode_profile(store.get("u", served)) == encode_profile(engine.profile("u"))
        store.close()
        again = ProfileStore(tmp_path / "other", cache_profiles=1)
        assert again.segments.newest("jazz", 9) == ["u"]
        assert again.get("u", served).segments == ("jazz",)
        again.close()
