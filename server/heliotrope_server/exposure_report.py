"""`heliotrope exposure`: who was shown, from the impression log: by provider and by category.

Exposure is position-discounted: place k of an answer is worth 1 / log2(1 + k) (Singh and Joachims, 2018). A group's
share of it stands beside its share of the catalogue: where exposure is far above, the group is favoured, by its merit
or by the system. Items with several categories count in each, so the shares of categories add up to more than 1.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict
from rich.console import Console
from rich.table import Table

from heliotrope_indexer.snapshot import Snapshot, SnapshotStore
from heliotrope_server.command import one_line_errors
from heliotrope_server.errors import DataFolderError
from heliotrope_server.layout import impression_folders
from heliotrope_server.learning.impression_log import ImpressionRecord, read_impressions

Kind = Literal["provider", "category"]
NONE = "(none)"
UNKNOWN = "(not in the snapshot)"


class ExposureOptions(BaseSettings):
    """Shows how the answers of a server were shared among providers and categories.

    Needs an impression log: `heliotrope serve --impression-log-share 0.1`. Items that came after the snapshot are
    counted as "(not in the snapshot)".
    """

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix="HELIOTROPE_EXPOSURE_",
        cli_prog_name="heliotrope exposure",
        cli_kebab_case=True,
        cli_hide_none_type=True,
    )

    data: Path = Field(description="data folder of a server, which may be running")
    snapshots: str = Field(description="snapshot store, for providers and categories of the items")
    out: Path | None = Field(None, description="file for all rows, .json")
    rows: int = Field(20, ge=1, description="rows to show of each table, those with most exposure")


@dataclass(frozen=True)
class GroupExposure:
    """One group: how much of the catalogue it is, and how much of what was shown."""

    kind: Kind
    group: str
    items: int
    items_shown: int
    """Distinct items of the group that were shown at least once."""
    impressions: int
    catalogue_share: float
    exposure_share: float

    @property
    def ratio(self) -> float:
        """Exposure over catalogue: 1 is in proportion; infinite for a group without an item in the catalogue."""
        return self.exposure_share / self.catalogue_share if self.catalogue_share else math.inf


def main(arguments: list[str]) -> int:
    """Runs the command; its exit code says whether it worked."""
    with one_line_errors() as outcome:
        options = CliApp.run(ExposureOptions, cli_args=arguments)
        if options.out is not None and options.out.suffix != ".json":
            raise DataFolderError(f"{options.out} must end in .json")
        folders = impression_folders(options.data)
        if not folders:
            raise DataFolderError(f"{options.data} holds no impression log; serve with --impression-log-share 0.1")
        records = (record for folder in folders for record in read_impressions(folder))
        answers, groups = exposure(records, SnapshotStore(options.snapshots).open())
        if not answers:
            raise DataFolderError(f"the impression log of {options.data} is empty")
        if options.out is not None:
            options.out.write_text(json.dumps([asdict(group) for group in groups], indent=1) + "\n", encoding="utf-8")
        _show(answers, groups, options.rows)
    return outcome.code


def exposure(records: Iterable[ImpressionRecord], snapshot: Snapshot) -> tuple[int, list[GroupExposure]]:
    """How many answers there were, and all groups, those with most exposure first, providers before categories."""
    answers = 0
    impressions: Counter[str] = Counter()
    worth: dict[str, float] = {}
    for record in records:
        answers += 1
        for place, item_id in enumerate(record.item_ids, start=1):
            impressions[item_id] += 1
            worth[item_id] = worth.get(item_id, 0.0) + 1.0 / math.log2(1.0 + place)
    labels: dict[str, dict[Kind, tuple[str, ...]]] = {}
    for row in range(len(snapshot)):
        item = snapshot.item(row)
        labels[item.item_id] = {
            "provider": (item.provider or NONE,),
            "category": tuple(dict.fromkeys(item.categories)) or (NONE,),
        }
    kinds: tuple[Kind, ...] = ("provider", "category")
    return answers, [group for kind in kinds for group in _groups(kind, labels, worth, impressions)]


def _groups(
    kind: Kind,
    labels: Mapping[str, Mapping[Kind, tuple[str, ...]]],
    worth: Mapping[str, float],
    impressions: Mapping[str, int],
) -> list[GroupExposure]:
    items: Counter[str] = Counter(name for own in labels.values() for name in own[kind])
    shown: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    exposed: dict[str, float] = dict.fromkeys(items, 0.0)
    for item_id, amount in worth.items():
        for name in labels[item_id][kind] if item_id in labels else (UNKNOWN,):
            shown[name] += 1
            seen[name] += impressions[item_id]
            exposed[name] = exposed.get(name, 0.0) + amount
    total = sum(worth.values())
    return sorted(
        (
            GroupExposure(
                kind=kind,
                group=name,
                items=items[name],
                items_shown=shown[name],
                impressions=seen[name],
                catalogue_share=items[name] / len(labels),
                exposure_share=amount / total if total else 0.0,
            )
            for name, amount in exposed.items()
        ),
        key=lambda group: (-group.exposure_share, group.group),
    )


def _show(answers: int, groups: list[GroupExposure], rows: int) -> None:
    console = Console()
    for kind in ("provider", "category"):
        own = [group for group in groups if group.kind == kind]
        table = Table(title=f"exposure by {kind}, {answers:,} answers")
        columns: dict[str, Any] = {kind: "left"}
        columns |= dict.fromkeys(("items", "shown", "impressions", "of catalogue", "of exposure", "ratio"), "right")
        for name, justify in columns.items():
            table.add_column(name, justify=justify)
        for group in own[:rows]:
            ratio = f"{group.ratio:.2f}" if math.isfinite(group.ratio) else "-"
            shares = (f"{group.catalogue_share:.1%}", f"{group.exposure_share:.1%}", ratio)
            table.add_row(group.group, f"{group.items:,}", f"{group.items_shown:,}", f"{group.impressions:,}", *shares)
        console.print(table)
        if len(own) > rows:
            console.print(f"and {len(own) - rows:,} more; `--out` writes all", style="dim")
