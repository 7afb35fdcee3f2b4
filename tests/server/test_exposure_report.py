"""The shares of the exposure report; tests/end_to_end runs the command on a real server's log."""

import math

import pytest

from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.exposure_report import NONE, UNKNOWN, exposure
from heliotrope_server.learning.impression_log import ImpressionRecord
from tests.server import worlds


def answered(number, *item_ids):
    count = len(item_ids)
    return ImpressionRecord(
        f"r{number}", "u", number, "s", 0, list(item_ids), [0.0] * count, [1.0] * count, [1] * count
    )


def test_shares_are_discounted_by_place_and_compared_with_the_catalogue(tmp_path):
    worlds.publish(tmp_path / "store", items=35, labelled=True)
    snapshot = SnapshotStore(tmp_path / "store").open()
    answers, groups = exposure([answered(1, "i1", "i5"), answered(2, "i1", "new")], snapshot)
    found = {(group.kind, group.group): group for group in groups}
    second = 1.0 / math.log2(3.0)
    total = 2.0 + 2.0 * second
    assert answers == 2
    p1 = found["provider", snapshot.item(snapshot.row_of("i1")).provider]
    assert (p1.items, p1.items_shown, p1.impressions) == (7, 1, 2)
    assert p1.exposure_share == pytest.approx(2.0 / total)
    assert p1.catalogue_share == pytest.approx(7 / 35)
    assert p1.ratio == pytest.approx(5 * 2.0 / total)
    assert snapshot.item(snapshot.row_of("i5")).provider == ""
    assert found["provider", NONE].exposure_share == pytest.approx(second / total)
    assert found["provider", UNKNOWN].exposure_share == pytest.approx(second / total)
    assert found["provider", UNKNOWN].ratio == math.inf
    providers = [group for group in groups if group.kind == "provider"]
    assert sum(group.exposure_share for group in providers) == pytest.approx(1.0)
    assert sum(group.items for group in providers) == 35
    # Every item has two categories here, so these shares add up to 2 but for the unknown item.
    categories = [group for group in groups if group.kind == "category"]
    assert sum(group.exposure_share for group in categories) == pytest.approx(2.0 - second / total)
