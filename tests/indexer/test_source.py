"""Rows from files of every kind, tidy and untidy."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heliotrope_indexer.errors import ColumnError, SourceError
from heliotrope_indexer.rejects import RejectLog
from heliotrope_indexer.source import Source


def read(path: Path, **options: object) -> tuple[list[tuple[int, dict[str, object]]], list[dict[str, object]], Source]:
    source = Source(path, **options)  # type: ignore[arg-type]
    log = path.with_suffix(".rejects")
    with RejectLog(log) as rejects:
        rows = [(row.line, dict(row.values)) for row in source.rows(rejects)]
    return rows, [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()], source


@pytest.mark.parametrize(("delimiter", "name"), [(",", "a.csv"), ("\t", "a.tsv"), ("::", "a.dat"), (";", "a.csv")])
def test_any_delimiter(tmp_path: Path, delimiter: str, name: str) -> None:
    path = tmp_path / name
    path.write_text("\n".join(delimiter.join(row) for row in [("id", "title"), ("1", "Ein Käse"), ("2", "x")]) + "\n")
    rows, rejected, _ = read(path)
    assert rows == [(2, {"id": "1", "title": "Ein Käse"}), (3, {"id": "2", "title": "x"})]
    assert rejected == []


def test_numbered_columns_mean_no_header(tmp_path: Path) -> None:
    path = tmp_path / "movies.dat"
    path.write_text("0002844::Fantômas (1913)::Crime|Drama\n", encoding="utf-8")
    rows, _, _ = read(path, columns={"item_id": "0", "title": "1"})
    assert rows == [(1, {"0": "0002844", "1": "Fantômas (1913)", "2": "Crime|Drama"})]


def test_typed_header(tmp_path: Path) -> None:
    path = tmp_path / "x.item"
    path.write_text("item_id:token\tmovie_title:token_seq\tclass:token_seq\n1\tToy Story\tAnimation Comedy\n")
    rows, _, source = read(path)
    assert rows[0][1] == {"item_id": "1", "movie_title": "Toy Story", "class": "Animation Comedy"}
    assert source.list_columns == {"movie_title", "class"}


def test_bad_rows_are_rejected_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,title\n"
        b'1,"two\nlines"\n'
        b"2,too,many\n"
        b"3,caf\xe9\n"
        b"\n"
        b'4,"never closed\n'
        b"5,fine\r\n"
        b"6\n"
        b'7,"quote" astray\n'
        b"8,last"
    )
    rows, rejected, source = read(path)
    assert [(line, values["id"]) for line, values in rows] == [(2, "1"), (8, "5"), (11, "8")]
    assert [(entry["line"], entry["reason"]) for entry in rejected] == [
        (4, "wrong_column_count"),
        (5, "undecodable"),
        (7, "bad_quoting"),
        (9, "wrong_column_count"),
        (10, "bad_quoting"),
    ]
    assert source.rows_read == len(rows) + len(rejected)


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(b'{"id": 1}\n[1]\n{"id": \n\xff\xfe\n{"id": 2, "title": "x"}\n')
    rows, rejected, _ = read(path)
    assert rows == [(1, {"id": 1}), (5, {"id": 2, "title": "x"})]
    assert [(entry["line"], entry["reason"]) for entry in rejected] == [
        (2, "bad_json"),
        (3, "bad_json"),
        (4, "undecodable"),
    ]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, None], "genres": [["a", "b"], []]}), path)
    rows, _, _ = read(path)
    assert rows == [(1, {"id": 1, "genres": ["a", "b"]}), (2, {"id": None, "genres": []})]


def test_a_file_that_is_no_file_raises(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no file"):
        read(tmp_path / "absent.csv")
    for name, content in [("a.parquet", b"no parquet"), ("b.csv.gz", b"no gzip"), ("c.csv", b"")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=name):
            read(tmp_path / name)


def test_a_mapping_to_an_absent_column_raises(tmp_path: Path) -> None:
    source = Source(tmp_path / "a.csv", {"title": "name+year"})
    with pytest.raises(ColumnError, match="no column 'year' for title"):
        source.resolve(["id", "name"], {"title": ("title",)})
    with pytest.raises(ColumnError, match="cannot map 'colour'"):
        Source(tmp_path / "a.csv", {"colour": "x"}).resolve(["x"], {"title": ("title",)})


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=12))
def test_no_bytes_break_the_reader_or_vanish(tmp_path: Path, body: list[bytes]) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(b"\n".join([b"id,title", *body]) + b"\n")
    rows, rejected, source = read(path)
    assert len(rows) + len(rejected) == source.rows_read
    lines = [line for line, _ in rows] + [int(str(entry["line"])) for entry in rejected]
    assert len(set(lines)) == len(lines)
