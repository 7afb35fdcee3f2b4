"""Small seeded data sets with a structure that a recommender can find."""

import numpy as np

from heliotrope_bench.dataset import Dataset, Item


def toy_dataset(users: int = 60, items: int = 40, events: int = 1_200, seed: int = 0) -> Dataset:
    """Half of the users like the items of even rows, half those of odd rows; times tie now and then."""
    generator = np.random.default_rng(seed)
    user = generator.integers(users, size=events)
    item = 2 * generator.integers(items // 2, size=events) + user % 2
    return Dataset(
        name="toy",
        items=[Item(f"m{row}", f"Film {row}", ("Drama",)) for row in range(items)],
        user_ids=[f"u{row}" for row in range(users)],
        user=user,
        item=item,
        value=generator.integers(1, 6, size=events).astype(float),
        time=np.sort(generator.integers(0, events // 2, size=events)).astype(float),
        positive_from=4.0,
    )
