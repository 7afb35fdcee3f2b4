"""Interest vectors of many users at once, held to the definition and to those of each user alone."""

import numpy as np

from heliotrope_server.interest_batch import interest_batch
from tests.server import worlds

NOW_S = 1.7e9


async def test_a_batch_of_users_at_their_own_moments_is_each_user_alone(tmp_path):
    served = worlds.catalogue(tmp_path, dimension=12)
    events = worlds.random_events(np.random.default_rng(3), 200, users=6, items=50)
    async with worlds.engine(tmp_path, served, wall_clock=lambda: NOW_S) as engine:
        await engine.record(events)
        users = ["u0", "nobody", "u1", "u2", "u3", "u4", "u5", "nobody else"]
        times = [NOW_S + 3_600.0 * place for place in range(len(users))]
        # Long ago: decay never runs backwards from the newest event.
        times[2] = 1.0e9
        known = [engine.store.get(user, served) for user in users]
        found = interest_batch(known, times, served.prior, served.parameters)
        assert found.dtype == np.float32 and found.shape == (8, served.parameters.horizons, 12)
        for place, (user, profile, time_s) in enumerate(zip(users, known, times, strict=True)):
            if profile is None:
                assert user.startswith("nobody")
                wanted = np.repeat(served.prior[None], served.parameters.horizons, axis=0)
            else:
                own = [event for event in events if event.user_id == user]
                naive = worlds.naive_interest_vectors(own, served, profile.read_time_s(time_s))
                np.testing.assert_allclose(found[place], naive, rtol=1e-5, atol=1e-6)
                wanted = profile.interest_vectors(time_s, served.parameters)
            np.testing.assert_allclose(found[place], wanted, rtol=1e-5, atol=1e-6)
