"""The maths of item vectors against naive formulas."""

from __future__ import annotations

import numpy as np

from heliotrope_indexer.events import EventTable
from heliotrope_indexer.features import feature_mean, features
from heliotrope_indexer.item_vectors import (
    RIDGE,
    SHRINKAGE_EVENTS,
    als_item_factors,
    learn_item_vectors,
    population_mean,
    principal_axes,
    ridge_map,
)
from heliotrope_indexer.parameters import EVENT_TYPES
from tests.indexer.conftest import some_events


def some_features(n: int = 30, width: int = 16) -> np.ndarray:
    pooled = np.random.default_rng(3).normal(size=(n, width)).astype(np.float32) + 2.0
    return features(pooled, feature_mean(pooled))


def test_features_are_centred_and_of_unit_length() -> None:
    found = some_features()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)
    assert np.linalg.norm(found.mean(axis=0)) < 0.2
    assert not features(np.zeros((1, 4), np.float32), np.zeros(4, np.float32)).any()


def test_ridge_by_gradient() -> None:
    rng = np.random.default_rng(0)
    f, y = some_features(), rng.normal(size=(30, 5)).astype(np.float32)
    w = ridge_map(f, y, 2.0)
    # At the minimum the derivative of |F W^T - Y|^2 + strength |W|^2 is zero.
    gradient = (f @ w.T - y).T @ f + 2.0 * w
    np.testing.assert_allclose(gradient, 0.0, atol=1e-4)


def test_principal_axes_keep_the_most_variance() -> None:
    f = some_features()
    axes = principal_axes(f, 6)
    np.testing.assert_allclose(axes @ axes.T, np.eye(6), atol=1e-5)
    singular = np.linalg.svd(f, compute_uv=False)
    np.testing.assert_allclose(((f @ axes.T) ** 2).sum(), (singular[:6] ** 2).sum(), rtol=1e-4)


def test_item_vectors_are_text_map_plus_shrunk_residual() -> None:
    f, events = some_features(), some_events()
    # Items 25 .. 29 are new.
    events = events.select(events.row < 25)
    learned = learn_item_vectors(f, events, collaborative=8, text=4, threads=1)
    factors = als_item_factors(events, 30, 8, seed=0, threads=1)
    factors /= np.sqrt((factors[:25] ** 2).sum(axis=1).mean())
    w = ridge_map(f[:25], factors[:25], RIDGE)
    for row in range(30):
        n = learned.counts[row]
        residual = n / (n + SHRINKAGE_EVENTS) * (factors[row] - w @ f[row])
        np.testing.assert_allclose(learned.vectors[row, :8], w @ f[row] + residual, atol=1e-5)
    # A new item is nothing but its text, and so is whatever else is projected.
    np.testing.assert_allclose(learned.vectors[25:], f[25:] @ learned.projection.T, atol=1e-5)


def test_without_events_the_text_is_all() -> None:
    f = some_features()
    learned = learn_item_vectors(f, None, collaborative=0, text=6)
    np.testing.assert_allclose(learned.vectors, f @ learned.projection.T, atol=1e-6)
    assert learned.collaborative == 0
    assert not learned.counts.any()


def test_negative_events_do_not_make_items_alike() -> None:
    f, events = some_features(), some_events()
    hide = EVENT_TYPES.index("hide")
    extra = EventTable(
        np.concatenate([events.user, events.user]),
        np.concatenate([events.row, 29 - events.row]),
        np.concatenate([events.kind, np.full_like(events.kind, hide)]),
        np.concatenate([events.value, events.value]),
        np.concatenate([events.time, events.time]),
        events.user_ids,
    )
    kept = [learn_item_vectors(f, table, collaborative=8, text=4, threads=1) for table in (events, extra)]
    np.testing.assert_array_equal(kept[0].counts, kept[1].counts)
    np.testing.assert_allclose(kept[0].vectors, kept[1].vectors, atol=1e-4)


def test_norms_can_be_taken_out() -> None:
    learned = learn_item_vectors(some_features(), some_events(), collaborative=8, text=4, norm_power=1.0, threads=1)
    seen = learned.counts > 20
    norms = np.linalg.norm(learned.vectors[seen, :8], axis=1)
    assert norms.std() / norms.mean() < 0.05


def test_scaling_blocks_scales_vectors_and_projection_alike() -> None:
    learned = learn_item_vectors(some_features(), some_events(), collaborative=8, text=4, threads=1)
    scaled = learned.scaled(1.0, 3.0)
    np.testing.assert_allclose(scaled.vectors[:, 8:], 3 * learned.vectors[:, 8:])
    np.testing.assert_allclose(scaled.projection[8:], 3 * learned.projection[8:])
    np.testing.assert_array_equal(scaled.vectors[:, :8], learned.vectors[:, :8])


def test_population_mean_counts_events() -> None:
    vectors = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(population_mean(vectors, np.array([3.0, 1.0, 0.0])), [0.75, 0.25, 0.0])
    np.testing.assert_allclose(population_mean(vectors, np.zeros(3)), [1 / 3] * 3, rtol=1e-6)
