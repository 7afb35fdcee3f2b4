"""The impression log: a sampled share of the answers, and the feedback on them, on disk in the folder of each shard.

The format is that of the event log (`record_log`), but nobody waits for it: records are written in groups in the
background, without fdatasync, and the oldest segments are removed when the log is full. It is for reports and for batch
training. A record is one of

    [1, key id, user_id, request_id, time_us, snapshot_version, weights_version, item_ids, scores, propensities,
     sources]
    [2, key id, user_id, request_id, time_us, item_ids, rewards, number of implied rewards]

with lists in the order in which the items were shown, and the key id that of `profile_store`.
"""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from heliotrope_server.answerer import Answer
from heliotrope_server.errors import LogCorruptError, StorageFailedError
from heliotrope_server.learning.impression import Judgement
from heliotrope_server.profile_codec import PLAIN_KEY_ID
from heliotrope_server.record_log import Frame, RecordLog, read_log, segments

RECORD_IMPRESSION = 1
RECORD_FEEDBACK = 2

MAX_WAITING = 10_000
"""Records that wait to be written; what comes beyond that is dropped and counted."""

_GROUP = 256  # records packed between two turns of the event loop
_INTERVAL_S = 0.25
_SEGMENTS = 8

logger = logging.getLogger(__name__)


class ImpressionRecord(NamedTuple):
    """One answer: items in the order in which they were shown; the lists are parallel.

    `weights_version` 0: the snapshot's own. `propensities`: the probability of each item to stand at its place.
    `sources` are the numbers of heliotrope.v1.Source.
    """

    request_id: str
    user_id: str
    time_us: int
    snapshot_version: str
    weights_version: int
    item_ids: list[str]
    scores: list[float]
    propensities: list[float]
    sources: list[int]


class FeedbackRecord(NamedTuple):
    """What one call of feedback said that was new. `implied_count` of the rewards, all 0, were not named by it."""

    request_id: str
    user_id: str
    time_us: int
    item_ids: list[str]
    rewards: list[float]
    implied_count: int


def read_impressions(folder: Path) -> Iterator[ImpressionRecord]:
    """The impressions in one log folder, oldest first; safe beside a running server.

    Damaged segments are skipped from the damage on, with a warning: this log is not synced.
    """
    for record in _records(folder):
        if record[0] == RECORD_IMPRESSION:
            _, _key_id, user_id, request_id, *rest = record
            yield ImpressionRecord(request_id, user_id, *rest)


def read_feedback(folder: Path) -> Iterator[FeedbackRecord]:
    """The feedback in one log folder, oldest first, as `read_impressions`."""
    for record in _records(folder):
        if record[0] == RECORD_FEEDBACK:
            _, _key_id, user_id, request_id, *rest = record
            yield FeedbackRecord(request_id, user_id, *rest)


class ImpressionLog:
    """The writing end of one shard. `add` only queues; call `start` before it and `stop` last."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.dropped_count = 0
        self._folder = folder
        self._max_bytes = max_bytes
        self._log = self._open()
        self._waiting: list[list[Any]] = []

    def start(self) -> None:
        self._writer = asyncio.create_task(self._write_for_ever())

    async def stop(self) -> None:
        self._writer.cancel()
        await self.flush()
        self._log.close()

    def add(self, record: list[Any]) -> None:
        if len(self._waiting) >= MAX_WAITING or self._log.failed:
            self.dropped_count += 1
        else:
            self._waiting.append(record)

    async def _write_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self.flush()

    async def flush(self) -> None:
        """Hands what waits to the operating system."""
        written = bool(self._waiting)
        try:
            while self._waiting:
                group = self._waiting[:_GROUP]
                del self._waiting[:_GROUP]
                await self._log.append(group, lambda _lsn: None)
        except StorageFailedError as error:
            # Once: until the log can be written again, `add` takes nothing.
            logger.error("impressions are not logged: %s", error)
            self.dropped_count += len(group)
        if written:
            self._prune()

    def _prune(self) -> None:
        paths = segments(self._folder)
        sizes = [path.stat().st_size for path in paths]
        while len(paths) > 1 and sum(sizes) > self._max_bytes:
            paths.pop(0).unlink()
            sizes.pop(0)

    def _open(self) -> RecordLog:
        while True:
            try:
                return RecordLog(self._folder, sync=_no_sync, segment_bytes=self._max_bytes // _SEGMENTS)
            except LogCorruptError as error:
                path = segments(self._folder)[-1]
                logger.error("%s; it is set aside as %s.damaged", error, path.name)
                path.rename(path.with_name(f"{path.name}.damaged"))


def impression_record(request_id: str, user_id: str, time_us: int, answer: Answer, weights_version: int) -> list[Any]:
    """The record of one answer (see the module)."""
    return [
        RECORD_IMPRESSION,
        PLAIN_KEY_ID,
        user_id,
        request_id,
        time_us,
        answer.snapshot_version,
        weights_version,
        answer.item_ids,
        answer.scores,
        answer.propensities,
        answer.sources,
    ]


def feedback_record(request_id: str, time_us: int, judgement: Judgement) -> list[Any]:
    """The record of one call of feedback (see the module)."""
    impression = judgement.impression
    return [
        RECORD_FEEDBACK,
        PLAIN_KEY_ID,
        impression.user_id,
        request_id,
        time_us,
        [impression.item_ids[place] for place in judgement.places],
        judgement.rewards,
        judgement.implied,
    ]


def _records(folder: Path) -> Iterator[list[Any]]:
    for frame in _frames(folder):
        yield from frame.records


def _frames(folder: Path) -> Iterator[Frame]:
    after_lsn = 0
    while True:
        try:
            for frame in read_log(folder, after_lsn=after_lsn):
                after_lsn = frame.first_lsn + len(frame.records) - 1
                yield frame
            return
        except (LogCorruptError, FileNotFoundError) as error:
            # A segment that was removed while being read, or damaged: go on with the next.
            starts = [int(path.stem) for path in segments(folder)]
            later = [start for start in starts if start > after_lsn + 1]
            if not later:
                return
            logger.warning("impressions after LSN %d are skipped: %s", after_lsn, error)
            after_lsn = later[0] - 1


def _no_sync(_descriptor: int) -> None:
    """Nothing waits for the disk."""
