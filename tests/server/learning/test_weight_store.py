import math

import numpy as np
import pytest

from heliotrope_server.errors import DataFolderError
from heliotrope_server.learning.validation import Difference, Verdict
from heliotrope_server.learning.weight_store import KEPT_VERSIONS, Pointer, Promotion, WeightStore
from heliotrope_server.learning.weights import Weights

VERDICT = Verdict(400, 30, 0.5, 0.4, Difference(0.1, 0.02), None, math.nan, math.nan)


def weights(version):
    rng = np.random.default_rng(version)
    return Weights(version, rng.normal(size=(2, 3, 3)).astype(np.float32), rng.random(1))


def test_what_was_saved_is_loaded_bit_by_bit(tmp_path):
    store = WeightStore(tmp_path, "snap")
    explored = Verdict(400, 30, 0.5, 0.4, Difference(0.1, 0.02), Difference(0.2, 0.1), 0.5, 0.3)
    for verdict in (VERDICT, explored):
        store.save(weights(7), Promotion(7, 5, 1.5, verdict))
        loaded, promotion = WeightStore(tmp_path, "snap").load(7)
        np.testing.assert_array_equal(loaded.matrices, weights(7).matrices)
        np.testing.assert_array_equal(loaded.theta, weights(7).theta)
        assert promotion[:3] == (7, 5, 1.5)
        np.testing.assert_equal(promotion.verdict, verdict)
    assert store.versions() == [7]


def test_the_pointer_is_the_snapshots_own_until_something_is_promoted(tmp_path):
    store = WeightStore(tmp_path, "snap")
    assert (store.pointer(), store.stamp()) == (Pointer(0, 0, ()), None)
    store.point(Pointer(3, 4, (4,)))
    first = store.stamp()
    assert store.pointer() == Pointer(3, 4, (4,))
    store.point(Pointer(0, 4, (3, 4)))
    assert store.stamp() != first
    assert WeightStore(tmp_path, "another").pointer() == Pointer()


def test_only_the_newest_versions_are_kept(tmp_path):
    store = WeightStore(tmp_path, "snap")
    for version in range(1, KEPT_VERSIONS + 4):
        store.save(weights(version), Promotion(version, version - 1, 0.0, VERDICT))
    assert store.versions() == list(range(KEPT_VERSIONS + 3, 3, -1))
    store.save(weights(100), Promotion(100, 4, 0.0, VERDICT))  # what it was learned from is in use until it is
    assert store.versions()[-1] == 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:10], "checksum"),
        (lambda data: data[:-1], "checksum"),
        (lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:], "checksum"),
        (lambda data: data[:8] + b"\x09\0\0\0" + data[12:], "format version 9"),
    ],
)
def test_damage_is_an_error_and_never_served(tmp_path, damage, message):
    store = WeightStore(tmp_path, "snap")
    store.save(weights(1), Promotion(1, 0, 0.0, VERDICT))
    (path,) = store.folder.glob("*.weights")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataFolderError, match=message):
        store.load(1)


def test_a_file_of_another_snapshot_or_none_is_an_error(tmp_path):
    store = WeightStore(tmp_path, "snap")
    store.save(weights(1), Promotion(1, 0, 0.0, VERDICT))
    (tmp_path / "snap").rename(tmp_path / "other")
    with pytest.raises(DataFolderError, match="snapshot snap"):
        WeightStore(tmp_path, "other").load(1)
    with pytest.raises(DataFolderError, match="missing"):
        WeightStore(tmp_path, "other").load(2)
    (tmp_path / "other" / "CURRENT.json").write_text("{")
    with pytest.raises(DataFolderError, match="damaged"):
        WeightStore(tmp_path, "other").pointer()
