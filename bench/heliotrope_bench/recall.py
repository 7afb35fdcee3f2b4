"""recall@k of served answers against exact scoring of the whole catalogue with every term.

The exact side is a second computation, in float64 NumPy, from what is open to anyone: the arrays of the snapshot
folder, the interest vectors that GetProfile returns, and the live counts that GetItem returns:
`score = sum_h v_h^T A_h x_i + b_i + gamma * log1p(count_i) + intercept`.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from heliotrope import AsyncClient
from heliotrope_bench.errors import ServerLostError

PARALLEL_READS = 64


@dataclass(frozen=True)
class SnapshotArrays:
    """The scoring side of a snapshot folder: n items, dimension d, H horizons."""

    item_ids: list[str]
    vectors: NDArray[np.float32]
    bias: NDArray[np.float32]
    scoring_matrices: NDArray[np.float32]
    parameters: dict[str, Any]
    quality: dict[str, Any]

    @classmethod
    def read(cls, store: Path, version: str) -> "SnapshotArrays":
        folder = store / version
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return cls(
            item_ids=read_item_ids(folder / "items.arrow"),
            vectors=np.load(folder / "vectors.npy", mmap_mode="r"),
            bias=np.load(folder / "bias.npy"),
            scoring_matrices=np.load(folder / "scoring_matrices.npy"),
            parameters=manifest["parameters"],
            quality=manifest["quality"],
        )

    def scores(self, interest: NDArray[np.float64], live_counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) exact scores for interest vectors (H, d) and live counts (n,)."""
        query = np.einsum("hd,hde->e", interest, self.scoring_matrices.astype(np.float64))
        popularity = self.parameters["live_popularity_weight"] * np.log1p(live_counts)
        base: NDArray[np.float64] = self.vectors.astype(np.float64) @ query
        base += self.bias + popularity + self.parameters["intercept"]
        return base


def read_item_ids(path: Path) -> list[str]:
    """The ids of a snapshot's items, in row order."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        ids: list[str] = table.column("item_id").to_pylist()
    return ids


async def served_recall(
    address: str,
    arrays: SnapshotArrays,
    user_ids: Sequence[str],
    seen: dict[str, set[str]],
    *,
    count: int = 10,
) -> float:
    """Mean share of the exact best `count` among the served for `user_ids`.

    `seen` holds what every user of the server has touched, also those not asked about: it makes the live counts.

    An item that scores what the last of the exact list scores, to float32 rounding, is as right as that one.
    No event may be recorded meanwhile.
    """
    row_of = {item_id: row for row, item_id in enumerate(arrays.item_ids)}
    found = 0
    async with AsyncClient(address, timeout_s=60.0) as client:
        live = await live_counts(client, arrays, row_of, set().union(*seen.values()))
        for user_id in user_ids:
            profile = await client.get_profile(user_id)
            interest = np.array([vector.values for vector in profile.interest_vectors], np.float64)
            if interest.shape != arrays.scoring_matrices.shape[:2]:
                raise ServerLostError(
                    f"the profile of {user_id} has interest vectors of shape {interest.shape}; the snapshot has "
                    f"{arrays.scoring_matrices.shape[:2]}"
                )
            scores = arrays.scores(interest, live)
            scores[[row_of[item_id] for item_id in seen[user_id]]] = -np.inf
            answer = await client.recommend(user_id, count=count)
            found += hits(scores, [row_of[one.item_id] for one in answer.recommendations], count)
    return found / (len(user_ids) * count)


async def queries_of(address: str, arrays: SnapshotArrays, user_ids: Sequence[str]) -> NDArray[np.float32]:
    """The query vectors `sum_h v_h A_h` of users as they are now, (users, d)."""
    async with AsyncClient(address, timeout_s=60.0) as client:
        profiles = [await client.get_profile(user_id) for user_id in user_ids]
    interests = np.array([[vector.values for vector in profile.interest_vectors] for profile in profiles], np.float64)
    queries: NDArray[np.float64] = np.einsum("uhd,hde->ue", interests, arrays.scoring_matrices.astype(np.float64))
    return queries.astype(np.float32)


def hits(scores: NDArray[np.float64], served: Sequence[int], count: int) -> int:
    """How many of the served rows belong to the exact best `count`, ties at the cut-off forgiven."""
    cut = np.partition(scores, -count)[-count]
    tolerance = 1e-5 * max(1.0, abs(cut))
    return min(count, sum(bool(scores[row] >= cut - tolerance) for row in set(served)))


async def live_counts(
    client: AsyncClient, arrays: SnapshotArrays, row_of: dict[str, int], touched: Iterable[str]
) -> NDArray[np.float64]:
    """(n,) the live event count of each item; only items that were touched can have one."""
    counts = np.zeros(len(arrays.item_ids))
    if arrays.parameters["live_popularity_weight"] == 0:
        return counts
    limit = asyncio.Semaphore(PARALLEL_READS)

    async def read(item_id: str) -> None:
        async with limit:
            counts[row_of[item_id]] = (await client.get_item(item_id)).live_event_count

    await asyncio.gather(*(read(item_id) for item_id in sorted(touched)))
    return counts
