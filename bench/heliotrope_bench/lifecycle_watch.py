"""Watches a server through its life: what was acknowledged must be in every later answer, and answers stay right."""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from heliotrope import AsyncClient, Event, HeliotropeError, attribute_in, item_filter
from heliotrope_bench.errors import ServerLostError
from heliotrope_bench.exact_answers import COUNTED_LATE_S, ExactAnswers, Served
from heliotrope_bench.newcomers import LOT, Newcomers

COUNT = 10
LARGEST_LOT = 256
"""Items in one UpsertItems, at most."""
EVERY_S = 0.25
"""Between two looks at what is served: each asks for one whole lot and for one list of a user."""
STRANGER = "watch-stranger"
"""Asks for whole lots; has no events."""


class Look(NamedTuple):
    """One answer that was looked at, by time.monotonic(). `lacks` says what it lacks or has too much; empty: nothing.

    `right` of `places` are as exact scoring has them; None where that was not asked.
    """

    at_s: float
    lacks: str
    right: int | None = None
    places: int = 0


class Watch:
    """Adds newcomers, one lot after the other, and asks for them; `looks` and `failures` are what came of it.

    Everything that is asked or recorded here is asked one after the other, so that each answer has one right content.
    """

    def __init__(
        self, client: AsyncClient, newcomers: Newcomers, users: Sequence[str], history: Sequence[Event], seed: int
    ) -> None:
        self.acknowledged = 0
        self.looks: list[Look] = []
        self.failures: list[tuple[float, str]] = []
        self._client, self._newcomers, self._users = client, newcomers, users
        self._events = list(history)
        # When each was acknowledged, by time.monotonic().
        self._recorded_s = [0.0] * len(self._events)
        self._lots: list[list[str]] = []
        self._served: list[tuple[float, Served, int, int]] = []
        self._random = np.random.default_rng(seed)
        self._turn = asyncio.Lock()

    async def add(self, rate_per_s: float, seconds: float) -> float:
        """Adds newcomers at this rate for so long, or until there are no more; returns the rate that was reached.

        Each call brings what is due, so a server that is slow is sent larger lots and not more of them at once.
        """
        start, first = time.monotonic(), self.acknowledged
        while (elapsed := time.monotonic() - start) < seconds and self.acknowledged < len(self._newcomers):
            due = int(elapsed * rate_per_s) - (self.acknowledged - first)
            if due < min(rate_per_s / 10, LARGEST_LOT):
                await asyncio.sleep(0.02)
                continue
            await self._add_lot(min(due, LARGEST_LOT))
        return (self.acknowledged - first) / (time.monotonic() - start)

    async def look_for_ever(self) -> None:
        """Looks at whole lots and at lists of users, until it is cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            if self._lots:
                await self._asked(partial(self._look_at_lot, int(self._random.integers(len(self._lots)))))
            user = self._users[int(self._random.integers(len(self._users)))]
            await self._asked(partial(self._look_at_list, user))

    def judge(self, answers: ExactAnswers) -> None:
        """Adds what exact scoring says of every list to the looks."""
        for at_s, served, events, settled in self._served:
            judged = answers.judge(served, self._events[:events], settled)
            # Others among the missing are what an approximate index may miss: recall says how many.
            lacks = ""
            if served.about in judged.missing:
                lacks = f"{served.user_id} came for {served.about}, snapshot {served.snapshot_version}"
            self.looks.append(Look(at_s, lacks, judged.right, judged.count))
        self._served.clear()

    async def _add_lot(self, count: int) -> None:
        items = self._newcomers.lot(len(self._lots), self.acknowledged, count)
        try:
            await self._client.upsert_items(items)
        except HeliotropeError as error:
            self.failures.append((time.monotonic(), str(error)))
            raise ServerLostError(f"a lot of {len(items)} items was refused: {error}") from error
        self.acknowledged += len(items)
        self._lots.append([item.item_id for item in items])
        await self._asked(self._look_at_newest)

    async def _asked(self, look: Callable[[], Awaitable[None]]) -> None:
        async with self._turn:
            try:
                await look()
            except HeliotropeError as error:
                self.failures.append((time.monotonic(), str(error)))

    async def _look_at_lot(self, number: int) -> None:
        """All items of a lot and nothing else, by a filter."""
        wanted = self._lots[number]
        at_s = time.monotonic()
        answer = await self._client.recommend(
            STRANGER, count=len(wanted), filter=item_filter(attribute_in(LOT, str(number)))
        )
        found = {each.item_id for each in answer.recommendations}
        lacks = ""
        if found != set(wanted):
            missing, strange = len(set(wanted) - found), len(found - set(wanted))
            lacks = f"call {number}: {missing} of {len(wanted)} missing, {strange} strange, {answer.snapshot_version}"
        self.looks.append(Look(at_s, lacks))

    async def _look_at_newest(self) -> None:
        """Somebody who came for one of the items that were acknowledged just now must find it."""
        item_id = self._lots[-1][int(self._random.integers(len(self._lots[-1])))]
        event = Event(f"watch-{len(self._lots)}", item_id, "click", time=time.time())
        receipt = await self._client.record_events([event])
        self._events.append(event)
        self._recorded_s.append(time.monotonic())
        await self._look_at_list(event.user_id, about=item_id, token=receipt.version_token(event.user_id))

    async def _look_at_list(self, user: str, *, about: str = "", token: str = "") -> None:
        known, events, at_s, now = self.acknowledged, len(self._events), time.monotonic(), time.time()
        answer = await self._client.recommend(
            user, count=COUNT, seen="include" if about else "exclude", version_token=token
        )
        served = Served(
            user,
            now,
            known,
            [each.item_id for each in answer.recommendations],
            answer.snapshot_version,
            with_seen=bool(about),
            about=about,
        )
        settled = bisect_left(self._recorded_s, at_s - COUNTED_LATE_S)
        self._served.append((at_s, served, events, settled))
