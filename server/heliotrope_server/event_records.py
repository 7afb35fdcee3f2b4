"""The records of a shard's event log, and what they do to a profile when they are read again."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.event import UserEvent
from heliotrope_server.profile import Applied, ItemSpace, Profile

RECORD_EVENT = 1
RECORD_DECLARE = 2
RECORD_DELETE = 3
RECORD_SEGMENTS = 4


class LastRecords:
    """The LSN of the last record of each user up to that of a checkpoint: as new as its profiles are in a sound store.

    A disk that lost a write leaves an older profile, whose own checksum is right.
    """

    def __init__(self, until_lsn: int) -> None:
        self._until_lsn = until_lsn
        self._lsns: dict[str, int] = {}

    def take(self, record: list[Any], lsn: int) -> None:
        """Takes the records of one log in order. A deletion counts wherever it is: the store may be ahead with it."""
        if record[0] == RECORD_DELETE:
            self._lsns.pop(record[2], None)
        elif lsn <= self._until_lsn:
            self._lsns[record[2]] = lsn

    def behind(self, held: Mapping[str, int]) -> dict[str, str]:
        """What is wrong with profiles of which the store holds an older state than it should, or none, by user."""
        return {
            user_id: f"it is missing; the log holds records of it up to LSN {lsn}"
            if user_id not in held
            else f"it is of LSN {held[user_id]}; the log holds records of it up to LSN {lsn}"
            for user_id, lsn in self._lsns.items()
            if held.get(user_id, -1) < lsn
        }


def apply_to_profile(record: list[Any], lsn: int, profile: Profile, space: ItemSpace) -> None:
    """Applies a record of the user, but for a deletion, to the profile and to nothing else.

    Raises ValueError for a kind that is not known.
    """
    tag, _key_id, user_id, *rest = record
    if tag == RECORD_EVENT:
        event = UserEvent(user_id, *rest)
        applied, undone = profile.apply(event)
        if undone is not None:
            profile.uncount(undone, space)
        elif applied is Applied.RECORDED and space.gains.one(event.kind, event.value) > 0.0:
            profile.count(event)
    elif tag == RECORD_DECLARE:
        interests, model_version, shape, pooled = rest
        declare(profile, interests, model_version, unpacked(shape, pooled), space)
    elif tag == RECORD_SEGMENTS:
        profile.segments = tuple(rest[0])
    else:
        raise ValueError(f"a record of unknown kind {tag} at LSN {lsn}")
    profile.lsn = lsn


def declare(
    profile: Profile, interests: Sequence[str], model_version: str, pooled: NDArray[np.float32], space: ItemSpace
) -> None:
    """Replaces the declared interests; `pooled` (n, D) is the encoder's output for them."""
    profile.declared_interests = tuple(interests)
    profile.declared_pooled = pooled if len(interests) else None
    profile.declared_model_version = model_version
    profile.refresh_prior(space)


def unpacked(shape: Sequence[int], pooled: bytes) -> NDArray[np.float32]:
    """The encoder's output as a record holds it."""
    return np.frombuffer(pooled, dtype=np.float32).reshape(shape)
