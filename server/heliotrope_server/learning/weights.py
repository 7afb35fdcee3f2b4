"""The learnable half of a score: A_h and theta."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Weights:
    """One set of query-side weights of one snapshot; `matrices` is (H, d, d), `theta` (K,). Version 0 is its own.

    score(u, i) = sum_h v_h^T A_h x_i + theta . phi_i + everything else, and "everything else" is not learned here.
    """

    version: int
    matrices: NDArray[np.float32]
    theta: NDArray[np.float64]

    def scores(
        self, interests: NDArray[np.float32], vectors: NDArray[np.float32], features: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The learnable part of n scores: interests (n, H, d), vectors (n, d), features phi (n, K)."""
        count = len(vectors)
        queries = interests.reshape(count, -1) @ self.matrices.reshape(-1, self.matrices.shape[2])
        taste: NDArray[np.float64] = np.einsum("nd,nd->n", queries, vectors, dtype=np.float64)
        return taste + features @ self.theta


@dataclass(frozen=True)
class Bounds:
    """How far weights may be from those of their snapshot.

    `matrix_share` is rho in ||A_h - A_h(snapshot)||_F <= rho ||A_h(snapshot)||_F; `theta_change` bounds each
    |theta_k - theta_k(snapshot)|, and no theta_k becomes negative.
    """

    matrix_share: float
    theta_change: float

    def project(self, weights: Weights, anchor: Weights) -> Weights:
        """The nearest weights inside the bounds around `anchor`."""
        change = weights.matrices - anchor.matrices
        # A hair inside, so that rounding to float32 does not leave the ball.
        allowed = self.matrix_share * _norms(anchor.matrices) * (1.0 - 1e-6)
        factors = np.minimum(1.0, allowed / np.maximum(_norms(change), 1e-30))
        matrices = anchor.matrices + change * factors[:, None, None].astype(change.dtype)
        low = np.maximum(0.0, anchor.theta - self.theta_change)
        return Weights(
            weights.version, matrices, np.clip(weights.theta, low, np.maximum(anchor.theta, 0.0) + self.theta_change)
        )


def distance(weights: Weights, anchor: Weights) -> float:
    """The largest ||A_h - A_h(anchor)||_F / ||A_h(anchor)||_F over the horizons."""
    sizes = np.maximum(_norms(anchor.matrices), 1e-30)
    return float(np.max(_norms(weights.matrices.astype(np.float64) - anchor.matrices) / sizes))


def _norms(matrices: NDArray[np.floating]) -> NDArray[np.float64]:
    """Frobenius norm of each matrix, (H,)."""
    norms: NDArray[np.float64] = np.sqrt(np.einsum("hde,hde->h", matrices, matrices, dtype=np.float64))
    return norms
