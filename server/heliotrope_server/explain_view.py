"""How `heliotrope explain` says to a person what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from heliotrope import ContributionKind
from heliotrope.v1.event_pb2 import Event, EventType
from heliotrope.v1.recommendation_pb2 import (
    Absence,
    AbsenceKind,
    Contribution,
    Counterfactual,
    ExplainResponse,
    ItemExplanation,
)

SHOWN_EVENTS = 8
"""Events of one item in its table; the others are summed."""
SAID_EVENTS = 2
"""Events in one line of the list."""
_WIDTH = 160

_STANDING = {
    ContributionKind.CONTRIBUTION_KIND_FOLDED_EVENTS: "events of long ago, folded into one sum",
    ContributionKind.CONTRIBUTION_KIND_PRIOR: "the prior: declared interests, segments or the general taste",
    ContributionKind.CONTRIBUTION_KIND_ITEM_BIAS: "the item itself: liked by many or few",
    ContributionKind.CONTRIBUTION_KIND_LIVE_POPULARITY: "live popularity",
    ContributionKind.CONTRIBUTION_KIND_INTERCEPT: "the intercept, the same for every item",
    ContributionKind.CONTRIBUTION_KIND_FRESHNESS: "the boost of a new item",
    ContributionKind.CONTRIBUTION_KIND_OTHER_EVENTS: "the other events",
}
_DEEDS = {
    EventType.EVENT_TYPE_VIEW: "viewed",
    EventType.EVENT_TYPE_CLICK: "clicked",
    EventType.EVENT_TYPE_PURCHASE: "bought",
    EventType.EVENT_TYPE_RATING: "rated",
    EventType.EVENT_TYPE_FAVORITE: "marked",
    EventType.EVENT_TYPE_SHARE: "shared",
    EventType.EVENT_TYPE_DISLIKE: "disliked",
    EventType.EVENT_TYPE_HIDE: "hid",
}
_ABSENCES = {
    AbsenceKind.ABSENCE_KIND_SEEN: "the user has an event on it, and such items are left out",
    AbsenceKind.ABSENCE_KIND_EXCLUDED: "the request excludes it",
    AbsenceKind.ABSENCE_KIND_UNAVAILABLE: "it is not available at this time",
    AbsenceKind.ABSENCE_KIND_DIVERSITY: "diversity: without that rule it would be in the list",
    AbsenceKind.ABSENCE_KIND_CATEGORY_LIMIT: "the limit on a category: without that rule it would be in the list",
    AbsenceKind.ABSENCE_KIND_PROVIDER_LIMIT: "the limit on a provider: without that rule it would be in the list",
    AbsenceKind.ABSENCE_KIND_EXPLORATION: "an item drawn at random stands in its place",
    AbsenceKind.ABSENCE_KIND_FRESHNESS_QUOTA: "the places for items with a boost of new items are taken",
    AbsenceKind.ABSENCE_KIND_RULES: "several rules of the list together",
    AbsenceKind.ABSENCE_KIND_SEARCH: "the candidate search, which is approximate, missed it",
}


@dataclass(frozen=True)
class Words:
    """What events and items are called: events by their id, titles by item id."""

    events: Mapping[str, Event]
    titles: Mapping[str, str]

    def item(self, item_id: str) -> str:
        return self.titles.get(item_id) or item_id

    def deed(self, event_id: str, item_id: str) -> str:
        """Such as `rated Star Wars 5`."""
        event = self.events.get(event_id)
        if event is None:
            return f"had event {event_id} on {self.item(item_id)}"
        stars = f" {event.value:g}" if event.type == EventType.EVENT_TYPE_RATING else ""
        return f"{_DEEDS.get(event.type, 'touched')} {self.item(item_id)}{stars}"


def named_events(item: ItemExplanation) -> list[Contribution]:
    """The events of an item that are named, the largest share first."""
    events = [part for part in item.explanation if part.kind == ContributionKind.CONTRIBUTION_KIND_EVENT]
    return events[:SHOWN_EVENTS]


def shares(parts: Sequence[Contribution]) -> list[float | None]:
    """What part each has in all that speaks for the item, negative for what speaks against it; None for the intercept.

    All that speaks for it is the sum of the positive contributions; the intercept, the same for every item, is no part.
    """
    intercept = ContributionKind.CONTRIBUTION_KIND_INTERCEPT
    whole = sum(part.value for part in parts if part.value > 0.0 and part.kind != intercept)
    return [None if part.kind == intercept or not whole else part.value / whole for part in parts]


def because(item: ItemExplanation, words: Words) -> str:
    """Such as `you rated Star Wars 5, 41 %`; what the item is by itself where no event speaks for it."""
    parts = sorted(
        zip(shares(item.explanation), item.explanation, strict=True), key=lambda pair: pair[0] or 0.0, reverse=True
    )
    event = ContributionKind.CONTRIBUTION_KIND_EVENT
    helped = [(share, part) for share, part in parts if part.kind == event and share is not None and share > 0.0]
    if helped:
        said = [f"{words.deed(part.event_id, part.item_id)}, {share:.0%}" for share, part in helped[:SAID_EVENTS]]
        return "you " + "; ".join(said)
    others = [(share, part) for share, part in parts if part.kind != event and share is not None and share > 0.0]
    return "; ".join(f"{_STANDING[part.kind]}, {share:.0%}" for share, part in others[:SAID_EVENTS])


def reason(absence: Absence) -> str:
    if absence.kind == AbsenceKind.ABSENCE_KIND_SCORE:
        return f"its score is {absence.score_gap:.3f} too low"
    if absence.kind == AbsenceKind.ABSENCE_KIND_FILTERED:
        return f"it does not meet condition {absence.condition_index + 1} of the filter"
    return _ABSENCES[absence.kind]


def show_list(user: str, found: ExplainResponse, words: Words) -> None:
    table = Table(
        title=f"what {user} is recommended, of {found.eligible_count:,} items that may be", title_justify="left"
    )
    for name in ("", "item", "score", "rank", "first pass", "because", "without it"):
        table.add_column(name, justify="right" if name in ("", "score", "rank", "first pass") else "left")
    for item in found.items:
        without = item.counterfactuals[0] if item.counterfactuals else None
        table.add_row(
            str(item.place),
            words.item(item.item_id),
            f"{item.score:+.3f}",
            f"{item.rank:,}",
            f"{item.first_pass_rank:,}",
            because(item, words),
            "" if without is None else _would(item, without, words, because_of=named_events(item)[:1]),
        )
    _console().print(table)


def show_item(user: str, count: int, found: ExplainResponse, words: Words) -> None:
    console, (item,) = _console(), found.items
    console.print(
        f"{words.item(item.item_id)} ({item.item_id}) for {user}: score {item.score:+.4f}, "
        f"probability {item.probability:.1%}, rank {item.rank:,} of {found.eligible_count:,} that may be recommended, "
        f"{item.first_pass_rank:,} by taste and bias alone"
    )
    if item.HasField("place"):
        console.print(f"it is number {item.place} of the {count} recommended")
    for absence in item.absences:
        console.print(f"not among the {count} recommended: {reason(absence)}")
    table = Table(title="where the score comes from", title_justify="left")
    for name in ("share of what speaks for it", "contribution"):
        table.add_column(name, justify="right")
    table.add_column("by")
    named, rest = named_events(item), 0.0
    for share, part in zip(shares(item.explanation), item.explanation, strict=True):
        if part.kind != ContributionKind.CONTRIBUTION_KIND_EVENT:
            table.add_row("" if share is None else f"{share:.1%}", f"{part.value:+.4f}", _STANDING[part.kind])
        elif part in named:
            deed = f"you {words.deed(part.event_id, part.item_id)}"
            table.add_row("" if share is None else f"{share:.1%}", f"{part.value:+.4f}", deed)
        else:
            rest += part.value
    if rest:
        table.add_row("", f"{rest:+.4f}", _STANDING[ContributionKind.CONTRIBUTION_KIND_OTHER_EVENTS])
    table.add_section()
    table.add_row("", f"{item.score:+.4f}", "the score")
    console.print(table)
    for one in item.counterfactuals:
        console.print(f"had you not {words.deed(one.event_id, one.event_item_id)}: {_would(item, one, words)}")


def _would(item: ItemExplanation, one: Counterfactual, words: Words, because_of: Sequence[Contribution] = ()) -> str:
    """Such as `57th, score +1.234`; names the event unless it is the one that was named just before."""
    named = any(part.event_id == one.event_id for part in because_of)
    left_out = "" if named or not because_of else f" (had you not {words.deed(one.event_id, one.event_item_id)})"
    return f"{ordinal(one.rank)} in place of {ordinal(item.rank)}, score {one.score:+.3f}{left_out}"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 1,021st."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"


def _console() -> Console:
    # Wide enough for titles where nobody looks at it.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH)
