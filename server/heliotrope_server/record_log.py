"""An append-only, checksummed log with group commit.

A log is a folder of segments, each named after the sequence number (LSN) of its first record:

    segment = b"HELIOLOG" u32 format version, then frames
    frame   = b"HLFR" u32 payload bytes, u32 CRC-32, u64 first LSN, u32 records, payload   (little endian)
    payload = msgpack array of the records; the CRC covers everything after itself

Calls of `append` that wait together are written as one frame and synced together, which is what makes durable intake
fast: one fdatasync costs the same for one record and for a thousand. A frame is recovered whole or not at all, and is
begun only when the one before it is on disk. So a damaged frame with an intact one behind it was acknowledged, and
one without was not, in whatever order the disk wrote the pages of the last one.
"""

import asyncio
import errno
import logging
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from heliotrope_server.errors import LogCorruptError, StorageFailedError

FORMAT_VERSION = 1
SEGMENT_BYTES = 64 << 20
DAMAGED_SUFFIX = ".damaged"
"""Put behind the name of a damaged segment, this makes readers go on without its records."""

PROBE_INTERVAL_S = 1.0
PROBE_BYTES = 1 << 20  # room that a disk which was full must have before events are taken again

_SEGMENT_HEADER = struct.Struct("<8sI")
_SEGMENT_MAGIC = b"HELIOLOG"
_FRAME_HEADER = struct.Struct("<4sIIQI")
_FRAME_MAGIC = b"HLFR"
_CHECKED_FROM = 12  # magic, length and the CRC itself are not covered; a wrong length fails the CRC all the same

logger = logging.getLogger(__name__)


class Frame(NamedTuple):
    """The records of the calls of `append` that were written together."""

    first_lsn: int
    records: list[Any]


class _Waiting(NamedTuple):
    payload: bytes
    size: int
    on_durable: Callable[[int], Any]
    future: "asyncio.Future[Any]"


class RecordLog:
    """The writing end. Belongs to one event loop; a thread of its own writes and syncs.

    `sync` is called with the file descriptor before anything is acknowledged. Raises LogCorruptError on opening when an
    intact frame follows a damaged one. A torn tail, which no one was told is safe, is cut off.

    A full disk is waited out: what did not fit is taken back, and the log goes on once there is room. Any other failure
    of the disk is final, since after it nobody knows what is on the disk.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sync: Callable[[int], None] = os.fdatasync,
        segment_bytes: int = SEGMENT_BYTES,
        probe_interval_s: float = PROBE_INTERVAL_S,
    ) -> None:
        self._folder = folder
        self._sync = sync
        self._segment_bytes = segment_bytes
        self._probe_interval_s = probe_interval_s
        folder.mkdir(parents=True, exist_ok=True)
        self.last_lsn, self._file, self._end = self._recover()
        self._waiting: list[_Waiting] = []
        self._wake = threading.Condition()
        self._closed = False
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._write_loop, name=f"log-{folder.name}", daemon=True)
        self._thread.start()

    async def append(self, records: list[Any], on_durable: Callable[[int], Any]) -> Any:
        """Writes and syncs `records`, then calls `on_durable(first_lsn)` on the event loop; returns what that returns.

        The callbacks run in the order of the LSNs. Raises StorageFailedError when the disk refuses, and from then on
        at once: DISK_FULL until there is room again, LOG_WRITE_FAILED for good.
        """
        waiting = _Waiting(msgpack.packb(records), len(records), on_durable, asyncio.get_running_loop().create_future())
        with self._wake:
            self._refuse_if_unusable()
            self._waiting.append(waiting)
            self._wake.notify()
        return await waiting.future

    @property
    def failed(self) -> bool:
        """Whether appends are refused, for good or until a full disk has room."""
        return self._failure is not None

    def close(self) -> None:
        """Writes what waits, then stops. Later calls of `append` are refused."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        self._file.close()

    def _refuse_if_unusable(self) -> None:
        if self._failure is not None:
            raise _refusal(self._failure)
        if self._closed:
            raise StorageFailedError("SHUTTING_DOWN", "the server is shutting down")

    def _write_loop(self) -> None:
        while True:
            full = self._failure is not None and _is_full(self._failure)
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closed, self._probe_interval_s if full else None)
                group, self._waiting = self._waiting, []
                if not group and self._closed:
                    return
            if not group:
                self._probe()
                continue
            try:
                done = self._write(group)
            except OSError as error:
                logger.critical("the log in %s cannot be written: %s", self._folder, error)
                with self._wake:
                    self._failure = error
                    group += self._waiting
                    self._waiting = []
                group[0].future.get_loop().call_soon_threadsafe(_fail, group, error)
                continue
            group[0].future.get_loop().call_soon_threadsafe(_acknowledge, done)

    def _write(self, group: list[_Waiting]) -> list[tuple[_Waiting, int]]:
        """Makes a group durable as one frame. Raises OSError; of a full disk with nothing of the group in the log."""
        if self._end > self._segment_bytes:
            full_segment, self._file = self._file, self._new_segment(self.last_lsn + 1)
            full_segment.close()
            self._end = _SEGMENT_HEADER.size
        lsn, done = self.last_lsn, []
        for waiting in group:
            done.append((waiting, lsn + 1))
            lsn += waiting.size
        frame = encode_frame(self.last_lsn + 1, lsn - self.last_lsn, _joined(group))
        try:
            _write_all(self._file, frame)
            self._sync(self._file.fileno())
        except OSError as error:
            if _is_full(error):
                self._cut()
            raise
        self._end += len(frame)
        self.last_lsn = lsn
        return done

    def _cut(self) -> None:
        """Takes back what was written behind the last frame that is safe, durably."""
        self._file.truncate(self._end)
        self._file.seek(self._end)
        self._sync(self._file.fileno())

    def _probe(self) -> None:
        """Takes appends again if the disk that was full has room."""
        try:
            try:
                os.posix_fallocate(self._file.fileno(), self._end, PROBE_BYTES)
            finally:
                self._cut()  # also after a failure: part of the room may have been given
        except OSError as error:
            if not _is_full(error):
                logger.critical("the log in %s cannot be written: %s", self._folder, error)
            self._failure = error
        else:
            self._failure = None
            logger.warning("the log in %s can be written again", self._folder)

    def _new_segment(self, first_lsn: int) -> Any:
        path = self._folder / f"{first_lsn:020d}.log"
        file = path.open("xb", buffering=0)
        try:
            _write_all(file, _SEGMENT_HEADER.pack(_SEGMENT_MAGIC, FORMAT_VERSION))
            self._sync(file.fileno())
            sync_folder(self._folder)
        except OSError:
            file.close()
            path.unlink()
            raise
        return file

    def _recover(self) -> tuple[int, Any, int]:
        """The last LSN, and the segment to go on with, open at its end."""
        paths = segments(self._folder)
        if paths and _holds_nothing(paths[-1].read_bytes()):
            paths.pop().unlink()  # killed while creating the segment: it holds nothing yet
        if not paths:
            return 0, self._new_segment(1), _SEGMENT_HEADER.size
        last_lsn, end = int(paths[-1].stem) - 1, _SEGMENT_HEADER.size
        for frame, frame_end in read_segment(paths[-1], torn_tail=True):
            last_lsn, end = frame.first_lsn + len(frame.records) - 1, frame_end
        file = paths[-1].open("r+b", buffering=0)
        torn = paths[-1].stat().st_size - end
        if torn:
            logger.warning("cut %d bytes of an unfinished write off %s", torn, paths[-1])
            file.truncate(end)
            self._sync(file.fileno())
        file.seek(end)
        return last_lsn, file, end


