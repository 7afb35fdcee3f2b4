"""SASRec: self-attention over the sequence of a user's items (Kang and McAuley, 2018), trained with full softmax.

Cross-entropy over the whole catalogue in place of one sampled negative makes it the strong form of the model
(Klenitskiy and Vasilev, 2023); for a large catalogue the sum over it is estimated from items drawn evenly. Each epoch
draws a window from each user's sequence, so that long histories are used in full.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heliotrope_bench.competitors.competitor import Scores, Settings, mean_ndcg
from heliotrope_bench.holdout import Holdout

WINDOW = 50
DIMENSION = 64
LEARNING_RATE = 2e-3
BATCH = 32

NEGATIVES = 2_048
"""Items that stand for the catalogue in the softmax where it has more than twice as many."""

BUDGET_FLOP = 5e12
"""What tuning and the final training may cost together: about three minutes on two cores at a large catalogue."""
_FIRST_SHARE, _SECOND_SHARE = 0.35, 0.3
_CHUNK = 256


def sasrec(holdout: Holdout, *, blocks: int, dropout: float, positives_only: bool, epochs: int) -> Scores:
    """Scores of a model trained for so many epochs, from the last items of each history."""
    training = _Training(holdout, blocks=blocks, dropout=dropout, positives_only=positives_only)
    training.run(epochs)
    yield from training.scores()


def tune_sasrec(validation: Holdout, settings: tuple[Settings, ...]) -> Settings:
    """Successive halving: all settings are trained a little, the best two go on, and the best epoch is kept.

    The epochs follow from BUDGET_FLOP and not from a clock, so that the outcome does not hang on the machine.
    """
    trainings = [_Training(validation, **choice) for choice in settings]
    cost = float(np.mean([training.flop_per_epoch for training in trainings]))
    first = max(1, round(_FIRST_SHARE * BUDGET_FLOP / cost / len(settings)))
    second = max(1, round(_SECOND_SHARE * BUDGET_FLOP / cost / 2))
    found = []
    for place, training in enumerate(trainings):
        training.run(first)
        found.append((mean_ndcg(training.scores(), validation), place, first))
    for _, place, _ in sorted(found, reverse=True)[:2]:
        steps = max(1, second // 5)
        for epoch in range(first + steps, first + second + 1, steps):
            trainings[place].run(steps)
            found.append((mean_ndcg(trainings[place].scores(), validation), place, epoch))
    _, place, epochs = max(found, key=lambda one: (one[0], -one[2]))
    return {**settings[place], "epochs": epochs}


class _Training:
    """A model and its optimiser on the train events of a holdout; equal settings train alike."""

    def __init__(self, holdout: Holdout, *, blocks: int, dropout: float, positives_only: bool) -> None:
        self._holdout = holdout
        self._positives_only = positives_only
        data = holdout.dataset
        self._items = len(data.items)
        train = holdout.train[data.positive[holdout.train]] if positives_only else holdout.train
        order = np.argsort(data.user[train], kind="stable")
        owners = data.user[train][order]
        cuts = np.flatnonzero(np.diff(owners)) + 1
        self._sequences = [own for own in np.split(data.item[train][order], cuts) if len(own) > 1]
        self._random = np.random.default_rng(0)
        torch.manual_seed(0)
        self._model = _SasRec(self._items, blocks, dropout)
        self._optimiser = torch.optim.Adam(self._model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))

    @property
    def flop_per_epoch(self) -> float:
        """About 6 for each weight that a place meets, those of the softmax among them."""
        places = sum(min(len(own) - 1, WINDOW) for own in self._sequences)
        softmax = self._items if self._items <= 2 * NEGATIVES else NEGATIVES
        return 6.0 * places * DIMENSION * (softmax + 12 * DIMENSION)

    def run(self, epochs: int) -> None:
        """Goes on training."""
        for _ in range(epochs):
            self._model.train()
            for items, following in self._batches():
                known = following >= 0
                hidden = self._model(items)[known]
                loss = self._loss(hidden, following[known])
                self._optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._optimiser.step()

    def _loss(self, hidden: Tensor, following: Tensor) -> Tensor:
        """Mean cross-entropy of `following` (n,) under the softmax of `hidden` (n, DIMENSION) times all items.

        Sampled: -l_target + log(exp(l_target) + (items / drawn) * sum of exp(l) over the items drawn but the target).
        """
        vectors = self._model.item_vectors
        if self._items <= 2 * NEGATIVES:
            return nn.functional.cross_entropy(hidden @ vectors.T, following)
        drawn = torch.from_numpy(self._random.choice(self._items, NEGATIVES, replace=False))
        others = hidden @ vectors[drawn].T + float(np.log(self._items / NEGATIVES))
        others = others.masked_fill(drawn[None, :] == following[:, None], -torch.inf)
        own = (hidden * vectors[following]).sum(dim=1, keepdim=True)
        logits = torch.cat([own, others], dim=1)
        return nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    @torch.no_grad()
    def scores(self) -> Iterator[NDArray[np.float32]]:
        """(items,) for each target; zeros for an empty history."""
        data = self._holdout.dataset
        self._model.eval()
        recent = np.full((len(self._holdout.targets), WINDOW), -1)
        for place, history in enumerate(self._holdout.histories()):
            kept = data.item[history[data.positive[history]] if self._positives_only else history][-WINDOW:]
            recent[place, WINDOW - len(kept) :] = kept
        for start in range(0, len(recent), _CHUNK):
            items = torch.from_numpy(recent[start : start + _CHUNK])
            last = self._model(items)[:, -1] * (items[:, -1:] >= 0)
            yield from (last @ self._model.item_vectors.T).numpy()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows (batch, WINDOW) of items and of what followed each; -1 fills up on the left."""
        order = self._random.permutation(len(self._sequences))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            windows = np.full((len(chosen), WINDOW + 1), -1)
            for row, place in enumerate(chosen):
                own = self._sequences[place]
                end = int(self._random.integers(min(len(own), WINDOW + 1), len(own) + 1))
                part = own[max(0, end - WINDOW - 1) : end]
                windows[row, WINDOW + 1 - len(part) :] = part
            following = np.where(windows[:, :-1] >= 0, windows[:, 1:], -1)
            yield torch.from_numpy(windows[:, :-1].copy()), torch.from_numpy(following)


