"""Learns the served formula by back-propagation on histories in the order of time.

The loss is a sampled softmax over the next item (Jean et al., 2015; the logQ correction as in Yi et al., 2019):
each target against drawn items that the user has not seen, at the target's own time: its history, its decay and the
live counts are what the server would have had. Some items are drawn in each batch of which nothing but the text is
known, as DropoutNet does (Volkovs et al., 2017), so that an item without events can stand on its text and has a place
among the others: that of an item with events whose events are not known.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliotrope_indexer.events import EventTable
from heliotrope_indexer.interest_model import InterestModel, starting_gains
from heliotrope_indexer.parameters import EVENT_TYPES, Parameters
from heliotrope_indexer.replay import counted_weights
from heliotrope_indexer.sampled_softmax import LiveCounts, NotChoices, sampled_softmax
from heliotrope_indexer.training_settings import TrainingSettings
from heliotrope_indexer.training_windows import Batch, Windows

_COUNT_CELLS = 40_000_000
"""Cells of the table of live counts: 160 MB."""
_COUNT_TIMES = 1_000
_LEAST_COUNT_TIMES = 8
EPOCH_TARGETS = 300_000
"""An epoch goes through this many targets at most; where there are more, each takes another part of them, so that
validation sees in time that there is no more to learn.
"""
_AVERAGED = 16
"""Parts of an epoch after each of which the weights enter the running mean."""
_SLOW = 1e-2
"""Learning rate of the few scalars, which need to travel far."""
_NEVER_TARGETS = ("dislike", "hide")


@dataclass(frozen=True)
class Learned:
    """One state of the model as the server needs it; shapes as in `InterestModel.arrays`."""

    arrays: dict[str, NDArray[np.float32]]
    parameters: Parameters
    known: NDArray[np.bool_]
    """(n,) which items have events."""

    def with_unknown_items_at(self, level: float) -> Learned:
        """The same, but items without events score `level` higher beside the others."""
        bias = np.where(self.known, self.arrays["bias"] - np.float32(level), np.float32(0.0))
        return replace(self, arrays={**self.arrays, "bias": bias})


class Trainer:
    """Trains on E events of n items, one epoch at a time; deterministic for equal seeds on equal hardware."""

    def __init__(
        self,
        events: EventTable,
        text: NDArray[np.float32],
        positive: NDArray[np.bool_],
        settings: TrainingSettings,
        *,
        highest_rating: float,
        device: str = "cpu",
    ) -> None:
        """`text` (n, D') and `positive` (E,): which events are the ones to predict."""
        self._events, self._settings, self._device = events, settings, torch.device(device)
        self._text_array = text
        self._text = torch.from_numpy(text).to(self._device)
        n = len(text)
        weight = np.where(positive, 1.0, settings.other_weight).astype(np.float32)
        weight[np.isin(events.kind, [EVENT_TYPES.index(name) for name in _NEVER_TARGETS])] = 0.0
        weight[~first_sights(events, n)] = 0.0
        self._windows = Windows(events, weight, context=settings.context)
        self._parts = self._windows.parts(EPOCH_TARGETS)
        self.model = InterestModel(n, text.shape[1], settings, highest_rating=highest_rating).to(self._device)
        counts = np.bincount(events.row, minlength=n).astype(np.float64)
        self._known = counts > 0
        self._known_count = max(int(self._known.sum()), 1)
        self._trained_kinds = np.bincount(events.kind, minlength=len(EVENT_TYPES)) > 0
        # An item without events was never a choice that somebody could have made.
        drawn = np.where(self._known, counts + len(events) / self._known_count, 0.0)
        self._drawn = drawn / drawn.sum()
        none = settings.negatives * np.log1p(-np.minimum(self._drawn, 1.0 - 1e-12))
        with np.errstate(divide="ignore"):
            self._log_share = np.log(-np.expm1(none)).astype(np.float32)
        self._count_times, self._count_table = self._live_counts(highest_rating)
        self._rng = np.random.default_rng(settings.seed)
        self._optimisers = self._make_optimisers()
        self._averaged = copy.deepcopy(self.model)
        self._averagings = 0
        self.epochs = 0

    @property
    def batches(self) -> int:
        """Windows to go through in an epoch, the unit of `train_epoch`'s progress."""
        return -(-len(self._windows) // self._parts)

    def train_epoch(self) -> Iterator[tuple[int, float, float]]:
        """Goes through all windows once, or through the next part of them; yields windows done, summed loss and weight
        of each batch.
        """
        seen = averaged = 0
        windows = self._next_windows()
        for batch in self._windows.batches(self._settings.batch_targets, self._rng, windows):
            loss, weight = self._loss(batch)
            for optimiser in self._optimisers:
                optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimiser in self._optimisers:
                optimiser.step()
            seen += len(batch.event)
            if seen >= (averaged + 1) * len(windows) / _AVERAGED:
                averaged += 1
                self._average_weights()
            yield len(batch.event), float(loss.detach()) * weight, weight
        self.epochs += 1

    def learned(self) -> Learned:
        """The present state."""
        return Learned(
            self._averaged.arrays(self._text_array, self._known),
            self._averaged.parameters_served(self._trained_kinds),
            self._known,
        )

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on as if nothing had happened."""
        return {
            "model": self.model.state_dict(),
            "averaged": self._averaged.state_dict(),
            "averagings": self._averagings,
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "rng": self._rng.bit_generator.state,
            "epochs": self.epochs,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state of a trainer over the same input."""
        self.model.load_state_dict(state["model"])
        self._averaged.load_state_dict(state["averaged"])
        self._averagings = state["averagings"]
        for optimiser, kept in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self._rng.bit_generator.state = state["rng"]
        self.epochs = state["epochs"]

    @torch.no_grad()
    def _average_weights(self) -> None:
        """Moves the averaged weights, which are the ones that are served, by 1 / _AVERAGED towards the present ones.

        The mean lags about an epoch behind and has none of the noise of single steps.
        """
        self._averagings += 1
        share = max(1.0 / _AVERAGED, 1.0 / self._averagings)
        for mean, present in zip(self._averaged.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(present, share)

    def _next_windows(self) -> NDArray[np.int64]:
        """Those of this epoch: in each round of as many epochs as there are parts every window comes once."""
        round_number, part = divmod(self.epochs, self._parts)
        order = np.random.default_rng([self._settings.seed, round_number]).permutation(len(self._windows))
        return np.sort(np.array_split(order, self._parts)[part])

    def _make_optimisers(self) -> tuple[torch.optim.Optimizer, ...]:
        model, rate = self.model, self._settings.learning_rate
        slow = [model.unknown_bias, model.prior, model.log_kappa, model.log_half_life, model.log_gamma, model.log_gain]
        dense = torch.optim.Adam(
            [
                {"params": [model.projection, model.matrices], "lr": rate},
                {"params": slow, "lr": max(_SLOW, rate)},
            ]
        )
        return dense, torch.optim.SparseAdam([model.residual, model.bias], lr=rate)

    def _loss(self, batch: Batch) -> tuple[Tensor, float]:
        events, settings, device = self._events, self._settings, self._device
        weight = batch.weight.reshape(-1)
        asked = np.flatnonzero(weight)
        negative = self._negatives()
        history_rows, target_rows = events.row[batch.event], events.row[batch.target].reshape(-1)[asked]
        rows, places = np.unique(np.concatenate([history_rows.ravel(), target_rows, negative]), return_inverse=True)
        in_history, in_targets, in_negatives = np.split(
            torch.from_numpy(places).to(device), [history_rows.size, history_rows.size + len(target_rows)]
        )
        kept = (self._rng.random(len(rows)) >= settings.residual_dropout) & self._known[rows]
        row_tensor = self._put(rows)
        heard = self._put(kept.astype(np.float32))
        x, bias = self.model.items(row_tensor, self._text[row_tensor], heard[:, None])

        ends = np.maximum(batch.place - self._rng.integers(0, settings.next_k, batch.place.shape), 0)
        known = (np.arange(batch.event.shape[1]) < ends[:, :, None]) & batch.valid[:, None, :]
        kinds, values = events.kind[batch.event].astype(np.int64), events.value[batch.event].astype(np.float32)
        gains = self.model.gains(self._put(kinds), self._put(values))
        queries = self.model.queries(
            x[in_history].reshape(*history_rows.shape, -1),
            gains,
            self._put(batch.age_s),
            self._put(batch.target_age_s),
            self._put(known.astype(np.float32)),
        ).reshape(-1, x.shape[1])[self._put(asked)]

        # A drawn item is corrected by how likely it was drawn, in the same sum as its bias.
        own = (queries * x[in_targets]).sum(-1) + bias[in_targets] - self._put(self._log_share[target_rows])
        corrected = bias[in_negatives] - self._put(self._log_share[negative])
        counts = None
        if settings.popularity:
            at = np.searchsorted(self._count_times, batch.target.reshape(-1)[asked], side="right") - 1
            times, which = np.unique(at, return_inverse=True)
            table = self._count_table[self._put(times)][:, self._put(negative)] * heard[in_negatives]
            counts = LiveCounts(self.model.gamma(), table, self._put(which))
            own = own + counts.gamma * heard[in_targets] * self._count_table[self._put(at), self._put(target_rows)]
        weights = self._put(weight[asked])
        loss = sampled_softmax(
            queries,
            own,
            x[in_negatives],
            corrected,
            weights / weights.sum(),
            self._not_choices(batch, history_rows, target_rows, negative, asked),
            counts,
        )
        if settings.l2:
            loss = loss + settings.l2 * x[in_targets].square().sum(-1).mean()
        if settings.residual_l2 and settings.residual:
            # Each item has the same share in the penalty, however likely it is drawn.
            even = np.exp(-self._log_share[negative]) / np.float32(self._known_count)
            loss = loss + settings.residual_l2 * self._put(even) @ self.model.residual_norms(self._put(negative))
        return loss, float(weight.sum())

    def _not_choices(
        self,
        batch: Batch,
        history_rows: NDArray[np.int64],
        target_rows: NDArray[np.int64],
        negative: NDArray[np.int64],
        asked: NDArray[np.intp],
    ) -> NotChoices:
        """Which drawn items the user has seen before a target, or are the target."""
        places = np.where(batch.valid, np.searchsorted(negative, history_rows), len(negative))
        drawn = np.append(negative, -1)[places] == history_rows
        windows, positions = np.nonzero(drawn)
        of_window = asked // batch.target.shape[1]
        ends = batch.place.reshape(-1)[asked]
        # All targets of a window against all seen items of it that were drawn.
        begins = np.searchsorted(windows, of_window)
        lengths = np.searchsorted(windows, of_window, side="right") - begins
        target = np.repeat(np.arange(len(asked)), lengths)
        seen = np.arange(len(target)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(begins, lengths)
        before = positions[seen] < ends[target]
        target, column = target[before], places[windows[seen[before]], positions[seen[before]]]
        own = np.searchsorted(negative, target_rows)
        is_own = np.flatnonzero(np.append(negative, -1)[own] == target_rows)
        target, column = np.r_[target, is_own], np.r_[column, own[is_own]]
        order = np.argsort(target, kind="stable")
        return NotChoices(self._put(target[order]), self._put(column[order]))

    def _negatives(self) -> NDArray[np.int64]:
        """Distinct drawn items, ascending."""
        return np.unique(self._rng.choice(len(self._drawn), size=self._settings.negatives, p=self._drawn))

    def _live_counts(self, highest_rating: float) -> tuple[NDArray[np.int64], Tensor]:
        """Event positions (K,), ascending from 0, and log1p of the live counts (K, n) just before each."""
        events, n = self._events, len(self._text_array)
        if not self._settings.popularity:
            return np.zeros(1, np.int64), torch.zeros(1, 1)
        gains = starting_gains(self._settings, highest_rating)
        weight = np.array([gains[kind].weight for kind in EVENT_TYPES])[events.kind]
        center = np.array([gains[kind].center for kind in EVENT_TYPES])[events.kind]
        positions = np.flatnonzero(weight * (events.value - center) > 0)
        counted = events.select(positions)
        half_life = self._settings.popularity_half_life_s
        fresh = counted_weights(counted, n, half_life)
        times = int(np.clip(_COUNT_CELLS // n, _LEAST_COUNT_TIMES, _COUNT_TIMES))
        edges = np.unique(np.linspace(0, max(len(events) - 1, 0), times).astype(np.int64))
        table = np.zeros((len(edges), n), dtype=np.float32)
        counts, done, now = np.zeros(n), 0, 0.0
        for number, edge in enumerate(edges.tolist() if len(events) else []):
            time, upto = float(events.time[edge]), int(np.searchsorted(positions, edge))
            counts *= np.exp2(-max(time - now, 0.0) / half_life)
            ages = time - counted.time[done:upto]
            np.add.at(counts, counted.row[done:upto], fresh[done:upto] * np.exp2(-ages / half_life))
            done, now = upto, time
            table[number] = np.log1p(counts)
        return edges, torch.from_numpy(table).to(self._device)

    def _put(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def first_sights(events: EventTable, n: int) -> NDArray[np.bool_]:
    """(E,) where an event is the first of its user with its item: no later one is recommended."""
    first = np.zeros(len(events), dtype=np.bool_)
    first[np.unique(events.user * n + events.row, return_index=True)[1]] = True
    return first
