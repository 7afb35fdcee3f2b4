"""`heliotrope bench suite`: what a nightly run measures of the machinery, one command after the other, and its page.

Each command runs in a process of its own and leaves its raw results in one folder. What fails does not stop the rest.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.dataset import data_folder
from heliotrope_bench.errors import BenchError, JobFailedError
from heliotrope_bench.job import run_job
from heliotrope_bench.report import print_table
from heliotrope_bench.snapshot_job import MODEL_PACKAGE, export_model
from heliotrope_bench.synthetic_store import synthetic_store
from heliotrope_bench.titles import titles_store

Plan = Callable[["SuiteOptions"], list[str]]
ITEMS, DIMENSION = 60_000, 63
LARGEST = 1_000_000

STEPS: dict[str, Plan] = {
    "load": lambda options: ["--snapshots", str(_store(options)), "--rounds", "2", "--duration-s", "5"],
    "shards": lambda options: ["--snapshots", str(_store(options)), "--rounds", "2", "--duration-s", "5"],
    "encode": lambda options: ["--model", str(export_model(options.work)), "--source", MODEL_PACKAGE, "--rounds", "3"],
    "memory": lambda options: ["--dimension", str(DIMENSION), *_work(options)],
    "growth": lambda options: ["--rounds", "3", *_work(options)],
    "filters": lambda options: ["--rounds", "3", *_work(options)],
    "live": lambda options: ["--data", _texts(), "--rounds", "3", *_work(options)],
    # After growth, which makes the same snapshot of a million items.
    "start": lambda options: ["--items", str(LARGEST), *_work(options)],
    "rebuild": lambda options: ["--items", "10000", "--users", "1000", *_work(options)],
    "ann": lambda options: ["--items", str(ITEMS), "--rounds", "3", *_work(options)],
    "peers": lambda options: ["--items", "20000", "--rounds", "1", "--duration-s", "4", *_work(options)],
}
"""The arguments of each command but --out, in the order of the run."""


class SuiteOptions(BaseSettings):
    """Runs the benchmarks of the machinery one after the other and writes their page."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench suite", cli_kebab_case=True, cli_hide_none_type=True
    )

    steps: list[str] = Field(list(STEPS), description=f"any of {', '.join(STEPS)}")
    work: Path = Field(Path(".bench"), description="where models and snapshots are kept between runs")
    out: Path = Field(Path(".bench/suite"), description="folder of the raw results and of the page")


def run(options: SuiteOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs all steps; raises a BenchError that names those that failed, after the page was written."""
    for name in options.steps:
        if name not in STEPS:
            raise BenchError(f"there is no step {name!r}; there are {', '.join(STEPS)}")
    rows: list[dict[str, Any]] = []
    for name in options.steps:
        console.rule(name)
        started, failure = time.perf_counter(), ""
        try:
            run_job(["bench", name, *STEPS[name](options), "--out", str(options.out / f"{name}.json")])
        except JobFailedError as error:
            failure = str(error)
        rows.append({"step": name, "seconds": time.perf_counter() - started, "failure": failure})
    run_job(["bench", "report", "--results", str(options.out), "--out", str(options.out / "report.html")])
    print_table(console, "the suite", rows, {"step": "", "seconds": ",.0f", "failure": ""})
    failed = [str(row["step"]) for row in rows if row["failure"]]
    if failed:
        raise BenchError(f"{', '.join(failed)} failed; what they said is above")


def _store(options: SuiteOptions) -> Path:
    """A snapshot of real texts, or a synthetic one where there are none."""
    if (data_folder() / "titles-large").is_dir():
        return titles_store(options.work, export_model(options.work), ITEMS, DIMENSION)
    return synthetic_store(options.work / "synthetic", ITEMS, DIMENSION)


def _texts() -> str:
    return "alike" if (data_folder() / "titles-large").is_dir() else "synthetic"


def _work(options: SuiteOptions) -> list[str]:
    return ["--work", str(options.work)]
