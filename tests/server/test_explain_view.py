"""The words for where a score comes from."""

import pytest

from heliotrope.v1.event_pb2 import Event, EventType
from heliotrope.v1.recommendation_pb2 import Absence, AbsenceKind, Contribution, ContributionKind, ItemExplanation
from heliotrope_server.explain_view import Words, because, ordinal, reason, shares

WORDS = Words(
    {
        "e1": Event(event_id="e1", item_id="i1", type=EventType.EVENT_TYPE_RATING, value=4.0),
        "e2": Event(event_id="e2", item_id="gone", type=EventType.EVENT_TYPE_DISLIKE),
    },
    {"i1": "Alien"},
)


def part(kind: str, value: float, event_id: str = "", item_id: str = "") -> Contribution:
    return Contribution(kind=f"CONTRIBUTION_KIND_{kind}", value=value, event_id=event_id, item_id=item_id)


PARTS = [
    part("EVENT", 0.6, "e1", "i1"),
    part("EVENT", -0.3, "e2", "gone"),
    part("PRIOR", 0.2),
    part("ITEM_BIAS", 0.7),
    part("INTERCEPT", 9.0),
]


def test_shares_are_of_all_that_speaks_for_the_item():
    assert shares(PARTS) == pytest.approx([0.4, -0.2, 0.2 / 1.5, 0.7 / 1.5, None])
    assert shares([part("EVENT", -1.0), part("INTERCEPT", 1.0)]) == [None, None]


def test_events_are_the_reason_and_what_the_item_is_only_without_them():
    assert because(ItemExplanation(explanation=PARTS), WORDS) == "you rated Alien 4, 40%"
    assert because(ItemExplanation(explanation=PARTS[1:]), WORDS).startswith(
        "the item itself: liked by many or few, 78%"
    )


def test_events_are_named_even_when_nothing_else_is_known_of_them():
    assert WORDS.deed("e2", "gone") == "disliked gone"
    assert WORDS.deed("e3", "i1") == "had event e3 on Alien"


def test_there_are_words_for_every_kind():
    for kind in AbsenceKind.values()[1:]:
        assert reason(Absence(kind=kind, score_gap=0.5, condition_index=1))
    everything = [part(name.removeprefix("CONTRIBUTION_KIND_"), 1.0) for name in ContributionKind.keys()[2:]]
    assert because(ItemExplanation(explanation=everything), WORDS)
    for one in everything:
        assert because(ItemExplanation(explanation=[one]), WORDS) or one.kind == 6


def test_ordinals():
    said = [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111, 1_023)]
    assert said == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th", "1,023rd"]
