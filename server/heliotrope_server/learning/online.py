"""Online learning on one shard: impressions in, examples out, and the weights that come back."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from heliotrope_server.answerer import Answer, Answerer
from heliotrope_server.learning.example import ExampleGroup
from heliotrope_server.learning.impression import MAX_PLACES, ImpressionMemory, Judgement, example_group
from heliotrope_server.learning.impression_log import ImpressionLog, feedback_record, impression_record
from heliotrope_server.learning.keeper import WeightKeeper
from heliotrope_server.learning.leader import Leader
from heliotrope_server.learning.weights import Weights
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.popularity import LivePopularity
from heliotrope_server.settings import LearningSettings

MAX_OUTBOX = 20_000
"""Examples that wait for the leader; the oldest are lost beyond that."""

WATCH_INTERVAL_S = 0.5


class OnlineLearning:
    """Exists only when feedback is learned from or impressions are logged; without it answers cost nothing more.

    `announce` is given on the leader alone (see `Leader`). The examples of every other shard wait in its outbox for
    whoever carries them to the leader. Call `start` before use and `stop` last.
    """

    def __init__(
        self,
        shard_folder: Path,
        weights_folder: Path,
        answerer: Answerer,
        popularity: LivePopularity,
        settings: LearningSettings,
        wall_clock: Callable[[], float],
        announce: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self.settings = settings
        self.feedback_count = 0
        self.stale_count = 0
        self.lost_count = 0
        self._popularity = popularity
        self._wall_clock = wall_clock
        self.memory = ImpressionMemory(settings.remembered_answers, settings.feedback_window_s)
        self.keeper = WeightKeeper(weights_folder, answerer) if settings.learn_online else None
        self.leader = (
            Leader(self.keeper, settings, wall_clock, announce)
            if self.keeper is not None and announce is not None
            else None
        )
        self.log = (
            ImpressionLog(shard_folder / "impressions", settings.impression_log_bytes)
            if settings.impression_log_share > 0.0
            else None
        )
        self._catalogue = answerer.catalogue
        self._random = random.Random()
        self._outbox: deque[ExampleGroup] = deque()
        self.outbox_size = 0
        self.outbox_filled = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self.log is not None:
            self.log.start()
        if self.leader is not None:
            self.leader.start()
        elif self.keeper is not None:
            self._watcher = asyncio.create_task(self._watch(self.keeper))

    async def stop(self) -> None:
        if self.leader is not None:
            self.leader.stop()
        if self._watcher is not None:
            self._watcher.cancel()
        if self.log is not None:
            await self.log.stop()

    @property
    def weights_version(self) -> int:
        return 0 if self.keeper is None else self.keeper.active.version

    def note(self, request_id: str, user_id: str, answer: Answer) -> None:
        """Remembers an answer that goes out. On the path of every recommendation: some microseconds, no I/O."""
        logged = self.log is not None and self._random.random() < self.settings.impression_log_share
        now_s = self._wall_clock()
        if self.keeper is not None:
            # After a swap of snapshots the rows of an answer may be those of the one before; see `example_group`.
            counts = self._popularity.counts_of(answer.rows[:MAX_PLACES], now_s)
            self.memory.note(request_id, user_id, answer, counts, self.keeper.active.version, now_s, logged)
        else:
            self.memory.note(request_id, user_id, answer, None, None, now_s, logged)
        if self.log is not None and logged:
            self.log.add(impression_record(request_id, user_id, round(now_s * 1e6), answer, self.weights_version))

    def feedback(self, user_id: str, request_id: str, rewards: Mapping[str, float]) -> Judgement:
        """Takes in feedback on an answer of this shard. Raises UnknownRequestError or InvalidArgumentError."""
        now_s = self._wall_clock()
        judgement = self.memory.judge(user_id, request_id, rewards, now_s)
        if not judgement.places:
            return judgement
        self.feedback_count += len(judgement.places)
        if self.log is not None and judgement.impression.logged:
            self.log.add(feedback_record(request_id, round(now_s * 1e6), judgement))
        if self.keeper is not None:
            weights = self._weights_of(self.keeper, judgement)
            group = None if weights is None else example_group(judgement, self._catalogue, weights)
            if group is None:
                self.stale_count += len(judgement.places)
            elif self.leader is not None:
                self.leader.take(group)
            else:
                self._post(group)
        return judgement

    def adopt(self, catalogue: LiveCatalogue) -> None:
        """Goes over to another snapshot, which the answerer serves already."""
        self._catalogue = catalogue
        if self.keeper is not None:
            self.keeper.adopt(catalogue)
        if self.leader is not None:
            self.leader.adopt(catalogue)

    def forget(self, user_id: str) -> None:
        """Drops what was shown to a user. The impression log keeps its records until they are rotated out."""
        self.memory.forget(user_id)

    def take_outbox(self, limit: int) -> list[ExampleGroup]:
        """Takes out groups for the leader, oldest first."""
        groups: list[ExampleGroup] = []
        while self._outbox and len(groups) < limit:
            groups.append(self._outbox.popleft())
            self.outbox_size -= groups[-1].size
        if not self._outbox:
            self.outbox_filled.clear()
        return groups

    def put_back(self, groups: list[ExampleGroup]) -> None:
        """Returns groups that the leader did not take."""
        for group in reversed(groups):
            self._outbox.appendleft(group)
            self.outbox_size += group.size
        self._trim()
        self.outbox_filled.set()

    def _post(self, group: ExampleGroup) -> None:
        self._outbox.append(group)
        self.outbox_size += group.size
        self._trim()
        self.outbox_filled.set()

    def _trim(self) -> None:
        while self.outbox_size > MAX_OUTBOX:
            lost = self._outbox.popleft().size
            self.outbox_size -= lost
            self.lost_count += lost

    def _weights_of(self, keeper: WeightKeeper, judgement: Judgement) -> Weights | None:
        impression = judgement.impression
        if impression.snapshot_version != keeper.catalogue.version or impression.weights_version is None:
            return None
        return keeper.recent(impression.weights_version)

    async def _watch(self, keeper: WeightKeeper) -> None:
        """A follower that missed an announcement, or was down, finds the weights by itself."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            keeper.catch_up()
