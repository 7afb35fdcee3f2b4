"""`heliotrope bench ann` and `growth` on small catalogues, with the libraries that are installed."""

import json

import numpy as np
import pytest

from heliotrope_bench import synthetic_store as synthetic
from heliotrope_bench.ann import ours
from heliotrope_bench.ann.contender import Contender
from heliotrope_bench.ann.growth import fit
from heliotrope_bench.ann.libraries import LIBRARIES
from heliotrope_bench.command import main


@pytest.fixture(autouse=True)
def small_catalogues_have_an_index(monkeypatch):
    monkeypatch.setattr(synthetic, "EXACT_UP_TO", 1_000)


def test_every_setting_of_ours_and_of_faiss_is_in_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ours, "NPROBES", (1, 64))
    monkeypatch.setattr(ours, "MARGINS", (3.0,))
    out = tmp_path / "ann.json"
    arguments = ["--data", "synthetic", "--items", "4000", "--dimension", "15", "--queries", "70", "--rounds", "2"]
    chosen = ["--contenders", "faiss-ivf,faiss-hnsw,faiss-flat", "--threads", "1", "--work", str(tmp_path)]
    assert main(["ann", *arguments, *chosen, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    rows = report["results"]
    assert report["settings"]["rows"] == [4_000, 16]
    assert {row["contender"] for row in rows} == {
        *("heliotrope", "FAISS IVF64,PQ8x4fs,RFlat", "FAISS HNSW", "FAISS Flat")
    }
    by_setting = {(row["contender"], row["setting"], row["mode"]): row for row in rows}
    assert by_setting["FAISS Flat", "exact", "single"]["recall"] == 1.0
    for mode in ("single", "batch"):
        # The build promises 0.97 on its own queries; these are others.
        assert by_setting["heliotrope", "as served", mode]["recall"] >= 0.94
        narrow = [row["recall"] for row in rows if " nprobe 1 " in row["setting"] and row["mode"] == mode]
        wide = [row["recall"] for row in rows if " nprobe 64 " in row["setting"] and row["mode"] == mode]
        assert max(wide) > max(narrow)
    for row in rows:
        assert row["rate"] > 0 and row["wall_rate"] > 0 and 1 <= len(row["rates"]) <= 2
    assert "on the frontiers" in capsys.readouterr().out


@pytest.mark.parametrize("entry", LIBRARIES, ids=lambda entry: entry.name)
def test_a_library_finds_the_best_rows_alone_and_in_a_batch(entry: Contender, tmp_path):
    if reason := entry.absence():
        pytest.skip(reason)
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(2_000, 16)).astype(np.float32), rng.normal(size=(20, 16)).astype(np.float32)
    truth = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    recalls = []
    for point in entry.points(rows, 1, tmp_path):
        together = point.batch(queries)
        alone = np.stack([point.single(query) for query in queries])
        assert together.shape == alone.shape == (20, 10)
        shares = [np.isin(found, best).mean() for found, best in zip(alone, truth, strict=True)]
        assert np.isin(together, alone).mean() > 0.95
        recalls.append(np.mean(shares))
    assert max(recalls) > 0.98


def test_a_contender_that_nobody_knows_and_a_catalogue_without_an_index_are_named(tmp_path, capsys):
    assert main(["ann", "--contenders", "annoyed", "--work", str(tmp_path)]) == 1
    assert "there is no contender 'annoyed'" in capsys.readouterr().err
    arguments = ["--data", "synthetic", "--items", "1000", "--dimension", "8", "--contenders", "faiss-flat"]
    assert main(["ann", *arguments, "--work", str(tmp_path)]) == 1
    assert "1,000 items has no index" in capsys.readouterr().err


def test_what_is_not_installed_is_named_with_the_extra():
    absent = Contender("x", "some-package", "no_such_module", lambda rows, threads, folder: iter(()))
    assert "some-package" in absent.absence() and "heliotrope[ann]" in absent.absence()


def test_growth_is_measured_fitted_and_plotted(tmp_path):
    out = tmp_path / "growth.json"
    arguments = [
        "--sizes",
        "500,1000,3000",
        "--dimension",
        "15",
        "--queries",
        "64",
        "--rounds",
        "2",
        "--duration-s",
        "0.5",
    ]
    assert main(["growth", *arguments, "--threads", "1", "--work", str(tmp_path), "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["results"]
    assert [row["items"] for row in rows if row.get("mode") == "batch" and "items" in row] == [500, 1_000, 3_000]
    requests = [row for row in rows if row.get("mode") == "request" and "items" in row]
    assert [row["items"] for row in requests] == [500, 1_000, 3_000]
    assert all(row["us"] > 0.0 and row["of_empty"] > 0.0 and len(row["rounds_us"]) == 2 for row in requests)
    assert [row["mode"] for row in rows if "over_log" in row] == ["request", "single", "batch"]
    assert {row["verdict"] for row in rows if "verdict" in row} <= {"no faster than log n", "faster than log n"}
    assert (tmp_path / "growth.svg").read_text().startswith("<?xml")


def test_a_fit_tells_log_n_from_the_root_of_n():
    sizes = (10_000, 100_000, 1_000_000)
    flat = fit([{"mode": "single", "items": n, "us": 5 + 2 * np.log2(n)} for n in sizes])
    assert flat["verdict"] == "no faster than log n"
    assert (flat["log_a_us"], flat["log_b_us"]) == (pytest.approx(5.0), pytest.approx(2.0))
    root = fit([{"mode": "single", "items": n, "us": np.sqrt(n)} for n in sizes])
    assert root["verdict"] == "faster than log n" and root["power"] == pytest.approx(0.5)


def test_sizes_that_cannot_be_are_named(tmp_path, capsys):
    for sizes in ("500", "900,500", "many,more"):
        assert main(["growth", "--sizes", sizes, "--work", str(tmp_path)]) == 1
        assert sizes in capsys.readouterr().err
