"""Exact explanations: a score split into what it is the sum of.

The score is linear in the user's events, so with x_e the vector of event e's item

    score(u, i) = sum over e of [ sum_h g_e 2^(-(t - t_e)/T_h) / (kappa_h + m_h) * x_e . A_h x_i + what e says of i ]
                + the same for the folded sum + the same for kappa_h * prior + b_i + live boost + freshness + intercept

holds to float rounding; nothing here approximates. What an item says of its neighbours counts for the event by which
its user counts for it: the newest positive one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.event_ring import Columns
from heliotrope_server.item_numbers import item_id_of, known_number
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LiveView
from heliotrope_server.neighbours import said_of
from heliotrope_server.profile import Profile
from heliotrope_server.scoring import item_vectors

EVENT = 1
FOLDED_EVENTS = 2
PRIOR = 3
ITEM_BIAS = 4
LIVE_POPULARITY = 5
INTERCEPT = 6
FRESHNESS = 7
OTHER_EVENTS = 8

NAMED_EVENTS = 5
"""Events that are named with each recommendation, those of the largest shares; the others are summed."""


class Contribution(NamedTuple):
    """A signed share of a score; `event_id` and `item_id` are empty unless `kind` is EVENT."""

    kind: int
    value: float
    event_id: str = ""
    item_id: str = ""


class Explanations(Sequence[list[Contribution]]):
    """The contributions to the scores of k items, as columns: m named events for each, and s terms that all have.

    `named` (k, m) are the events by their keys in `events` (event id, item id), the largest share first by absolute
    value, and `shares` (k, m) what they add; `terms` (k, s) are what the kinds of `kinds` (s) add.
    """

    def __init__(
        self,
        named: NDArray[np.int64],
        shares: NDArray[np.float64],
        events: Mapping[int, tuple[str, str]],
        kinds: Sequence[int],
        terms: NDArray[np.float64],
    ) -> None:
        self.named, self.shares, self.events, self.kinds, self.terms = named, shares, events, kinds, terms

    def __len__(self) -> int:
        return len(self.terms)

    @overload
    def __getitem__(self, place: int) -> list[Contribution]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[Contribution]]: ...
    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        events = [
            Contribution(EVENT, share, *self.events[event])
            for event, share in zip(self.named[place].tolist(), self.shares[place].tolist(), strict=True)
        ]
        return events + [
            Contribution(kind, value) for kind, value in zip(self.kinds, self.terms[place].tolist(), strict=True)
        ]


def explain(
    profile: Profile | None,
    catalogue: LiveCatalogue,
    towards: NDArray[np.float64],
    rows: NDArray[np.int64],
    live: LiveView,
    time_s: float,
    freshness: Mapping[int, float],
    most_named: int = NAMED_EVENTS,
) -> Explanations:
    """The contributions to the score of each row (k,).

    `towards` (d, H d) are the transposed A_h side by side, of the matrices that were scored with; `freshness` the
    boosts of new items by row.
    """
    parameters = catalogue.parameters
    horizons, dimension, count = parameters.horizons, catalogue.dimension, len(rows)
    # A_h x_i for each horizon and item, (H, d, k).
    aims = (item_vectors(catalogue, live, rows).astype(np.float64) @ towards).T.reshape(horizons, dimension, count)
    kappas, prior = np.array(parameters.kappas), catalogue.prior
    totals = kappas
    kinds, terms = [], []
    named, shares = np.empty((count, 0), dtype=np.int64), np.empty((count, 0))
    events: dict[int, tuple[str, str]] = {}
    if profile is not None:
        prior = profile.prior
        read_s = profile.read_time_s(time_s)
        totals = kappas + np.array(profile.total.masses_at(read_s, parameters.half_lives_s))
        columns = profile.events.columns()
        all_shares = _event_shares(columns, catalogue, read_s, totals, aims)  # (E, k)
        folded = None
        if profile.folded is not None:
            folded = np.einsum(
                "hd,hdk->k", profile.folded.sums_at(read_s, parameters.half_lives_s) / totals[:, None], aims
            )
        for item_id, said in said_of(profile, catalogue, rows).items():
            place = _counting_place(columns, item_id)
            if place >= 0:
                all_shares[place] += said
            else:
                folded = said if folded is None else folded + said
        named, shares = _largest(all_shares, most_named)
        used = sorted(set(named.ravel().tolist()))
        numbers = columns.numbers[used].tolist()
        events = {
            place: (event_id, item_id_of(number))
            for place, event_id, number in zip(used, profile.events.ids_at(used), numbers, strict=True)
        }
        if len(all_shares) > named.shape[1]:
            kinds.append(OTHER_EVENTS)
            terms.append(all_shares.sum(axis=0) - shares.sum(axis=1))
        if folded is not None:
            kinds.append(FOLDED_EVENTS)
            terms.append(folded)
    kinds += [PRIOR, ITEM_BIAS, LIVE_POPULARITY]
    terms += [
        np.einsum("h,d,hdk->k", kappas / totals, prior.astype(np.float64), aims),
        np.array([catalogue.bias(row) for row in rows.tolist()]),
        live.boosts[rows].astype(np.float64),
    ]
    boosts = [freshness.get(row, 0.0) for row in rows.tolist()] if freshness else []
    if any(boosts):
        kinds.append(FRESHNESS)
        terms.append(np.array(boosts))
    kinds.append(INTERCEPT)
    terms.append(np.full(count, parameters.intercept))
    return Explanations(named, shares, events, kinds, np.stack(terms, axis=1))


def _event_shares(
    columns: Columns,
    catalogue: LiveCatalogue,
    read_s: float,
    totals: NDArray[np.float64],
    aims: NDArray[np.float64],
) -> NDArray[np.float64]:
    """What each event adds to the scores of k items by taste, (E, k); 0 for one that counts for nothing."""
    vectors, known = catalogue.vectors(columns.numbers)
    gains = catalogue.gains.many(columns.kinds, columns.values) * known
    ages = (columns.times_us / 1e6 - read_s) / np.array(catalogue.parameters.half_lives_s)[:, None]
    weights = gains * np.exp2(ages) / totals[:, None]  # (H, E)
    shares: NDArray[np.float64] = (weights[:, :, None] * (vectors.astype(np.float64) @ aims)).sum(axis=0)
    return shares


def _counting_place(columns: Columns, item_id: str) -> int:
    """The place of the event by which the user counts for an item; -1 where it is folded."""
    number = known_number(item_id)
    if number is None:
        return -1
    places = np.flatnonzero(columns.counts & (columns.numbers == number))
    return int(places[0]) if len(places) else -1


def _largest(shares: NDArray[np.float64], most: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each item the places of its `most` largest shares by absolute value, largest first, and the shares: (k, m).

    Of shares (E, k); events that add nothing to any item are passed over.
    """
    adding = np.flatnonzero(shares.any(axis=1))
    weights = -np.abs(shares[adding].T)
    if most < len(adding):
        places = np.argpartition(weights, most, axis=1)[:, :most]
        order = np.argsort(np.take_along_axis(weights, places, axis=1), axis=1, kind="stable")
        places = np.take_along_axis(places, order, axis=1)
    else:
        places = np.argsort(weights, axis=1, kind="stable")
    named = adding[places]
    return named, np.take_along_axis(shares.T, named, axis=1)
