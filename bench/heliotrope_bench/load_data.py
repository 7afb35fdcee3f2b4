"""The users and events of a load test: synthetic, seeded, over the items of the snapshot that is served."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from heliotrope import Client, Event
from heliotrope.v1.catalog_pb2 import Item, UpsertItemsRequest
from heliotrope.v1.event_pb2 import RecordEventsRequest
from heliotrope.v1.recommendation_pb2 import (
    BatchRecommendRequest,
    ExplainRequest,
    RecommendRequest,
    StreamRecommendRequest,
)
from heliotrope_bench.errors import ServerLostError
from heliotrope_bench.generator import PreparedCall

RECOMMEND = "/heliotrope.v1.RecommendationService/Recommend"
BATCH_RECOMMEND = "/heliotrope.v1.RecommendationService/BatchRecommend"
STREAM_RECOMMEND = "/heliotrope.v1.RecommendationService/StreamRecommend"
EXPLAIN = "/heliotrope.v1.RecommendationService/Explain"
RECORD_EVENTS = "/heliotrope.v1.EventService/RecordEvents"
UPSERT_ITEMS = "/heliotrope.v1.CatalogService/UpsertItems"
TYPES = ("view", "click", "favorite", "purchase")
PAST_S = 3 * 86_400.0
"""Events are spread over this many seconds before now, well inside of the default event window."""


@dataclass(frozen=True)
class Population:
    """Users who take items by Zipf's law: the item of popularity rank r with weight r^-0.8, ranks drawn by the seed."""

    item_ids: Sequence[str]
    users: int
    seed: int

    def user_ids(self) -> list[str]:
        return [f"load-{self.seed}-{number}" for number in range(self.users)]

    def history(self, events_per_user: int) -> Iterator[Event]:
        """`events_per_user` events of each user, spread over the past."""
        generator = np.random.default_rng(self.seed)
        items = self._draw(self.users * events_per_user, generator)
        ages = generator.uniform(0, PAST_S, len(items))
        kinds = generator.integers(len(TYPES), size=len(items))
        now = time.time()
        users = self.user_ids()
        for number, item in enumerate(items.tolist()):
            user = users[number % self.users]
            yield Event(
                user,
                self.item_ids[item],
                TYPES[kinds[number]],  # type: ignore[arg-type]
                time=now - float(ages[number]),
                event_id=f"history-{number}",
            )

    def recommend_calls(
        self,
        count: int,
        *,
        diversity: float = 0.0,
        explain: bool = False,
        number: int = 4_096,
        owner: Callable[[str], str] | None = None,
    ) -> list[PreparedCall]:
        """Recommend(count) for users drawn at random; sent to the address of the `owner` of each where it is given."""
        users = self.user_ids()
        chosen = np.random.default_rng(self.seed + 1).integers(len(users), size=number).tolist()
        plain = RecommendRequest(count=count, explain=explain)
        if diversity:
            plain.list_rules.diversity = diversity
        calls = []
        for one in chosen:
            plain.user_id = users[one]
            address = owner(users[one]) if owner else None
            calls.append(PreparedCall(RECOMMEND, plain.SerializeToString(), address=address))
        return calls

    def stream_calls(self, count: int, *, number: int = 4_096) -> list[PreparedCall]:
        """The same questions as messages of StreamRecommend."""
        users = self.user_ids()
        chosen = np.random.default_rng(self.seed + 1).integers(len(users), size=number).tolist()
        asked = (StreamRecommendRequest(request=RecommendRequest(user_id=users[one], count=count)) for one in chosen)
        return [PreparedCall(STREAM_RECOMMEND, message.SerializeToString()) for message in asked]

    def batch_recommend_calls(
        self, count: int, *, explain: bool = False, number: int = 16, users_per_call: int = 256
    ) -> list[PreparedCall]:
        """BatchRecommend for 256 users a call; the unit is an answered user."""
        users = self.user_ids()
        generator = np.random.default_rng(self.seed + 2)
        calls = []
        for _ in range(number):
            chosen = generator.integers(len(users), size=users_per_call).tolist()
            batch = BatchRecommendRequest(
                requests=[RecommendRequest(user_id=users[one], count=count, explain=explain) for one in chosen]
            )
            calls.append(PreparedCall(BATCH_RECOMMEND, batch.SerializeToString(), users_per_call))
        return calls

    def explain_calls(
        self, count: int, *, items: int = 0, counterfactuals: int, number: int = 64
    ) -> list[PreparedCall]:
        """Explain for users drawn at random: of their lists, or of so many `items` drawn at random."""
        users, generator = self.user_ids(), np.random.default_rng(self.seed + 4)
        calls = []
        for one in generator.integers(len(users), size=number).tolist():
            chosen = self._draw(items, generator).tolist()
            request = ExplainRequest(
                request=RecommendRequest(user_id=users[one], count=count),
                item_ids=[self.item_ids[item] for item in chosen],
                counterfactual_count=counterfactuals,
            )
            calls.append(PreparedCall(EXPLAIN, request.SerializeToString()))
        return calls

    def record_calls(self, *, number: int, events_per_call: int, salt: str) -> list[PreparedCall]:
        """RecordEvents of new events that happen now; `salt` makes their ids new. The unit is an event."""
        generator = np.random.default_rng(self.seed + 3)
        items = self._draw(number * events_per_call, generator)
        chosen = generator.integers(self.users, size=len(items))
        users = self.user_ids()
        calls = []
        for start in range(0, len(items), events_per_call):
            request = RecordEventsRequest(
                events=[
                    Event(
                        users[chosen[place]], self.item_ids[items[place]], "click", event_id=f"{salt}-{place}"
                    ).to_proto()
                    for place in range(start, start + events_per_call)
                ]
            )
            calls.append(PreparedCall(RECORD_EVENTS, request.SerializeToString(), events_per_call))
        return calls

    def upsert_calls(self, *, number: int, salt: str) -> list[PreparedCall]:
        """UpsertItems of one new item each, with a short title."""
        calls = []
        for place in range(number):
            item = Item(item_id=f"new-{salt}-{place}", title=f"New item {place}")
            calls.append(PreparedCall(UPSERT_ITEMS, UpsertItemsRequest(items=[item]).SerializeToString()))
        return calls

    def _draw(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        ranks = np.random.default_rng(self.seed).permutation(len(self.item_ids))
        weights = np.cumsum(np.arange(1, len(ranks) + 1, dtype=np.float64) ** -0.8)
        drawn: NDArray[np.int64] = ranks[np.searchsorted(weights, generator.random(count) * weights[-1])]
        return drawn


def mixed(
    recommend: Sequence[PreparedCall],
    others: Sequence[tuple[float, Sequence[PreparedCall]]],
    count: int,
    seed: int,
) -> list[PreparedCall]:
    """`count` calls: a share of each of the `others`, drawn at random and each used once, and else `recommend` in turn.

    Each counts as one unit, so that the rate of a mix is one of calls. No list of the others may be shorter than count.
    """
    draws = np.random.default_rng(seed).random(count)
    kinds = np.searchsorted(np.cumsum([share for share, _ in others]), draws, side="right").tolist()
    fresh = [(replace(call, units=1) for call in calls) for _, calls in others]
    return [
        next(fresh[kind]) if kind < len(fresh) else recommend[number % len(recommend)]
        for number, kind in enumerate(kinds)
    ]


def record(client: Client, events: Sequence[Event], batch: int = 1_000) -> None:
    """Records events; raises ServerLostError for the first that is refused."""
    for start in range(0, len(events), batch):
        for result in client.record_events(events[start : start + batch]).rejected:
            raise ServerLostError(f"the server refused {result.event_id}: {result.error.message}")
