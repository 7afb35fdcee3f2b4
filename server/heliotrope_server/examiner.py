"""Explains an answer in full: contributions, exact ranks, counterfactuals, and why items are not in the list.

Everything is taken at one moment on the event loop; the passes over the catalogue run in a thread, one at a time.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from heliotrope_server.absence import Absence, Absences
from heliotrope_server.answerer import Answer, Answerer, Question, probabilities_of
from heliotrope_server.counterfactual import Without, question_without, without
from heliotrope_server.errors import InvalidArgumentError, OverloadedError, RequestError
from heliotrope_server.explanation import Asked, Contribution, Explanations
from heliotrope_server.live_view import LiveView
from heliotrope_server.popularity import LivePopularity
from heliotrope_server.standing import Case, Standing, held, standings

MAX_ITEMS = 100
MAX_COUNTERFACTUALS = 100
"""Of all items of a request together."""
USUAL_COUNTERFACTUALS = 3
USUAL_UP_TO = 10
"""Items up to which there are counterfactuals unless a request says so."""
MAX_WAITING = 16


class Counterfactual(NamedTuple):
    """Score and rank of an item if one event had never been recorded."""

    event_id: str
    event_item_id: str
    score: float
    rank: int


class Examined(NamedTuple):
    """One item: see heliotrope.v1.ItemExplanation. `place` is from 1, None where it is not in the list."""

    item_id: str
    score: float
    probability: float
    contributions: list[Contribution]
    place: int | None
    rank: int
    first_pass_rank: int
    absences: list[Absence]
    counterfactuals: list[Counterfactual]


class Examination(NamedTuple):
    """What Recommend would have answered, its items or others explained, and how many may be recommended."""

    answer: Answer
    items: list[Examined]
    eligible: int


class Examiner:
    """Belongs to the event loop of its shard, as the answerer that it asks."""

    def __init__(self, answerer: Answerer, popularity: LivePopularity) -> None:
        self._answerer = answerer
        self._popularity = popularity
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._last_s = 0.1

    async def examine(self, question: Question, rows: Sequence[int], counterfactuals: int | None) -> Examination:
        """Explains the items of some rows, or of the list where `rows` is empty; the question has a `time_s`.

        Raises InvalidArgumentError for more than is worked out, OverloadedError where too many wait.
        """
        if self._waiting >= MAX_WAITING:
            raise OverloadedError(
                f"{self._waiting} explanations wait, as many as may",
                retry_after_s=self._waiting * self._last_s,
                limit=MAX_WAITING,
            )
        self._waiting += 1
        try:
            async with self._turn:
                started = time.perf_counter()
                examination = await self._examine(question, rows, counterfactuals)
                self._last_s = time.perf_counter() - started
                return examination
        finally:
            self._waiting -= 1

    async def _examine(self, question: Question, asked: Sequence[int], wished: int | None) -> Examination:
        answerer, catalogue = self._answerer, self._answerer.catalogue
        stacked, time_s = answerer.stacked_matrices, question.time_s
        assert time_s is not None
        # From here to the first `await` nothing changes.
        answer = answerer.answer([question])[0]
        if isinstance(answer, RequestError):
            raise answer
        rows = np.array(asked or answer.rows, dtype=np.int64)
        each = check_size(len(rows), wished)
        moment = answerer.moment(question)
        moment = moment._replace(live=held(moment.live))
        live, fresh = moment.live, moment.fresh
        profile = None if moment.profile is None else moment.profile.copy()
        event_count = 0 if profile is None else len(profile.events)
        (explanations,) = answerer.explainer.explain(
            [Asked(moment.profile, rows, time_s)],
            stacked,
            live,
            {} if fresh is None else fresh.by_row,
            most_named=event_count,
        )
        absences = Absences(answerer, moment, answer)
        for row in rows.tolist():
            absences.look_at(row)
        cases = [Case(moment.query, rows)]
        size = catalogue.base_count + len(live.delta_bias)
        lacking = _places_by_event(explanations, each)
        for key, places in lacking.items():
            # What was taken above is our own; others may go on between two events.
            await asyncio.sleep(0)
            assert profile is not None
            twin = without(profile, explanations.ids(key)[0], catalogue)
            query = question_without(moment, twin.profile, catalogue, stacked)
            row = catalogue.rows.get(twin.item_id)
            boost = None if row is None or row >= size else self._boost(twin, row, live, time_s)
            cases.append(Case(query, rows[places], boost))
        standing, *others = await asyncio.to_thread(standings, catalogue, live, fresh, cases)
        counterfactuals = _counterfactuals(explanations, lacking, others, each)
        probabilities = probabilities_of(np.array(standing.scores), catalogue.parameters)
        listed = {row: place for place, row in enumerate(answer.rows.tolist(), 1)}
        items = [
            Examined(
                catalogue.item_ids[row],
                score,
                probabilities[place],
                explanations[place],
                listed.get(row),
                rank,
                standing.first_pass[place],
                absences.of(row, score, rank, standing.cut_off),
                counterfactuals[place],
            )
            for place, (row, score, rank) in enumerate(zip(rows.tolist(), standing.scores, standing.ranks, strict=True))
        ]
        return Examination(answer, items, standing.eligible)

    def _boost(self, twin: Without, row: int, live: LiveView, time_s: float) -> tuple[int, float] | None:
        """The row of the event's item with its live boost without this user's count by the event; None: it stays."""
        weight = float(self._answerer.theta[0])
        if twin.counted_us == twin.counts_us or not weight:
            return None
        before, after = (
            self._popularity.share_of(None if time_us is None else time_us / 1e6, time_s)
            for time_us in (twin.counted_us, twin.counts_us)
        )
        count = float(np.expm1(float(live.boosts[row]) / weight)) + after - before
        return row, weight * float(np.log1p(max(count, 0.0)))


def check_size(items: int, wished: int | None) -> int:
    """How many counterfactuals each of so many items gets. Raises InvalidArgumentError for too many of either."""
    if items > MAX_ITEMS:
        raise InvalidArgumentError(
            "TOO_MANY_ITEMS",
            f"{items} items to explain; at most {MAX_ITEMS} are accepted",
            value=items,
            limit=MAX_ITEMS,
        )
    if wished is None:
        return USUAL_COUNTERFACTUALS if items <= USUAL_UP_TO else 0
    if wished < 0 or wished * items > MAX_COUNTERFACTUALS:
        raise InvalidArgumentError(
            "INVALID_COUNTERFACTUAL_COUNT",
            f"counterfactual_count is {wished} for {items} items; together 0 to {MAX_COUNTERFACTUALS} are worked out",
            value=wished * items,
            limit=MAX_COUNTERFACTUALS,
        )
    return wished


def _places_by_event(explanations: Explanations, each: int) -> dict[int, list[int]]:
    """The keys of the first `each` events of every item, each with the places of the items that name it so."""
    places: dict[int, list[int]] = {}
    for place, named in enumerate(explanations.named[:, :each].tolist()):
        for key in named:
            places.setdefault(key, []).append(place)
    return places


def _counterfactuals(
    explanations: Explanations, lacking: dict[int, list[int]], standings: Sequence[Standing], each: int
) -> list[list[Counterfactual]]:
    """Those of each item, in the order of its events."""
    found = {
        (place, key): Counterfactual(*explanations.ids(key), score, rank)
        for (key, places), standing in zip(lacking.items(), standings, strict=True)
        for place, score, rank in zip(places, standing.scores, standing.ranks, strict=True)
    }
    return [[found[place, key] for key in named] for place, named in enumerate(explanations.named[:, :each].tolist())]
