"""Text features f_i: pooled encoder output, centred on the catalogue and of unit length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def features(pooled: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """`normalise(normalise(pooled) - mean)`: (n, D), (D,) -> (n, D).

    Centring matters: raw BERT vectors share a large common direction that drowns what tells texts apart.
    """
    return normalise(normalise(pooled) - mean)


def feature_mean(pooled: NDArray[np.float32]) -> NDArray[np.float32]:
    """The catalogue mean of the L2-normalised pooled vectors: (n, D) -> (D,)."""
    mean: NDArray[np.float32] = normalise(pooled).mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def normalise(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of unit length, (n, D) -> (n, D); a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(norms, np.float32(1e-12))
    return scaled
