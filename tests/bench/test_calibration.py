import numpy as np
import pytest

from heliotrope_bench.calibration import Duels, calibration_error


@pytest.mark.parametrize("equal_mass", [False, True])
def test_honest_probabilities_have_no_error(equal_mass: bool) -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.random(200_000)
    labels = (generator.random(200_000) < probabilities).astype(float)
    weights = np.ones(200_000)
    assert calibration_error(probabilities, labels, weights, equal_mass=equal_mass) < 0.01
    shifted = np.clip(probabilities + 0.1, 0, 1)
    assert calibration_error(shifted, labels, weights, equal_mass=equal_mass) == pytest.approx(0.095, abs=0.01)


def test_bins_by_hand() -> None:
    probabilities = np.array([0.01, 0.02, 0.98])
    labels = np.array([0.0, 1.0, 1.0])
    weights = np.array([1.0, 1.0, 2.0])
    assert calibration_error(probabilities, labels, weights) == pytest.approx((abs(0.03 - 1.0) + 2 * 0.02) / 4)


def test_a_duel_is_half_target_half_drawn() -> None:
    duels = Duels()
    generator = np.random.default_rng(0)
    duels.add(np.array([4, 7, 9]), np.array([0.9, 0.5, 0.5]), 4, generator)
    duels.add(np.array([4, 7]), np.array([0.9, 0.5]), 5, generator)  # not served: no impression
    figures = duels.figures()
    # At 0.9 always right: off by 0.1; at 0.5 never: off by 0.5; each has half of the weight.
    assert figures["impressions"] == 21
    assert figures["ece"] == pytest.approx(0.5 * 0.1 + 0.5 * 0.5)
