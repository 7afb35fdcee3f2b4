"""Reads a log that grows on from where it stopped, so that a look at it costs what is new and not what it holds.

The catalogue log is looked at by every shard after every change: with 20,000 live items reading the last segment anew
held up the event loop for 29 ms each time.
"""

from collections.abc import Iterator
from pathlib import Path

from heliotrope_server.record_log import Frame, placed_frames, read_segment, segments


class LogReader:
    """Remembers the end of the last frame that was taken. Raises what `read_log` raises."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lsn = 0
        self._path: Path | None = None
        self._end = 0

    def frames(self, *, after_lsn: int) -> Iterator[Frame]:
        """As `read_log`; after another LSN than that of the last frame that was taken, the log is read anew."""
        for frame, path, end in self._placed(after_lsn):
            yield frame
            self._lsn, self._path, self._end = frame.first_lsn + len(frame.records) - 1, path, end

    def _placed(self, after_lsn: int) -> Iterator[tuple[Frame, Path, int]]:
        path = self._path
        if path is not None and after_lsn == self._lsn and segments(self._folder)[-1:] == [path]:
            size = path.stat().st_size
            if size == self._end:
                return
            behind = list(read_segment(path, torn_tail=True, start=self._end)) if size > self._end else []
            # Otherwise the file is not as it was left: a write that did not fit on the disk was taken back.
            if behind and behind[0][0].first_lsn == after_lsn + 1:
                yield from ((frame, path, end) for frame, end in behind)
                return
        yield from placed_frames(self._folder, after_lsn=after_lsn)
