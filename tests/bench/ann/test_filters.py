"""`heliotrope bench filters` on a small catalogue, and the copy of a snapshot that it filters."""

import json

import numpy as np
import pytest

from heliotrope_bench import synthetic_store as synthetic
from heliotrope_bench.ann.attributed_store import CHANCE, TASTE, attributed_store
from heliotrope_bench.command import main
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server import allowed_rows


@pytest.fixture(autouse=True)
def small_catalogues_have_an_index(monkeypatch):
    monkeypatch.setattr(synthetic, "EXACT_UP_TO", 1_000)
    monkeypatch.setattr(allowed_rows, "LISTED", 500)


def test_every_share_is_beside_no_filter_and_good_enough(tmp_path, capsys):
    out = tmp_path / "filters.json"
    arguments = ["--items", "4000", "--dimension", "15", "--queries", "70", "--rounds", "2", "--shares", "1,0.3,0.01"]
    assert main(["filters", *arguments, "--threads", "1", "--work", str(tmp_path), "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    rows = report["results"]
    assert report["settings"]["served_items"] == 4_000
    assert len(rows) == 2 + 3 * 2 * 2
    for row in rows:
        assert row["recall"] >= 0.97
        assert len(row["all_us"]) == 2
        if row["share"] == 1.0:
            assert row["rows"] == 4_000
        elif row["filter"] == CHANCE:
            assert row["rows"] == pytest.approx(4_000 * row["share"], rel=0.5)
    assert {row["over_unfiltered"] for row in rows if row["filter"] == "none"} == {1.0}
    assert "over_unfiltered" in capsys.readouterr().out


def test_shares_that_cannot_be_are_named(tmp_path, capsys):
    for shares, words in (("1,x", "'1,x' are not numbers"), ("0.5,0", "holds 0; a share is above 0")):
        assert main(["filters", "--shares", shares, "--work", str(tmp_path)]) == 1
        assert words in capsys.readouterr().err


def test_a_copy_keeps_the_vectors_and_one_of_its_numbers_keeps_neighbourhoods(tmp_path):
    source = SnapshotStore(synthetic.synthetic_store(tmp_path / "synthetic", 3_000, 15, threads=1)).open()
    copy = SnapshotStore(attributed_store(source, tmp_path / "copy")).open()
    np.testing.assert_array_equal(copy.vectors, source.vectors)
    assert copy.parameters.search == source.parameters.search
    columns, near = copy.columns(), {}
    distances = ((np.array(source.vectors)[:, None, :] - np.array(source.vectors)[None, :300, :]) ** 2).sum(axis=2)
    for key in (CHANCE, TASTE):
        kept = columns.entries("number_attributes", key).values <= 0.3
        # Of the items nearest to one that is kept, how many are kept too.
        closest = np.argsort(distances, axis=0)[1:6]
        near[key] = kept[closest][:, kept[:300]].mean()
    assert near[TASTE] > near[CHANCE] + 0.2
