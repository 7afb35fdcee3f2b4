"""One shard's engine: profiles, events and recommendations, as plain calls.

The engine belongs to one event loop and knows no protobuf and no gRPC. Events are applied in the order of the log,
after they are on disk; everything that is read is read between two applications, so no locks are needed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.answerer import Answer, Answerer, Question
from heliotrope_server.catalogue_log import CatalogueChanges
from heliotrope_server.embedder import Embedder
from heliotrope_server.errors import (
    InvalidArgumentError,
    ItemNotFoundError,
    ProfileDamagedError,
    RequestError,
    StartError,
)
from heliotrope_server.event import UserEvent, check_id
from heliotrope_server.event_records import (
    RECORD_DECLARE,
    RECORD_DELETE,
    RECORD_EVENT,
    RECORD_SEGMENTS,
    apply_to_profile,
    declare,
    unpacked,
)
from heliotrope_server.examiner import Examination, Examiner
from heliotrope_server.freshness import Freshness
from heliotrope_server.garbage import settle
from heliotrope_server.learning.online import OnlineLearning
from heliotrope_server.list_rules import MAX_DIVERSE_COUNT, check_rules
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.micro_batcher import MicroBatcher, Timed
from heliotrope_server.popularity import LivePopularity
from heliotrope_server.profile import Applied, Profile
from heliotrope_server.profile_codec import PLAIN_KEY_ID
from heliotrope_server.profile_store import ProfileStore
from heliotrope_server.record_log import RecordLog, read_log
from heliotrope_server.residuals import Residuals
from heliotrope_server.retriever import Retriever, make_retriever
from heliotrope_server.segments import MAX_SEGMENTS
from heliotrope_server.settings import EngineSettings
from heliotrope_server.succession import Succession
from heliotrope_server.version_token import VersionClock

MAX_COUNT = 1000
MAX_EXCLUDED = 10_000
MAX_INTERESTS = 16
MAX_TEXT = 2000

_SETTLED = 1_024
"""Changes of the catalogue after which the garbage collector is told of the objects that they made."""
_MAX_BATCH = 64  # keeps the event loop busy for a few milliseconds at most

logger = logging.getLogger(__name__)


class EventFate(NamedTuple):
    """What came of one event: an Applied, or the error that refused it.

    `applied` is None where the profile is damaged.
    """

    applied: Applied | None
    error: RequestError | None = None


_RECORDED, _DUPLICATE = EventFate(Applied.RECORDED), EventFate(Applied.DUPLICATE)


class Engine:
    """See the module. Call `start` before anything else and `stop` last."""

    def __init__(
        self,
        folder: Path,
        catalogue_folder: Path,
        catalogue: LiveCatalogue,
        embedder: Embedder,
        clock: VersionClock,
        settings: EngineSettings,
        *,
        wall_clock: Callable[[], float] = time.time,
        log_factory: Callable[[Path], RecordLog] = RecordLog,
        make_retriever: Callable[[LiveCatalogue], Retriever] = make_retriever,
    ) -> None:
        self.catalogue = catalogue
        # Laid over like `catalogue` and about to be served in its place; follows the same changes.
        self.successor: LiveCatalogue | None = None
        self.settings = settings
        self.changes = CatalogueChanges(catalogue_folder)
        self.embedder = embedder
        self.clock = clock
        self.popularity = LivePopularity(catalogue.parameters.popularity_half_life_s)
        # Set by whoever starts the engine, once it has recovered; None: nothing is learned and no answer is noted.
        self.learning: OnlineLearning | None = None
        self.residuals = Residuals()
        self.event_count = 0
        self._settled_at = 0
        self.applied_lsn = 0
        self._wall_clock = wall_clock
        self._log_folder = folder / "log"
        self._log_factory = log_factory
        self.store = ProfileStore(folder / "profiles", cache_profiles=settings.cache_profiles)
        freshness = None
        if settings.freshness_weight > 0.0:
            freshness = Freshness(
                settings.freshness_weight,
                settings.freshness_half_life_s,
                settings.freshness_quota,
                self.changes.added_s,
            )
        self.answerer = Answerer(
            catalogue,
            self.store,
            self.popularity,
            clock,
            wall_clock,
            rules=settings.list_rules,
            freshness=freshness,
            make_retriever=make_retriever,
        )
        self._examiner = Examiner(self.answerer, self.popularity)
        self._batcher = MicroBatcher[Question, Answer](
            self._answer, max_batch=_MAX_BATCH, max_waiting=settings.max_waiting_requests
        )
        self._checkpoint_lock = asyncio.Lock()

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self, folded_maps: Callable[[LiveCatalogue, set[str]], None] | None = None) -> None:
        """Recovers: the last checkpoint, then the tail of the log. Raises StartError (LogCorruptError, ...)."""
        self.changes.catch_up()
        await self._refresh_stale_pooled()
        self.changes.lay_over(self.catalogue)
        self.answerer.follow()
        missing = self.store.folded_versions - {self.catalogue.version}
        if folded_maps is not None and missing:
            folded_maps(self.catalogue, missing)
        self.store.load_popularity(self.popularity)
        self.popularity.change_half_life(self.catalogue.parameters.popularity_half_life_s, self._wall_clock())
        self.popularity.bind(self.catalogue.rows, self.catalogue.size)
        self.store.load_residuals(self.residuals)
        self.residuals.bind(self.catalogue)
        self.applied_lsn = self.store.checkpoint_lsn
        replayed = 0
        for frame in read_log(self._log_folder, after_lsn=self.applied_lsn):
            for offset, record in enumerate(frame.records):
                lsn = frame.first_lsn + offset
                if lsn > self.applied_lsn:
                    replay = self._replay if lsn > self.store.shared_lsn else self._replay_into_profile
                    try:
                        replay(record, lsn)
                    except ProfileDamagedError:
                        self.applied_lsn = lsn  # the store has said so; a repair takes the record from the log
                    replayed += 1
            await asyncio.sleep(0)
        self._log = self._log_factory(self._log_folder)
        if self._log.last_lsn < self.store.shared_lsn:
            raise StartError(
                f"the log in {self._log_folder} ends at LSN {self._log.last_lsn}, "
                f"before the checkpoint at {self.store.shared_lsn}: log files are missing"
            )
        if replayed:
            logger.info("replayed %d records up to LSN %d", replayed, self.applied_lsn)
        self._checkpointer = asyncio.create_task(self._checkpoint_for_ever())

    async def stop(self, *, close_store: bool = True) -> None:
        """Writes what is still to be written: the log first, then a last checkpoint."""
        self.store.hurried += 1
        async with self._checkpoint_lock:
            # Between two checkpoints: one that was broken off would take its users for saved.
            self._checkpointer.cancel()
        self._log.close()
        await asyncio.sleep(0)  # acknowledgements of the last group
        await self.checkpoint()
        if close_store:
            self.store.close()
        self.embedder.close()

    @property
    def healthy(self) -> bool:
        return not self._log.failed and not self._checkpointer.done()

    async def checkpoint(self, *, paced: bool = False) -> None:
        """Takes a checkpoint now; `paced`: in the time that requests leave, until somebody waits for it."""
        self.store.hurried += not paced
        try:
            async with self._checkpoint_lock:
                await self.store.checkpoint(
                    self.applied_lsn, self.popularity, self.residuals, self.catalogue.version, paced=paced
                )
        finally:
            self.store.hurried -= not paced

    # -- recommendations ------------------------------------------------------------------------------------------

    def recommend(
        self, question: Question, *, client: str = "", deadline_s: float = float("inf")
    ) -> asyncio.Future[Timed[Answer]]:
        """The answer to be of one question, in the next micro-batch. `deadline_s` is on the clock of time.monotonic().

        Clients take turns. Raises the RequestError of a question that can't be, and OverloadedError.
        """
        self._check_question(question)
        return self._batcher.submit(question, client=client, deadline_s=deadline_s)

    async def recommend_many(
        self, questions: Sequence[Question], *, client: str = "", deadline_s: float = float("inf")
    ) -> list[Answer | RequestError]:
        """Answers many questions in micro-batches; an error stands in the place of its question.

        Raises OverloadedError for all together.
        """
        outcomes: dict[int, Answer | RequestError] = {}
        sound = []
        for place, question in enumerate(questions):
            try:
                self._check_question(question)
                sound.append(place)
            except RequestError as error:
                outcomes[place] = error
        asked = self._batcher.submit_all([questions[place] for place in sound], client=client, deadline_s=deadline_s)
        for place, answer in zip(sound, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(answer, RequestError):
                outcomes[place] = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                outcomes[place] = answer.result
        return [outcomes[place] for place in range(len(questions))]

    def _answer(self, questions: Sequence[Question]) -> Sequence[Answer | RequestError]:
        try:
            return self.answerer.answer(questions)
        except Exception:
            self.answerer.fault_count += len(questions)
            raise

    async def explain(
        self, question: Question, item_ids: Sequence[str], counterfactuals: int | None = None
    ) -> Examination:
        """Explains an answer in full, or some items beside it, as of now unless the question has a time.

        `counterfactuals` is for how many events of each item; None: as the contract says. Raises the RequestError of a
        question that can't be, ItemNotFoundError for an item that is not there, and OverloadedError.
        """
        self._check_question(question)
        rows = [self.require_item(item_id) for item_id in item_ids]
        if question.time_s is None:
            question = question._replace(time_s=self.now_s())
        return await self._examiner.examine(question._replace(explain=False), rows, counterfactuals)

    def _check_question(self, question: Question) -> None:
        check_id("user_id", question.user_id)
        if not 1 <= question.wanted <= MAX_COUNT:
            raise InvalidArgumentError(
                "INVALID_COUNT",
                f"count must be 1 to {MAX_COUNT}, not {question.wanted}",
                value=question.wanted,
                limit=MAX_COUNT,
            )
        if len(question.excluded_item_ids) > MAX_EXCLUDED:
            raise InvalidArgumentError(
                "TOO_MANY_EXCLUDED_ITEMS",
                f"excluded_item_ids holds {len(question.excluded_item_ids)} ids; at most {MAX_EXCLUDED} are accepted",
                value=len(question.excluded_item_ids),
                limit=MAX_EXCLUDED,
            )
        if question.rules is not None or question.wanted > MAX_DIVERSE_COUNT:
            check_rules(question.rules or self.answerer.rules, question.wanted)
        if question.version_token:
            self.clock.require(question.version_token, self.applied_lsn)

    # -- events ---------------------------------------------------------------------------------------------------

    async def record(self, events: Sequence[UserEvent]) -> tuple[list[EventFate], int]:
        """Makes admitted events durable, then applies them; returns their fates and the last LSN.

        Events of users whose profile cannot be read are refused and not logged. Raises StorageFailedError; then nothing
        was acknowledged, though some may have reached the disk.
        """
        damaged = self.store.damaged({event.user_id for event in events}, self.catalogue)
        if damaged:
            sound = [event for event in events if event.user_id not in damaged]
            recorded, lsn = await self.record(sound) if sound else ([], self.applied_lsn)
            rest = iter(recorded)
            refused = {user_id: EventFate(None, error) for user_id, error in damaged.items()}
            return [refused.get(event.user_id) or next(rest) for event in events], lsn
        # A record names the fields of an event in their order.
        records = [(RECORD_EVENT, PLAIN_KEY_ID, *event) for event in events]

        def apply(first_lsn: int) -> tuple[list[EventFate], int]:
            fates = [self._apply_event(event, lsn) for lsn, event in enumerate(events, first_lsn)]
            self.event_count += len(events)
            return fates, first_lsn + len(events) - 1

        result: tuple[list[EventFate], int] = await self._log.append(records, apply)
        return result

    def knows_item(self, item_id: str) -> bool:
        return item_id in self.catalogue.rows

    def added_s(self, item_id: str) -> float:
        """When an item that is about to be written was first added: now if nobody knows it, 0 if the snapshot did."""
        known = self.changes.added_s.get(item_id)
        if known is not None:
            return known
        return 0.0 if self.knows_item(item_id) or self.catalogue.snapshot.row_of(item_id) is not None else self.now_s()

    def now_s(self) -> float:
        return self._wall_clock()

    def _apply_event(self, event: UserEvent, lsn: int) -> EventFate:
        catalogue = self.catalogue
        try:
            profile = self.store.edit(event.user_id, catalogue)
        except ProfileDamagedError as error:
            # It is in the log, from which a repair takes it.
            self.applied_lsn = lsn
            return EventFate(None, error)
        positive = catalogue.gains.one(event.kind, event.value) > 0.0  # an undo has no gain
        # What the user was interested in before this event: what it says of an item that is hardly known.
        spoken = None
        if positive and self.residuals.wants(event.user_id, event.item_id, event.time_us / 1e6):
            profile.settle(catalogue)
            if profile.says_something:
                spoken = profile.interest_vectors(event.time_s, catalogue.parameters)
        applied, undone = profile.apply(event)
        profile.lsn = self.applied_lsn = lsn
        if applied is Applied.UNDO_TOO_OLD:
            return EventFate(
                applied,
                InvalidArgumentError(
                    "EVENT_FOLDED",
                    f"event {event.undone_event_id} is folded with other old events and can no longer be undone; "
                    f"the newest {self.settings.ring_size} events of a user can",
                    limit=self.settings.ring_size,
                ),
            )
        if applied is Applied.DUPLICATE:
            return _DUPLICATE
        if profile.segments:
            self.store.segments.touch(event.user_id, profile.segments)
        if positive:
            self._count(event.item_id, *profile.count(event))
            if spoken is not None:
                self.residuals.add(event.user_id, event.item_id, spoken)
        elif undone is not None:
            before, after = profile.uncount(undone, catalogue)
            self._count(undone.item_id, before, after)
            if after is None:
                self.residuals.remove(event.user_id, [undone.item_id])
        if len(profile.events) > self.settings.ring_size:
            self._fold(profile)
        return _RECORDED

    def _fold(self, profile: Profile) -> None:
        profile.fold(self.settings.ring_size, self._wall_clock() - self.settings.event_window_s, self.catalogue)

    def _count(self, item_id: str, before_us: int | None, after_us: int | None) -> None:
        """Live popularity of an item for which a user counted by one event and now counts by another."""
        before_s = None if before_us is None else before_us / 1e6
        after_s = None if after_us is None else after_us / 1e6
        self.popularity.move(item_id, self.catalogue.rows.get(item_id), before_s, after_s)

    def _replay(self, record: list[Any], lsn: int) -> None:
        tag, _key_id, user_id, *rest = record
        if tag == RECORD_EVENT:
            self._apply_event(UserEvent(user_id, *rest), lsn)
        elif tag == RECORD_DECLARE:
            interests, model_version, shape, pooled = rest
            self._apply_declared(user_id, interests, model_version, unpacked(shape, pooled), lsn)
        elif tag == RECORD_DELETE:
            self._apply_delete(user_id, lsn)
        elif tag == RECORD_SEGMENTS:
            self._apply_segments(user_id, rest[0], lsn)
        else:
            raise StartError(f"the log holds a record of unknown kind {tag} at LSN {lsn}: it is of a newer server")

    def _replay_into_profile(self, record: list[Any], lsn: int) -> None:
        """A record within the store's `shared_lsn`: all but the profile holds it, and the profile may."""
        tag, _key_id, user_id, *_ = record
        profile, space = self.store.edit(user_id, self.catalogue), self.catalogue
        if lsn > profile.lsn:
            if tag == RECORD_DELETE:
                self.store.delete(user_id)
            else:
                apply_to_profile(record, lsn, profile, space)
                self._fold(profile)
        self.applied_lsn = lsn

    # -- profiles -------------------------------------------------------------------------------------------------

    def profile(self, user_id: str) -> Profile:
        """The profile; an empty one, which is not stored, for an unknown user."""
        profile = self.store.get(user_id, self.catalogue)
        if profile is None:
            profile = Profile(user_id, self.catalogue)
            profile.settle(self.catalogue)
        if profile.segments:
            self.answerer.segment_priors.renew(profile, self._wall_clock())
        return profile

    def profile_count(self) -> int:
        return self.store.count()

    async def declare(self, user_id: str, interests: Sequence[str]) -> int:
        """Embeds and stores declared interests; returns the LSN."""
        if len(interests) > MAX_INTERESTS:
            raise InvalidArgumentError(
                "TOO_MANY_INTERESTS",
                f"{len(interests)} declared interests; at most {MAX_INTERESTS} are accepted",
                value=len(interests),
                limit=MAX_INTERESTS,
            )
        for text in interests:
            check_text("declared_interests", text, MAX_TEXT)
        self._require_sound(user_id)
        pooled = await self.embedder.embed(interests) if interests else np.zeros((0, 0), dtype=np.float32)
        model_version = self.embedder.model_version if interests else ""
        record = [
            RECORD_DECLARE,
            PLAIN_KEY_ID,
            user_id,
            list(interests),
            model_version,
            pooled.shape,
            pooled.tobytes(),
        ]

        def apply(lsn: int) -> int:
            self._apply_declared(user_id, interests, model_version, pooled, lsn)
            return lsn

        lsn: int = await self._log.append([record], apply)
        return lsn

    async def set_segments(self, user_id: str, segments: Sequence[str]) -> int:
        """Replaces the segments that a user belongs to; returns the LSN."""
        check_segments(segments)
        self._require_sound(user_id)
        names = list(dict.fromkeys(segments))

        def apply(lsn: int) -> int:
            self._apply_segments(user_id, names, lsn)
            return lsn

        lsn: int = await self._log.append([[RECORD_SEGMENTS, PLAIN_KEY_ID, user_id, names]], apply)
        return lsn

    async def forget(self, user_id: str) -> int:
        """Deletes a profile from memory and store; returns how many events it held, 0 for one that cannot be read."""

        def apply(lsn: int) -> int:
            return self._apply_delete(user_id, lsn)

        count: int = await self._log.append([[RECORD_DELETE, PLAIN_KEY_ID, user_id]], apply)
        if self.learning is not None:
            self.learning.forget(user_id)
        await self.checkpoint()
        return count

    def _require_sound(self, user_id: str) -> None:
        """Raises the ProfileDamagedError of a user before anything is logged that could not be applied."""
        for error in self.store.damaged({user_id}, self.catalogue).values():
            raise error

    def _apply_declared(
        self,
        user_id: str,
        interests: Sequence[str],
        model_version: str,
        pooled: NDArray[np.float32],
        lsn: int,
    ) -> None:
        profile = self.store.edit(user_id, self.catalogue)
        declare(profile, interests, model_version, pooled, self.catalogue)
        profile.lsn = self.applied_lsn = lsn

    def _apply_segments(self, user_id: str, segments: Sequence[str], lsn: int) -> None:
        profile = self.store.edit(user_id, self.catalogue)
        self.store.segments.change(user_id, profile.segments, segments)
        profile.segments = tuple(segments)
        profile.segment_prior = None
        profile.refresh_prior(self.catalogue)
        profile.lsn = self.applied_lsn = lsn

    def _apply_delete(self, user_id: str, lsn: int) -> int:
        try:
            profile = self.store.get(user_id, self.catalogue)
        except ProfileDamagedError:
            # Nobody knows any more what it holds. What names the user is looked for everywhere; its part in live
            # popularity, which names nobody, decays.
            profile = None
            self.residuals.remove(user_id, list(self.residuals.own))
            self.store.segments.change(user_id, self.store.segments.of(user_id), ())
        if profile is not None:
            for item_id, time_us in profile.counted.items():
                self._count(item_id, time_us, None)
            self.residuals.remove(user_id, profile.counted)
            if profile.segments:
                self.store.segments.change(user_id, profile.segments, ())
        self.store.delete(user_id)
        self.answerer.forget(user_id)
        self.applied_lsn = lsn
        return 0 if profile is None else profile.event_count

    async def _checkpoint_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.settings.checkpoint_interval_s)
            await self.checkpoint(paced=True)

    # -- texts and catalogue --------------------------------------------------------------------------------------

    def require_item(self, item_id: str) -> int:
        """The row of a living item, or ItemNotFoundError."""
        row = self.catalogue.row_of(item_id)
        if row is None:
            raise ItemNotFoundError(
                "ITEM_NOT_FOUND", f"the catalogue has no item {item_id[:64]!r}", item_id=item_id[:256]
            )
        return row

    def catch_up_catalogue(self) -> None:
        """Applies what is new in the catalogue log."""
        self.changes.catch_up(self.catalogue, *([] if self.successor is None else [self.successor]))
        self.popularity.grow(self.catalogue.size)
        self.answerer.follow()
        if self.changes.sequence - self._settled_at >= _SETTLED:
            self._settled_at = self.changes.sequence
            settle()

    def adopt(self, catalogue: LiveCatalogue, prepared: Succession | None = None) -> None:
        """Swaps to another catalogue, between two batches. Profiles are re-derived as they are next touched.

        Without what `succession.prepare` made of it, all of that is done here and now, which may take seconds.
        """
        if prepared is None:
            self.changes.lay_over(catalogue)
            self.popularity.bind(catalogue.rows, catalogue.size)
        else:
            later = catalogue.item_ids[len(prepared.counts) :]
            self.popularity.bind(catalogue.rows, catalogue.size, prepared.counts, later)
        self.popularity.change_half_life(catalogue.parameters.popularity_half_life_s, self._wall_clock())
        self.residuals.bind(catalogue, None if prepared is None else prepared.carried)
        self.catalogue, self.successor = catalogue, None
        self.answerer.serve(self.answerer.serving_of(catalogue) if prepared is None else prepared.serving)
        self.answerer.follow()
        if self.learning is not None:
            self.learning.adopt(catalogue)

    async def _refresh_stale_pooled(self) -> None:
        """Embeds live items anew that were embedded with another model."""
        model_version = self.embedder.model_version
        if not model_version:
            return
        stale = [entry.item for entry in self.changes.live_items() if entry.model_version != model_version]
        if stale:
            pooled, _ = await self.embedder.embed_items(stale)
            fresh = {item.item_id: row for item, row in zip(stale, pooled, strict=True)}
            self.changes.replace_pooled(fresh, model_version)


def check_segments(segments: Sequence[str]) -> None:
    """Raises InvalidArgumentError for too many names, or one that is empty or too long."""
    if len(segments) > MAX_SEGMENTS:
        raise InvalidArgumentError(
            "TOO_MANY_SEGMENTS",
            f"{len(segments)} segments; a user belongs to at most {MAX_SEGMENTS}",
            value=len(segments),
            limit=MAX_SEGMENTS,
        )
    for name in segments:
        check_id("segment", name)


def check_text(field: str, text: str, limit: int) -> None:
    """Raises InvalidArgumentError unless the text has 1 to `limit` characters that are not all blank."""
    if not text.strip() or len(text) > limit:
        raise InvalidArgumentError(
            f"INVALID_{field.upper()}",
            f"{field} must have 1 to {limit} characters, not all blank; this one has {len(text)}",
            value=len(text),
            limit=limit,
        )
