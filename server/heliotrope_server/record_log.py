"""An append-only, checksummed log with group commit.

A log is a folder of segments, each named after the sequence number (LSN) of its first record:

    segment = b"HELIOLOG" u32 format version, then frames
    frame   = b"HLFR" u32 payload bytes, u32 CRC-32, u64 first LSN, u32 records, payload   (little endian)
    payload = msgpack array of the records; the CRC covers everything after itself

One frame is one call of `append`: it is recovered whole or not at all. Calls that wait together are written and synced
together, which is what makes durable intake fast: one fdatasync costs the same for one record and for a thousand.
"""

import asyncio
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

_SEGMENT_HEADER = struct.Struct("<8sI")
_SEGMENT_MAGIC = b"HELIOLOG"
_FRAME_HEADER = struct.Struct("<4sIIQI")
_FRAME_MAGIC = b"HLFR"
_CHECKED_FROM = 12  # magic, length and the CRC itself are not covered; a wrong length fails the CRC all the same

logger = logging.getLogger(__name__)


class Frame(NamedTuple):
    """One recovered `append`."""

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
    """

    def __init__(
        self,
        folder: Path,
        *,
        sync: Callable[[int], None] = os.fdatasync,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._folder = folder
        self._sync = sync
        self._segment_bytes = segment_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self.last_lsn, self._file = self._recover()
        self._waiting: list[_Waiting] = []
        self._wake = threading.Condition()
        self._closed = False
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._write_loop, name=f"log-{folder.name}", daemon=True)
        self._thread.start()

    async def append(self, records: list[Any], on_durable: Callable[[int], Any]) -> Any:
        """Writes and syncs `records`, then calls `on_durable(first_lsn)` on the event loop; returns what that returns.

        The callbacks run in the order of the LSNs. Raises StorageFailedError when the disk refuses, from then on
        always: after a failed sync nobody knows what is on the disk.
        """
        waiting = _Waiting(msgpack.packb(records), len(records), on_durable, asyncio.get_running_loop().create_future())
        with self._wake:
            self._refuse_if_unusable()
            self._waiting.append(waiting)
            self._wake.notify()
        return await waiting.future

    @property
    def failed(self) -> bool:
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
            raise StorageFailedError("LOG_WRITE_FAILED", f"the event log cannot be written: {self._failure}")
        if self._closed:
            raise StorageFailedError("SHUTTING_DOWN", "the server is shutting down")

    def _write_loop(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closed:
                    self._wake.wait()
                group, self._waiting = self._waiting, []
                if not group:
                    return
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
        if self._failure is not None:
            raise self._failure
        lsn = self.last_lsn
        done, frames = [], []
        for waiting in group:
            frames.append(encode_frame(lsn + 1, waiting.size, waiting.payload))
            done.append((waiting, lsn + 1))
            lsn += waiting.size
        if self._file.tell() > self._segment_bytes:
            self._file.close()
            self._file = self._new_segment(self.last_lsn + 1)
        left = memoryview(b"".join(frames))
        while left:
            left = left[self._file.write(left) :]  # a disk that fills up takes a part first, then raises
        self._sync(self._file.fileno())
        self.last_lsn = lsn
        return done

    def _new_segment(self, first_lsn: int) -> Any:
        path = self._folder / f"{first_lsn:020d}.log"
        file = path.open("xb", buffering=0)
        file.write(_SEGMENT_HEADER.pack(_SEGMENT_MAGIC, FORMAT_VERSION))
        self._sync(file.fileno())
        sync_folder(self._folder)
        return file

    def _recover(self) -> tuple[int, Any]:
        paths = segments(self._folder)
        if paths and paths[-1].stat().st_size < _SEGMENT_HEADER.size:
            paths.pop().unlink()  # killed while creating the segment: it holds nothing yet
        if not paths:
            return 0, self._new_segment(1)
        last_lsn, end = int(paths[-1].stem) - 1, _SEGMENT_HEADER.size
        for frame, frame_end in _frames(paths[-1], torn_tail=True):
            last_lsn, end = frame.first_lsn + len(frame.records) - 1, frame_end
        file = paths[-1].open("r+b", buffering=0)
        torn = paths[-1].stat().st_size - end
        if torn:
            logger.warning("cut %d bytes of an unfinished write off %s", torn, paths[-1])
            file.truncate(end)
            self._sync(file.fileno())
        file.seek(end)
        return last_lsn, file


def read_log(folder: Path, *, after_lsn: int = 0) -> Iterator[Frame]:
    """The intact frames that hold a record after `after_lsn`, in order. Safe beside a writing process.

    Raises LogCorruptError when a frame is damaged and an intact one follows it.
    """
    paths = segments(folder)
    for index, path in enumerate(paths):
        last = index + 1 == len(paths)
        if not last and int(paths[index + 1].stem) <= after_lsn + 1:
            continue
        for frame, _ in _frames(path, torn_tail=last):
            if frame.first_lsn + len(frame.records) - 1 > after_lsn:
                yield frame


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


def _frames(path: Path, *, torn_tail: bool) -> Iterator[tuple[Frame, int]]:
    """Frames of one segment with the offset behind each; stops at a torn tail where one is allowed."""
    data = path.read_bytes()
    if torn_tail and len(data) < _SEGMENT_HEADER.size:
        return
    magic, version = _SEGMENT_HEADER.unpack_from(data) if len(data) >= _SEGMENT_HEADER.size else (b"", 0)
    if magic != _SEGMENT_MAGIC:
        raise LogCorruptError(f"{path} is not a log segment: it begins with {data[:8]!r}")
    if version != FORMAT_VERSION:
        raise LogCorruptError(f"{path} has format version {version}; this server reads {FORMAT_VERSION}")
    offset = _SEGMENT_HEADER.size
    while offset < len(data):
        frame = _frame_at(data, offset)
        if frame is None:
            if torn_tail and not _intact_frame_after(data, offset):
                return
            raise LogCorruptError(
                f"{path} is damaged at byte {offset} and holds intact records behind it; "
                "restore the file from a backup, or move it away to go on without those records"
            )
        offset += _FRAME_HEADER.size + frame[1]
        yield frame[0], offset


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
            waiting.future.set_exception(
                StorageFailedError("LOG_WRITE_FAILED", f"the event log cannot be written: {error}")
            )
