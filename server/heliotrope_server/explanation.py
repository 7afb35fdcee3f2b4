"""Exact explanations: a score split into what it is the sum of.

The score is linear in the user's events, so with x_e the vector of event e's item

    score(u, i) = sum over e of [ sum_h g_e 2^(-(t - t_e)/T_h) / (kappa_h + m_h) * x_e . A_h x_i + what e says of i ]
                + the same for the folded sum + the same for kappa_h * prior + b_i + live boost + freshness + intercept

holds to float rounding; nothing here approximates. What an item says of its neighbours counts for the event by which
its user counts for it: the newest positive one.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.search import EventShares, NeighbourTable, Shares, Spoken, Strangers, kernel_problem
from heliotrope_server.item_numbers import item_id_of
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LiveView
from heliotrope_server.neighbours import named_rows, said_of
from heliotrope_server.profile import Profile
from heliotrope_server.scoring import item_biases, item_vectors

EVENT = 1
FOLDED_EVENTS = 2
PRIOR = 3
ITEM_BIAS = 4
LIVE_POPULARITY = 5
INTERCEPT = 6
FRESHNESS = 7
OTHER_EVENTS = 8

_COLUMNS = (FOLDED_EVENTS, OTHER_EVENTS, PRIOR, ITEM_BIAS, LIVE_POPULARITY, INTERCEPT)

NAMED_EVENTS = 3
"""Events that are named with each recommendation, those of the largest shares; the others are summed."""


class Contribution(NamedTuple):
    """A signed share of a score; `event_id` and `item_id` are empty unless `kind` is EVENT."""

    kind: int
    value: float
    event_id: str = ""
    item_id: str = ""


class Explanations(Sequence[list[Contribution]]):
    """The contributions to the scores of k items, as columns: m named events for each, and s terms that all have.

    `named` (k, m) are the events by their keys in `events` (ids of event and item), the largest share first by absolute
    value, and `shares` (k, m) what they add; `terms` (k, s) are what the kinds of `kinds` (s) add.
    """

    def __init__(
        self,
        named: NDArray[np.int64],
        shares: NDArray[np.float64],
        events: Mapping[int, tuple[bytes, bytes]],
        kinds: Sequence[int],
        terms: NDArray[np.float64],
    ) -> None:
        self.named, self.shares, self.events, self.kinds, self.terms = named, shares, events, kinds, terms

    def __len__(self) -> int:
        return len(self.terms)

    def ids(self, key: int) -> tuple[str, str]:
        """The ids of a named event and of its item."""
        event_id, item_id = self.events[key]
        return event_id.decode(), item_id.decode()

    @overload
    def __getitem__(self, place: int) -> list[Contribution]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[Contribution]]: ...
    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        events = [
            Contribution(EVENT, share, *self.ids(event))
            for event, share in zip(self.named[place].tolist(), self.shares[place].tolist(), strict=True)
        ]
        return events + [
            Contribution(kind, value) for kind, value in zip(self.kinds, self.terms[place].tolist(), strict=True)
        ]


class Asked(NamedTuple):
    """One user's list, rows (k,), as of a time."""

    profile: Profile | None
    rows: NDArray[np.int64]
    time_s: float


