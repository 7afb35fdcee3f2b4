"""Answers recommendation questions in batches: profile -> query -> candidates -> exact scores -> reply."""

import itertools
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heliotrope_indexer.parameters import Parameters
from heliotrope_server.allowed_rows import AllowedRows
from heliotrope_server.errors import ProfileDamagedError, RequestError
from heliotrope_server.explanation import Asked, Explainer, Explanations
from heliotrope_server.freshness import Freshness, FreshView
from heliotrope_server.interest_batch import interest_batch
from heliotrope_server.item_filter import ItemFilter
from heliotrope_server.list_maker import FreshScores, MadeList, Plan, plan
from heliotrope_server.list_rules import NO_RULES, ListRules
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import LiveView, live_view
from heliotrope_server.neighbours import Suggestions
from heliotrope_server.popularity import LivePopularity
from heliotrope_server.profile import Profile
from heliotrope_server.profile_store import ProfileStore
from heliotrope_server.recall_canary import Sample
from heliotrope_server.retriever import Ranking, Retriever, make_retriever
from heliotrope_server.scoring import Query, exact_scores
from heliotrope_server.segments import SegmentPriors
from heliotrope_server.serving import Serving
from heliotrope_server.version_token import VersionClock

# Live terms of questions for "now" are shared for this long; popularity half-lives are hours or more.
_TICK_S = 0.1

SOURCE_PERSONAL = 1
SOURCE_DECLARED = 2
SOURCE_POPULAR = 3
SOURCE_SEGMENT = 4
SOURCE_FRESH = 5
SOURCE_EXPLORE = 6


class Question(NamedTuple):
    """One recommendation request. `time_s` None: now; `rules` None: those of the server; `filter` None: all that is
    available.
    """

    user_id: str
    wanted: int
    include_seen: bool = False
    excluded_item_ids: Sequence[str] = ()
    version_token: str = ""
    explain: bool = False
    time_s: float | None = None
    rules: ListRules | None = None
    filter: ItemFilter | None = None


class Answer(NamedTuple):
    """The reply to one Question; the lists are parallel, best first within the rules of the list.

    `sources` are those of heliotrope.v1.Source. `propensities` are the probabilities with which each item stood at its
    place, given everything that was known before the draw: 1 where nothing was drawn. `rows` (k,) are the catalogue
    rows of the items and `interests` (H, d) the interest vectors v_h that were scored with; a view, to be read at once.
    """

    item_ids: list[str]
    scores: list[float]
    probabilities: list[float]
    sources: list[int]
    propensities: list[float]
    explanations: Explanations | None
    snapshot_version: str
    profile_version: str
    rows: NDArray[np.int64]
    interests: NDArray[np.float32]
    request_id: str


class Moment(NamedTuple):
    """What one question is answered from at one time; `query.wanted` is the length of the list."""

    question: Question
    profile: Profile | None
    query: Query
    live: LiveView
    fresh: FreshView | None


