"""The compiled exact pass against the plain one: every kind of candidate at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliotrope_indexer.search import kernel_problem
from heliotrope_indexer.snapshot import CatalogItem
from heliotrope_server.compiled_ranking import CompiledRanking
from heliotrope_server.live_catalogue import DeltaItem
from heliotrope_server.live_view import LazyBoosts, live_view
from heliotrope_server.neighbours import Suggestions
from heliotrope_server.plain_ranking import PlainRanking
from heliotrope_server.scoring import Query
from tests.server import worlds

ITEMS, DIMENSION = 300, 16
pytestmark = pytest.mark.skipif(kernel_problem() is not None, reason="the kernel was not built")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    catalogue = worlds.catalogue(tmp_path_factory.mktemp("world"), items=ITEMS, dimension=DIMENSION, with_index=True)
    rng = np.random.default_rng(5)
    for item_id in ("new-1", "new-2", "i7", "i8"):
        pooled = rng.normal(size=DIMENSION).astype(np.float32)
        catalogue.upsert(DeltaItem(CatalogItem(item_id, "t"), pooled, None, 0.1, catalogue.version, "none"))
    for item_id in ("i20", "i21", "i22", "new-2"):
        catalogue.set_residual(item_id, rng.normal(size=DIMENSION).astype(np.float32))
    for item_id in ("i30", "i31", "new-1"):
        catalogue.delete(item_id)
    return catalogue


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7]), st.sampled_from([1, 10, 400]), st.booleans())
def test_both_give_the_same_lists(served, seed, count, wanted, lazy):
    rng = np.random.default_rng(seed)
    size = served.size
    counts = rng.exponential(20.0, size=size) * (rng.random(size) < rng.choice([0.0, 0.1, 1.0]))
    live = live_view(served, counts)
    if lazy:
        live = live._replace(boosts=LazyBoosts(counts, 1.0, served.parameters.live_popularity_weight))
    queries = []
    for _ in range(count):
        suggested = np.sort(rng.choice(size, size=int(rng.integers(1, 30)), replace=False))
        gains = rng.exponential(2.0, size=len(suggested)).astype(np.float32)
        queries.append(
            Query(
                rng.normal(size=DIMENSION).astype(np.float32),
                wanted,
                rng.choice(size, size=int(rng.integers(0, 40)), replace=False),
                Suggestions(suggested, gains) if rng.random() < 0.5 else None,
            )
        )
    found = rng.integers(-1, ITEMS, size=(count, 50))
    head = rng.choice(ITEMS, size=40, replace=False)
    plain = PlainRanking(served, head).best(queries, found, live, wanted)
    compiled = CompiledRanking(served, head).best(queries, found, live, wanted)
    np.testing.assert_array_equal(plain.sizes, compiled.sizes)
    np.testing.assert_allclose(plain.last_base, compiled.last_base, rtol=1e-4, atol=1e-4)
    for place, of_one in enumerate(plain.sizes):
        # Rows whose scores differ by rounding alone may change places.
        np.testing.assert_allclose(plain.scores[place, :of_one], compiled.scores[place, :of_one], rtol=1e-4, atol=1e-4)
        assert len(set(plain.rows[place, :of_one]) - set(compiled.rows[place, :of_one])) <= 1
