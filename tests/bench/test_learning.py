import json

import numpy as np
import pytest

from heliotrope_bench.audience import Audience, overlap
from heliotrope_bench.command import main
from heliotrope_bench.recall import SnapshotArrays
from tests.server import worlds

USERS = ["a", "b", "c"]


@pytest.fixture
def arrays(tmp_path):
    version = worlds.publish(tmp_path / "store", items=60, dimension=6, vector_scale=0.5)
    return SnapshotArrays.read(tmp_path / "store", version)


def audience(arrays, drift):
    rng = np.random.default_rng(5)
    interests = {user: rng.normal(size=arrays.scoring_matrices.shape[:2]) for user in USERS}
    return Audience(arrays, interests, live_counts(arrays), drift=drift, seed=0), interests


def live_counts(arrays):
    return np.arange(len(arrays.item_ids)) % 7.0


def test_without_drift_the_hidden_taste_is_that_of_the_snapshot(arrays):
    crowd, interests = audience(arrays, drift=0.0)
    expected = arrays.scores(interests["a"], live_counts(arrays))
    found = crowd.probabilities("a", arrays.item_ids)
    np.testing.assert_allclose(np.log(found / (1.0 - found)), expected, rtol=1e-5, atol=1e-5)


def test_the_click_rate_is_what_was_asked_for_and_clicks_follow_it(arrays):
    crowd, _ = audience(arrays, drift=0.5)
    lists = {user: arrays.item_ids[:10] for user in USERS}
    crowd.calibrate(lists, 0.3)
    assert crowd.click_rate(lists) == pytest.approx(0.3, abs=1e-6)
    reactions = [crowd.reaction(user, lists[user]) for _ in range(400) for user in USERS]
    first = np.mean([next(iter(each.values())) for each in reactions])
    truth = np.mean([crowd.probabilities(user, lists[user])[0] for user in USERS])
    assert first == pytest.approx(truth, abs=0.06)
    assert {len(each) for each in reactions} == set(range(1, 11))


def test_the_best_lists_are_those_of_the_hidden_taste_without_what_was_seen(arrays):
    crowd, interests = audience(arrays, drift=0.0)
    seen = {user: {"i3", "i7"} for user in USERS}
    best = crowd.best_lists({user: arrays.item_ids[:5] for user in USERS}, seen)
    scores = arrays.scores(interests["b"], live_counts(arrays))
    scores[[3, 7]] = -np.inf
    assert best["b"] == [arrays.item_ids[row] for row in np.argsort(-scores)[:5]]


def test_overlap_is_the_shared_part():
    assert overlap({"a": ["x", "y"], "b": ["x", "z"]}, {"a": ["y", "q"], "b": ["z", "x"]}) == 0.75


def test_the_command_runs_every_phase_on_real_servers(tmp_path, arrays):
    options = {"users": 20, "attackers": 12, "answers": 60, "steps": 1, "count": 4, "promotion-examples": 64}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    out = tmp_path / "learning.json"
    assert main(["learning", "--snapshots", str(tmp_path / "store"), *flags, "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["results"]
    assert [row["phase"] for row in rows] == ["honest", "one attacker", "burst"]
    assert all(row["examples"] > 0 and 0.0 <= row["shadow_change"] <= 0.3 for row in rows)
    assert all(row["frozen"] == pytest.approx(0.2, abs=1e-4) for row in rows)
    assert 0 < rows[1]["over_quota"] < rows[2]["examples"] + rows[1]["over_quota"]