class Answerer:
    """Reads profiles and popularity, changes neither. Belongs to the event loop of its shard."""

    def __init__(
        self,
        catalogue: LiveCatalogue,
        store: ProfileStore,
        popularity: LivePopularity,
        clock: VersionClock,
        wall_clock: Callable[[], float],
        *,
        rules: ListRules = NO_RULES,
        freshness: Freshness | None = None,
        make_retriever: Callable[[LiveCatalogue], Retriever] = make_retriever,
    ) -> None:
        """`rules` hold for questions that bring none; `freshness` None: new items get no boost."""
        self._make_retriever = make_retriever
        self.rules = rules
        self._freshness = freshness
        self._shapes = freshness is not None or rules.active
        self._request_prefix = uuid.uuid4().hex[:12]
        self._request_numbers = itertools.count(1)
        self.recommend_count = 0
        self.uncertified_count = 0
        # Questions that came to nothing by a fault of the server.
        self.fault_count = 0
        # Whether the next question without a filter is to be kept, and the one that was.
        self.wants_sample = False
        self.sample: Sample | None = None
        self._store = store
        self._popularity = popularity
        self._clock = clock
        self._wall_clock = wall_clock
        self.serve(self.serving_of(catalogue))

    def serving_of(self, catalogue: LiveCatalogue, counts: NDArray[np.float64] | None = None) -> Serving:
        """What `serve` needs of a catalogue; `counts` as for Serving, where it is made ahead, in a thread."""
        return Serving(catalogue, self._popularity, self._make_retriever, counts)

    def serve(self, serving: Serving) -> None:
        """Answers from this catalogue, with the weights of its snapshot, from now on."""
        catalogue = serving.catalogue
        self.catalogue, self.serving = catalogue, serving
        self._retriever, self._trending, self._lists = serving.retriever, serving.trending, serving.lists
        self._filters, self._suggested = serving.filters, serving.suggested
        self.explainer = Explainer(catalogue)
        self._fresh: tuple[Any, FreshView | None] = (None, None)
        self.segment_priors = SegmentPriors(catalogue, self._store)
        theta = np.array([catalogue.parameters.live_popularity_weight])
        self.use_weights(catalogue.snapshot.scoring_matrices, theta)

    def follow(self) -> None:
        """Takes in what was added to the catalogue that is served: after every change, or questions pay for it."""
        self._retriever.follow()

    def use_weights(self, scoring_matrices: NDArray[np.float32], theta: NDArray[np.float64]) -> None:
        """Scores and explains with these weights from now on, until the next `serve`.

        `scoring_matrices` (H, d, d) are the A_h; `theta` (K,) weighs the live terms of an item, of which there is one
        today: log1p of its decayed event count. Both change the query side alone, so no index is touched. Raises
        ValueError for other shapes and for values that are not finite.
        """
        catalogue = self.catalogue
        matrices = np.array(scoring_matrices, dtype=np.float32)
        weights = np.array(theta, dtype=np.float64)
        expected = (catalogue.parameters.horizons, catalogue.dimension, catalogue.dimension)
        if matrices.shape != expected or weights.shape != (1,):
            raise ValueError(
                f"weights of the shapes {matrices.shape} and {weights.shape}; expected {expected} and (1,)"
            )
        if not np.isfinite(matrices).all() or not np.isfinite(weights).all() or weights.min() < 0.0:
            raise ValueError("weights must be finite, and those of live terms not negative")
        self.scoring_matrices = matrices
        self.theta = weights
        # (H d, d): q = sum_h v_h A_h is one product with all horizons side by side.
        self.stacked_matrices = matrices.reshape(-1, catalogue.dimension)
        self._live: tuple[Any, Any, LiveView] | None = None

    @property
    def retriever_description(self) -> str:
        return self._retriever.description

    def answer(self, questions: Sequence[Question]) -> Sequence[Answer | RequestError]:
        """Answers questions that were checked, in order, as of one moment.

        A user whose profile cannot be read has a ProfileDamagedError in the place of the answer.
        """
        profiles: list[Profile | None] = []
        refused: dict[int, RequestError] = {}
        for place, question in enumerate(questions):
            try:
                profiles.append(self._store.get(question.user_id, self.catalogue))
            except ProfileDamagedError as error:
                refused[place] = error
        if not refused:
            return self._answered(questions, profiles)
        sound = [question for place, question in enumerate(questions) if place not in refused]
        answers = iter(self._answered(sound, profiles) if sound else ())
        return [refused[place] if place in refused else next(answers) for place in range(len(questions))]

    def _answered(self, questions: Sequence[Question], profiles: Sequence[Profile | None]) -> list[Answer]:
        """The answers to at least one question, of users with these profiles."""
        catalogue, parameters = self.catalogue, self.catalogue.parameters
        now_s = self._wall_clock()
        times = [now_s if question.time_s is None else question.time_s for question in questions]
        for profile, at_s in zip(profiles, times, strict=True):
            if profile is not None and profile.segments:
                self.segment_priors.renew(profile, at_s)
        interests = interest_batch(profiles, times, catalogue.prior, parameters)
        vectors = interests.reshape(len(questions), -1) @ self.stacked_matrices
        request_ids = [f"{self._request_prefix}-{next(self._request_numbers)}" for _ in questions]
        plans = [self._plan(question, request_ids[place]) for place, question in enumerate(questions)]
        queries = [
            Query(
                vectors[place],
                question.wanted if (shape := plans[place]) is None else shape.asked,
                excluded_rows(question, profiles[place], catalogue),
                self._suggestions(profiles[place]),
                self._allowed(question, now_s),
            )
            for place, question in enumerate(questions)
        ]
        groups: dict[float | None, list[int]] = {}
        for place, question in enumerate(questions):
            groups.setdefault(question.time_s, []).append(place)
        answers: dict[int, Answer] = {}
        for time_s, places in groups.items():
            live = self._live_view(time_s, now_s)
            fresh = None if self._freshness is None else self._fresh_view(self._freshness, time_s, now_s)
            rankings = self._retriever.rank([queries[place] for place in places], live)
            if self.wants_sample and queries[places[0]].allowed is None:
                self.sample = Sample(catalogue, queries[places[0]], live, rankings[0].rows)
                self.wants_sample = False
            made = [
                self._made(questions[place].wanted, queries[place], plans[place], ranking, profiles[place], live, fresh)
                for place, ranking in zip(places, rankings, strict=True)
            ]
            # One pass over the lists of all questions: NumPy's price is by call.
            scores = np.concatenate([one.scores for one in made]).astype(np.float64)
            probabilities = probabilities_of(scores, parameters)
            all_scores, all_rows = scores.tolist(), np.concatenate([one.rows for one in made]).tolist()
            lists = [(place, one.rows) for place, one in zip(places, made, strict=True) if questions[place].explain]
            explanations: dict[int, Explanations] = {}
            if lists:
                asked = [Asked(profiles[place], chosen, times[place]) for place, chosen in lists]
                boosts = {} if fresh is None else fresh.by_row
                explained = self.explainer.explain(asked, self.stacked_matrices, live, boosts)
                explanations = {place: each for (place, _), each in zip(lists, explained, strict=True)}
            end = 0
            for place, one in zip(places, made, strict=True):
                profile, begin, end = profiles[place], end, end + len(one.rows)
                rows = all_rows[begin:end]
                answers[place] = Answer(
                    catalogue.item_ids.of(rows),
                    all_scores[begin:end],
                    probabilities[begin:end],
                    one.sources,
                    one.propensities,
                    explanations.get(place),
                    catalogue.version,
                    self._clock.token(0 if profile is None else profile.lsn),
                    one.rows,
                    interests[place],
                    request_ids[place],
                )
        self.recommend_count += len(questions)
        return [answers[place] for place in range(len(questions))]

    def _plan(self, question: Question, request_id: str) -> Plan | None:
        """How to make a list that is more than its best candidates; None: it is those."""
        if question.rules is None and not self._shapes:
            return None
        rules = self.rules if question.rules is None else question.rules
        return plan(rules, question.wanted, request_id)

    def _made(
        self,
        wanted: int,
        query: Query,
        shape: Plan | None,
        ranking: Ranking,
        profile: Profile | None,
        live: LiveView,
        fresh: FreshView | None,
    ) -> "_Made":
        """The list of one question: the best candidates, or what its rules make of them."""
        source = _source(profile)
        if shape is None:
            count = len(ranking.rows)
            self.uncertified_count += not ranking.certified
            return _Made(ranking.rows, ranking.scores, [source] * count, [1.0] * count)
        boosted = None
        if fresh is not None and self._freshness is not None:
            scores = exact_scores(self.catalogue, live, query, fresh.rows) + fresh.boosts
            boosted = FreshScores(fresh, scores, self._freshness.places(wanted))

        def rank(asked: int) -> Ranking:
            return self._retriever.rank([query._replace(wanted=asked)], live)[0]

        made = self._lists.make(wanted, shape, ranking, rank, live, boosted)
        self.uncertified_count += not made.certified
        return _Made(made.rows, made.scores, _sources(made, source), _propensities(made))

    def moment(self, question: Question) -> Moment:
        """All that a question with a `time_s` is answered from; of the live view the caller takes what it keeps."""
        time_s = question.time_s
        assert time_s is not None
        profile = self._store.get(question.user_id, self.catalogue)
        if profile is not None and profile.segments:
            self.segment_priors.renew(profile, time_s)
        query = Query(
            query_vector(profile, time_s, self.catalogue, self.stacked_matrices),
            question.wanted,
            excluded_rows(question, profile, self.catalogue),
            self._suggestions(profile),
            self._allowed(question, time_s),
        )
        fresh = None if self._freshness is None else self._fresh_view(self._freshness, time_s, time_s)
        return Moment(question, profile, query, self._live_view(time_s, time_s), fresh)

    def admits(self, asked: ItemFilter, row: int, time_s: float) -> bool:
        """Whether a filter admits a row at a time."""
        allowed = self._filters.allowed(asked, time_s)
        return allowed is None or bool(allowed.contains(np.array([row]))[0])

    def fresh_places(self, wanted: int) -> int:
        """How many places of a list items may take that are there only for their boost."""
        return wanted if self._freshness is None else self._freshness.places(wanted)

    def _allowed(self, question: Question, now_s: float) -> AllowedRows | None:
        """The rows that the filter admits. What is available "now" is as of the last tick: where windows open and close
        all the time, a look at them costs what the catalogue is.
        """
        at_s = int(now_s / _TICK_S) * _TICK_S if question.time_s is None else question.time_s
        return self._filters.allowed(question.filter, at_s)

    def forget(self, user_id: str) -> None:
        """Drops what is kept of a user between answers."""
        if self._suggested is not None:
            self._suggested.forget(user_id)

    def _suggestions(self, profile: Profile | None) -> Suggestions | None:
        if profile is None or self._suggested is None:
            return None
        return self._suggested.of(profile)

    def _live_view(self, time_s: float | None, now_s: float) -> LiveView:
        """Live terms at a time, those for "now" as of the last tick. Without a trending list the counts for "now" are
        of the tick too: the exact retriever works them all out.
        """
        at_s = int(now_s / _TICK_S) * _TICK_S if time_s is None else time_s
        counted = None if self._trending is None and time_s is None else self._popularity.version
        key = (at_s, counted, self.catalogue.generation, self.catalogue.revision, id(self.catalogue.moved_rows()))
        if self._live is None or self._live[0] != key:
            weight = float(self.theta[0])
            if self._trending is None:
                view = live_view(self.catalogue, self._popularity.counts_at(at_s), weight)
            else:
                view = self._trending.view(at_s, weight)
            # The moved rows are held: another tuple must not get their id.
            self._live = (key, self.catalogue.moved_rows(), view)
        return self._live[2]

    def _fresh_view(self, freshness: Freshness, time_s: float | None, now_s: float) -> FreshView | None:
        """The boosts at a time, as of the last tick for "now"."""
        at_s = int(now_s / _TICK_S) * _TICK_S if time_s is None else time_s
        key = (at_s, self.catalogue.generation, self.catalogue.revision)
        if self._fresh[0] != key:
            self._fresh = (key, freshness.view(self.catalogue, at_s))
        return self._fresh[1]


