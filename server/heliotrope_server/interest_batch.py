"""The interest vectors of many users at once: the formula of `interest`, at NumPy's price for one call."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.parameters import Parameters
from heliotrope_server.profile import Profile


def interest_batch(
    profiles: Sequence[Profile | None],
    times_s: Sequence[float],
    population_prior: NDArray[np.float32],
    parameters: Parameters,
) -> NDArray[np.float32]:
    """v_h of each user at their moment, (m, H, d); for a user without a profile the population's prior (d,)."""
    shape = len(profiles), parameters.horizons, len(population_prior)
    sums, masses = np.zeros(shape), np.zeros(shape[:2])
    priors = np.empty((shape[0], shape[2]), dtype=np.float32)
    leads_s = np.zeros(shape[0])
    for place, profile in enumerate(profiles):
        if profile is None:
            priors[place] = population_prior
            continue
        total = profile.total
        priors[place], sums[place], masses[place] = profile.prior, total.sums, total.masses
        leads_s[place] = total.landmark_s - profile.read_time_s(times_s[place])
    factors = np.exp2(leads_s[:, None] / np.array(parameters.half_lives_s))
    kappas = np.array(parameters.kappas)
    totals = kappas + np.maximum(masses, 0.0) * factors
    sums *= (factors / totals)[:, :, None]
    sums += priors[:, None, :] * (kappas / totals)[:, :, None]
    return sums.astype(np.float32)
