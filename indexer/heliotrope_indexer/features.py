"""Text features f_i: pooled encoder output, centred on the catalogue and of unit length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_BLOCK_ROWS = 16_384


def features(pooled: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """`normalise(normalise(pooled) - mean)`: (n, D), (D,) -> (n, D).

    Centring matters: raw BERT vectors share a large common direction that drowns what tells texts apart.
    """
    found = np.empty(pooled.shape, dtype=np.float32)
    # In blocks: three whole temporaries would be the largest thing in a rebuild of a large catalogue.
    for rows in row_blocks(len(pooled)):
        found[rows] = normalise(normalise(pooled[rows]) - mean)
    return found


def feature_mean(pooled: NDArray[np.float32]) -> NDArray[np.float32]:
    """The catalogue mean of the L2-normalised pooled vectors: (n, D) -> (D,)."""
    total = np.zeros(pooled.shape[1])
    for rows in row_blocks(len(pooled)):
        total += normalise(pooled[rows]).sum(axis=0, dtype=np.float64)
    mean: NDArray[np.float32] = (total / len(pooled)).astype(np.float32)
    return mean


def row_blocks(n: int) -> Iterator[slice]:
    """Slices of at most 16,384 rows that cover n rows."""
    return (slice(start, min(start + _BLOCK_ROWS, n)) for start in range(0, n, _BLOCK_ROWS))


def normalise(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of unit length, (n, D) -> (n, D); a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(norms, np.float32(1e-12))
    return scaled
