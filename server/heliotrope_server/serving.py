"""What answers need of one catalogue beside its vectors: all that takes time to make, made before it is served."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.allowed_rows import RowFilters
from heliotrope_server.item_filter import Condition
from heliotrope_server.list_maker import ListMaker
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import live_view
from heliotrope_server.neighbours import SuggestionCache
from heliotrope_server.popularity import LivePopularity
from heliotrope_server.retriever import Retriever
from heliotrope_server.scoring import Query
from heliotrope_server.trending import Trending

WARM_QUESTIONS = 64
"""Searches of a new index before it is served, for items that are spread over the catalogue."""


class Habits(NamedTuple):
    """What questions to the served catalogue have needed: the conditions of filters, and labels for limits of lists."""

    filters: Sequence[tuple[Condition, ...]]
    labelled: bool


class Serving:
    """Belongs to one LiveCatalogue, and to the event loop of its shard from the moment it is served."""

    def __init__(
        self,
        catalogue: LiveCatalogue,
        popularity: LivePopularity,
        make_retriever: Callable[[LiveCatalogue], Retriever],
        counts: NDArray[np.float64] | None = None,
    ) -> None:
        """`counts` (n,) are those of LivePopularity.laid_out_for while it is still bound to another catalogue."""
        self.catalogue = catalogue
        self.retriever = make_retriever(catalogue)
        # The exact retriever adds the boosts of all items to every score anyway.
        self.trending = None if catalogue.parameters.search is None else Trending(catalogue, popularity, counts)
        self.lists = ListMaker(catalogue)
        self.filters = RowFilters(catalogue)
        self.suggested = None if catalogue.parameters.neighbours is None else SuggestionCache(catalogue)

    def habits(self) -> Habits:
        """For the `warm` of another one."""
        return Habits([(), *self.filters.asked()], self.lists.labelled)

    def warm(self, habits: Habits, time_s: float, pause: Callable[[], None]) -> None:
        """Does once, in a thread, what the first questions would wait for; calls `pause` between small steps."""
        catalogue = self.catalogue
        self.filters.ask_again(habits.filters, time_s, pause)
        if habits.labelled:
            self.lists.label()
        self.retriever.follow()
        live = live_view(catalogue, np.zeros(catalogue.size))
        matrix = catalogue.snapshot.scoring_matrices[-1]
        wanted = min(10, catalogue.alive_count)
        for row in np.linspace(0, catalogue.base_count - 1, WARM_QUESTIONS).astype(np.int64).tolist():
            vector = np.asarray(catalogue.row_vector(row) @ matrix)
            self.retriever.rank([Query(vector, wanted, np.empty(0, dtype=np.int64))], live)
            pause()
