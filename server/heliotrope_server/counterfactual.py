"""What would be if one event had never been recorded: a profile without it, and the question that it leads to.

It is the profile after an undo of the event, worked out by the code that serves: vectors, masses and the newest event's
time, the neighbours of the liked items, the seen items, and the event's part in the live popularity of its item. What
all users together taught (weights, residuals of young items, the priors of segments) stays as it is.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.answerer import Moment, excluded_rows, query_vector
from heliotrope_server.event import EventKind, UserEvent
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.neighbours import Suggestions, suggestions
from heliotrope_server.profile import Profile
from heliotrope_server.scoring import Query


class Without(NamedTuple):
    """The profile without one event, settled, and what that changes in the live popularity of the event's item: the
    times in us of the event by which the user counted and by which they count now, None for none.
    """

    profile: Profile
    item_id: str
    counted_us: int | None
    counts_us: int | None


def without(profile: Profile, event_id: str, catalogue: LiveCatalogue) -> Without:
    """Raises KeyError for an event that the ring does not hold."""
    twin = profile.copy()
    undo = UserEvent(profile.user_id, "", EventKind.UNDO, "", 1.0, 0, event_id)
    _, event = twin.apply(undo)
    if event is None:
        raise KeyError(event_id)
    before, after = twin.uncount(event, catalogue)
    twin.settle(catalogue)
    return Without(twin, event.item_id, before, after)


def question_without(
    moment: Moment, twin: Profile, catalogue: LiveCatalogue, stacked_matrices: NDArray[np.float32]
) -> Query:
    """The query of a moment's question for a profile without an event; of rows that were there at that moment."""
    time_s, size = moment.question.time_s, catalogue.base_count + len(moment.live.delta_bias)
    assert time_s is not None
    excluded = excluded_rows(moment.question, twin, catalogue)
    said = suggestions(twin, catalogue)
    if said is not None and len(said.rows) and said.rows[-1] >= size:
        inside = said.rows < size
        said = Suggestions(said.rows[inside], said.gains[inside]) if inside.any() else None
    return Query(
        query_vector(twin, time_s, catalogue, stacked_matrices),
        moment.query.wanted,
        excluded[excluded < size],
        said,
        moment.query.allowed,
    )
