"""Parameters are checked when built."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from heliotrope_indexer.parameters import DEFAULT_GAINS, Gain, LogOddsCurve, Parameters


def test_gains_are_centred_and_bounded() -> None:
    parameters = Parameters(
        half_lives_s=(1.0,), kappas=(1.0,), gains={**DEFAULT_GAINS, "rating": Gain(weight=0.5, center=3)}
    )
    assert [parameters.gain("rating", stars) for stars in (5, 4, 3, 1, 0)] == [1.0, 0.5, 0.0, -1.0, -1.0]
    assert parameters.gain("hide") == -1.0
    with pytest.raises(ValueError, match="must be finite, not nan"):
        parameters.gain("rating", float("nan"))
    with pytest.raises(KeyError):
        parameters.gain("undo")


@pytest.mark.parametrize(
    "wrong",
    [
        {"half_lives_s": ()},
        {"half_lives_s": (0.0,)},
        {"half_lives_s": (1.0, 2.0)},
        {"kappas": (float("inf"),)},
        {"gains": {"click": Gain(weight=1)}},
        {"live_popularity_weight": -1.0},
        {"intercept": float("nan")},
        {"unknown": 1},
        {"probability": {"scores": (0.0,), "log_odds": (0.0,)}},
        {"probability": {"scores": (0.0, 1.0), "log_odds": (0.0,)}},
        {"probability": {"scores": (0.0, 0.0), "log_odds": (0.0, 1.0)}},
        {"probability": {"scores": (0.0, 1.0, 2.0), "log_odds": (0.0, 1.0, 1.0)}},
        {"probability": {"scores": (0.0, 1.0), "log_odds": (0.0, float("inf"))}},
    ],
)
def test_impossible_parameters_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Parameters.model_validate({"half_lives_s": (1.0,), "kappas": (1.0,), **wrong})


def test_log_odds_lie_on_straight_lines_between_the_points() -> None:
    plain = Parameters(half_lives_s=(1.0,), kappas=(1.0,))
    scores = np.array([-9.0, -1.0, 0.5, 2.0, 9.0])
    np.testing.assert_array_equal(plain.log_odds(scores), scores)
    curve = LogOddsCurve(scores=(-1.0, 1.0, 3.0), log_odds=(-4.0, 0.0, 1.0))
    found = plain.model_copy(update={"probability": curve}).log_odds(scores)
    np.testing.assert_allclose(found, [-4.0, -4.0, -1.0, 0.5, 1.0])


def test_json_round_trip(parameters: Parameters) -> None:
    curve = LogOddsCurve(scores=(-1.0, 1.0), log_odds=(-4.0, 0.25))
    parameters = parameters.model_copy(update={"probability": curve})
    assert Parameters.model_validate_json(parameters.model_dump_json()) == parameters
