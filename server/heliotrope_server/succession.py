"""A catalogue that is ready to be served in place of another, with all that was made for it ahead of the swap."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.residuals import Carried
from heliotrope_server.serving import Serving

FEW_CHANGES = 64
"""Changes of the catalogue that may be laid over it on the event loop: some 30 us each."""


class Succession(NamedTuple):
    """What a swap exchanges. `counts` (m,) is the live popularity of the rows that were there when it was laid out;
    `map_error` the relative error of the map for folded sums.
    """

    serving: Serving
    counts: NDArray[np.float64]
    carried: Mapping[str, Carried]
    map_error: float

    @property
    def catalogue(self) -> LiveCatalogue:
        return self.serving.catalogue
