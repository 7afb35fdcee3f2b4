"""`heliotrope bench report`: one HTML page, and PNG plots beside it, from the raw results in a folder.

The page needs no other file and no network. Every figure on it comes from the raw results.
"""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.bounds import Verdict, verdicts
from heliotrope_bench.raw_results import RawResults, as_written_by, read_folder
from heliotrope_bench.report_plot import draw
from heliotrope_bench.report_sections import SECTIONS, Cell, table

MOST_ROWS = 30
"""Longer tables are folded up."""


class PageOptions(BaseSettings):
    """Draws a page of all raw results in a folder."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench report", cli_kebab_case=True, cli_hide_none_type=True
    )

    results: Path = Field(description="folder with the JSON files that the bench commands wrote")
    out: Path = Field(Path("bench.html"), description="the page; its plots as PNG go into a folder of the same name")

    @field_validator("out")
    @classmethod
    def _has_an_ending(cls, out: Path) -> Path:
        if not out.suffix:
            raise ValueError(f"{out} has no ending such as .html: the folder of the plots needs its name")
        return out


@dataclass(frozen=True)
class Run:
    """One file as it is shown; `picture` is a data URI, empty where there is no plot."""

    file: RawResults
    headings: list[str]
    rows: list[list[Cell]]
    picture: str


@dataclass(frozen=True)
class Part:
    """All files of one kind."""

    kind: str
    title: str
    about: str
    runs: list[Run]


def run(options: PageOptions, arguments: Sequence[str], console: Console) -> None:
    """Writes the page and its plots; raises ResultError for a broken file and where there is nothing to show."""
    files = read_folder(options.results)
    plots = options.out.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    found = verdicts(files)
    options.out.write_text(page(parts(files, plots), found, len(files)), encoding="utf-8")
    counts = _counts(found)
    console.print(
        f"{options.out}: {len(files)} files; bounds: {', '.join(f'{n} {word}' for word, n in counts.items())}"
    )


def parts(files: Sequence[RawResults], plots: Path) -> list[Part]:
    """Kinds that the page knows in its own order, then the others by name. Writes the plots into `plots`."""
    kinds = sorted({file.kind for file in files}, key=lambda kind: (kind not in SECTIONS, _place(kind), kind))
    found = []
    for kind in kinds:
        section = SECTIONS.get(kind)
        runs = [_run(file, plots) for file in files if file.kind == kind]
        found.append(Part(kind, section.title if section else kind, section.about if section else "", runs))
    return found


def page(shown: Sequence[Part], found: Sequence[Verdict], file_count: int) -> str:
    """The HTML."""
    environment = Environment(
        loader=PackageLoader("heliotrope_bench"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("report.html.j2")
    return template.render(
        sections=shown, verdicts=found, counts=_counts(found), file_count=file_count, MOST_ROWS=MOST_ROWS
    )


def _run(file: RawResults, plots: Path) -> Run:
    with as_written_by(file):
        headings, rows = table(SECTIONS.get(file.kind), file.results)
        svg = draw(file, plots / f"{file.name}.png")
    picture = "" if svg is None else f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"
    return Run(file, headings, rows, picture)


def _counts(found: Sequence[Verdict]) -> dict[str, int]:
    counted = Counter(verdict.word for verdict in found)
    return {word: counted[word] for word in ("holds", "does not hold", "not measured")}


def _place(kind: str) -> int:
    return list(SECTIONS).index(kind) if kind in SECTIONS else 0
