"""What the log makes of disks that are full, torn, decayed, or have lost a file.

One torn frame, a flipped bit and a failing sync, each by itself, are in tests/server/test_record_log.py.
"""

import asyncio
import errno
import os
import random

import pytest

from heliotrope_server.errors import LogCorruptError, StorageFailedError
from heliotrope_server.learning.impression_log import ImpressionLog, read_feedback
from heliotrope_server.record_log import RecordLog, read_log, read_segment, segments

SECTOR = 512


def records(folder, after_lsn=0):
    return [record for frame in read_log(folder, after_lsn=after_lsn) for record in frame.records]


def text(rng, size):
    return "".join(rng.choices("abcdefgh", k=size))


async def write(folder, groups, **settings):
    log = RecordLog(folder, **settings)
    for group in groups:
        await log.append(group, lambda lsn: lsn)
    log.close()


async def wait_until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


class Gate:
    """A sync that can be held up, so that calls gather behind it, or fail."""

    def __init__(self):
        self.error = None
        self._open = None

    def hold(self):
        self._loop, self._open = asyncio.get_running_loop(), asyncio.Event()

    def release(self):
        self._open.set()

    def __call__(self, descriptor):
        if self._open is not None:
            asyncio.run_coroutine_threadsafe(self._open.wait(), self._loop).result()
        if self.error is not None:
            raise self.error
        os.fdatasync(descriptor)


async def append_together(log, gate, groups):
    """Appends that wait behind one sync and so share the next; returns their first LSNs."""
    gate.hold()
    first = asyncio.create_task(log.append(["first"], lambda lsn: lsn))
    await asyncio.sleep(0)
    await wait_until(lambda: not log._waiting)
    tasks = [asyncio.create_task(log.append(group, lambda lsn: lsn)) for group in groups]
    await asyncio.sleep(0)
    gate.release()
    return await asyncio.gather(first, *tasks)


@pytest.mark.parametrize("count", [2, 14, 15, 200])
async def test_calls_that_were_written_together_are_recovered_together(tmp_path, count):
    gate = Gate()
    log = RecordLog(tmp_path, sync=gate)
    groups = [[f"{number}-{place}" for place in range(1 + number % 40)] for number in range(count)]
    lsns = await append_together(log, gate, groups)
    log.close()
    starts = [1, *(2 + sum(map(len, groups[:number])) for number in range(count))]
    assert lsns == starts
    first, together = read_log(tmp_path)
    assert (first.first_lsn, together.first_lsn) == (1, 2)
    assert together.records == [record for group in groups for record in group]


