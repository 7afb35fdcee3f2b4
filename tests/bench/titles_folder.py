"""A small folder of many short texts, as `titles` reads it."""

import gzip
from collections.abc import Callable
from pathlib import Path

from heliotrope_bench.titles import FILES


def write_titles(data: Path, rows: int, line: Callable[[int, int], str]) -> Path:
    """Writes all files with `rows` lines each, `line(number of the file, row)`, into a data folder; returns it."""
    folder = data / "titles-large"
    folder.mkdir(parents=True)
    for number, name in enumerate(FILES):
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.writelines(line(number, row) + "\n" for row in range(rows))
    return data
