"""The served formula as a torch module: everything that back-propagation can reach.

    x_i = W f_i + r_i,   v_h = (kappa_h p + sum_e g_e 2^(-age_e / half_life_h) x_e) / (kappa_h + sum_e |g_e| 2^(...)),
    score = sum_h v_h A_h x_i + b_i + gamma log1p(count_i)

An item that nothing is known of has no r and no count, and c in place of b_i. Only differences of scores matter, so
what is served is b_i - c, and 0 for such an item.

Rows of r and b have sparse gradients, so that a step costs the items of a batch and not the catalogue.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from heliotrope_indexer.parameters import DEFAULT_GAINS, EVENT_TYPES, EventType, Gain, Parameters
from heliotrope_indexer.training_settings import DAY_S, TrainingSettings

_NEVER_S = 1_000 * 365 * DAY_S
"""Half-life without decay."""
_MATRIX = 2.0
"""A_h starts as this times the identity."""


class InterestModel(nn.Module):
    """Parameters for n items, D' text axes, H horizons and d dimensions."""

    sign: Tensor
    center: Tensor

    def __init__(self, n: int, axes: int, settings: TrainingSettings, *, highest_rating: float) -> None:
        super().__init__()
        d, horizons = settings.dimension, len(settings.half_lives_s)
        generator = torch.Generator().manual_seed(settings.seed)
        scale = 1.0 / math.sqrt(d)
        self.residual = nn.Parameter(torch.randn(n, d, generator=generator) * scale)
        self.bias = nn.Parameter(torch.zeros(n, 1))
        self.unknown_bias = nn.Parameter(torch.zeros(1))
        self.projection = nn.Parameter(torch.randn(d, axes, generator=generator) * 0.3 * scale)
        self.matrices = nn.Parameter(_MATRIX * torch.eye(d).repeat(horizons, 1, 1))
        self.prior = nn.Parameter(torch.zeros(d))
        self.log_kappa = nn.Parameter(torch.zeros(horizons))
        self.log_half_life = nn.Parameter(torch.tensor([math.log(each) for each in settings.half_lives_s]))
        self.log_gamma = nn.Parameter(torch.tensor(math.log(0.1)))
        self._settings = settings
        gains = starting_gains(settings, highest_rating)
        self.log_gain = nn.Parameter(torch.tensor([math.log(abs(gains[kind].weight)) for kind in EVENT_TYPES]))
        signs = [math.copysign(1.0, gains[kind].weight) for kind in EVENT_TYPES]
        if not settings.negative_feedback:
            signs = [max(sign, 0.0) for sign in signs]
        self.register_buffer("sign", torch.tensor(signs))
        self.register_buffer("center", torch.tensor([gains[kind].center for kind in EVENT_TYPES]))

    def items(self, rows: Tensor, text: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """x (m, d) and b (m,) of item rows (m,), with text (m, D'); `kept` (m, 1) is 0 where nothing but the text is
        known.
        """
        x = text @ self.projection.T
        if self._settings.residual:
            x = x + kept * functional.embedding(rows, self.residual, sparse=True)
        if not self._settings.bias:
            return x, x.new_zeros(len(rows))
        own = functional.embedding(rows, self.bias, sparse=True)
        return x, (kept * own + (1.0 - kept) * self.unknown_bias).squeeze(1)

    def residual_norms(self, rows: Tensor) -> Tensor:
        """Squared lengths of the residuals of rows (m,)."""
        return functional.embedding(rows, self.residual, sparse=True).square().sum(-1)

    def gains(self, kind: Tensor, value: Tensor) -> Tensor:
        """g_e of events, bounded as the server bounds them."""
        weight = self.sign * self.log_gain.exp()
        return (weight[kind] * (value - self.center[kind])).clamp(-1.0, 1.0)

    def queries(self, x: Tensor, gains: Tensor, age_s: Tensor, asked_age_s: Tensor, known: Tensor) -> Tensor:
        """sum_h v_h A_h (B, T, d), from x (B, S, d), gains and ages (B, S), the ages of T questions (B, T) and which
        events each of them knows (B, T, S).
        """
        elapsed_s = (age_s[:, None, :] - asked_age_s[:, :, None]).clamp(min=0.0)
        total = x.new_zeros(())
        for horizon, half_life_s in enumerate(self.half_lives_s()):
            weights = torch.exp2(-elapsed_s / half_life_s) * (known * gains[:, None, :])
            kappa = self.log_kappa[horizon].exp()
            sums = weights @ x + kappa * self._prior()
            total = total + sums / (kappa + weights.abs().sum(-1, keepdim=True)) @ self.matrices[horizon]
        return total

    def half_lives_s(self) -> Tensor:
        """(H,)."""
        return self.log_half_life.exp() if self._settings.decay else torch.full_like(self.log_half_life, _NEVER_S)

    def gamma(self) -> Tensor:
        """Weight of the live popularity, never negative."""
        return self.log_gamma.exp() if self._settings.popularity else torch.zeros_like(self.log_gamma)

    def _prior(self) -> Tensor:
        return self.prior if self._settings.prior else torch.zeros_like(self.prior)

    @torch.no_grad()
    def arrays(self, text: NDArray[np.float32], known: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
        """What is served, as NumPy arrays: vectors (n, d), bias (n,), residual (n, d), projection (d, D'), prior (d,)
        and matrices (H, d, d). Items that are not `known` (n,) have neither residual nor bias.
        """
        kept = known.astype(np.float32)[:, None]
        residual = kept * _array(self.residual) * np.float32(self._settings.residual)
        projection = _array(self.projection)
        return {
            "vectors": text @ projection.T + residual,
            "bias": (kept * _array(self.bias - self.unknown_bias))[:, 0] * np.float32(self._settings.bias),
            "residual": residual,
            "projection": projection,
            "prior": _array(self._prior()),
            "matrices": _array(self.matrices),
        }

    @torch.no_grad()
    def parameters_served(self, trained: NDArray[np.bool_]) -> Parameters:
        """The parameters as the server reads them; only the event types that are `trained` (8,) change their gain."""
        weights, centers = (self.sign * self.log_gain.exp()).tolist(), self.center.tolist()
        gains = dict(DEFAULT_GAINS)
        for kind, seen, weight, center in zip(EVENT_TYPES, trained, weights, centers, strict=True):
            if seen or weight == 0.0:
                gains[kind] = Gain(weight=weight, center=center)
        return Parameters(
            half_lives_s=tuple(self.half_lives_s().tolist()),
            kappas=tuple(self.log_kappa.exp().tolist()),
            gains=gains,
            live_popularity_weight=float(self.gamma()),
            popularity_half_life_s=self._settings.popularity_half_life_s,
        )


def starting_gains(settings: TrainingSettings, highest_rating: float) -> dict[EventType, Gain]:
    """Where the gains start: those of the server, and full gain at the highest rating."""
    center = settings.rating_center * highest_rating if settings.negative_feedback else 0.0
    rating = Gain(weight=1.0 / (highest_rating - center), center=center)
    return {**DEFAULT_GAINS, "rating": rating}


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().numpy().astype(np.float32)
    return array