class Explainer:
    """Belongs to one LiveCatalogue, and to the event loop of its shard."""

    def __init__(self, catalogue: LiveCatalogue, *, compiled: bool | None = None) -> None:
        """`compiled` None: where there is a kernel."""
        parameters, gains = catalogue.parameters, catalogue.gains
        self._catalogue = catalogue
        self._kappas = np.array(parameters.kappas)
        self._half_lives_s = np.array(parameters.half_lives_s)
        neighbourhood, neighbours = parameters.neighbours, catalogue.neighbours
        table = None
        if neighbourhood is not None and neighbours is not None:
            table = NeighbourTable(neighbours.rows, neighbours.strengths, neighbourhood.items, neighbourhood.weight)
        self._speaks = table is not None
        self._kernel: EventShares | None = None
        if kernel_problem() is None if compiled is None else compiled:
            self._kernel = EventShares(
                catalogue.base_vectors,
                parameters.half_lives_s,
                parameters.kappas,
                gains.weight_array,
                gains.center_array,
                gains.limit,
                table,
            )

    def explain(
        self,
        asked: Sequence[Asked],
        stacked_matrices: NDArray[np.float32],
        live: LiveView,
        freshness: Mapping[int, float],
        most_named: int = NAMED_EVENTS,
    ) -> list[Explanations]:
        """The contributions to the score of each row.

        `stacked_matrices` (H d, d) are those that were scored with; `freshness` are the boosts of new items by row.
        """
        catalogue, intercept = self._catalogue, self._catalogue.parameters.intercept
        rows = np.concatenate([one.rows for one in asked]) if len(asked) > 1 else asked[0].rows
        # A_h x_i for all horizons, (k, H d) of all lists together.
        aims = item_vectors(catalogue, live, rows) @ stacked_matrices.T
        # The columns of all lists at once; a list without events that are not named, or folded, begins further right.
        columns = np.empty((len(rows), len(_COLUMNS)))
        columns[:, 3], columns[:, 4] = item_biases(catalogue, live, rows), live.boosts[rows]
        columns[:, 5] = intercept
        explained, end = [], 0
        for profile, own, time_s in asked:
            begin, end = end, end + len(own)
            terms = columns[begin:end]
            kinds: tuple[int, ...] = _COLUMNS
            events: dict[int, tuple[bytes, bytes]] = {}
            if profile is None:
                named, shares = np.empty((len(own), 0), dtype=np.int64), np.empty((len(own), 0))
                terms[:, 2] = aims[begin:end] @ np.tile(catalogue.prior, len(self._kappas))
                terms, kinds = terms[:, 2:], kinds[2:]
            else:
                found, said_folded = self._shares(profile, own, aims[begin:end], time_s, most_named)
                named, shares, terms[:, 1], terms[:, 2] = found.places, found.shares, found.others, found.prior
                if named.size:
                    events = profile.events.names(list(set(named.ravel().tolist())), found.starts)
                all_named = found.adding == named.shape[1]
                if profile.folded is None and said_folded is None:
                    first = 2 if all_named else 1
                    terms, kinds = terms[:, first:], kinds[first:]
                else:
                    terms[:, 0] = found.folded if said_folded is None else found.folded + said_folded
                    if all_named:
                        terms, kinds = np.delete(terms, 1, axis=1), (kinds[0], *kinds[2:])
            if freshness and any(added := [freshness.get(row, 0.0) for row in own.tolist()]):
                terms, kinds = np.column_stack([terms, added]), (*kinds, FRESHNESS)
            explained.append(Explanations(named, shares, events, kinds, terms))
        return explained

    def _shares(
        self, profile: Profile, rows: NDArray[np.int64], aims: NDArray[np.float32], time_s: float, most: int
    ) -> tuple[Shares, NDArray[np.float64] | None]:
        """The shares, and what folded events say of the rows (k,) beside, None for nothing."""
        half_lives_s = self._catalogue.parameters.half_lives_s
        read_s = profile.read_time_s(time_s)
        masses = profile.total.masses_at(read_s, half_lives_s)
        totals = [kappa + mass for kappa, mass in zip(self._catalogue.parameters.kappas, masses, strict=True)]
        folded = None if profile.folded is None else profile.folded.sums_at(read_s, half_lives_s)
        if self._kernel is not None and not (profile.rare and profile.counted_apart()):
            found = self._compiled(profile, rows, aims, read_s, totals, folded, most)
            if found is not None:
                return found, None
        spoken, said_folded = self._spoken(profile, rows)
        if self._kernel is not None:
            found = self._compiled(profile, rows, aims, read_s, totals, folded, most, spoken)
            assert found is not None, "nothing has to be told by times"
            return found, said_folded
        return self._plain(profile, aims, read_s, np.array(totals), folded, most, spoken), said_folded

    def _compiled(
        self,
        profile: Profile,
        rows: NDArray[np.int64],
        aims: NDArray[np.float32],
        read_s: float,
        totals: Sequence[float],
        folded: NDArray[np.float64] | None,
        most: int,
        *spoken: Spoken | None,
    ) -> Shares | None:
        """By the kernel; it finds what is said itself unless `spoken` says it, and None where it can't."""
        assert self._kernel is not None
        events, table, strangers = profile.events.packed(), self._catalogue.row_table(), None
        targets = None if spoken or not self._speaks else named_rows(self._catalogue, rows)
        while True:
            found = self._kernel.of(
                events,
                table,
                aims,
                read_s,
                totals,
                profile.prior,
                folded,
                most,
                strangers=strangers,
                spoken=spoken[0] if spoken else None,
                targets=targets,
            )
            if found is None or not found.unknown or strangers is not None:
                return found
            strangers = self._strangers(profile, table)
            if strangers is None:
                return found

    def _spoken(self, profile: Profile, rows: NDArray[np.int64]) -> tuple[Spoken | None, NDArray[np.float64] | None]:
        """What the user's liked items say of rows (k,), by the events that count for them, and by folded ones."""
        by_place, folded = {}, None
        for item_id, said in said_of(profile, self._catalogue, rows).items():
            place = profile.events.counting_place(item_id)
            if place >= 0:
                by_place[place] = said
            else:
                folded = said if folded is None else folded + said
        if not by_place:
            return None, folded
        places = sorted(by_place)
        return Spoken(np.array(places), np.array([by_place[place] for place in places])), folded

    def _strangers(self, profile: Profile, table: NDArray[np.int32]) -> Strangers | None:
        """The items of a profile that are not in the snapshot but have a vector."""
        numbers = profile.events.columns().numbers
        missing = np.unique(numbers[table[numbers] < 0])
        found = [
            (number, vector)
            for number in missing.tolist()
            if (vector := self._catalogue.vector(item_id_of(number))) is not None
        ]
        if not found:
            return None
        return Strangers(
            np.array([number for number, _ in found], dtype=np.int32), np.stack([each for _, each in found])
        )

    def _plain(
        self,
        profile: Profile,
        aims: NDArray[np.float32],
        read_s: float,
        totals: NDArray[np.float64],
        folded: NDArray[np.float64] | None,
        most: int,
        spoken: Spoken | None,
    ) -> Shares:
        """What the kernel finds, where there is none."""
        catalogue, columns = self._catalogue, profile.events.columns()
        by_horizon = aims.astype(np.float64).reshape(len(aims), len(totals), -1)  # (k, H, d)
        vectors, known = catalogue.vectors(columns.numbers)
        gains = catalogue.gains.many(columns.kinds, columns.values) * known
        ages = (columns.times_us / 1e6 - read_s) / self._half_lives_s[:, None]
        scales = gains * np.exp2(ages) / totals[:, None]  # (H, E)
        shares = np.einsum("he,ed,khd->ke", scales, vectors.astype(np.float64), by_horizon)
        adds = scales.any(axis=0)
        if spoken is not None:
            shares[:, spoken.places] += spoken.shares.T
            adds[spoken.places] = True
        adding = np.flatnonzero(adds)
        order = np.argsort(-np.abs(shares[:, adding]), axis=1, kind="stable")[:, :most]
        lead = (self._kappas / totals)[:, None] * profile.prior
        lengths = [1 + len(event_id.encode()) for event_id in profile.events]
        return Shares(
            adding[order],
            named := np.take_along_axis(shares, adding[order], axis=1),
            shares.sum(axis=1) - named.sum(axis=1),
            np.einsum("hd,khd->k", lead, by_horizon),
            np.zeros(len(aims)) if folded is None else np.einsum("hd,khd->k", folded / totals[:, None], by_horizon),
            np.array([0, *accumulate(lengths)], dtype=np.int64),
            len(adding),
            int(np.count_nonzero(~known)),
        )
