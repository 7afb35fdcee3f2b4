import asyncio
import os

import msgpack
import pytest

from heliotrope_server.errors import LogCorruptError, StorageFailedError
from heliotrope_server.record_log import RecordLog, encode_frame, read_log, segments


async def write(folder, batches, **settings):
    log = RecordLog(folder, **settings)
    for batch in batches:
        await log.append(batch, lambda lsn: lsn)
    log.close()


def records(folder, after_lsn=0):
    return [record for frame in read_log(folder, after_lsn=after_lsn) for record in frame.records]


async def test_records_come_back_in_order_with_their_numbers(tmp_path):
    await write(tmp_path, [["a"], ["b", "c"], [["d", 1.5, b"x"]]])
    assert [frame.first_lsn for frame in read_log(tmp_path)] == [1, 2, 4]
    assert records(tmp_path) == ["a", "b", "c", ["d", 1.5, b"x"]]
    assert [frame.first_lsn for frame in read_log(tmp_path, after_lsn=2)] == [2, 4]


async def test_numbers_go_on_after_reopening(tmp_path):
    await write(tmp_path, [["a", "b"]])
    log = RecordLog(tmp_path)
    assert log.last_lsn == 2
    assert await log.append(["c"], lambda lsn: lsn) == 3
    log.close()


async def test_the_sync_comes_before_the_acknowledgement(tmp_path):
    order = []

    def sync(descriptor):
        os.fdatasync(descriptor)
        order.append("sync")

    log = RecordLog(tmp_path, sync=sync)
    order.clear()
    await log.append(["a"], lambda lsn: order.append("applied"))
    order.append("acknowledged")
    log.close()
    assert order == ["sync", "applied", "acknowledged"]


async def test_calls_that_wait_together_share_one_sync(tmp_path):
    syncs = []
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow_sync(descriptor):
        syncs.append(descriptor)
        if len(syncs) == 2:  # the first is that of the new segment
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()

    log = RecordLog(tmp_path, sync=slow_sync)
    first = asyncio.create_task(log.append(["a"], lambda lsn: lsn))
    while len(syncs) < 2:
        await asyncio.sleep(0)
    rest = [asyncio.create_task(log.append([number], lambda lsn: lsn)) for number in range(50)]
    await asyncio.sleep(0)
    gate.set()
    assert await first == 1
    assert await asyncio.gather(*rest) == list(range(2, 52))
    assert len(syncs) == 3
    log.close()


async def test_a_log_cut_at_any_byte_keeps_every_whole_append(tmp_path):
    await write(tmp_path / "whole", [["a"], ["b", "c"], ["d" * 40], ["e"]])
    path = segments(tmp_path / "whole")[0]
    data = path.read_bytes()
    ends, offset = [], 12
    for frame in read_log(tmp_path / "whole"):
        offset += len(encode_frame(frame.first_lsn, len(frame.records), msgpack.packb(frame.records)))
        ends.append((offset, frame.records))
    assert ends[-1][0] == len(data)
    for cut in range(len(data) + 1):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        (folder / path.name).write_bytes(data[:cut])
        kept = [record for end, frame in ends if end <= cut for record in frame]
        assert records(folder) == kept
        log = RecordLog(folder)
        assert log.last_lsn == len(kept)
        await log.append(["new"], lambda lsn: lsn)
        log.close()
        assert records(folder) == [*kept, "new"]


async def test_a_flipped_bit_before_intact_records_is_refused_and_after_them_is_cut(tmp_path):
    await write(tmp_path, [["a"], ["b"], ["c"]])
    path = segments(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogCorruptError, match=r"damaged at byte 12"):
        RecordLog(tmp_path)
    with pytest.raises(LogCorruptError):
        records(tmp_path)
    data[20] ^= 1
    data[-1] ^= 1
    path.write_bytes(data)
    assert records(tmp_path) == ["a", "b"]


async def test_segments_roll_over_and_damage_in_an_older_one_is_refused(tmp_path):
    await write(tmp_path, [[f"record {number}"] for number in range(30)], segment_bytes=200)
    paths = segments(tmp_path)
    assert len(paths) > 3
    assert records(tmp_path) == [f"record {number}" for number in range(30)]
    assert records(tmp_path, after_lsn=25)[-5:] == [f"record {number}" for number in range(25, 30)]
    paths[0].write_bytes(paths[0].read_bytes()[:-1])
    with pytest.raises(LogCorruptError):
        records(tmp_path)


async def test_after_a_failed_sync_nothing_is_acknowledged_any_more(tmp_path):
    healthy = True

    def sync(descriptor):
        if not healthy:
            raise OSError(5, "Input/output error")

    log = RecordLog(tmp_path, sync=sync)
    await log.append(["a"], lambda lsn: lsn)
    healthy = False
    applied = []
    with pytest.raises(StorageFailedError, match="Input/output error"):
        await log.append(["b"], applied.append)
    healthy = True
    with pytest.raises(StorageFailedError):
        await log.append(["c"], applied.append)
    assert applied == []
    assert log.failed
    log.close()


async def test_a_foreign_file_and_a_newer_format_are_named(tmp_path):
    (tmp_path / f"{1:020d}.log").write_bytes(b"not a log at all, but long enough")
    with pytest.raises(LogCorruptError, match="is not a log segment"):
        RecordLog(tmp_path)
    (tmp_path / f"{1:020d}.log").write_bytes(b"HELIOLOG\x09\x00\x00\x00")
    with pytest.raises(LogCorruptError, match="format version 9; this server reads 1"):
        RecordLog(tmp_path)
