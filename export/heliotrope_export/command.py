"""Exports a BERT-family encoder to verified ONNX graphs: a model folder."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, CliApp, CliPositionalArg, NoDecode, SettingsConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from heliotrope_export.errors import AgreementError, ExportError
from heliotrope_export.exporter import Export, export_model
from heliotrope_export.manifest import VARIANTS, VariantName

USAGE_ERROR = 2
FAILURE = 1


class ExportSettings(BaseSettings):
    """Exports a BERT-family encoder to ONNX, verifies every variant against PyTorch, and publishes a model folder.

    Nothing is downloaded. The folder appears at once and complete, or not at all.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_EXPORT_",
        cli_prog_name="heliotrope export",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    model: CliPositionalArg[str] = Field(
        description="folder of a model that transformers can load, or name of an installed package that holds one"
    )
    out: Path = Field(description="the model folder to write")
    variants: Annotated[tuple[VariantName, ...], NoDecode] = Field(
        default=("fp32", "int8"),
        min_length=1,
        description="comma-separated: fp32, fp16 (for CUDA), int8 (for CPU)",
    )
    max_tokens: int | None = Field(
        default=None, description="longest text in tokens, the rest is cut off; null is what the model declares"
    )
    force: bool = Field(default=False, description="replace another model in --out")

    @field_validator("variants", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        # The command line hands over a tuple, the environment a string.
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts) if isinstance(parts, list | tuple) else parts


def main(arguments: list[str]) -> int:
    """Runs the command. Returns 0, 1 where a variant missed its bound, 2 where the request cannot be met."""
    try:
        settings = CliApp.run(ExportSettings, cli_args=arguments)
    except ValidationError as error:
        for problem in error.errors():
            flag = "--" + str(problem["loc"][0]).replace("_", "-") if problem["loc"] else "settings"
            print(f"heliotrope export: {flag} {problem['input']!r}: {problem['msg']}", file=sys.stderr)
        return USAGE_ERROR
    except SystemExit as finished:  # argparse: --help, or a flag that it does not know
        return finished.code if isinstance(finished.code, int) else USAGE_ERROR
    try:
        export = _with_progress(settings)
    except AgreementError as error:
        print(f"heliotrope export: {error}", file=sys.stderr)
        return FAILURE
    except (ExportError, OSError) as error:
        print(f"heliotrope export: {error}", file=sys.stderr)
        return USAGE_ERROR
    _show(export, settings.out)
    return 0


def _with_progress(settings: ExportSettings) -> Export:
    """The export, with a bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
    with bar or nullcontext():
        task = bar.add_task("reading the source", total=None) if bar else None

        def announce(step: str, done: int, total: int) -> None:
            if bar is not None and task is not None:
                bar.update(task, description=step, completed=done, total=total)

        return export_model(
            settings.model,
            settings.out,
            variants=settings.variants,
            max_tokens=settings.max_tokens,
            force=settings.force,
            announce=announce,
        )


def _show(export: Export, out: Path) -> None:
    manifest = export.manifest
    space = manifest.space
    console = Console()
    state = "is current, nothing to do" if export.reused else "published"
    console.print(
        f"{out} {state}: {manifest.source.name} {space.model_version}, {space.dimension} dimensions, "
        f"{space.max_tokens} tokens, {space.pooling} pooling",
        soft_wrap=True,
        highlight=False,
    )
    table = Table(
        "variant", "MB", "cosine min", "cosine mean", "overlap@10", title="agreement with PyTorch (on the CPU)"
    )
    for variant in VARIANTS:
        if record := manifest.variants.get(variant):
            found = record.agreement
            table.add_row(
                variant,
                f"{record.file.bytes / 1e6:.1f}",
                f"{found.cosine_min:.6f}",
                f"{found.cosine_mean:.6f}",
                f"{found.overlap_at_10:.3f}",
            )
    console.print(table)
