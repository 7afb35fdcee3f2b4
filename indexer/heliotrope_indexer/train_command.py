"""`heliotrope train`: catalogue + events + model -> weights, learned by back-propagation.

    heliotrope train --model MODEL --catalogue movies.csv --events ratings.csv --out weights
    heliotrope build --model MODEL --catalogue movies.csv --events ratings.csv --weights weights --out snapshots

`--settings` takes the file that `heliotrope tune` wrote. A job that was stopped goes on where it was when it is started
again; with nothing changed it does nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from rich.console import Console
from rich.table import Table

from heliotrope_indexer.errors import SettingsError
from heliotrope_indexer.input_settings import InputSettings, run_command
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.threads import sleep_when_waiting
from heliotrope_indexer.training_settings import TrainingSettings

if TYPE_CHECKING:
    from heliotrope_indexer.training_job import TrainingResult


class TrainSettings(InputSettings):
    """Learns item vectors, biases, the scoring layer, half-lives and gains from events in the order of time.

    Each user's last positive event is held out to find the best number of epochs and to calibrate probabilities; then
    everything is trained again with all events. OUT/curves.csv holds loss, HR@10 and NDCG@10 of each epoch.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_TRAIN_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="heliotrope train",
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    out: Annotated[Path, Field(description="weights folder; replaced when the training is done")]
    settings: Annotated[Path | None, Field(description="settings file, as `heliotrope tune` writes it")] = None
    epochs: Annotated[int | None, Field(ge=1, description="epochs at most, in place of those of the settings")] = None
    seed: Annotated[int | None, Field(ge=0, description="seed of everything random, in place of the settings'")] = None
    refit: Annotated[bool, Field(description="train again on all events; without it the held-out ones stay out")] = True
    device: Annotated[str, Field(description="cpu, cuda, or auto: a GPU where torch finds one")] = "auto"


def main(arguments: list[str]) -> int:
    """Runs the command; 0 done, 1 the job failed, 2 the settings or an input file are wrong."""
    return run_command("train", TrainSettings, arguments, _run)


def chosen_device(name: str) -> str:
    """The torch device that `auto`, `cpu` or `cuda` names. Raises SettingsError for one that is not there."""
    sleep_when_waiting()
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise SettingsError(f"there is no device {name!r}; there are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: torch finds no GPU here")
    return name


def _run(options: TrainSettings) -> None:
    sleep_when_waiting()
    from heliotrope_indexer.training_job import TrainingRequest, train

    settings = TrainingSettings() if options.settings is None else TrainingSettings.read(options.settings)
    changes = {"epochs": options.epochs, "seed": options.seed}
    settings = settings.model_copy(update={key: value for key, value in changes.items() if value is not None})
    request = TrainingRequest(
        sources=options.sources(options.out.with_name(options.out.name + ".embeddings")),
        settings=settings,
        out=options.out,
        refit=options.refit,
        device=chosen_device(options.device),
        threads=options.threads,
    )
    _report(train(request, options.encoder(), Steps(quiet=options.quiet)), options.out)


def _report(result: TrainingResult, out: Path) -> None:
    if result.reused:
        print(f"heliotrope: nothing changed, {out} holds these weights")
        return
    manifest, training = result.manifest, result.manifest.training
    table = Table(title=f"weights {out}", show_header=False)
    table.add_row("events", f"{manifest.events:,}, until {manifest.events_until_time}")
    table.add_row("epochs", f"{training['epochs']}, {training['seconds']} s")
    if result.resumed_at is not None:
        table.add_row("resumed", f"after {result.resumed_at} epochs")
    validation = training.get("validation")
    if validation:
        figures = f"HR@10 {validation['hr@10']}, NDCG@10 {validation['ndcg@10']} over {validation['users']} users"
        table.add_row("validation", figures)
    parameters = manifest.parameters
    table.add_row("half-lives", ", ".join(f"{each:,.0f} s" for each in parameters.half_lives_s))
    for warning in training["degenerate"]:
        table.add_row("warning", warning)
    for reason, count in result.rejects.items():
        table.add_row(f"rejected: {reason}", f"{count:,} rows")
    Console().print(table)
    print(f"heliotrope: trained {out}")
