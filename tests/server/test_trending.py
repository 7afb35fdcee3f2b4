"""Trending rows that are kept from event to event, held to a view that is computed afresh."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliotrope_indexer.snapshot import CatalogItem, SnapshotStore
from heliotrope_server import popularity as popularity_module
from heliotrope_server import trending as module
from heliotrope_server.live_catalogue import DeltaItem, LiveCatalogue
from heliotrope_server.live_view import live_view
from heliotrope_server.popularity import LivePopularity
from heliotrope_server.trending import Trending
from tests.server import worlds

ITEMS, KEPT, WEIGHT, NOW_S = 60, 8, 0.3, 1_000_000.0
MOVES = st.tuples(st.integers(0, ITEMS - 1), st.floats(0.0, NOW_S), st.booleans())


def catalogue(tmp_path_factory) -> LiveCatalogue:
    store = tmp_path_factory.mktemp("trending")
    worlds.publish(store, items=ITEMS)
    return LiveCatalogue(SnapshotStore(str(store)).open())


@pytest.mark.parametrize("most_moved", [4, 4_096])
@settings(max_examples=40)
@given(steps=st.lists(st.lists(MOVES, max_size=12), min_size=1, max_size=8), moved=st.sets(st.integers(0, ITEMS - 1)))
def test_any_sequence_of_counts_gives_the_view_of_all_counts(tmp_path_factory, most_moved, steps, moved):
    served = catalogue(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TRENDING", KEPT)
        patch.setattr(module, "_BLOCK", 20)
        # With 4, so many rows change that which they were is not kept.
        patch.setattr(popularity_module, "MOST_MOVED", most_moved)
        popularity = LivePopularity(50_000.0)
        popularity.bind(served.rows, served.size)
        looked = Trending(served, popularity)
        for row in moved:
            served.set_residual(served.item_ids[row], np.full(served.dimension, 0.5, np.float32))
        counted: list[tuple[int, float]] = []
        for step in steps:
            for row, time_s, back in step:
                if back and counted:
                    row, time_s = counted.pop()
                    popularity.move(served.item_ids[row], row, time_s, None)
                else:
                    counted.append((row, time_s))
                    popularity.move(served.item_ids[row], row, None, time_s)
            view = looked.view(NOW_S, WEIGHT)
            expected = live_view(served, popularity.counts_at(NOW_S), WEIGHT)
            np.testing.assert_allclose(view.boosts[:], expected.boosts[:], rtol=1e-5, atol=1e-7)
            chosen = np.isin(np.arange(ITEMS), view.trending)
            others = np.setdiff1d(np.flatnonzero(~chosen), view.moved)
            assert expected.boosts[others].max(initial=0.0) <= view.outside * (1 + 1e-5) + 1e-7
            if len(view.trending):
                # They are the largest there are, but for those that are always scored.
                assert view.boosts[view.trending].min() >= view.boosts[others].max(initial=0.0) - 1e-6
            np.testing.assert_array_equal(view.trending_vectors, served.base_vectors[view.trending])
            np.testing.assert_allclose(
                view.trending_terms, served.base_bias[view.trending] + view.boosts[view.trending], rtol=1e-6
            )
            assert not np.isin(view.trending, view.moved).any() and len(view.trending) <= KEPT
            np.testing.assert_array_equal(np.sort(view.moved), np.sort(expected.moved))


def test_other_landmarks_peers_and_catalogues_are_looked_at_again(tmp_path_factory):
    served = catalogue(tmp_path_factory)
    popularity = LivePopularity(3_600.0)
    popularity.bind(served.rows, served.size)
    looked = Trending(served, popularity)
    popularity.add("i3", 3, NOW_S)
    assert looked.view(NOW_S, WEIGHT).trending.tolist() == [3]
    popularity.merge_peer(1, ["i5"], [2.0], NOW_S, served.rows)
    view = looked.view(NOW_S, WEIGHT)
    assert view.trending.tolist() == [3, 5] and view.outside == 0.0
    np.testing.assert_allclose(view.boosts[view.trending], WEIGHT * np.log1p([1.0, 2.0]), rtol=1e-5)
    popularity.move_landmark(NOW_S + 7_200.0)
    np.testing.assert_allclose(looked.view(NOW_S, WEIGHT).boosts[5], WEIGHT * np.log1p(2.0), rtol=1e-5)
    popularity.forget_peer(1, served.rows)
    assert looked.view(NOW_S, WEIGHT).trending.tolist() == [3]


def test_items_that_were_added_trend_with_the_vectors_they_are_served_with(tmp_path_factory):
    served = catalogue(tmp_path_factory)
    for number in range(3):
        pooled = np.full(served.snapshot.projection.shape[1], 1.0 + number, np.float32)
        served.upsert(DeltaItem(CatalogItem(f"new{number}", "t"), pooled, None, 0.5, served.version, "none"))
    popularity = LivePopularity(3_600.0)
    popularity.bind(served.rows, served.size)
    looked = Trending(served, popularity)
    popularity.add("i3", 3, NOW_S)
    popularity.add("new1", ITEMS + 1, NOW_S)
    for moved in (None, np.full(served.dimension, 0.5, np.float32), None):
        served.set_residual("new1", moved)
        view, expected = looked.view(NOW_S, WEIGHT), live_view(served, popularity.counts_at(NOW_S), WEIGHT)
        assert view.trending.tolist() == expected.trending.tolist() == [3, ITEMS + 1]
        assert view.moved_delta.tolist() == ([] if moved is None else [ITEMS + 1])
        for one in (view, expected):
            np.testing.assert_array_equal(one.trending_vectors[1], served.served_vector(ITEMS + 1))
            np.testing.assert_allclose(one.trending_terms[1], 0.5 + WEIGHT * np.log1p(1.0), rtol=1e-6)
