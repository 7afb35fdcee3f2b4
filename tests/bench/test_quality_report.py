"""The page of results, from files as `bench quality` writes them."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from heliotrope_bench.errors import ResultError
from heliotrope_bench.protocol import PROTOCOLS
from heliotrope_bench.quality_report import ReportOptions, run
from heliotrope_bench.result import Result, write_results
from tests.bench.toy_ratings import toy_dataset

VARIANTS = {
    "last-positive": [""],
    "time-split": ["live", "frozen"],
    "cold-items": ["no event", "no event, later targets", "5 events"],
    "cold-users": ["0 events", "1 event", "3 events", "5 events"],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for protocol, variants in VARIANTS.items():
        for model, worst in (("heliotrope", 20), ("popularity", 60), ("chance", 0)):
            found = [
                Result(
                    dataset="movielens-small",
                    protocol=protocol,
                    variant=variant,
                    model=model,
                    fingerprint=protocol + variant,
                    users=list(range(300)),
                    above=generator.integers(0, worst, size=300).tolist() if worst else [0] * 300,
                    tied=[1_681 if model == "chance" else 1] * 300,
                    figures={
                        "coverage": 0.5,
                        "novelty": 3.0,
                        "diversity": None,
                        "average_popularity": 9.0,
                        "ece": 0.02,
                    },
                    settings={"half_life_s": 60.0},
                    trials=8,
                    seconds=1.5,
                )
                for variant in variants
            ]
            write_results(tmp_path / "raw", found, command=[], settings={"data": toy_dataset().facts()})
    return tmp_path / "raw"


def test_the_page_says_what_the_results_say(results: Path, tmp_path: Path) -> None:
    options = ReportOptions(results=results, out=tmp_path / "docs" / "quality.md")
    run(options, [], Console(file=io.StringIO()))
    text = options.out.read_text(encoding="utf-8")
    for protocol in PROTOCOLS:
        assert f"## {protocol.title}" in text and protocol.description in text
        assert (tmp_path / "docs" / "quality" / f"{protocol.name}.svg").read_text().startswith("<?xml")
        assert f"](quality/{protocol.name}.svg)" in text
    for variant in VARIANTS["cold-users"]:
        assert f"### movielens-small, {variant}" in text
    assert "| 2 / 0 / 0 |" in text  # better than both others
    assert "Heliotrope, *live* minus *frozen*: hr@10" in text and "times chance." in text
    assert "half life s 60.0" in text and "None" not in text and "nan" not in text


def test_a_page_of_ours_alone_compares_with_no_other(results: Path, tmp_path: Path) -> None:
    for path in results.rglob("*.json"):
        if path.stem in ("popularity", "chance"):
            path.unlink()
    options = ReportOptions(results=results, out=tmp_path / "parts.md", title="What each part is worth")
    run(options, [], Console(file=io.StringIO()))
    text = options.out.read_text(encoding="utf-8")
    assert text.startswith("# What each part is worth\n") and "In short" not in text and "| heliotrope |" in text


def test_the_same_results_make_the_same_page(results: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("one", "two"):
        options = ReportOptions(results=results, out=tmp_path / name / "quality.md")
        run(options, [], Console(file=io.StringIO()))
        pages.append({path.name: path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))})
    assert pages[0] == pages[1]


def test_no_results_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="run `heliotrope bench quality` first"):
        run(ReportOptions(results=tmp_path / "none"), [], Console(file=io.StringIO()))
