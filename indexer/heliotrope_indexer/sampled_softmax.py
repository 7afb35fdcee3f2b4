"""The loss of a sampled softmax and its gradient in one pass over blocks of targets.

Written as single tensor operations it would move the table of targets by drawn items, some 16 MB, through memory a
dozen times a step. Here a block of it is scored, turned into probabilities and used for all gradients in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_BLOCK_CELLS = 500_000
"""Targets times drawn items of a block: 2 MB, what a core's cache holds."""
_BLOCK_CELLS_GPU = 64_000_000
_OUT = -1e4
"""Score of an item that is no choice."""


@dataclass(frozen=True)
class NotChoices:
    """Pairs of a target and a drawn item that does not stand to choose, in ascending order of targets."""

    target: Tensor
    """(P,) int64."""
    drawn: Tensor
    """(P,) int64."""


@dataclass(frozen=True)
class LiveCounts:
    """What live popularity adds for the drawn items: gamma times the row of `table` (K, M) that `row` (A,) names."""

    gamma: Tensor
    table: Tensor
    row: Tensor


def sampled_softmax(
    queries: Tensor,
    own: Tensor,
    vectors: Tensor,
    offsets: Tensor,
    weights: Tensor,
    out: NotChoices,
    counts: LiveCounts | None = None,
) -> Tensor:
    """sum_a weights_a (log(e^own_a + sum_m e^score_am) - own_a), where score_am = queries_a vectors_m + offsets_m
    (+ live counts), over the pairs that are not `out`.

    `queries` (A, d), `own` (A,), `weights` (A,); `vectors` (M, d) and `offsets` (M,) of the drawn items. Differentiable
    in all but `weights` and the counts; once only, as gradients are made on the way forward.
    """
    gamma, table, row = (counts.gamma, counts.table, counts.row) if counts else (own.new_zeros(()), None, None)
    loss: Tensor = _SampledSoftmax.apply(  # type: ignore[no-untyped-call]
        queries, own, vectors, offsets, gamma, weights, out, table, row
    )
    return loss


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        own: Tensor,
        vectors: Tensor,
        offsets: Tensor,
        gamma: Tensor,
        weights: Tensor,
        out: NotChoices,
        table: Tensor | None,
        row: Tensor | None,
    ) -> Tensor:
        to_queries, to_own = torch.empty_like(queries), torch.empty_like(own)
        to_vectors, to_offsets = torch.zeros_like(vectors), torch.zeros_like(offsets)
        to_gamma, loss = torch.zeros_like(gamma), own.new_zeros(())
        cells = _BLOCK_CELLS_GPU if queries.is_cuda else _BLOCK_CELLS
        block = max(cells // max(len(vectors), 1), 1)
        bounds = torch.searchsorted(
            out.target, torch.arange(0, len(queries) + block, block, device=own.device)
        ).tolist()
        for number, begin in enumerate(range(0, len(queries), block)):
            part = slice(begin, begin + block)
            scores = torch.addmm(offsets, queries[part], vectors.T)
            added = None
            if table is not None and row is not None:
                added = table.index_select(0, row[part])
                scores.addcmul_(added, gamma)
            pairs = slice(bounds[number], bounds[number + 1])
            scores[out.target[pairs] - begin, out.drawn[pairs]] = _OUT
            highest = torch.maximum(scores.amax(dim=1), own[part])
            chances = scores.sub_(highest[:, None]).exp_()
            of_own = (own[part] - highest).exp()
            total = chances.sum(dim=1) + of_own
            loss += (weights[part] * (total.log() + highest - own[part])).sum()
            chances *= (weights[part] / total)[:, None]
            torch.mm(chances, vectors, out=to_queries[part])
            to_vectors.addmm_(chances.T, queries[part])
            to_offsets += chances.sum(dim=0)
            to_own[part] = weights[part] * (of_own / total - 1.0)
            if added is not None:
                to_gamma += torch.dot(chances.flatten(), added.flatten())
        ctx.save_for_backward(to_queries, to_own, to_vectors, to_offsets, to_gamma)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        to_loss = upstream[0]
        return (*(gradient * to_loss for gradient in ctx.saved_tensors), None, None, None, None)
