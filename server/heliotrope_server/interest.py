"""Interest sums: what makes a profile's vectors, kept by forward decay.

For each horizon h with half-life T_h a user has, at time t (seconds),

    s_h(t) = sum over events e of g_e  * 2^(-(t - t_e) / T_h) * x_(item of e)
    m_h(t) = sum over events e of |g_e| * 2^(-(t - t_e) / T_h)

Both are kept relative to a landmark L (Cormode, Shkapenyuk, Srivastava, Xu: "Forward Decay", ICDE 2009): an event adds
2^((t_e - L) / T_h) times its gain, and a read divides by 2^((t - L) / T_h). So events may come in any order, and sums
do not drift by being decayed again and again.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.parameters import Parameters

# The landmark moves before a weight passes 2^256: far below the float64 limit of 2^1023, yet rarely reached.
MAX_EXPONENT = 256.0


class InterestSums:
    """Decayed sums of one user for H horizons.

    `sums` is (H, d) float64 and `masses` H floats, both relative to `landmark_s`. float64 holds 1e-5 relative to
    sum |g| |x| even where positive and negative events cancel.
    """

    __slots__ = ("landmark_s", "masses", "sums")

    def __init__(self, horizons: int, dimension: int, landmark_s: float = 0.0) -> None:
        self.landmark_s = landmark_s
        self.sums: NDArray[np.float64] = np.zeros((horizons, dimension))
        self.masses: list[float] = [0.0] * horizons

    def add(
        self,
        gain: float,
        vector: NDArray[np.float32],
        time_s: float,
        half_lives_s: tuple[float, ...],
        sign: int = 1,
    ) -> None:
        """Adds one event, or takes it back with `sign=-1`. `vector` is (d,); O(H d)."""
        lead_s = time_s - self.landmark_s
        if lead_s > MAX_EXPONENT * min(half_lives_s):
            self.move_landmark(time_s, half_lives_s)
            lead_s = 0.0
        for horizon, half_life_s in enumerate(half_lives_s):
            weight = sign * gain * power_of_two(lead_s / half_life_s)
            if weight:
                # In float64: a float32 product would round each event to 6e-8, which cancelling events show up.
                self.sums[horizon] += np.multiply(vector, weight, dtype=np.float64)
                self.masses[horizon] += sign * abs(weight)

    def add_many(
        self,
        gains: NDArray[np.float64],
        vectors: NDArray[np.float32],
        times_s: NDArray[np.float64],
        half_lives_s: tuple[float, ...],
    ) -> None:
        """Adds n events at once: gains (n,), vectors (n, d), times (n,)."""
        if not len(gains):
            return
        newest_s = float(times_s.max())
        if newest_s - self.landmark_s > MAX_EXPONENT * min(half_lives_s):
            self.move_landmark(newest_s, half_lives_s)
        ages = (times_s - self.landmark_s) / np.array(half_lives_s)[:, None]
        weights = gains * np.exp2(ages)  # (H, n)
        self.sums += weights @ vectors.astype(np.float64)
        for horizon, mass in enumerate(np.abs(weights).sum(axis=1).tolist()):
            self.masses[horizon] += mass

    def move_landmark(self, landmark_s: float, half_lives_s: tuple[float, ...]) -> None:
        """Restates the same sums relative to another moment."""
        for horizon, half_life_s in enumerate(half_lives_s):
            factor = power_of_two((self.landmark_s - landmark_s) / half_life_s)
            self.sums[horizon] *= factor
            self.masses[horizon] *= factor
        self.landmark_s = landmark_s

    def masses_at(self, time_s: float, half_lives_s: tuple[float, ...]) -> list[float]:
        """m_h(t) for each horizon."""
        return [
            max(mass, 0.0) * power_of_two((self.landmark_s - time_s) / half_life_s)
            for mass, half_life_s in zip(self.masses, half_lives_s, strict=True)
        ]

    def sums_at(self, time_s: float, half_lives_s: tuple[float, ...]) -> NDArray[np.float64]:
        """s_h(t), (H, d)."""
        factors = [power_of_two((self.landmark_s - time_s) / half_life_s) for half_life_s in half_lives_s]
        decayed: NDArray[np.float64] = self.sums * np.array(factors)[:, None]
        return decayed

    def copy(self) -> "InterestSums":
        twin = InterestSums(len(self.masses), self.sums.shape[1], self.landmark_s)
        twin.sums = self.sums.copy()
        twin.masses = list(self.masses)
        return twin


class GainTable:
    """The bounded gains of Parameters by the number of an event type, as arrays; `names` by number."""

    def __init__(self, parameters: Parameters, names: Mapping[int, str]) -> None:
        self._weights = [0.0] * (1 + max(names))
        self._centers = list(self._weights)
        for number, name in names.items():
            gain = parameters.gains.get(name)  # type: ignore[call-overload]  # UNDO has none
            if gain is not None:
                self._weights[number], self._centers[number] = gain.weight, gain.center
        self.limit = self._limit = parameters.max_gain
        self.weight_array, self.center_array = np.array(self._weights), np.array(self._centers)

    def one(self, kind: int, value: float) -> float:
        """g_e of one event, as Parameters.gain; its value must be finite. 0.0 for a type without a gain."""
        gain = self._weights[kind] * (value - self._centers[kind])
        # min and max would take twice as long as all the rest.
        return gain if -self._limit <= gain <= self._limit else math.copysign(self._limit, gain)

    def many(self, kinds: NDArray[np.uint8], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """g_e of n events, (n,)."""
        gains = self.weight_array[kinds] * (values - self.center_array[kinds])
        bounded: NDArray[np.float64] = np.minimum(self._limit, np.maximum(-self._limit, gains))
        return bounded


def interest_vectors(
    sums: InterestSums,
    prior: NDArray[np.float32],
    time_s: float,
    half_lives_s: tuple[float, ...],
    kappas: tuple[float, ...],
) -> NDArray[np.float32]:
    """v_h(t) = (kappa_h * prior + s_h(t)) / (kappa_h + m_h(t)), (H, d). `prior` is (d,)."""
    vectors = np.empty(sums.sums.shape, dtype=np.float32)
    for horizon, (half_life_s, kappa) in enumerate(zip(half_lives_s, kappas, strict=True)):
        factor = power_of_two((sums.landmark_s - time_s) / half_life_s)
        total = kappa + max(sums.masses[horizon], 0.0) * factor
        vectors[horizon] = (sums.sums[horizon] * (factor / total)) + prior * (kappa / total)
    return vectors


def power_of_two(exponent: float) -> float:
    """2^exponent; 0.0 where float64 has no smaller number."""
    if exponent < -1080.0:
        return 0.0
    return math.exp2(exponent)
