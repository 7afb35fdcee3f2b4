"""Folded sums on their way from one item space to another, beside sums that were made in the new one."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from heliotrope_server.interest import InterestSums
from heliotrope_server.passage import Passage, fitted_map

DAY_S = 86_400.0
NOW_S = 1.7e9
OLD_HALF_LIVES, NEW_HALF_LIVES = (3_600.0, 30 * DAY_S), (90 * DAY_S, 1_800.0, 20 * DAY_S)


@dataclass
class Space:
    """Items i0, i1, ... that vectors (n, d) belong to; `first` is the number of the first."""

    vectors: NDArray[np.float32]
    first: int = 0

    def row_of(self, item_id: str) -> int | None:
        row = int(item_id[1:]) - self.first
        return row if 0 <= row < len(self.vectors) else None


def spaces(*, items: int = 300, old_dimension: int = 12, new_dimension: int = 20) -> tuple[Space, Space]:
    """Two spaces of the same items with little in common: half of the new vectors is a map of the old ones."""
    random = np.random.default_rng(0)
    old = random.normal(size=(items, old_dimension))
    new = old @ random.normal(size=(old_dimension, new_dimension)) / old_dimension**0.5
    new += random.normal(size=new.shape)
    return Space(old.astype(np.float32)), Space(new.astype(np.float32))


def passage(old: Space, new: Space) -> Passage:
    fitted = fitted_map(old.vectors, new.vectors, np.zeros(len(old.vectors)))
    assert fitted is not None
    return Passage(old, new, fitted[0], OLD_HALF_LIVES, NEW_HALF_LIVES)


def history(*, events: int = 120, days: float = 200.0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Items, all different, and times, ascending."""
    random = np.random.default_rng(1)
    return random.permutation(300)[:events], np.sort(NOW_S - days * DAY_S * random.random(events))


def sums_in(
    space: Space, half_lives_s: tuple[float, ...], items: NDArray[np.int64], times_s: NDArray[np.float64], gain: float
) -> InterestSums:
    """The sums that events make, with the landmark at the first, as it is when a profile begins to fold."""
    sums = InterestSums(len(half_lives_s), space.vectors.shape[1], float(times_s[0]))
    for item, time_s in zip(items, times_s, strict=True):
        sums.add(gain, space.vectors[item], float(time_s), half_lives_s)
    return sums


def assert_close(ours: InterestSums, theirs: InterestSums, tolerance: float) -> None:
    wanted, found = theirs.sums_at(NOW_S, NEW_HALF_LIVES), ours.sums_at(NOW_S, NEW_HALF_LIVES)
    for horizon in range(len(NEW_HALF_LIVES)):
        length = np.linalg.norm(wanted[horizon])
        assert np.linalg.norm(found[horizon] - wanted[horizon]) <= tolerance * length
    np.testing.assert_allclose(
        ours.masses_at(NOW_S, NEW_HALF_LIVES), theirs.masses_at(NOW_S, NEW_HALF_LIVES), rtol=max(tolerance, 1e-9)
    )


def liked(items: NDArray[np.int64], times_s: NDArray[np.float64]) -> dict[str, int]:
    return {f"i{item}": int(time_s * 1e6) for item, time_s in zip(items, times_s, strict=True)}


def test_events_of_one_gain_are_made_anew_exactly_whatever_the_dimension_and_the_half_lives() -> None:
    old, new = spaces()
    items, times_s = history()
    before = sums_in(old, OLD_HALF_LIVES, items, times_s, 0.7)
    after = passage(old, new).carried_over(before, liked(items, times_s), float(times_s[-1]))
    # The time of an item is kept to the microsecond.
    assert_close(after, sums_in(new, NEW_HALF_LIVES, items, times_s, 0.7), 1e-5)


def test_what_no_item_explains_goes_through_the_map() -> None:
    old, new = spaces()
    items, times_s = history()
    before = sums_in(old, OLD_HALF_LIVES, items, times_s, 0.7)
    way = passage(old, new)
    before.move_landmark(float(times_s[-1]), OLD_HALF_LIVES)
    without = way.carried_over(before, {}, float(times_s[-1]))
    # Each new horizon comes from the old one of the nearest half-life.
    for horizon, source in enumerate((1, 0, 1)):
        np.testing.assert_allclose(without.sums[horizon], before.sums[source] @ way.matrix)
        assert without.masses[horizon] == before.masses[source]


def test_the_map_alone_is_worse_than_the_items() -> None:
    """What makes the difference is the items: gains that differ are made up for by the map of the rest."""
    old, new = spaces()
    items, times_s = history()
    gains = np.random.default_rng(2).uniform(0.4, 1.0, len(items))
    before, wanted = (
        InterestSums(len(half_lives), space.vectors.shape[1], float(times_s[-1]))
        for space, half_lives in ((old, OLD_HALF_LIVES), (new, NEW_HALF_LIVES))
    )
    before.add_many(gains, old.vectors[items], times_s, OLD_HALF_LIVES)
    wanted.add_many(gains, new.vectors[items], times_s, NEW_HALF_LIVES)
    way = passage(old, new)
    by_items = way.carried_over(before, liked(items, times_s), float(times_s[-1]))
    by_map = way.carried_over(before, {}, float(times_s[-1]))
    horizon = 2
    errors = [float(np.linalg.norm(each.sums[horizon] - wanted.sums[horizon])) for each in (by_items, by_map)]
    assert errors[0] < 0.4 * errors[1]


def test_items_that_only_one_space_holds_and_disliked_ones_are_in_the_rest() -> None:
    old, new = spaces()
    items, times_s = history()
    before = sums_in(old, OLD_HALF_LIVES, items, times_s, 0.7)
    way = passage(old, new)
    strange = {"i900": int(times_s[-1] * 1e6), f"i{items[0]}": 0}
    newest_s = float(times_s[-1])
    ours, theirs = way.carried_over(before, strange, newest_s), way.carried_over(before, {}, newest_s)
    np.testing.assert_allclose(ours.sums, theirs.sums)


def test_two_passages_make_one() -> None:
    first, second = spaces()
    _, third = spaces(new_dimension=8)
    way, onward = passage(first, second), passage(second, third)
    both = way.onward(onward)
    assert (both.old, both.new) == (first, third)
    items, times_s = history()
    before = sums_in(first, OLD_HALF_LIVES, items, times_s, 0.7)
    after = both.carried_over(before, liked(items, times_s), float(times_s[-1]))
    assert_close(after, sums_in(third, NEW_HALF_LIVES, items, times_s, 0.7), 1e-5)


def test_the_map_is_best_for_what_people_take() -> None:
    old, new = spaces()
    counts = np.zeros(len(old.vectors))
    counts[:20] = 1_000.0
    even = fitted_map(old.vectors, new.vectors, np.zeros(len(old.vectors)))
    popular = fitted_map(old.vectors, new.vectors, counts)
    assert even is not None and popular is not None
    errors = [np.linalg.norm(old.vectors[:20] @ matrix - new.vectors[:20]) for matrix, _ in (popular, even)]
    assert errors[0] < 0.9 * errors[1]
    assert popular[1] == pytest.approx(
        np.linalg.norm((old.vectors @ popular[0] - new.vectors) * np.sqrt(1 + counts)[:, None])
        / np.linalg.norm(new.vectors * np.sqrt(1 + counts)[:, None]),
        rel=1e-4,
    )


def test_fewer_items_than_dimensions_determine_no_map() -> None:
    old, new = spaces(items=11)
    assert fitted_map(old.vectors, new.vectors, np.zeros(11)) is None
