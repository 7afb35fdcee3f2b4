"""`heliotrope events`: what was recorded live, as a file for the next rebuild.

Reads the event logs of a data folder, also beside a server that is running. Repeated events, events taken back and
events of deleted users are left out.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from heliotrope_server.command import one_line_errors
from heliotrope_server.errors import DataFolderError
from heliotrope_server.event import KIND_NAMES, EventKind
from heliotrope_server.event_records import RECORD_DELETE, RECORD_EVENT
from heliotrope_server.layout import log_folders
from heliotrope_server.record_log import read_log

COLUMNS = ("user_id", "item_id", "type", "value", "timestamp", "event_id")

Row = tuple[str, str, str, float, str, str]


class EventsOptions(BaseSettings):
    """Writes the events that a server has recorded to a file that `heliotrope build --events` reads."""

    model_config = SettingsConfigDict(
        frozen=True, env_prefix="HELIOTROPE_EVENTS_", cli_prog_name="heliotrope events", cli_kebab_case=True
    )

    data: Path = Field(description="data folder of a server, which may be running")
    out: Path = Field(description="file to write: .jsonl, .csv or .parquet")


def main(arguments: list[str]) -> int:
    with one_line_errors() as outcome:
        options = CliApp.run(EventsOptions, cli_args=arguments)
        count = export_events(options.data, options.out)
        print(f"wrote {count} events to {options.out}")
    return outcome.code


def export_events(data: Path, out: Path) -> int:
    """Writes all standing events, in the order of the logs; returns how many.

    Raises DataFolderError for a folder that is none, or a file name of an unknown kind.
    """
    writer = _WRITERS.get(out.suffix)
    if writer is None:
        raise DataFolderError(f"{out} must end in one of {', '.join(_WRITERS)}")
    rows = [row for rows in _rows_by_user(data).values() for row in rows.values()]
    aside = out.with_name(f".{out.name}.partial")
    writer(aside, rows)
    aside.rename(out)
    return len(rows)


def _rows_by_user(data: Path) -> dict[str, dict[str, Row]]:
    """Standing events by user and event id."""
    rows: dict[str, dict[str, Row]] = {}
    undone: dict[str, set[str]] = {}
    for record in _records(data):
        tag, _key_id, user_id, *rest = record
        if tag == RECORD_DELETE:
            rows.pop(user_id, None)
            undone.pop(user_id, None)
        elif tag == RECORD_EVENT:
            event_id, kind, item_id, value, time_us, undone_event_id = rest
            taken_back = undone.setdefault(user_id, set())
            if kind == EventKind.UNDO:
                taken_back.add(undone_event_id)
                rows.get(user_id, {}).pop(undone_event_id, None)
            elif event_id not in taken_back:
                moment = datetime.fromtimestamp(time_us / 1e6, UTC).isoformat()
                row = (user_id, item_id, KIND_NAMES[kind], value, moment, event_id)
                rows.setdefault(user_id, {}).setdefault(event_id, row)
    return rows


def _records(data: Path) -> Iterator[Any]:
    for folder in log_folders(data):
        for frame in read_log(folder):
            yield from frame.records


def _write_jsonl(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) + "\n")


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def _write_parquet(path: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    columns = list(zip(*rows, strict=True)) if rows else [()] * len(COLUMNS)
    types = [pa.string(), pa.string(), pa.string(), pa.float64(), pa.string(), pa.string()]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    pyarrow.parquet.write_table(pa.table(dict(zip(COLUMNS, arrays, strict=True))), path)


_WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
