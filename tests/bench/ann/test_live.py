"""`heliotrope bench live` on a small catalogue."""

import json

from heliotrope_bench.ann import live
from heliotrope_bench.command import main


def test_every_size_is_measured_both_ways_and_good_enough(tmp_path, capsys):
    out = tmp_path / "live.json"
    arguments = ["--data", "synthetic", "--items", "20001", "--live", "0,300,2000", "--dimension", "15"]
    counts = ["--at-once", "70", "--queries", "70", "--rounds", "2", "--threads", "1"]
    assert main(["live", *arguments, *counts, "--work", str(tmp_path), "--out", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    asked = [row for row in results if "mode" in row]
    assert len(asked) == 3 * 2 * 2
    for row in asked:
        assert len(row["all_us"]) == len(row["all_p99_us"]) == 2
        assert row["recall"] >= 0.97
        assert row["over_exact"] == 1.0 or row["delta"] == "sealed"
        assert row["over_none"] == row["p99_over_none"] == 1.0 or row["live"]
    added = [row for row in results if "seal_us" in row]
    assert [row["live"] for row in added] == [300, 2_000]
    for row in added:
        assert row["least_recall"] >= 0.97
        assert row["upsert_us"] > 0 and row["longest_seal_ms"] > 0
    assert "over_exact" in capsys.readouterr().out


def test_a_recall_that_falls_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(live, "RECALL", 1.01)
    arguments = ["--data", "synthetic", "--items", "20001", "--live", "0,10", "--dimension", "15", "--queries", "20"]
    counts = ["--rounds", "1", "--threads", "1", "--work", str(tmp_path), "--out", str(tmp_path / "live.json")]
    assert main(["live", *arguments, *counts]) == 1
    assert "on the way to 10 live items recall fell to" in capsys.readouterr().err


def test_sizes_that_cannot_be_are_named(tmp_path, capsys):
    for sizes, words in (("0,x", "'0,x' are not numbers"), ("5,5", "'5,5' are not growing numbers from 0")):
        assert main(["live", "--live", sizes, "--work", str(tmp_path)]) == 1
        assert words in capsys.readouterr().err
