"""The records of a shard's event log, and what they do to a profile when they are read again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope_server.event import UserEvent
from heliotrope_server.profile import Applied, ItemSpace, Profile

RECORD_EVENT = 1
RECORD_DECLARE = 2
RECORD_DELETE = 3
RECORD_SEGMENTS = 4


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
