"""Segments: groups that users belong to, and what their members like, for those of whom nothing else is known.

Users are spread over shards by a hash, so the members on one shard are a fair sample of the segment: each shard makes
its priors from its own, and nothing is exchanged.

    prior_s = population prior + n / (SHRINKAGE + n) * (mean of v_u over the n newest members - the same over everybody)

v_u is an interest vector of the longest horizon; everybody are the newest members of any segment, and where fewer than
MIN_MEMBERS of them are outside of this one, the population's prior stands for their mean. What counts is how
members differ: the population's prior is learned to serve users of whom nothing is known, which the mean taste of
people with a history does not. One member moves the prior by at most 1 / (SHRINKAGE + n) of the way to their own taste,
and everybody's mean by 1 / MIN_MEMBERS at most; fewer than MIN_MEMBERS make no prior: a newcomer must not be shown what
one person likes.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.errors import ProfileDamagedError
from heliotrope_server.interest import interest_vectors
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.profile import ItemSpace, Profile

MAX_SEGMENTS = 16
MIN_MEMBERS = 5
MOST_MEMBERS = 32
"""Members with the newest events whose taste is read: some milliseconds where all must come from disk."""
MOST_OF_ALL = 128
"""The same of everybody."""
SHRINKAGE = 5.0
RENEWED_S = 60.0
"""A mean is kept this long; where there is none yet, it is looked for as soon as a member has done something."""
_EVERYBODY = ""
"""No segment has this name."""


class Taste(NamedTuple):
    """The mean interest vector (d,) of some members."""

    mean: NDArray[np.float32]
    members: int


class SegmentMembers:
    """The members of each segment on one shard; those with the newest events come last. Belongs to the event loop."""

    def __init__(self) -> None:
        self._members: dict[str, OrderedDict[str, None]] = {}
        self._dirty: dict[str, tuple[str, ...]] = {}
        self._changes: Counter[str] = Counter()

    def put(self, user_id: str, segments: Iterable[str]) -> None:
        """Takes over what is stored."""
        for name in _with_everybody(segments):
            self._members.setdefault(name, OrderedDict())[user_id] = None

    def change(self, user_id: str, before: Sequence[str], after: Sequence[str]) -> None:
        """Moves a user from some segments to others."""
        for name in _with_everybody(before):
            members = self._members.get(name)
            if members is not None:
                members.pop(user_id, None)
                if not members:
                    del self._members[name]
        self.put(user_id, after)
        self._changes.update({*_with_everybody(before), *_with_everybody(after)})
        self._dirty[user_id] = tuple(after)

    def touch(self, user_id: str, segments: Sequence[str]) -> None:
        """The user has a new event."""
        for name in _with_everybody(segments):
            self._members[name].move_to_end(user_id)
            self._changes[name] += 1

    def of(self, user_id: str) -> list[str]:
        """The segments of a user whose profile cannot say them; a look at all there are."""
        return [name for name, members in self._members.items() if name != _EVERYBODY and user_id in members]

    def changes(self, name: str) -> int:
        """Grows with everything that the members of a segment do."""
        return self._changes[name]

    def outside(self, name: str) -> int:
        """How many members of other segments are not in this one."""
        return len(self._members.get(_EVERYBODY, ())) - len(self._members.get(name, ()))

    def newest(self, name: str, count: int) -> list[str]:
        """At most `count` members, those with the newest events first."""
        return list(islice(reversed(self._members.get(name, OrderedDict())), count))

    @property
    def dirty(self) -> bool:
        return bool(self._dirty)

    def take_dirty(self) -> dict[str, tuple[str, ...]]:
        """The segments of users that changed since the last call; none for one who left all."""
        taken, self._dirty = self._dirty, {}
        return taken

    def put_back(self, taken: dict[str, tuple[str, ...]]) -> None:
        """What could not be written is dirty again, unless it has changed since."""
        self._dirty = {**taken, **self._dirty}


def _with_everybody(segments: Iterable[str]) -> tuple[str, ...]:
    names = tuple(segments)
    return (*names, _EVERYBODY) if names else ()


class Profiles(Protocol):
    """What is needed of the profile store."""

    segments: SegmentMembers

    def get(self, user_id: str, space: ItemSpace) -> Profile | None: ...


class SegmentPriors:
    """The priors of one catalogue. Belongs to the event loop of its shard."""

    def __init__(self, catalogue: LiveCatalogue, store: Profiles) -> None:
        self._catalogue = catalogue
        self._store = store
        self._kept: dict[str, tuple[float, int, Taste | None]] = {}

    def renew(self, profile: Profile, now_s: float) -> None:
        """Gives a profile the mean prior of its segments, as far as they have any; declared interests go before it."""
        if profile.declared_pooled is not None:
            return
        priors = [prior for name in profile.segments if (prior := self._prior(name, now_s)) is not None]
        profile.segment_prior = np.mean(priors, axis=0, dtype=np.float32) if priors else None
        profile.refresh_prior(self._catalogue)

    def _prior(self, name: str, now_s: float) -> NDArray[np.float32] | None:
        own, population = self._taste(name, MOST_MEMBERS, now_s), self._catalogue.prior
        if own is None:
            return None
        usual = population
        if self._store.segments.outside(name) >= MIN_MEMBERS:
            everybody = self._taste(_EVERYBODY, MOST_OF_ALL, now_s)
            usual = population if everybody is None else everybody.mean
        share = own.members / (SHRINKAGE + own.members)
        return (population + share * (own.mean - usual)).astype(np.float32)

    def _taste(self, name: str, most: int, now_s: float) -> Taste | None:
        changes = self._store.segments.changes(name)
        made_s, made_of, taste = self._kept.get(name, (-np.inf, -1, None))
        if not 0.0 <= now_s - made_s < RENEWED_S or (taste is None and made_of != changes):
            taste = self._read(name, most, now_s)
            self._kept[name] = (now_s, changes, taste)
        return taste

    def _read(self, name: str, most: int, now_s: float) -> Taste | None:
        catalogue, parameters = self._catalogue, self._catalogue.parameters
        longest = int(np.argmax(parameters.half_lives_s))
        tastes = []
        for user_id in self._store.segments.newest(name, most):
            try:
                member = self._store.get(user_id, catalogue)
            except ProfileDamagedError:
                continue  # the store has said so
            if member is None or not any(mass > 0.0 for mass in member.total.masses):
                continue
            vectors = interest_vectors(
                member.total, catalogue.prior, member.read_time_s(now_s), parameters.half_lives_s, parameters.kappas
            )
            tastes.append(vectors[longest])
        return Taste(np.mean(tastes, axis=0, dtype=np.float32), len(tastes)) if len(tastes) >= MIN_MEMBERS else None