def read_log(folder: Path, *, after_lsn: int = 0) -> Iterator[Frame]:
    """The intact frames that hold a record after `after_lsn`, in order. Safe beside a writing process.

    Raises LogCorruptError when a frame is damaged and an intact one follows it, and when records are missing between
    two frames, or between `after_lsn` and the first; a log from 0 on may begin later, its oldest segments removed.
    """
    return (frame for frame, _, _ in placed_frames(folder, after_lsn=after_lsn))


def placed_frames(folder: Path, *, after_lsn: int) -> Iterator[tuple[Frame, Path, int]]:
    """As `read_log`, with the segment of each frame and the offset behind it."""
    paths = segments(folder)
    next_lsn = after_lsn + 1 if after_lsn else None
    for index, path in enumerate(paths):
        last = index + 1 == len(paths)
        if not last and int(paths[index + 1].stem) <= after_lsn + 1:
            continue
        for frame, end in read_segment(path, torn_tail=last):
            end_lsn = frame.first_lsn + len(frame.records)
            if end_lsn <= after_lsn + 1:
                continue
            if next_lsn is not None and frame.first_lsn > next_lsn:
                _accept_gap(path, next_lsn, frame.first_lsn)
            yield frame, path, end
            next_lsn = end_lsn


def segments(folder: Path) -> list[Path]:
    """The segment files of a log, oldest first."""
    return sorted(folder.glob("*.log"))


def encode_frame(first_lsn: int, count: int, payload: bytes) -> bytes:
    checked = struct.pack("<QI", first_lsn, count) + payload
    return struct.pack("<4sII", _FRAME_MAGIC, len(payload), zlib.crc32(checked)) + checked


