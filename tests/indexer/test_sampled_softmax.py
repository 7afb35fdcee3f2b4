"""The loss in blocks has the value and the gradients of the plain formula."""

from __future__ import annotations

import pytest
import torch

from heliotrope_indexer import sampled_softmax as module
from heliotrope_indexer.sampled_softmax import LiveCounts, NotChoices, sampled_softmax

TARGETS, DRAWN, DIMENSION, TIMES = 37, 23, 5, 4


@pytest.mark.parametrize("block_cells", [1, 100, 1_000_000])
@pytest.mark.parametrize("live", [True, False])
def test_value_and_gradients_are_those_of_the_formula(
    block_cells: int, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_CELLS", block_cells)
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = [some(TARGETS, DIMENSION), some(TARGETS), some(DRAWN, DIMENSION), some(DRAWN), some()]
    for tensor in inputs:
        tensor.requires_grad_()
    queries, own, vectors, offsets, gamma = inputs
    weights, table = some(TARGETS).abs(), some(TIMES, DRAWN)
    row = torch.randint(TIMES, (TARGETS,), generator=generator)
    out = torch.rand(TARGETS, DRAWN, generator=generator) < 0.2
    out[3] = True  # a target that has nothing to stand against
    pairs = NotChoices(*out.nonzero(as_tuple=True))
    counts = LiveCounts(gamma, table, row) if live else None

    loss = 3.0 * sampled_softmax(queries, own, vectors, offsets, weights, pairs, counts)
    found = torch.autograd.grad(loss, inputs, allow_unused=True)

    scores = queries @ vectors.T + offsets + (gamma * table[row] if live else 0.0)
    everything = torch.cat([own[:, None], scores.masked_fill(out, -torch.inf)], dim=1)
    plain = 3.0 * (weights * (everything.logsumexp(dim=1) - own)).sum()
    expected = torch.autograd.grad(plain, inputs, allow_unused=True)

    assert float(loss.detach()) == pytest.approx(float(plain.detach()))
    for one, other in zip(found, expected, strict=True):
        if other is None:
            assert one is None or not one.any()
        else:
            torch.testing.assert_close(one, other)
