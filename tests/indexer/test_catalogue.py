"""Items from catalogue files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heliotrope_indexer.catalog_item import CatalogItem
from heliotrope_indexer.catalogue import read_catalogue
from heliotrope_indexer.errors import ColumnError, EmptyCatalogueError
from heliotrope_indexer.rejects import RejectLog
from heliotrope_indexer.source import Source
from tests.indexer.conftest import real


def read(
    path: Path, scratch: Path, columns: dict[str, str] | None = None
) -> tuple[list[CatalogItem], list[tuple[int, str]]]:
    log = scratch / "rejects.jsonl"
    with RejectLog(log) as rejects:
        items = read_catalogue(Source(path, columns or {}), rejects)
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert sum(rejects.counts.values()) == len(entries)
    return items, [(entry["line"], entry["reason"]) for entry in entries]


def test_unusable_items_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text(
        "movieId,title,genres\n1,One,a|b\n,Nameless,a\n3,  ,a\n1,Again,a\n4,Four,(no genres listed)\n5,"
        + "x" * 40_000
        + ",a\n"
    )
    items, rejected = read(path, tmp_path)
    assert items == [CatalogItem("1", "One", "", ("a", "b")), CatalogItem("4", "Four")]
    assert rejected == [(3, "no_id"), (4, "empty_text"), (5, "duplicate_item"), (7, "text_too_long")]
    assert items[0].text == "One. a, b"


def test_json_items_with_differing_keys(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"title": "no id"}\n{"id": 7, "title": "x", "tags": ["a", "a", ""]}\n{"id": 8, "overview": "d"}\n')
    items, rejected = read(path, tmp_path)
    assert items == [CatalogItem("7", "x", "", ("a",)), CatalogItem("8", "", "d")]
    assert rejected == [(1, "no_id")]


def test_a_provider_is_read_under_any_of_its_names_and_kept_out_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": 1, "title": "x", "publisher": " Some  House "}\n{"id": 2, "title": "y", "seller": null}\n')
    items, rejected = read(path, tmp_path)
    assert items == [CatalogItem("1", "x", "", (), "Some House"), CatalogItem("2", "y")]
    assert items[0].text == "x"
    assert rejected == []


def test_integer_ids_that_parquet_made_floats(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [1.0, None], "title": ["x", "y"]}), tmp_path / "c.parquet")
    items, rejected = read(tmp_path / "c.parquet", tmp_path)
    assert [item.item_id for item in items] == ["1"]
    assert rejected == [(2, "no_id")]


def test_a_catalogue_without_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("title\nx\n")
    with pytest.raises(ColumnError, match="no item id among title"):
        read(path, tmp_path)
    path.write_text("id,colour\n1,red\n")
    with pytest.raises(ColumnError, match="no title among id, colour"):
        read(path, tmp_path)
    path.write_text("id,title\n,x\n")
    with pytest.raises(EmptyCatalogueError, match="no_id"):
        read(path, tmp_path)


def test_real_catalogues(tmp_path: Path) -> None:
    items, rejected = read(real("ml-latest-small/movies.csv"), tmp_path)
    assert (len(items), rejected) == (9_742, [])
    assert items[0].text == "Toy Story (1995). Adventure, Animation, Children, Comedy, Fantasy"
    numbered = {"item_id": "0", "title": "1", "categories": "2"}
    items, _ = read(real("movietweetings/10K-movies.dat"), tmp_path, numbered)
    assert items[0] == CatalogItem("0002844", "Fantômas - À l'ombre de la guillotine (1913)", "", ("Crime", "Drama"))
    items, _ = read(
        real("ml-100k/ml-100k.item"), tmp_path, {"title": "movie_title+release_year", "categories": "class"}
    )
    assert items[0] == CatalogItem("1", "Toy Story 1995", "", ("Animation", "Children's", "Comedy"))