@pytest.mark.parametrize("seed", range(40))
async def test_a_power_cut_that_leaves_any_sectors_of_the_last_write_loses_nothing_acknowledged(tmp_path, seed):
    """A disk writes the sectors of one write in any order: those it did not get to are zero, or hold something else."""
    rng = random.Random(seed)
    gate = Gate()
    log = RecordLog(tmp_path, sync=gate)
    safe = [text(rng, rng.randrange(1, 900)) for _ in range(rng.randrange(1, 6))]
    for record in safe:
        await log.append([record], lambda lsn: lsn)
    await append_together(log, gate, [[text(rng, 700)] for _ in range(8)])
    log.close()
    path = segments(tmp_path)[0]
    *_, (_, start), (_, end) = read_segment(path, torn_tail=True)
    data = bytearray(path.read_bytes())
    assert end == len(data) > start + 8 * 700
    for sector in range(start // SECTOR, end // SECTOR + 1):
        if rng.random() < 0.3:
            lost = slice(max(sector * SECTOR, start), min((sector + 1) * SECTOR, end))
            size = lost.stop - lost.start
            data[lost] = bytes(size) if rng.random() < 0.5 else rng.randbytes(size)
    path.write_bytes(data)
    wanted = [*safe, "first"]
    assert records(tmp_path) == wanted
    log = RecordLog(tmp_path)
    await log.append(["after"], lambda lsn: lsn)
    log.close()
    assert records(tmp_path) == [*wanted, "after"]


async def test_a_flip_of_any_bit_is_refused_with_its_place_or_was_in_the_last_write(tmp_path):
    rng = random.Random(1)
    groups = [[text(rng, rng.randrange(1, 60)) for _ in range(rng.randrange(1, 4))] for _ in range(8)]
    await write(tmp_path / "whole", groups)
    path = segments(tmp_path / "whole")[0]
    starts = [12, *(end for _, end in read_segment(path, torn_tail=True))]
    data = path.read_bytes()
    folder = tmp_path / "flipped"
    folder.mkdir()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        (folder / path.name).write_bytes(damaged)
        if place >= starts[-2]:
            assert records(folder) == [record for group in groups[:-1] for record in group]
            continue
        frame = max((start for start in starts if start <= place), default=0)
        wanted = f"{path.name} is damaged at byte {frame} and holds" if frame else f"{path.name} (is not|has format)"
        with pytest.raises(LogCorruptError, match=wanted):
            records(folder)
        with pytest.raises(LogCorruptError, match=wanted):
            RecordLog(folder)


async def test_a_segment_that_is_gone_is_missed(tmp_path):
    await write(tmp_path, [[f"record {number}"] for number in range(30)], segment_bytes=200)
    paths = segments(tmp_path)
    gone, found = int(paths[2].stem), int(paths[3].stem)
    paths[2].unlink()
    missing = f"records {gone} to {found - 1} are missing before .*{paths[3].name}"
    with pytest.raises(LogCorruptError, match=missing):
        records(tmp_path)
    with pytest.raises(LogCorruptError, match=missing):
        records(tmp_path, after_lsn=gone - 2)
    with pytest.raises(LogCorruptError, match=f"records {gone + 1} to {found - 1} are missing"):
        records(tmp_path, after_lsn=gone)
    # Behind the gap nothing is missing: a checkpoint there makes the log whole.
    assert len(records(tmp_path, after_lsn=found - 1)) == 31 - found


async def test_a_damaged_segment_that_was_set_aside_by_hand_is_gone_without(tmp_path):
    await write(tmp_path, [[f"record {number}"] for number in range(30)], segment_bytes=90)
    paths = segments(tmp_path)
    aside = [paths[2], paths[3], paths[5]]
    for path in aside:
        path.rename(path.with_name(f"{path.name}.damaged"))
    starts = [int(path.stem) for path in paths]
    lost = {*range(starts[2], starts[4]), *range(starts[5], starts[6])}
    assert records(tmp_path) == [f"record {lsn - 1}" for lsn in range(1, 31) if lsn not in lost]
    assert records(tmp_path, after_lsn=starts[2])[0] == f"record {starts[4] - 1}"
    paths[7].unlink()  # what was set aside does not excuse this one
    with pytest.raises(LogCorruptError, match=f"records {starts[7]} to"):
        records(tmp_path)


@pytest.mark.parametrize("stub", [b"", b"HELIO", bytes(7), bytes(12), bytes(4096)])
async def test_a_segment_that_was_never_finished_holds_nothing(tmp_path, stub):
    await write(tmp_path, [["a"], ["b", "c"]])
    (tmp_path / f"{4:020d}.log").write_bytes(stub)
    assert records(tmp_path) == ["a", "b", "c"]
    (tmp_path / f"{4:020d}.log").unlink()
    (tmp_path / f"{4:020d}.log").write_bytes(stub)
    log = RecordLog(tmp_path)
    assert await log.append(["d"], lambda lsn: lsn) == 4
    log.close()
    assert records(tmp_path) == ["a", "b", "c", "d"]


async def test_a_full_disk_refuses_and_goes_on_when_there_is_room(small_disk):
    log = RecordLog(small_disk.folder / "log", probe_interval_s=0.01)
    kept = [await log.append([f"before {number}"], lambda lsn: lsn) for number in range(10)]
    small_disk.fill()
    with pytest.raises(StorageFailedError) as caught:
        for number in range(100):  # what is left of the last page takes some
            await log.append([f"{number} " + "x" * 1000], kept.append)
    assert (caught.value.reason, log.failed) == ("DISK_FULL", True)
    assert "No space left on device" in caught.value.message
    last_lsn = log.last_lsn
    for _ in range(5):
        with pytest.raises(StorageFailedError, match="events are taken once there is room"):
            await log.append(["refused"], kept.append)
    assert [record for record in records(small_disk.folder / "log") if record == "refused"] == []
    small_disk.free()
    await wait_until(lambda: not log.failed)
    assert await log.append(["after"], lambda lsn: lsn) == last_lsn + 1
    log.close()
    found = records(small_disk.folder / "log")
    assert (len(found), found[-1]) == (last_lsn + 1, "after")


async def test_a_disk_that_is_full_as_a_segment_begins_leaves_no_half_segment(small_disk):
    folder = small_disk.folder / "log"
    log = RecordLog(folder, segment_bytes=20, probe_interval_s=0.01)
    await log.append(["one"], lambda lsn: lsn)
    small_disk.fill()
    with pytest.raises(StorageFailedError, match="is full"):
        await log.append(["two"], lambda lsn: lsn)
    assert len(segments(folder)) == 1
    small_disk.free()
    await wait_until(lambda: not log.failed)
    for number, record in enumerate(["two", "three"], 2):
        assert await log.append([record], lambda lsn: lsn) == number
    log.close()
    assert records(folder) == ["one", "two", "three"]
    assert len(segments(folder)) == 3


async def test_a_quota_that_is_used_up_is_waited_out_and_a_broken_disk_is_not(tmp_path):
    gate = Gate()
    log = RecordLog(tmp_path, sync=gate, probe_interval_s=0.01)
    await log.append(["safe"], lambda lsn: lsn)
    gate.error = OSError(errno.EDQUOT, "Disk quota exceeded")
    with pytest.raises(StorageFailedError, match="Disk quota exceeded"):
        await log.append(["lost"], lambda lsn: lsn)
    gate.error = None
    await wait_until(lambda: not log.failed)
    assert await log.append(["more"], lambda lsn: lsn) == 2
    gate.error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(StorageFailedError) as caught:
        await log.append(["lost"], lambda lsn: lsn)
    assert caught.value.reason == "LOG_WRITE_FAILED"
    gate.error = None
    log.close()
    assert log.failed
    assert records(tmp_path)[:2] == ["safe", "more"]


async def test_impressions_are_dropped_while_the_disk_is_full_and_then_logged_again(small_disk):
    folder = small_disk.folder / "impressions"
    log = ImpressionLog(folder, 8 << 20)
    log.start()

    async def feedback(request_id):
        log.add([2, 0, "u", request_id, 5, ["item" * 500], [1.0], 0])
        await log.flush()

    await feedback("before")
    small_disk.fill()
    while not log.dropped_count:
        await feedback("into the last page")
    await feedback("lost")
    assert log.dropped_count == 2
    small_disk.free()
    await wait_until(lambda: not log._log.failed)
    await feedback("after")
    await log.stop()
    found = [each.request_id for each in read_feedback(folder)]
    assert (found[0], found[-1], "lost" in found) == ("before", "after", False)
