"""The one form of every benchmark's output: raw JSON with its conditions, and a table for the terminal."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

VERSIONED = (
    *("heliotrope", "grpcio", "protobuf", "numpy", "implicit"),
    *("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "onnxruntime", "onnxruntime-gpu"),
    *("hnswlib", "usearch", "voyager", "scann", "scalable-vs", "qdrant-edge-py"),
    *("pgserver", "asyncpg", "chromadb", "milvus-lite", "pymilvus", "zvec", "lancedb"),
)

Row = Mapping[str, Any]


def write_report(path: Path, *, command: Sequence[str], settings: Row, results: Sequence[Row]) -> None:
    """Writes `{"command", "git", "machine", "versions", "settings", "results"}`, aside first and then renamed."""
    report = {
        "command": ["heliotrope", *command],
        "git": git_revision(),
        "machine": machine(),
        "versions": versions(),
        "settings": dict(settings),
        "results": [dict(row) for row in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(json.dumps(report, indent=2, default=_plain) + "\n", encoding="utf-8")
    aside.replace(path)


def git_revision() -> dict[str, Any]:
    """Revision of the working tree that this package lies in, and whether it has changes; None outside of one."""

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"revision": git("rev-parse", "HEAD"), "changed": None if changes is None else bool(changes)}


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Versions of the installed packages that a figure may hang on."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal, which rich takes for 80 columns."""
    return Console(width=None if sys.stdout.isatty() else 150)


def print_table(console: Console, title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """A table of rows; `columns` maps a key to its format such as `.1f`, empty for text. Absent values are blank."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for key, form in columns.items():
        table.add_column(key, justify="right" if form else "left", no_wrap=bool(form))
    for row in rows:
        table.add_row(*(_cell(row.get(key), form) for key, form in columns.items()))
    console.print(table)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    return format(value, form) if form else str(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
