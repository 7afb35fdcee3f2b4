"""The rows that an index holds, and those that it leaves out: what the build and the server must agree on."""

import numpy as np
from numpy.typing import NDArray

DIMENSIONS_PER_CODE = (2, 1)
"""Both are built and measured: half the codes scan faster, all of them need fewer candidates."""


def index_rows(
    vectors: NDArray[np.float32], last: NDArray[np.float32], width: int | None = None
) -> NDArray[np.float32]:
    """`[x ; last ; 0 pad]`: (n, d) and (n,) to (n, width), width by default the next multiple of the code size
    above d.
    """
    n, d = vectors.shape
    if width is None:
        multiple = max(DIMENSIONS_PER_CODE)
        width = -(-(d + 1) // multiple) * multiple
    rows = np.zeros((n, width), dtype=np.float32)
    rows[:, :d] = vectors
    rows[:, d] = last
    return rows


def head_rows(bias: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The `count` rows of the largest bias, largest first; ties go to the first. Build and server must agree on it."""
    order: NDArray[np.int64] = np.argsort(-bias, kind="stable")[:count]
    return order