class _SasRec(nn.Module):
    """Item and place vectors, causal attention blocks, and the item vectors again as the output."""

    def __init__(self, items: int, blocks: int, dropout: float) -> None:
        super().__init__()
        # Row 0 is the filling.
        self.items = nn.Embedding(items + 1, DIMENSION, padding_idx=0)
        self.places = nn.Embedding(WINDOW, DIMENSION)
        nn.init.normal_(self.items.weight, std=0.05)
        nn.init.normal_(self.places.weight, std=0.05)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(DIMENSION)

    @property
    def item_vectors(self) -> Tensor:
        """(items, DIMENSION)."""
        return self.items.weight[1:]

    def forward(self, items: Tensor) -> Tensor:
        """(batch, WINDOW) items, -1 for none, to (batch, WINDOW, DIMENSION)."""
        known = (items >= 0)[:, :, None]
        hidden = self.dropout(self.items(items + 1) * DIMENSION**0.5 + self.places.weight) * known
        for block in self.blocks:
            hidden = block(hidden) * known
        result: Tensor = self.norm(hidden)
        return result


class _Block(nn.Module):
    """Attention to earlier places, then the same small network at each place; both with residuals."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.before = nn.LayerNorm(DIMENSION)
        self.attention = nn.MultiheadAttention(DIMENSION, 1, dropout=dropout, batch_first=True)
        self.between = nn.LayerNorm(DIMENSION)
        self.network = nn.Sequential(
            nn.Linear(DIMENSION, DIMENSION),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(DIMENSION, DIMENSION),
            nn.Dropout(dropout),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        later = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).triu(1)
        query = self.before(hidden)
        attended, _ = self.attention(query, hidden, hidden, attn_mask=later, need_weights=False)
        hidden = query + attended
        normed = self.between(hidden)
        result: Tensor = normed + self.network(normed)
        return result
