"""Progress bars of a job, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Steps:
    """Announces the steps of a job one after the other; quiet prints nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """One step; the yielded function advances it by so many of `total` units (None: of unknown
        length).
        """
        columns = [TextColumn("{task.description:<30}"), BarColumn(), TimeElapsedColumn()]
        if total is not None:
            columns += [MofNCompleteColumn(), TimeRemainingColumn()]
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(name, total=total)

            def advance(units: int) -> None:
                progress.advance(task, units)

            yield advance
            progress.update(task, total=total or 1, completed=total or 1)
