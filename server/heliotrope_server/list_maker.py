"""Makes a list out of more candidates than are wanted: freshness, limits, diversity and exploration, in one choice."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from heliotrope_server.freshness import FreshView
from heliotrope_server.item_labels import ItemLabels
from heliotrope_server.list_choice import EXPLORE_POOL, Groups, choose_diverse, choose_in_order, explore
from heliotrope_server.list_rules import ListRules
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LiveView
from heliotrope_server.retriever import MAX_CANDIDATES, Ranking
from heliotrope_server.scoring import item_vectors

MIN_CANDIDATES = 100
CANDIDATES_PER_PLACE = 4
WIDENING = 4
"""How many times as many candidates are asked for when the rules leave a list short."""


class Plan(NamedTuple):
    """How one list is to be made: its rules, its own uniform number in [0, 1), and how many candidates to rank."""

    rules: ListRules
    uniform: float
    asked: int


class FreshScores(NamedTuple):
    """The boosted items for one user: their scores (f,), boost included, -inf for those that must not be shown.

    `places` is how many of a list they may take that would not be in it without the boost.
    """

    view: FreshView
    scores: NDArray[np.float32]
    places: int


class MadeList(NamedTuple):
    """The list, in its order: rows (k,), exact scores (k,), which items are there only for their boost (k,).

    `draw` is the propensity of the last place and whether it was drawn at random; None when nothing was drawn.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    boosted_only: list[bool]
    draw: tuple[float, bool] | None
    certified: bool


def plan(rules: ListRules, wanted: int, request_id: str) -> Plan:
    """The plan for a list of `wanted`. Its random number is a hash of the request id: the same id, the same draw."""
    uniform = xxhash.xxh3_64_intdigest(request_id.encode()) / 2.0**64
    asked = wanted
    if rules.choosing:
        asked = max(CANDIDATES_PER_PLACE * wanted, MIN_CANDIDATES)
    if rules.explore_share > 0.0:
        # One more shows that there was something to draw from; only a list that draws needs the pool itself.
        asked += EXPLORE_POOL if rules.choosing or uniform < rules.explore_share else 1
    return Plan(rules, min(uniform, 1.0 - 2.0**-53), asked)


class ListMaker:
    """Belongs to one LiveCatalogue."""

    def __init__(self, catalogue: LiveCatalogue) -> None:
        self._catalogue = catalogue
        self._labels: ItemLabels | None = None

    @property
    def labelled(self) -> bool:
        """Whether lists were limited by category or provider."""
        return self._labels is not None

    def label(self) -> ItemLabels:
        """Categories and providers, read at the first use."""
        if self._labels is None:
            self._labels = ItemLabels(self._catalogue)
        return self._labels

    def make(
        self,
        wanted: int,
        plan: Plan,
        ranking: Ranking,
        rank: Callable[[int], Ranking],
        live: LiveView,
        fresh: FreshScores | None,
    ) -> MadeList:
        """Chooses among the `plan.asked` best rows, and among all that are boosted.

        `rank` ranks another number of rows, for when the rules leave the list short; up to MAX_CANDIDATES are looked
        at, then the list stays short.
        """
        asked = plan.asked
        while True:
            rows, scores, boosted_only = _candidates(ranking, wanted, fresh)
            groups = self._groups(rows, boosted_only, plan.rules, wanted, fresh)
            chosen = self._choose(rows, scores, groups, plan.rules, wanted, live)
            if len(chosen) >= wanted or len(ranking.rows) < asked or asked >= MAX_CANDIDATES:
                break
            asked = min(asked * WIDENING, MAX_CANDIDATES)
            ranking = rank(asked)
        draw = None
        if plan.rules.explore_share > 0.0:
            drawn = explore(chosen, wanted, groups, plan.rules.explore_share, plan.uniform)
            if drawn is not None:
                chosen = [*chosen[:-1], drawn.place]
                draw = (drawn.propensity, drawn.explored)
        return MadeList(rows[chosen], scores[chosen], boosted_only[chosen].tolist(), draw, ranking.certified)

    def _choose(
        self,
        rows: NDArray[np.int64],
        scores: NDArray[np.float64],
        groups: Groups,
        rules: ListRules,
        wanted: int,
        live: LiveView,
    ) -> list[int]:
        if rules.diversity <= 0.0:
            return choose_in_order(wanted, groups)
        return choose_diverse(
            self._catalogue.parameters.log_odds(scores),
            item_vectors(self._catalogue, live, rows),
            wanted,
            groups,
            diversity=rules.diversity,
            relevance_floor=rules.relevance_floor,
        )

    def _groups(
        self,
        rows: NDArray[np.int64],
        boosted_only: NDArray[np.bool_],
        rules: ListRules,
        wanted: int,
        fresh: FreshScores | None,
    ) -> Groups:
        """The groups with a limit, numbered from 0, and those that each candidate is in."""
        members: list[list[int]] = [[] for _ in range(len(rows))]
        limits: list[int] = []
        if fresh is not None:
            limits.append(fresh.places)
            for place in np.flatnonzero(boosted_only).tolist():
                members[place].append(0)
        numbers: dict[tuple[str, int], int] = {}

        def join(place: int, key: tuple[str, int], limit: int) -> None:
            number = numbers.get(key)
            if number is None:
                number = numbers[key] = len(limits)
                limits.append(limit)
            members[place].append(number)

        if rules.max_per_category > 0 or rules.max_provider_share < 1.0:
            labels = self.label()
            per_provider = max(1, int(rules.max_provider_share * wanted + 1e-9))
            for place, row in enumerate(rows.tolist()):
                if rules.max_per_category > 0:
                    for category in labels.categories(row):
                        join(place, ("category", category), rules.max_per_category)
                provider = labels.provider(row) if rules.max_provider_share < 1.0 else None
                if provider is not None:
                    join(place, ("provider", provider), per_provider)
        return Groups(members, limits)


def _candidates(
    ranking: Ranking, wanted: int, fresh: FreshScores | None
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Rows, scores with every term, and which are boosted and not among the best `wanted` without; sorted by score."""
    rows, scores = ranking.rows, ranking.scores.astype(np.float64)
    if fresh is None:
        return rows, scores, np.zeros(len(rows), dtype=np.bool_)
    shown = np.flatnonzero(fresh.scores > -np.inf)
    new_rows, new_scores = fresh.view.rows[shown], fresh.scores[shown].astype(np.float64)
    boosted_only = ~np.isin(new_rows, rows[:wanted])
    if len(new_rows) > 2 * max(len(rows), MIN_CANDIDATES):
        # Of those that are there only for their boost the best are enough: no list takes more.
        order = np.lexsort((new_rows, -new_scores, boosted_only))[: 2 * max(len(rows), MIN_CANDIDATES)]
        new_rows, new_scores, boosted_only = new_rows[order], new_scores[order], boosted_only[order]
    plain = ~np.isin(rows, fresh.view.rows)
    rows = np.concatenate([rows[plain], new_rows])
    scores = np.concatenate([scores[plain], new_scores])
    boosted_only = np.concatenate([np.zeros(int(plain.sum()), dtype=np.bool_), boosted_only])
    order = np.lexsort((rows, -scores))
    return rows[order], scores[order], boosted_only[order]
