"""What takes part in `heliotrope bench ann`: a way to build an index and the settings at which it is searched."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliotrope_bench.report import machine

K = 10
"""How many rows every question asks for."""

Rows = NDArray[np.float32]
Found = NDArray[np.int64]


@dataclass(frozen=True)
class Point:
    """One contender at one setting. `single` takes a query (width,) and returns up to K row numbers, (K,); `batch`
    takes queries (m, width) and returns (m, K); -1 stands for none.
    """

    contender: str
    setting: str
    single: Callable[[Rows], Found]
    batch: Callable[[Rows], Found]


@dataclass(frozen=True)
class Contender:
    """`points` builds over rows (n, width), inner product, with so many threads, and keeps files in the folder."""

    name: str
    package: str
    """What to install: the distribution's name."""
    module: str
    points: Callable[[Rows, int, Path], Iterator[Point]]
    processors: str = ""
    """The maker of the processors that it works on; empty: any."""

    def absence(self) -> str | None:
        """Why it can't take part here, None when it can."""
        if find_spec(self.module) is None:
            return f"{self.package} is not installed; pip install 'heliotrope[ann]' brings it"
        # SVS ends the process rather than raise an error.
        if self.processors and self.processors not in machine()["processor"]:
            return f"{self.package} offers this on {self.processors} processors alone"
        return None
