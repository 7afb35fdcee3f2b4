"""`heliotrope tune`: searches the settings of `heliotrope train` on held-out events.

    heliotrope tune  --model MODEL --catalogue movies.csv --events ratings.csv --out settings.json
    heliotrope train --model MODEL --catalogue movies.csv --events ratings.csv --settings settings.json --out weights

Each user's last positive event is held out; nothing else decides. A few trials are enough to find the half-life of live
popularity and how much low ratings say; most trials are stopped after a few epochs.
"""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from rich.console import Console
from rich.table import Table

from heliotrope_indexer.errors import SettingsError
from heliotrope_indexer.input_settings import InputSettings, run_command
from heliotrope_indexer.job_input import read_input
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.threads import sleep_when_waiting
from heliotrope_indexer.train_command import chosen_device
from heliotrope_indexer.training_settings import TrainingSettings

if TYPE_CHECKING:
    from heliotrope_indexer.settings_search import Searched


class TuneSettings(InputSettings):
    """Searches training settings with Optuna and writes the best of them to OUT, and all trials to OUT.trials.csv."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_TUNE_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="heliotrope tune",
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    out: Annotated[Path, Field(description="settings file to write, JSON")]
    start: Annotated[Path | None, Field(description="settings file to start from; default the defaults")] = None
    trials: Annotated[int, Field(ge=1, le=10_000, description="settings to try")] = 8
    seed: Annotated[int, Field(ge=0, description="seed of everything random")] = 0
    device: Annotated[str, Field(description="cpu, cuda, or auto: a GPU where torch finds one")] = "auto"


def main(arguments: list[str]) -> int:
    """Runs the command; 0 done, 1 the job failed, 2 the settings or an input file are wrong."""
    return run_command("tune", TuneSettings, arguments, _run)


def _run(options: TuneSettings) -> None:
    sleep_when_waiting()
    import torch

    from heliotrope_indexer.settings_search import search
    from heliotrope_indexer.training_job import Validation

    torch.set_num_threads(options.threads)
    start = TrainingSettings() if options.start is None else TrainingSettings.read(options.start)
    start = start.model_copy(update={"seed": options.seed})
    device, steps = chosen_device(options.device), Steps(quiet=options.quiet)
    sources = options.sources(options.out.with_name(options.out.stem + ".embeddings"))
    sources.check()
    with tempfile.TemporaryDirectory(prefix="heliotrope-tune-") as scratch:
        job = read_input(sources, Path(scratch) / "rejects.jsonl", options.encoder(), steps)
    validation = Validation(job, options.positive_rating, seed=options.seed)
    if not validation.users:
        raise SettingsError("there is nothing to compare settings on: no user has a positive event after another one")
    with steps.step("try settings", options.trials) as advance:
        searched = search(job, validation, start, trials=options.trials, device=device, progress=advance)
    _write(options.out, searched)
    _report(options.out, searched)


def _write(out: Path, searched: Searched) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(out.name + ".trials.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(searched.table[0]))
        writer.writeheader()
        writer.writerows(searched.table)
    draft = out.with_name(out.name + ".new")
    draft.write_text(searched.settings.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(draft, out)


def _report(out: Path, searched: Searched) -> None:
    table = Table(title=f"settings {out}", show_header=False)
    quality = searched.quality
    table.add_row("trials", str(searched.trials))
    table.add_row(
        "validation",
        f"HR@10 {quality.hit_rate_at_10:.4f}, NDCG@10 {quality.ndcg_at_10:.4f} over {quality.users} users",
    )
    defaults = TrainingSettings().model_dump()
    for name, value in searched.settings.model_dump().items():
        if value != defaults[name]:
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    print(f"heliotrope: wrote {out}")
