"""Why an item is not in a list: what leaves it out whatever its score, too low a score, or a rule for the list.

A rule is a reason where the list without that rule, all else the same, holds the item: the lists are made again, so
that nothing is guessed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from heliotrope_server.answerer import SOURCE_EXPLORE, SOURCE_FRESH, Answer, Answerer, Moment
from heliotrope_server.item_filter import ItemFilter
from heliotrope_server.list_rules import NO_RULES

SEEN = 1
EXCLUDED = 2
FILTERED = 3
UNAVAILABLE = 4
SCORE = 5
DIVERSITY = 6
CATEGORY_LIMIT = 7
PROVIDER_LIMIT = 8
EXPLORATION = 9
FRESHNESS_QUOTA = 10
RULES = 11
SEARCH = 12

_OFF: Mapping[int, Mapping[str, Any]] = {
    DIVERSITY: {"diversity": NO_RULES.diversity},
    CATEGORY_LIMIT: {"max_per_category": NO_RULES.max_per_category},
    PROVIDER_LIMIT: {"max_provider_share": NO_RULES.max_provider_share},
}


class Absence(NamedTuple):
    """One reason; `score_gap` is how much is missing when it is SCORE, `condition` which one when it is FILTERED."""

    kind: int
    score_gap: float | None = None
    condition: int | None = None


class Absences:
    """Why items are not in one answer. Made at the moment of that answer; asked when the ranks are known."""

    def __init__(self, answerer: Answerer, moment: Moment, answer: Answer) -> None:
        self._answerer, self._moment = answerer, moment
        self._listed = set(answer.rows.tolist())
        self._wanted = moment.query.wanted
        full = len(answer.scores) == self._wanted
        self._lowest = min(answer.scores) if full else float("-inf")
        boosted_only = answer.sources.count(SOURCE_FRESH)
        self._quota_full = moment.fresh is not None and boosted_only >= answerer.fresh_places(self._wanted)
        self._drawn = SOURCE_EXPLORE in answer.sources[-1:]
        self._barred: dict[int, list[Absence]] = {}
        self._lists: dict[int, set[int]] | None = None

    def look_at(self, row: int) -> None:
        """Notes what must be known of a row now."""
        if row in self._listed or row in self._barred:
            return
        barred = self._barred[row] = self._bars(row)
        if not barred and self._lists is None:
            self._lists = self._other_lists()

    def of(self, row: int, score: float, rank: int, cut_off: float) -> list[Absence]:
        """The reasons for a row that was looked at; none for one in the list. `cut_off` is the wanted-th best score."""
        if row in self._listed:
            return []
        reasons = list(self._barred[row])
        # The list may hold less than the best: new items have only so many places.
        needed = self._lowest if score < self._lowest else cut_off
        if score < self._lowest or rank > self._wanted:
            return [*reasons, Absence(SCORE, score_gap=needed - score)]
        if reasons:
            return reasons
        lists = self._lists or {}
        single = [Absence(kind) for kind, rows in lists.items() if kind != RULES and row in rows]
        if single:
            return single
        if row in lists.get(RULES, ()):
            return [Absence(RULES)]
        fresh = self._moment.fresh
        if self._quota_full and fresh is not None and row in fresh.by_row:
            return [Absence(FRESHNESS_QUOTA)]
        return [Absence(SEARCH)]

    def _bars(self, row: int) -> list[Absence]:
        """What leaves a row out whatever its score."""
        question, profile = self._moment.question, self._moment.profile
        catalogue, time_s = self._answerer.catalogue, question.time_s
        assert time_s is not None
        found = []
        if profile is not None and not question.include_seen:
            seen = profile.seen_rows(catalogue.rows_of, (catalogue.generation, catalogue.moves))
            if row in seen:
                found.append(Absence(SEEN))
        if catalogue.item_ids[row] in question.excluded_item_ids:
            found.append(Absence(EXCLUDED))
        asked = question.filter or ItemFilter()
        for place, condition in enumerate(asked.conditions):
            if not self._answerer.admits(ItemFilter((condition,), include_unavailable=True), row, time_s):
                found.append(Absence(FILTERED, condition=place))
        if not asked.include_unavailable and not self._answerer.admits(ItemFilter(), row, time_s):
            found.append(Absence(UNAVAILABLE))
        return found

    def _other_lists(self) -> dict[int, set[int]]:
        """By a reason, the rows of the list that would be made without it; RULES: without all."""
        question = self._moment.question
        rules = self._answerer.rules if question.rules is None else question.rules
        if not rules.active:
            return {}
        steady = rules._replace(explore_share=0.0)
        variants = {kind: steady._replace(**off) for kind, off in _OFF.items() if steady._replace(**off) != steady}
        if self._drawn:
            variants[EXPLORATION] = steady
        variants[RULES] = NO_RULES
        answers = self._answerer.answer([question._replace(rules=variant) for variant in variants.values()])
        # A profile that could be read for the answer can be read again.
        return {
            kind: set(answer.rows.tolist())
            for kind, answer in zip(variants, answers, strict=True)
            if isinstance(answer, Answer)
        }
