"""What a profile store holds beside profiles: where its checkpoint is, popularity, what was said of young items, and
segments. Values of stores of format 1 and 2 have no checksums; they are read too, and get one when they are next saved.
What is damaged raises whatever decoding makes of it.
"""

from typing import Any

import msgpack
import numpy as np

from heliotrope_server.errors import DataFolderError
from heliotrope_server.profile_codec import PLAIN_KEY_ID
from heliotrope_server.residuals import Heard
from heliotrope_server.value_checksum import payload_of, with_checksum

FORMAT_VERSION = 3
UNFINISHED_VERSION = 4
"""Format of a store that was left in the middle of a checkpoint: see profile_store."""

META_KEY = b"checkpoint"
POPULARITY_KEY = b"popularity"

_HEARD_VERSION = 1


def encode_meta(meta: dict[str, Any], *, finished: bool) -> bytes:
    """What a store says of itself. The version stays outside, so that an earlier server can refuse it by name."""
    version = FORMAT_VERSION if finished else UNFINISHED_VERSION
    checked = with_checksum(META_KEY, msgpack.packb(meta))
    value: bytes = msgpack.packb({"format_version": version, "checked": checked})
    return value


def decode_meta(value: bytes) -> dict[str, Any]:
    """The inverse of encode_meta. Raises DataFolderError for a later format, and whatever else for a damaged value."""
    meta: dict[str, Any] = msgpack.unpackb(value)
    version = meta["format_version"]
    if not 1 <= version <= UNFINISHED_VERSION:
        raise DataFolderError(
            f"the profile store has format version {version}; this server reads 1 to {UNFINISHED_VERSION}"
        )
    if version >= FORMAT_VERSION or "checked" in meta:
        meta = msgpack.unpackb(payload_of(META_KEY, meta["checked"]))
    return meta


def encode_counts(counts: dict[str, float]) -> bytes:
    """The live popularity of all items, by item id."""
    return with_checksum(POPULARITY_KEY, msgpack.packb(counts))


def decode_counts(value: bytes) -> dict[str, float]:
    counts: dict[str, float] = msgpack.unpackb(payload_of(POPULARITY_KEY, value))
    return counts


def encode_heard(item_id: str, heard: Heard) -> bytes:
    """What users said of an item; each user's part names its key, as every record of a user does."""
    parts = [(user_id, PLAIN_KEY_ID, said.tobytes()) for user_id, said in zip(heard.users, heard.said, strict=True)]
    return with_checksum(item_id.encode(), msgpack.packb((_HEARD_VERSION, heard.known, parts)))


def decode_heard(item_id: str, value: bytes) -> Heard:
    version, known, parts = msgpack.unpackb(payload_of(item_id.encode(), value))
    if version != _HEARD_VERSION or any(key_id != PLAIN_KEY_ID for _, key_id, _ in parts):
        raise DataFolderError(f"the store of young items has format version {version} or keys unknown to this server")
    said = np.stack([np.frombuffer(packed, dtype=np.float16) for _, _, packed in parts])
    return Heard(tuple(user_id for user_id, _, _ in parts), said, known)


def encode_segments(user_id: str, names: tuple[str, ...]) -> bytes:
    """The segments that a user belongs to."""
    return with_checksum(user_id.encode(), msgpack.packb(names))


def decode_segments(user_id: str, value: bytes) -> list[str]:
    names: list[str] = msgpack.unpackb(payload_of(user_id.encode(), value))
    return names
