"""How `heliotrope snapshots` shows what it found to a person."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from heliotrope_indexer.manifest import Manifest

_WIDTH = 160
_VERSION_WIDTH = 29


def headline(manifest: Manifest) -> dict[str, Any]:
    """What tells one version from another in a list."""
    quality = manifest.quality
    return {
        "built": manifest.build_time,
        "items": manifest.n_items,
        "dimensions": manifest.dimension,
        "events": manifest.data.event_rows,
        "recall@10": quality.get("recall_at_10"),
        "hr@10": quality.get("validation", {}).get("hr@10"),
        "bytes": manifest.total_bytes,
    }


def list_table(rows: list[dict[str, Any]]) -> None:
    marks = ("current", "previous", "served", "withdrawn")
    table = Table(title=f"{len(rows)} versions")
    names = ["version", "", *(name for name in rows[0] if name not in ("version", *marks))]
    for name in names:
        # A version that is cut can't be copied.
        width = _VERSION_WIDTH if name == "version" else None
        table.add_column(name, justify="left" if name in ("version", "", "built") else "right", min_width=width)
    for row in rows:
        state = ", ".join(mark for mark in marks if row[mark])
        table.add_row(row["version"], state, *(_shown(row[name]) for name in names[2:]))
    _console().print(table)
    for row in rows:
        if row["withdrawn"]:
            print(f"withdrawn {row['version']}: {row['withdrawn']}")


def show_table(facts: dict[str, Any]) -> None:
    table = Table(title=f"snapshot {facts['version']}", show_header=False)
    for name in ("path", "build_time", "n_items", "dimension", "feature_dimension", "bytes"):
        table.add_row(name.replace("_", " "), _shown(facts[name]))
    table.add_row("model", f"{facts['model_version']} {facts['model_variant']}")
    for part in ("data", "quality"):
        for name, value in _flat(facts[part]):
            table.add_row(f"{part}: {name.replace('_', ' ')}", _shown(value))
    for name, file in facts["files"].items():
        table.add_row(f"file: {name}", f"{file['bytes']:,} bytes")
    for move in facts["activations"]:
        table.add_row(move["how"], f"{move['time']} {move['reason']}".strip())
    _console().print(table)


def diff_table(content: dict[str, Any]) -> None:
    console, items = _console(), content["items"]
    table = Table(title="what changed", show_lines=False)
    for name in ("", content["old"], content["new"]):
        table.add_column(name, overflow="fold")
    for part in ("rows", "lineage", "quality"):
        for name, (old, new) in content[part].items():
            table.add_row(name, _shown(old), _shown(new), style=None if old == new else "bold")
        table.add_section()
    console.print(table)
    fields = ", ".join(f"{name} {count:,}" for name, count in items["changed_by_field"].items() if count) or "none"
    print(f"items added    {items['added']:,}{_examples(items['added_ids'])}")
    print(f"items removed  {items['removed']:,}{_examples(items['removed_ids'])}")
    print(f"items changed  {items['changed']:,}{_examples(items['changed_ids'])}")
    print(f"  texts {items['changed_texts']:,}; by field: {fields}")
    drift, overlap = content["drift"], content["top_10_overlap"]
    if drift is None:
        print("vector drift   - (other dimensions, or no shared items)")
    else:
        how = "after the best rotation" if drift["aligned"] else "on the same weights"
        figures = ", ".join(f"{name} {drift[name]}" for name in ("mean", "p50", "p90", "p99", "largest"))
        print(f"vector drift   {figures} of a vector's length, {drift['items']:,} shared items, {how}")
    print(f"top-10 overlap {'-' if overlap is None else overlap} over the same simulated users")


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in content.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        elif value not in (None, []):
            rows.append((f"{prefix}{name}", value))
    return rows


def _examples(ids: list[str]) -> str:
    return f": {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}" if ids else ""


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _console() -> Console:
    console = Console()
    # A pipe has no width; versions must not be cut there.
    return console if console.is_terminal else Console(width=_WIDTH)
