"""Whether what a data folder or a backup holds can be read: every frame and record of the logs, every profile."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.parameters import Parameters
from heliotrope_server.catalogue_log import DELETE, UPSERT, decode_upsert
from heliotrope_server.data_source import CheckpointState, StoreEntry, checkpoint_state
from heliotrope_server.errors import LogCorruptError, ServerError
from heliotrope_server.event import KIND_NAMES, EventKind, UserEvent
from heliotrope_server.event_records import RECORD_DECLARE, RECORD_DELETE, RECORD_EVENT, RECORD_SEGMENTS, LastRecords
from heliotrope_server.interest import GainTable
from heliotrope_server.layout import Layout
from heliotrope_server.profile_codec import decode_profile
from heliotrope_server.record_log import DAMAGED_SUFFIX, frames_of
from heliotrope_server.store_values import (
    META_KEY,
    POPULARITY_KEY,
    decode_counts,
    decode_heard,
    decode_meta,
    decode_segments,
)
from heliotrope_server.value_checksum import has_checksum

_AS_NEW_AS_CAN_BE = 1 << 63

_RECORD_SIZES = {RECORD_EVENT: 2 + len(UserEvent._fields), RECORD_DECLARE: 7, RECORD_DELETE: 3, RECORD_SEGMENTS: 4}


class Source(Protocol):
    """A data folder or a backup of one; see `DataSource`."""

    layout: Layout

    def names(self, folder: str) -> list[str]: ...

    def read(self, name: str) -> bytes: ...

    def store_entries(self, folder: str) -> Iterator[StoreEntry]: ...


class Report:
    """What was found: `problems` need a person, `notes` do not; `counts` says how much was looked at."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.counts: Counter[str] = Counter()


def check_content(source: Source, report: Report) -> None:
    """Reads everything that a server would read, and what the next rebuild would."""
    layout = source.layout
    for index in range(layout.shards):
        shard = f"{layout.generation}/shard-{index:03d}"
        # The store first: in a folder that is in use its log goes on.
        checkpoint, held = check_store(source, f"{shard}/profiles", report)
        last = LastRecords(checkpoint.lsn)
        last_lsn = _check_log(source, f"{shard}/log", _check_event, report, last.take)
        if held is not None:
            report.problems += [f"{shard}/profiles, {user!r}: {fault}" for user, fault in last.behind(held).items()]
        if last_lsn < checkpoint.newest_lsn:
            report.problems.append(
                f"{shard}/log ends at LSN {last_lsn}, before the checkpoint at {checkpoint.newest_lsn}: "
                "records are missing"
            )
        _check_impressions(source, f"{shard}/impressions", report)
    for generation, last_lsns in layout.ancestors.items():
        for index, wanted in last_lsns.items():
            folder = f"{generation}/shard-{index:03d}/log"
            if not source.names(folder):
                continue  # of a generation that was restored: its log went on in the one after it
            last_lsn = _check_log(source, folder, _check_event, report)
            if last_lsn < wanted:
                report.problems.append(f"{folder} ends at LSN {last_lsn}; layout.json says {wanted}")
            _check_impressions(source, f"{generation}/shard-{index:03d}/impressions", report)
    _check_log(source, "catalogue", _check_change, report)


def _check_log(
    source: Source,
    folder: str,
    check_record: Callable[[Any], None],
    report: Report,
    take: Callable[[Any, int], None] = lambda record, lsn: None,
) -> int:
    """Checks one log from LSN 1 on, and has its sound records taken; returns its last LSN."""
    names = source.names(folder)
    segments = [name for name in names if name.endswith(".log")]
    aside = [name for name in names if name.endswith(DAMAGED_SUFFIX)]
    report.notes += [f"{name} was set aside: its records are not used" for name in aside]
    next_lsn: int | None = 1
    last_lsn = 0
    for name in segments:
        report.counts["log segments"] += 1
        offset = 0
        try:
            data = source.read(name)
            for frame, end in frames_of(data, Path(name), torn_tail=name == segments[-1]):
                if next_lsn is not None and frame.first_lsn != next_lsn and not aside:
                    report.problems.append(
                        f"{name}, byte {offset}: the frame begins at LSN {frame.first_lsn}; {next_lsn} was expected"
                    )
                for place, record in enumerate(frame.records):
                    try:
                        check_record(record)
                        take(record, frame.first_lsn + place)
                    except (ValueError, TypeError, IndexError, KeyError) as error:
                        report.problems.append(f"{name}, byte {offset}: LSN {frame.first_lsn + place}: {error}")
                report.counts["log records"] += len(frame.records)
                last_lsn = frame.first_lsn + len(frame.records) - 1
                next_lsn, offset = last_lsn + 1, end
            if offset < len(data) and name == segments[-1] and any(data[offset:]) and offset:
                report.notes.append(f"{name}, byte {offset}: {len(data) - offset} bytes of an unfinished write")
        except (ServerError, OSError) as error:
            report.problems.append(str(error))
            next_lsn = None  # said once, for the segment
    return last_lsn