def sync_folder(folder: Path) -> None:
    """Makes renames and new files in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_segment(path: Path, *, torn_tail: bool, start: int = 0) -> Iterator[tuple[Frame, int]]:
    """Frames of one segment with the offset behind each; stops at a torn tail where one is allowed.

    `start` is the offset behind a frame, to go on from there. Raises LogCorruptError, which names the offset of the
    damage.
    """
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    yield from _frames(data, path, start, torn_tail) if start else frames_of(data, path, torn_tail=torn_tail)


def frames_of(data: bytes, path: Path, *, torn_tail: bool) -> Iterator[tuple[Frame, int]]:
    """As `read_segment`, of bytes that were read already; `path` is how errors call them."""
    if torn_tail and _holds_nothing(data):
        return
    magic, version = _SEGMENT_HEADER.unpack_from(data) if len(data) >= _SEGMENT_HEADER.size else (b"", 0)
    if magic != _SEGMENT_MAGIC:
        raise LogCorruptError(f"{path} is not a log segment: it begins with {data[:8]!r}")
    if version != FORMAT_VERSION:
        raise LogCorruptError(f"{path} has format version {version}; this server reads {FORMAT_VERSION}")
    header = _SEGMENT_HEADER.size
    yield from _frames(data[header:], path, header, torn_tail)


def _frames(data: bytes, path: Path, start: int, torn_tail: bool) -> Iterator[tuple[Frame, int]]:
    """The frames of what a segment holds from the offset `start` on, where one begins."""
    offset = 0
    while offset < len(data):
        frame = _frame_at(data, offset)
        if frame is None:
            if torn_tail and not _intact_frame_after(data, offset):
                return
            raise LogCorruptError(
                f"{path} is damaged at byte {start + offset} and holds intact records behind it; "
                f"restore the data folder from a backup, or rename the file to {path.name}{DAMAGED_SUFFIX} to go on "
                "without its records"
            )
        offset += _FRAME_HEADER.size + frame[1]
        yield frame[0], start + offset


def _holds_nothing(data: bytes) -> bool:
    """Whether a segment was never finished: a crash leaves it short, or nothing but zeros."""
    size = _SEGMENT_HEADER.size
    return len(data) < size or (not any(data[:size]) and data.count(0) == len(data))


def _accept_gap(path: Path, wanted_lsn: int, found_lsn: int) -> None:
    """Raises LogCorruptError unless the segment that held the first of the missing records was set aside by hand."""
    names = [each.name for each in path.parent.iterdir() if each.name.endswith((".log", f".log{DAMAGED_SUFFIX}"))]
    holder = max((name for name in names if int(name.partition(".")[0]) <= wanted_lsn), default="")
    missing = f"records {wanted_lsn} to {found_lsn - 1} are missing before {path}"
    if not holder.endswith(DAMAGED_SUFFIX):
        raise LogCorruptError(f"{missing}: a log segment is gone; restore the data folder from a backup")
    logger.error("%s; they were in %s, which was set aside", missing, holder)


def _frame_at(data: bytes, offset: int) -> tuple[Frame, int] | None:
    """The intact frame at `offset` with the length of its payload, or None."""
    if offset + _FRAME_HEADER.size > len(data):
        return None
    magic, length, crc, first_lsn, _count = _FRAME_HEADER.unpack_from(data, offset)
    end = offset + _FRAME_HEADER.size + length
    if magic != _FRAME_MAGIC or end > len(data) or zlib.crc32(data[offset + _CHECKED_FROM : end]) != crc:
        return None
    return Frame(first_lsn, msgpack.unpackb(data[offset + _FRAME_HEADER.size : end])), length


def _intact_frame_after(data: bytes, offset: int) -> bool:
    start = data.find(_FRAME_MAGIC, offset + 1)
    while start >= 0:
        if _frame_at(data, start) is not None:
            return True
        start = data.find(_FRAME_MAGIC, start + 1)
    return False


def _acknowledge(done: list[tuple[_Waiting, int]]) -> None:
    for waiting, first_lsn in done:
        try:
            result = waiting.on_durable(first_lsn)
        except Exception as error:
            logger.exception("applying records from LSN %d failed", first_lsn)
            if not waiting.future.cancelled():
                waiting.future.set_exception(error)
            continue
        # The caller may have gone; what it sent is durable and applied all the same.
        if not waiting.future.cancelled():
            waiting.future.set_result(result)


def _fail(group: list[_Waiting], error: OSError) -> None:
    for waiting in group:
        if not waiting.future.cancelled():
            waiting.future.set_exception(_refusal(error))


def _refusal(error: OSError) -> StorageFailedError:
    if _is_full(error):
        return StorageFailedError(
            "DISK_FULL", f"the disk of the event log is full: {error.strerror}; events are taken once there is room"
        )
    return StorageFailedError("LOG_WRITE_FAILED", f"the event log cannot be written: {error}")


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _write_all(file: Any, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]  # a disk that fills up takes a part first, then raises


def _joined(group: list[_Waiting]) -> bytes:
    """One msgpack array of the records of all calls."""
    if len(group) == 1:
        return group[0].payload
    packer = msgpack.Packer()
    bodies = [waiting.payload[_array_header_bytes(waiting.size) :] for waiting in group]
    return b"".join([packer.pack_array_header(sum(waiting.size for waiting in group)), *bodies])


def _array_header_bytes(size: int) -> int:
    return 1 if size < 16 else 3 if size < 1 << 16 else 5
