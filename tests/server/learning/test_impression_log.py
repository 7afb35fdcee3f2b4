import numpy as np

from heliotrope_server.answerer import Answer
from heliotrope_server.learning import impression_log
from heliotrope_server.learning.impression_log import (
    ImpressionLog,
    impression_record,
    read_feedback,
    read_impressions,
)
from heliotrope_server.record_log import segments


def answer(number, count=4):
    items = [f"item-{number}-{place}" for place in range(count)]
    rows, interests = np.arange(count), np.zeros((1, 2), dtype=np.float32)
    values = [float(place) for place in range(count)]
    return Answer(items, values, values, [1] * count, [0.5] * count, [], "snap", "p", rows, interests, "r")


def record(number):
    return impression_record(f"r{number}", "u", 1_000_000 + number, answer(number), 3)


async def test_what_was_added_is_read_back_also_after_a_restart(tmp_path):
    for part in (0, 1):
        log = ImpressionLog(tmp_path, 8 << 20)
        log.start()
        for number in range(300 * part, 300 * part + 300):
            log.add(record(number))
        log.add([2, 0, "u", "r1", 5, ["a", "b"], [0.0, 1.0], 1])
        await log.stop()
    found = list(read_impressions(tmp_path))
    assert [each.request_id for each in found] == [f"r{number}" for number in range(600)]
    first = found[0]
    assert (first.user_id, first.time_us, first.snapshot_version, first.weights_version) == ("u", 1_000_000, "snap", 3)
    assert first.item_ids == answer(0).item_ids
    assert (first.scores, first.propensities, first.sources) == ([0.0, 1.0, 2.0, 3.0], [0.5] * 4, [1] * 4)
    (feedback, _) = read_feedback(tmp_path)
    assert (feedback.request_id, feedback.item_ids, feedback.rewards) == ("r1", ["a", "b"], [0.0, 1.0])
    assert feedback.implied_count == 1


async def test_the_oldest_segments_go_when_the_log_is_full(tmp_path):
    log = ImpressionLog(tmp_path, 1 << 20)
    log.start()
    added = 0
    for _ in range(24):
        for _ in range(1000):
            log.add(record(added))
            added += 1
        await log.flush()
    await log.stop()
    size = sum(path.stat().st_size for path in segments(tmp_path))
    assert 0.5 * (1 << 20) < size <= 1.5 * (1 << 20)
    found = [each.request_id for each in read_impressions(tmp_path)]
    assert found == [f"r{number}" for number in range(added - len(found), added)]
    assert 0 < len(found) < added


async def test_what_cannot_be_kept_up_with_is_dropped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(impression_log, "MAX_WAITING", 10)
    log = ImpressionLog(tmp_path, 1 << 20)
    log.start()
    for number in range(15):
        log.add(record(number))
    assert log.dropped_count == 5
    await log.stop()
    assert len(list(read_impressions(tmp_path))) == 10


async def test_a_damaged_segment_costs_its_own_records_alone(tmp_path):
    """Such as after a power cut: nothing here is synced. The server starts all the same."""
    log = ImpressionLog(tmp_path, 1 << 20)
    log.start()
    for number in range(3):
        for place in range(700):
            log.add(record(1000 * number + place))
        await log.flush()
    await log.stop()
    first, *_rest = segments(tmp_path)
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    last = segments(tmp_path)[-1]
    data = bytearray(last.read_bytes())
    data[40] ^= 1
    last.write_bytes(data)
    again = ImpressionLog(tmp_path, 1 << 20)
    again.start()
    again.add(record(9999))
    await again.stop()
    found = [each.request_id for each in read_impressions(tmp_path)]
    assert found[-1] == "r9999"
    assert len(found) == len(set(found))
