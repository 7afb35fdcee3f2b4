"""A reader that goes on where it stopped, against reading the whole log."""

import numpy as np
import pytest

from heliotrope_server import log_reader
from heliotrope_server.errors import LogCorruptError
from heliotrope_server.log_reader import LogReader
from heliotrope_server.record_log import RecordLog, read_log, segments


def taken(reader, after_lsn):
    return [record for frame in reader.frames(after_lsn=after_lsn) for record in frame.records]


async def test_what_is_read_bit_by_bit_is_the_whole_log_over_several_segments(tmp_path):
    rng = np.random.default_rng(0)
    log, reader, found = RecordLog(tmp_path, segment_bytes=500), LogReader(tmp_path), []
    for number in range(60):
        await log.append([f"{number} {'x' * int(rng.integers(1, 90))}"] * int(rng.integers(1, 4)), lambda lsn: None)
        if rng.random() < 0.6:
            found += taken(reader, len(found))
            assert taken(reader, len(found)) == []
    log.close()
    found += taken(reader, len(found))
    assert len(segments(tmp_path)) > 3
    assert found == [record for frame in read_log(tmp_path) for record in frame.records]


async def test_only_what_is_new_is_read(tmp_path, monkeypatch):
    log, reader, starts = RecordLog(tmp_path), LogReader(tmp_path), []

    def noting(path, *, torn_tail, start=0):
        starts.append(start)
        return real(path, torn_tail=torn_tail, start=start)

    real = log_reader.read_segment
    monkeypatch.setattr(log_reader, "read_segment", noting)
    monkeypatch.setattr("heliotrope_server.record_log.read_segment", noting)
    await log.append(["a" * 100], lambda lsn: None)
    assert taken(reader, 0) == ["a" * 100]
    size = segments(tmp_path)[0].stat().st_size
    await log.append(["b"], lambda lsn: None)
    assert taken(reader, 1) == ["b"]
    assert taken(reader, 2) == []
    assert starts == [0, size]
    log.close()


async def test_a_reader_that_took_less_than_a_frame_gets_it_again(tmp_path):
    log, reader = RecordLog(tmp_path), LogReader(tmp_path)
    await log.append(["a", "b", "c"], lambda lsn: None)
    for frame in reader.frames(after_lsn=0):
        assert frame.records[0] == "a"
        break  # whoever took it failed at the second record
    assert taken(reader, 1) == ["a", "b", "c"]
    log.close()


async def test_a_write_that_was_taken_back_and_damage_before_it_are_seen(tmp_path):
    log, reader = RecordLog(tmp_path), LogReader(tmp_path)
    await log.append(["a"], lambda lsn: None)
    assert taken(reader, 0) == ["a"]
    path = segments(tmp_path)[0]
    whole = path.read_bytes()
    path.write_bytes(whole + b"HLFR part of a frame")
    assert taken(reader, 1) == []
    path.write_bytes(whole)
    await log.append(["b"], lambda lsn: None)
    assert taken(reader, 1) == ["b"]
    await log.append(["c"], lambda lsn: None)
    await log.append(["d"], lambda lsn: None)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"\xa1c")] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(LogCorruptError, match=f"damaged at byte {damaged.rindex(b'HLFR', 0, damaged.rindex(b'HLFR'))}"):
        taken(reader, 2)
    log.close()