def _check_event(record: Any) -> None:
    tag = record[0]
    if len(record) != _RECORD_SIZES.get(tag):
        raise ValueError(f"a record of kind {tag!r} with {len(record)} fields")
    if not isinstance(record[2], str):
        raise ValueError(f"a user id {record[2]!r}")
    if tag == RECORD_EVENT:
        EventKind(UserEvent(*record[2:]).kind)


def _check_change(record: Any) -> None:
    if record[0] == UPSERT:
        decode_upsert(record)
    elif record[0] != DELETE or len(record) != 2:
        raise ValueError(f"a catalogue record of kind {record[0]!r} with {len(record)} fields")


def _check_impressions(source: Source, folder: str, report: Report) -> None:
    """Nobody waits for this log to be on disk, so that damage is passed over by its readers and only noted here."""
    for name in source.names(folder):
        try:
            for frame, _ in frames_of(source.read(name), Path(name), torn_tail=True):
                report.counts["impression records"] += len(frame.records)
        except FileNotFoundError:
            continue  # removed by the server since, as the oldest
        except LogCorruptError as error:
            report.notes.append(f"impressions are skipped: {error}")
        except (ServerError, OSError) as error:
            report.problems.append(str(error))


def check_store(source: Source, folder: str, report: Report) -> tuple[CheckpointState, dict[str, int] | None]:
    """Checks one profile store; returns what its checkpoint says, and the LSN of each profile (None: who knows).

    A profile that cannot be read is taken for as new as can be: it is reported already.
    """
    state, newest_lsn, unchecked, broken = CheckpointState(), 0, 0, False
    held: dict[str, int] = {}
    try:
        for entry in source.store_entries(folder):
            unchecked += entry.key != META_KEY and not has_checksum(entry.value)
            try:
                state = checkpoint_state(entry) or state
                lsn = check_entry(entry, report)
                newest_lsn = max(newest_lsn, lsn)
            except Exception as error:  # whatever decoding makes of damaged bytes
                lsn = _AS_NEW_AS_CAN_BE
                report.problems.append(f"{folder}, {entry.database} {entry.key!r}: {type(error).__name__}: {error}")
            if entry.database == "profiles":
                held[entry.key.decode(errors="replace")] = lsn
    except (ServerError, OSError) as error:
        report.problems.append(str(error))
        broken = True
    if unchecked:
        report.notes.append(
            f"{folder} holds {unchecked} values of an earlier version, without a checksum until they are next saved"
        )
    if newest_lsn > state.newest_lsn:
        report.problems.append(
            f"{folder} holds a profile of LSN {newest_lsn}, behind its checkpoint at {state.newest_lsn}"
        )
    return state, None if broken else held


def check_entry(entry: StoreEntry, report: Report) -> int:
    """Decodes one value; returns the LSN of a profile, 0 of anything else.

    Raises whatever decoding makes of damage.
    """
    name, value = entry.key.decode(), entry.value
    if entry.database == "profiles":
        report.counts["profiles"] += 1
        return decode_profile(name, value, NO_SPACE).lsn
    if entry.database == "heard":
        decode_heard(name, value)
    elif entry.database == "segments":
        decode_segments(name, value)
    elif entry.key == POPULARITY_KEY:
        decode_counts(value)
    elif entry.key == META_KEY:
        decode_meta(value)
    return 0


class _NoSpace:
    """An ItemSpace without items: enough to decode profiles, with no snapshot at hand."""

    generation = 0
    version = ""
    parameters = Parameters(half_lives_s=(1.0,), kappas=(1.0,))
    gains = GainTable(parameters, KIND_NAMES)
    dimension = 1
    prior: NDArray[np.float32] = np.zeros(1, dtype=np.float32)

    def vector(self, item_id: str) -> NDArray[np.float32] | None:
        return None

    def vectors(self, numbers: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return np.zeros((len(numbers), 1), dtype=np.float32), np.zeros(len(numbers), dtype=np.bool_)

    def project(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros((len(pooled), 1), dtype=np.float32)

    def folded_map(self, version: str) -> NDArray[np.float32] | None:
        return None


NO_SPACE = _NoSpace()
