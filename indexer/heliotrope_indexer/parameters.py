"""The parameters of the interest vector and of the scoring layer: part of every snapshot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

EventType = Literal["view", "click", "purchase", "rating", "favorite", "share", "dislike", "hide"]
"""The event types that carry a gain; `undo` carries none: it takes another event back."""

EVENT_TYPES: tuple[EventType, ...] = (
    "view",
    "click",
    "purchase",
    "rating",
    "favorite",
    "share",
    "dislike",
    "hide",
)

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Gain(BaseModel):
    """How much one event moves the interest vector: `weight * (value - center)`, bounded by `max_gain`.

    `center` is the neutral value: with 3 for a rating of 0.5 to 5 stars, a rating of 2 pushes away.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: _Finite
    center: _Finite = 0.0


class SearchParameters(BaseModel):
    """How the server searches `index.faiss`; chosen by measured recall of the re-scored result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nprobe: Annotated[int, Field(ge=1)]
    """Lists of the index that are searched."""
    candidates: Annotated[int, Field(ge=1)]
    """How many hits of the index FAISS's own search has re-scored exactly on the mapped float32 vectors."""
    margin: Annotated[float, Field(ge=0.0)] = 8.0
    """The compiled search re-scores every row whose code puts it within so many standard deviations of the codes' error
    of the list. Rows of extreme bias or length, which many answers are, have larger errors than most: it takes 2 to 8.
    """
    head: Annotated[int, Field(ge=0)] = 0
    """Rows of the largest bias that are scored for every query; the index holds the others."""


class YoungItems(BaseModel):
    """How an item that the snapshot hardly knows moves with its live users; see young_items.

    `r_i = step * Z_i / (n + known_i + shrinkage)`, where Z_i sums `q_u - query_mean` over its n live users.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    below_events: Annotated[int, Field(ge=1)]
    """An item is young while the snapshot knows fewer events of it than this."""
    step: _Positive
    shrinkage: _Positive
    """c: this many users weigh as much as the item's text."""
    max_query: _Positive
    """Bound on what one user says: the length of `q_u - query_mean`."""
    max_norm: _Positive
    """Bound on the length of r_i."""
    learned_until_s: _Finite = 0.0
    """Unix time up to which events have taught the vectors of the items that the snapshot knows events of."""


class LogOddsCurve(BaseModel):
    """How a score becomes the log-odds of a probability: straight lines between points, level beyond the ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: Annotated[tuple[_Finite, ...], Field(min_length=2, max_length=1_000)]
    """(k,), ascending."""
    log_odds: tuple[_Finite, ...]
    """(k,), ascending, so that the order of scores is that of probabilities."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if len(self.log_odds) != len(self.scores):
            raise ValueError(f"{len(self.scores)} scores but {len(self.log_odds)} log-odds")
        if min(*np.diff(self.scores), *np.diff(self.log_odds)) <= 0.0:
            raise ValueError("scores and log-odds must ascend")
        return self


class Neighbourhood(BaseModel):
    """How the items that a user likes speak for their neighbours; see neighbours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: Annotated[int, Field(ge=1, le=10_000)]
    """Only the newest liked items of a user speak, this many."""
    weight: _Positive
    """Of the summed strengths in the score."""


DEFAULT_GAINS: Mapping[EventType, Gain] = {
    "view": Gain(weight=0.2),
    "click": Gain(weight=0.5),
    "purchase": Gain(weight=1.0),
    "rating": Gain(weight=0.5, center=3.0),
    "favorite": Gain(weight=1.0),
    "share": Gain(weight=0.8),
    "dislike": Gain(weight=-0.5),
    "hide": Gain(weight=-1.0),
}


class Parameters(BaseModel):
    """Everything that turns events into a score, for H horizons.

    With `s_h = sum g_e 2^(-(t - t_e)/half_life_h) x_e` and `m_h` the same sum over `abs(g_e)`:
    `v_h = (kappa_h * prior + s_h) / (kappa_h + m_h)` and
    `score(u, i) = sum_h v_h^T A_h x_i + b_i + gamma * log1p(count_i(t)) + weight * sum_e s_ei + intercept`, where e
    goes over the newest items that u likes and s_ei says how strongly e speaks for i (`neighbours`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    half_lives_s: Annotated[tuple[_Positive, ...], Field(min_length=1)]
    kappas: Annotated[tuple[_Positive, ...], Field(min_length=1)]
    gains: dict[EventType, Gain] = Field(default_factory=lambda: dict(DEFAULT_GAINS))
    max_gain: _Positive = 1.0
    live_popularity_weight: _NonNegative = 0.0
    popularity_half_life_s: _Positive = 14 * 86_400.0
    intercept: _Finite = 0.0
    probability: LogOddsCurve | None = None
    """None: the score itself is the log-odds of the probability."""
    search: SearchParameters | None = None
    """None: the retriever is exact."""
    young: YoungItems | None = None
    """None: a young item keeps its vector until the next snapshot."""
    neighbours: Neighbourhood | None = None
    """None: items do not speak for others."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.kappas) != len(self.half_lives_s):
            raise ValueError(f"{len(self.half_lives_s)} half-lives but {len(self.kappas)} kappas; one for each horizon")
        missing = [name for name in EVENT_TYPES if name not in self.gains]
        if missing:
            raise ValueError(f"no gain for the event types {', '.join(missing)}")
        return self

    @property
    def horizons(self) -> int:
        """H, the number of horizons."""
        return len(self.half_lives_s)

    def log_odds(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The log-odds (m,) of the probabilities that scores (m,) stand for; see calibration."""
        curve = self.probability
        return scores if curve is None else np.interp(scores, curve.scores, curve.log_odds)

    def gain(self, event_type: str, value: float = 1.0) -> float:
        """The bounded gain `g_e` of one event.

        Raises KeyError for an event type without a gain and ValueError for a value that is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"the value of an event must be finite, not {value}")
        gain = self.gains[event_type]  # type: ignore[index]  # the KeyError is the documented answer
        return min(self.max_gain, max(-self.max_gain, gain.weight * (value - gain.center)))
