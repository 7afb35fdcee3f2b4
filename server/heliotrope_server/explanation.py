"""Exact explanations: a score split into what it is the sum of.

The score is linear in the user's events, so with x_e the vector of event e's item

    score(u, i) = sum over e of [ sum_h g_e 2^(-(t - t_e)/T_h) / (kappa_h + m_h) * x_e . A_h x_i + what e says of i ]
                + the same for the folded sum + the same for kappa_h * prior + b_i + live boost + freshness + intercept

holds to float rounding; nothing here approximates. What an item says of its neighbours counts for the newest positive
event on it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.event import KIND_NAMES
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LazyBoosts
from heliotrope_server.neighbours import said_of
from heliotrope_server.profile import Profile

EVENT = 1
FOLDED_EVENTS = 2
PRIOR = 3
ITEM_BIAS = 4
LIVE_POPULARITY = 5
INTERCEPT = 6
FRESHNESS = 7


class Contribution(NamedTuple):
    """A signed share of a score; `event_id` and `item_id` are empty unless `kind` is EVENT."""

    kind: int
    value: float
    event_id: str = ""
    item_id: str = ""


def explain(
    profile: Profile | None,
    catalogue: LiveCatalogue,
    scoring_matrices: NDArray[np.float32],
    rows: Sequence[int],
    boosts: NDArray[np.float32] | LazyBoosts,
    time_s: float,
    freshness: Mapping[int, float],
) -> list[list[Contribution]]:
    """The contributions to the score of each row, largest first by absolute value.

    `scoring_matrices` (H, d, d) are the ones that were scored with; `boosts` is by row, `freshness` the boosts of new
    items by row.
    """
    parameters = catalogue.parameters
    items = np.array([catalogue.served_vector(row) for row in rows], dtype=np.float64)  # (k, d)
    towards = np.einsum("hde,ke->hdk", scoring_matrices.astype(np.float64), items)  # A_h x_i for each horizon and item

    events = [] if profile is None else list(profile.events.values())
    prior = catalogue.prior if profile is None else profile.prior
    read_s = time_s if profile is None else profile.read_time_s(time_s)
    masses = (
        [0.0] * parameters.horizons if profile is None else profile.total.masses_at(read_s, parameters.half_lives_s)
    )
    kappas = np.array(parameters.kappas)
    totals = kappas + np.array(masses)
    prior_share = np.einsum("h,d,hdk->k", kappas / totals, prior.astype(np.float64), towards)
    folded_share = None
    if profile is not None and profile.folded is not None:
        folded = profile.folded.sums_at(read_s, parameters.half_lives_s) / totals[:, None]
        folded_share = np.einsum("hd,hdk->k", folded, towards)

    event_shares, explained = [], []
    for event in events:
        vector = catalogue.vector(event.item_id)
        gain = parameters.gain(KIND_NAMES[event.kind], event.value)
        if vector is None or not gain:
            continue
        ages = (event.time_s - read_s) / np.array(parameters.half_lives_s)
        weights = gain * np.exp2(ages) / totals
        event_shares.append(np.einsum("h,d,hdk->k", weights, vector.astype(np.float64), towards))
        explained.append(event)

    said = {} if profile is None else said_of(profile, catalogue, rows)
    for share, event in zip(event_shares, explained, strict=True):
        share += said.pop((event.item_id, event.time_us), 0.0)
    for shares in said.values():
        # By an event that is folded with others.
        folded_share = shares if folded_share is None else folded_share + shares
    answers = []
    for place, row in enumerate(rows):
        parts = [
            Contribution(EVENT, float(share[place]), event.event_id, event.item_id)
            for event, share in zip(explained, event_shares, strict=True)
        ]
        if folded_share is not None:
            parts.append(Contribution(FOLDED_EVENTS, float(folded_share[place])))
        parts.append(Contribution(PRIOR, float(prior_share[place])))
        parts.append(Contribution(ITEM_BIAS, catalogue.bias(row)))
        parts.append(Contribution(LIVE_POPULARITY, float(boosts[row])))
        if row in freshness:
            parts.append(Contribution(FRESHNESS, freshness[row]))
        parts.append(Contribution(INTERCEPT, parameters.intercept))
        answers.append(sorted(parts, key=lambda part: -abs(part.value)))
    return answers