class _Made(NamedTuple):
    """One list: rows (k,) and scores (k,), best first within its rules, with what Answer says of each place."""

    rows: NDArray[np.int64]
    scores: NDArray[np.floating[Any]]
    sources: list[int]
    propensities: list[float]


_NO_ROWS: NDArray[np.int64] = np.empty(0, dtype=np.int64)


def query_vector(
    profile: Profile | None, time_s: float, catalogue: LiveCatalogue, stacked_matrices: NDArray[np.float32]
) -> NDArray[np.float32]:
    """q = sum_h v_h A_h of one user, (d,); `stacked_matrices` (H d, d)."""
    interests = interest_batch([profile], [time_s], catalogue.prior, catalogue.parameters)
    vector: NDArray[np.float32] = (interests.reshape(1, -1) @ stacked_matrices)[0]
    return vector


def excluded_rows(question: Question, profile: Profile | None, catalogue: LiveCatalogue) -> NDArray[np.int64]:
    """Rows that a question leaves out: those the user has touched, unless it includes them, and those it names."""
    rows = _NO_ROWS
    if profile is not None and not question.include_seen:
        rows = profile.seen_rows(catalogue.rows_of, (catalogue.generation, catalogue.moves))
    if question.excluded_item_ids:
        named = {catalogue.rows[item] for item in question.excluded_item_ids if item in catalogue.rows}
        rows = np.union1d(rows, np.array(sorted(named), dtype=np.int64))
    return rows


def probabilities_of(scores: NDArray[np.float64], parameters: Parameters) -> list[float]:
    """1 / (1 + exp(-log-odds)) of scores (m,), exact in both tails. (SciPy's would be imported at every start.)"""
    found: list[float] = np.exp(-np.logaddexp(0.0, -parameters.log_odds(scores))).tolist()
    return found


def _source(profile: Profile | None) -> int:
    if profile is None:
        return SOURCE_POPULAR
    if any(mass > 0.0 for mass in profile.total.masses):
        return SOURCE_PERSONAL
    if profile.declared_pooled is not None:
        return SOURCE_DECLARED
    return SOURCE_POPULAR if profile.segment_prior is None else SOURCE_SEGMENT


def _sources(made: MadeList, source: int) -> list[int]:
    sources = [SOURCE_FRESH if boosted_only else source for boosted_only in made.boosted_only]
    if made.draw is not None and made.draw[1]:
        sources[-1] = SOURCE_EXPLORE
    return sources


def _propensities(made: MadeList) -> list[float]:
    propensities = [1.0] * len(made.rows)
    if made.draw is not None:
        propensities[-1] = made.draw[0]
    return propensities
