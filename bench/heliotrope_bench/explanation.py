"""Words for where a score comes from."""

from collections.abc import Mapping, Sequence

from heliotrope import ContributionKind
from heliotrope.v1.recommendation_pb2 import Contribution

EVENTS_SHOWN = 2
DESPITE_FROM = 0.25
"""An event that counts against the item is named when it weighs this share of the strongest one for it."""

STANDING = {
    ContributionKind.CONTRIBUTION_KIND_FOLDED_EVENTS: "close to what you liked long ago",
    ContributionKind.CONTRIBUTION_KIND_PRIOR: "close to the general taste",
    ContributionKind.CONTRIBUTION_KIND_ITEM_BIAS: "liked by many",
    ContributionKind.CONTRIBUTION_KIND_LIVE_POPULARITY: "watched by many now",
}


def in_words(contributions: Sequence[Contribution], deeds: Mapping[str, str]) -> str:
    """Such as `because you rated Star Wars 5★ (+0.81)`, or `liked by many (+0.25)` where no event helped.

    `deeds` says in words what each event id was, such as `rated Star Wars 5★`. The intercept is left out: it is the
    same for every item.
    """
    events = [one for one in contributions if one.kind == ContributionKind.CONTRIBUTION_KIND_EVENT]
    helped = sorted((one for one in events if one.value > 0), key=lambda one: -one.value)[:EVENTS_SHOWN]
    if not helped:
        standing = sorted((one for one in contributions if one.kind in STANDING), key=lambda one: -one.value)
        return " and ".join(f"{STANDING[one.kind]} ({one.value:+.2f})" for one in standing[:EVENTS_SHOWN])
    words = "because you " + " and ".join(f"{deeds[one.event_id]} ({one.value:+.2f})" for one in helped)
    against = min(events, key=lambda one: one.value)
    if against.value <= -DESPITE_FROM * helped[0].value:
        words += f", although you {deeds[against.event_id]} ({against.value:+.2f})"
    return words
