"""Events from files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from heliotrope_indexer.errors import ColumnError
from heliotrope_indexer.events import EventTable, read_events
from heliotrope_indexer.parameters import EVENT_TYPES
from heliotrope_indexer.rejects import RejectLog
from heliotrope_indexer.source import Source
from tests.indexer.conftest import real


def read(
    path: Path, items: list[str], columns: dict[str, str] | None = None
) -> tuple[EventTable, list[tuple[int, str]]]:
    log = path.with_name("rejects.jsonl")
    with RejectLog(log) as rejects:
        table = read_events([Source(path, columns or {})], {name: row for row, name in enumerate(items)}, rejects)
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return table, [(entry["line"], entry["reason"]) for entry in entries]


def test_every_reason_to_reject(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    rows = [
        "u,a,rating,4,1500000000,e1",
        ",a,rating,4,1500000000,",
        "u,,rating,4,1500000000,",
        "u,z,rating,4,1500000000,",
        "u,a,sneeze,4,1500000000,",
        "u,a,rating,nan,1500000000,",
        "u,a,rating,inf,1500000000,",
        "u,a,rating,-1,1500000000,",
        "u,a,rating,4,yesterday,",
        "u,a,rating,4,-5,",
        "u,a,rating,4,1500000000000,",
        "u,a,rating,4,nan,",
        "u,b,click,1,1500000007,e1",
        "u,b,click,1,1400000000,",
        "u,b,click,1,1400000000,",
        "u,b,,,2020-01-01T00:00:00Z,",
    ]
    path.write_text("user_id,item_id,type,value,timestamp,event_id\n" + "\n".join(rows) + "\n")
    table, rejected = read(path, ["a", "b"])
    assert rejected == [
        (3, "no_user"),
        (4, "no_id"),
        (5, "unknown_item"),
        (6, "unknown_type"),
        (7, "bad_value"),
        (8, "bad_value"),
        (9, "bad_value"),
        (10, "bad_time"),
        (11, "bad_time"),
        (12, "bad_time"),
        (13, "bad_time"),
        (14, "duplicate_event"),
        (16, "duplicate_event"),
    ]
    assert table.time.tolist() == [1_400_000_000.0, 1_500_000_000.0, 1_577_836_800.0]
    assert [EVENT_TYPES[kind] for kind in table.kind] == ["click", "rating", "click"]


def test_the_four_column_log(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp,label\nu,a,1,1\nu,b,2,0\nv,a,3,4.5\nv,b,4,\n")
    table, _ = read(path, ["a", "b"])
    assert [(EVENT_TYPES[kind], value) for kind, value in zip(table.kind, table.value, strict=True)] == [
        ("click", 1.0),
        ("dislike", 1.0),
        ("rating", 4.5),
        ("click", 1.0),
    ]


def test_json_events_may_lack_keys(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text(
        '{"user_id": "u", "item_id": "a"}\n{"user_id": "u", "item_id": "a", "timestamp": 5, "type": "view"}\n'
    )
    table, rejected = read(path, ["a"])
    assert (len(table), rejected) == (1, [(1, "bad_time")])


def test_a_missing_column(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("user_id,item_id\nu,a\n")
    with pytest.raises(ColumnError, match="no timestamp among user_id, item_id"):
        read(tmp_path / "e.csv", ["a"])


def test_equal_times_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\nu,b,9\nu,a,5\nu,c,5\n")
    table, _ = read(tmp_path / "e.csv", ["a", "b", "c"])
    assert table.row.tolist() == [0, 2, 1]
    assert np.all(np.diff(table.time) >= 0)


def test_real_events(tmp_path: Path) -> None:
    source = Source(real("ml-100k/ml-100k.inter.gz"))
    with RejectLog(tmp_path / "r.jsonl") as rejects:
        table = read_events([source], {str(number): number for number in range(1, 1_683)}, rejects)
    assert (len(table), len(table.user_ids), rejects.counts) == (100_000, 943, {})
