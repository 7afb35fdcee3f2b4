"""Attributes of items from catalogue files, and in snapshots."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from heliotrope_indexer.attributes import MAX_ATTRIBUTES, NO_ATTRIBUTES, Attributes
from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.parameters import Parameters
from heliotrope_indexer.snapshot import Snapshot, write_snapshot
from heliotrope_indexer.snapshot.item_table import item_table
from tests.indexer.test_catalogue import read

NOON_S = datetime(2024, 5, 17, 12, tzinfo=UTC).timestamp()


def carried(items: list[CatalogItem]) -> list[Attributes]:
    return [item.attributes for item in items]


def test_json_values_keep_their_types(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    rows: list[dict[str, Any]] = [
        {"price": 9.5, "attributes": {"year": 1999, "studio": "Fox", "adult": False, "left": None, "blank": " "}},
        {"price": "3", "available_from": "2024-05-17T12:00:00", "available_until": NOON_S + 0.25},
        {"attributes": None, "price": None},
    ]
    lines = [json.dumps({"id": number, "title": "t", **row}) for number, row in enumerate(rows)]
    path.write_text("\n".join(lines))
    items, rejected = read(path, tmp_path)
    assert rejected == []
    assert carried(items) == [
        Attributes(9.5, None, None, (("studio", "Fox"),), (("year", 1999.0),), (("adult", False),)),
        Attributes(3.0, NOON_S, NOON_S + 0.25),
        NO_ATTRIBUTES,
    ]


def test_csv_columns_are_numbers_or_flags_where_every_value_is(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text(
        "id,title,price,available_until,year,sku,new,attributes\n"
        '1,a,2.50,2024-05-17 14:00+02:00,1999,12,true,"{""code"": ""7"", ""size"": 7}"\n'
        "2,b,,,2001,x,FALSE,\n"
        "3,c,0,,,,,\n"
    )
    items, rejected = read(path, tmp_path, {"attributes": "year+sku+new+attributes"})
    assert rejected == []
    texts = (("code", "7"), ("sku", "12"))
    assert carried(items) == [
        Attributes(2.5, None, NOON_S, texts, (("size", 7.0), ("year", 1999.0)), (("new", True),)),
        Attributes(None, None, None, (("sku", "x"),), (("year", 2001.0),), (("new", False),)),
        Attributes(0.0),
    ]


def test_parquet_columns_and_maps(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    table = pa.table(
        {
            "id": [1, 2],
            "title": ["a", "b"],
            "price": [1.5, float("nan")],
            "available_from": pa.array([datetime(2024, 5, 17, 12, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
            "attributes": pa.array([[("studio", "Fox")], None], pa.map_(pa.string(), pa.string())),
            "year": pa.array([1999, None], pa.int32()),
        }
    )
    pq.write_table(table, path)
    items, rejected = read(path, tmp_path, {"attributes": "attributes+year"})
    assert rejected == []
    assert carried(items) == [Attributes(1.5, NOON_S, None, (("studio", "Fox"),), (("year", 1999.0),)), NO_ATTRIBUTES]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"price": "free"}, "bad_price"),
        ({"price": -1}, "bad_price"),
        ({"price": 1e999}, "bad_price"),
        ({"available_from": "soon"}, "bad_availability"),
        ({"available_from": 20, "available_until": 10}, "bad_availability"),
        ({"available_until": 1e12}, "bad_availability"),
        ({"attributes": "red"}, "bad_attributes"),
        ({"attributes": {"tags": ["a", "b"]}}, "bad_attributes"),
        ({"attributes": {"price": 1}}, "bad_attributes"),
        ({"attributes": {"k" * 65: 1}}, "bad_attributes"),
        ({"attributes": {"k": "v" * 257}}, "bad_attributes"),
        ({"attributes": {"k": 1e999}}, "bad_attributes"),
        ({"attributes": {f"k{place}": 1 for place in range(MAX_ATTRIBUTES + 1)}}, "bad_attributes"),
    ],
)
def test_a_row_whose_attributes_cannot_be_is_rejected(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": 1, "title": "sound"}\n' + json.dumps({"id": 2, "title": "t", **row}) + "\n")
    items, rejected = read(path, tmp_path)
    assert [item.item_id for item in items] == ["1"]
    assert rejected == [(2, reason)]


def some_items() -> list[CatalogItem]:
    both = Attributes.of(
        {"year": 1999, "studio": "Fox", "adult": True, "rank": 2.5}, price=3.0, available_from_s=NOON_S
    )
    numbers = Attributes.of({"year": 1, "one": True}, available_until_s=-5.5)
    carried = [both, NO_ATTRIBUTES, numbers, replace(both, price=None)]
    return [CatalogItem(f"i{row}", f"t{row}", "", ("a", "b")[:row], "p" * row, own) for row, own in enumerate(carried)]


def snapshot(folder: Path, items: list[CatalogItem]) -> Snapshot:
    parameters = Parameters(half_lives_s=(60.0,), kappas=(1.0,))
    write_snapshot(folder, items=items, vectors=np.eye(len(items)), parameters=parameters)
    return Snapshot(folder)


def test_a_snapshot_gives_back_what_items_carry(tmp_path: Path) -> None:
    items = some_items()
    found = snapshot(tmp_path / "s", items)
    assert [found.item(row) for row in range(len(items))] == items
    assert items[2].attributes != replace(items[2].attributes, flags=(), numbers=(("one", 1.0), ("year", 1.0)))
    columns = found.columns()
    np.testing.assert_array_equal(columns.scalar("price"), [3.0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(columns.scalar("available_until"), [np.nan, np.nan, -5.5, np.nan])
    assert columns.keys("number_attributes") == {"year", "rank"}
    year = columns.entries("number_attributes", "year")
    assert (year.rows.tolist(), year.values.tolist()) == ([0, 2, 3], [1999.0, 1.0, 1999.0])
    labels = columns.categories()
    assert [(row, labels.names[code]) for row, code in zip(labels.rows, labels.codes, strict=True)] == [
        *((1, "a"), (2, "a"), (2, "b"), (3, "a"), (3, "b"))
    ]
    assert columns.providers().rows.tolist() == [1, 2, 3]


def test_items_without_attributes_are_stored_as_before_there_were_any(tmp_path: Path) -> None:
    plain = [CatalogItem("i0", "t"), CatalogItem("i1", "t")]
    assert item_table(plain).column_names == ["item_id", "title", "description", "categories", "provider"]
    columns = snapshot(tmp_path / "s", plain).columns()
    assert np.isnan(columns.scalar("price")).all()
    assert columns.keys("text_attributes") == set()
