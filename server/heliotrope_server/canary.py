"""Watches how one shard answers after a switch of snapshots, and says when it must go back.

Two things are watched for `window_s` seconds. Recommendations that fail by the server's own fault, against before. And
recall: of the questions that come in, one a second is also answered by exact scoring of the whole catalogue, in a
thread. At other times one question in 30 seconds is, so that there is something to compare with.

A version is called bad only where that is clear: the mean recall must be below its bound, and the share of faults above
its own, by three standard errors.
"""

import asyncio
import contextlib
import logging
import statistics
from collections import deque
from collections.abc import Awaitable, Callable

from heliotrope_server.engine import Engine
from heliotrope_server.errors import ShardUnreachableError
from heliotrope_server.pace import Pace
from heliotrope_server.recall_canary import recall_at_10

INTERVAL_S = 1.0
IDLE_INTERVAL_S = 30.0
LEAST_SAMPLES = 5
KEPT_SAMPLES = 64
"""Of the version before: half an hour."""
LEAST_RECALL = 0.95
"""What a build must reach by default; stands in where neither the version before nor the manifest has a figure."""
RECALL_SHARE = 0.9
"""Of the recall before, or of the build's own figure."""
CLEAR = 3.0
"""Standard errors."""
LEAST_FAULTS = 5
MORE_FAULTS = 0.02
"""By how much the share of failed recommendations may be larger than before."""

logger = logging.getLogger(__name__)


class Canary:
    """Belongs to the event loop of its shard."""

    def __init__(self, engine: Engine, window_s: float, report: Callable[[str, str], Awaitable[None]]) -> None:
        """`report` takes a version, and what is wrong with it, to whoever can go back. `window_s` 0: never."""
        self._engine = engine
        self._window_s = window_s
        self._report = report
        self._recalls: deque[float] = deque(maxlen=KEPT_SAMPLES)
        self._asked = self._failed = 0
        self._share_before = 0.0
        self._bound = 0.0
        self._until_s: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()

    def start(self) -> None:
        if self._window_s > 0.0:
            self._task = asyncio.create_task(self._watch_for_ever())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def begin(self, *, watched: bool) -> None:
        """Another version is served from now on; `watched`: and may have to be taken back."""
        answerer, manifest = self._engine.answerer, self._engine.catalogue.snapshot.manifest
        asked, failed = self._counted()
        self._share_before = failed / max(asked, 1)
        self._asked, self._failed = answerer.recommend_count, answerer.fault_count
        earlier = float(manifest.quality.get("recall_at_10", LEAST_RECALL))
        if len(self._recalls) >= LEAST_SAMPLES:
            earlier = statistics.fmean(self._recalls)
        self._bound = RECALL_SHARE * earlier
        self._recalls.clear()
        answerer.sample = None
        self._until_s = asyncio.get_running_loop().time() + self._window_s if watched else None
        self._begun.set()

    async def _watch_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            watching = self._until_s is not None and loop.time() < self._until_s
            self._engine.answerer.wants_sample = True
            self._begun.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), INTERVAL_S if watching else IDLE_INTERVAL_S)
            version = self._engine.catalogue.version
            try:
                await self._measure()
            except Exception:
                logger.exception("the recall of an answer could not be measured")
            if watching and version == self._engine.catalogue.version:
                reason = self._fault() or self._miss()
                if reason is not None:
                    await self._call_off(version, reason)

    async def _measure(self) -> None:
        """Answers the newest question exactly, and keeps the recall of what it was answered with."""
        answerer, version = self._engine.answerer, self._engine.catalogue.generation
        sample, answerer.sample = answerer.sample, None
        if sample is None or sample.catalogue.generation != version:
            return
        recall = await asyncio.to_thread(recall_at_10, sample, Pace())
        if self._engine.catalogue.generation == version:
            self._recalls.append(recall)

    def _counted(self) -> tuple[int, int]:
        """Recommendations since the last switch, failed ones included, and those that failed."""
        answerer = self._engine.answerer
        failed = answerer.fault_count - self._failed
        return answerer.recommend_count - self._asked + failed, failed

    def _fault(self) -> str | None:
        asked, failed = self._counted()
        if failed < LEAST_FAULTS:
            return None
        share = failed / asked
        error = (share * (1.0 - share) / asked) ** 0.5
        if share - CLEAR * error <= self._share_before + MORE_FAULTS:
            return None
        return (
            f"{failed} of {asked} recommendations failed, a share of {share:.3f}; before the switch it was "
            f"{self._share_before:.3f}, and {MORE_FAULTS} more are allowed"
        )

    def _miss(self) -> str | None:
        if len(self._recalls) < LEAST_SAMPLES:
            return None
        mean = statistics.fmean(self._recalls)
        error = statistics.stdev(self._recalls) / len(self._recalls) ** 0.5
        if mean + CLEAR * error >= self._bound:
            return None
        return (
            f"recall@10 is {mean:.3f} on {len(self._recalls)} questions, with an error of {error:.3f}; at least "
            f"{self._bound:.3f} is expected"
        )

    async def _call_off(self, version: str, reason: str) -> None:
        """Has the server go back. It is asked once: where it can't, the log says why, and the version stays."""
        try:
            await self._report(version, reason)
        except ShardUnreachableError as error:
            logger.error("snapshot %s answers badly (%s), and is not withdrawn yet: %s", version, reason, error)
            return  # asked again in a second, until the window ends
        except Exception:
            logger.exception("snapshot %s answers badly (%s), and cannot be withdrawn", version, reason)
        self._until_s = None
