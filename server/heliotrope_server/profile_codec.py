"""The stored form of a profile: what is in the store of a shard, and what a key would encrypt.

blob = msgpack (format version, key id, packed);  packed = msgpack map of what is not empty

From format 3 on the blob is stored with a checksum (value_checksum), by the user's id as its key. Earlier ones are read
too, and are written as format 3 when the profile is next saved.
"""

from typing import Any

import msgpack
import numpy as np

from heliotrope_server.errors import DataFolderError
from heliotrope_server.event import UserEvent
from heliotrope_server.event_ring import EventRing
from heliotrope_server.interest import InterestSums
from heliotrope_server.profile import ItemSpace, Profile
from heliotrope_server.value_checksum import has_checksum, payload_of, with_checksum

PROFILE_FORMAT_VERSION = 3
_FIRST_CHECKED = 3
PLAIN_KEY_ID = 0
"""Every stored record of a user names the key that it is encrypted under; 0 is none."""


def encode_profile(profile: Profile) -> bytes:
    """A profile as msgpack, without what is empty. The sums of the ring are not stored: they are derived on reading."""
    body: dict[str, Any] = {"lsn": profile.lsn, "events": profile.events.dump() if profile.events else None}
    if not profile.plain:
        body.update(_more(profile))
    packed = msgpack.packb({name: value for name, value in body.items() if value})
    return with_checksum(profile.user_id.encode(), msgpack.packb((PROFILE_FORMAT_VERSION, PLAIN_KEY_ID, packed)))


def decode_profile(user_id: str, blob: bytes, space: ItemSpace) -> Profile:
    """The inverse of encode_profile, for `space`; reads formats 1 and 2 too.

    Raises DataFolderError for later formats, and ValueError where the checksum does not match. Without a checksum a
    damaged profile may raise anything, or be taken for a sound one.
    """
    version, key_id, packed = msgpack.unpackb(payload_of(user_id.encode(), blob))
    if not 1 <= version <= PROFILE_FORMAT_VERSION or key_id != PLAIN_KEY_ID:
        raise DataFolderError(
            f"the stored profile has format version {version} and key id {key_id}; "
            f"this server reads 1 to {PROFILE_FORMAT_VERSION} and {PLAIN_KEY_ID}"
        )
    if version >= _FIRST_CHECKED and not has_checksum(blob):
        raise ValueError(f"the stored profile has format version {version} and no checksum")
    body = msgpack.unpackb(packed)
    profile = Profile(user_id, space)
    profile.lsn = body.get("lsn", 0)
    if version == 1:
        events = [
            UserEvent(user_id, event_id, kind, item_id, value, time_us)
            for event_id, kind, item_id, value, time_us in body["events"]
        ]
        profile.restore(events, body.get("counted", {}))
    else:
        if "events" in body:
            profile.events = EventRing.load(user_id, body["events"])
            if version < _FIRST_CHECKED:
                profile.events.values()  # shows now what would else fail in the middle of an answer
        profile.restore([], body.get("counted_apart", {}))
    # What is at its default is left alone: a profile of events alone has no room for more.
    for name in ("undone", "folded_version", "folded_count", "folded_newest_s"):
        if body.get(name):
            setattr(profile, name, body[name])
    if body.get("folded") is not None:
        landmark_s, masses, dimension, sums = body["folded"]
        folded = profile.folded = InterestSums(len(masses), dimension, landmark_s)
        folded.masses = list(masses)
        folded.sums = np.frombuffer(sums, dtype=np.float64).reshape(len(masses), dimension).copy()
    if body.get("folded_items"):
        profile.folded_ids = np.frombuffer(body["folded_ids"], dtype=np.uint64)
        folded_items = body["folded_items"]
        # Profiles written before each user counted once per item know no times: what they counted decays away.
        times_us = body.get("folded_times_us", [0] * len(folded_items))
        profile.folded_items = dict(zip(folded_items, times_us, strict=True))
    # Profiles written before there were segments have none.
    profile.segments = tuple(body.get("segments", ()))
    profile.declared_interests = tuple(body.get("declared", ()))
    if body.get("declared_pooled") is not None:
        shape, pooled = body["declared_pooled"]
        profile.declared_pooled = np.frombuffer(pooled, dtype=np.float32).reshape(shape)
    if body.get("declared_model"):
        profile.declared_model_version = body["declared_model"]
    profile.rederive(space)
    return profile


def _more(profile: Profile) -> dict[str, Any]:
    """What most profiles have none of."""
    folded = profile.folded
    pooled = profile.declared_pooled
    return {
        "undone": dict(profile.undone),
        "folded": None
        if folded is None
        else (folded.landmark_s, folded.masses, folded.sums.shape[1], folded.sums.tobytes()),
        "folded_version": profile.folded_version,
        "folded_count": profile.folded_count,
        "folded_newest_s": profile.folded_newest_s,
        "folded_ids": profile.folded_ids.tobytes(),
        "folded_items": list(profile.folded_items),
        "folded_times_us": list(profile.folded_items.values()),
        "counted_apart": profile.counted_apart(),
        "segments": profile.segments,
        "declared": profile.declared_interests,
        "declared_pooled": None if pooled is None else (pooled.shape, pooled.tobytes()),
        "declared_model": profile.declared_model_version,
    }
