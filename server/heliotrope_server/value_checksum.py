"""The checksum of a value in a profile store: LMDB has none of its own.

    value = 0xC1, payload, u32 CRC-32 of the key and the payload (little endian)

No msgpack begins with 0xC1, so that values of earlier servers, which have no checksum, are told apart. The key is
covered too: a value that the disk wrote in another's place is found.
"""

import struct
import zlib

_CHECKED = b"\xc1"
_CRC = struct.Struct("<I")


def with_checksum(key: bytes, payload: bytes) -> bytes:
    """The value to be stored under a key: 5 bytes more than the payload."""
    return b"".join((_CHECKED, payload, _CRC.pack(zlib.crc32(payload, zlib.crc32(key)))))


def has_checksum(value: bytes) -> bool:
    """Whether a value is of a server that wrote checksums."""
    return value[:1] == _CHECKED


def payload_of(key: bytes, value: bytes) -> bytes:
    """The inverse of with_checksum; a value without a checksum as it is. Raises ValueError for a damaged one."""
    if not has_checksum(value):
        return value
    payload, crc = value[1 : -_CRC.size], value[-_CRC.size :]
    if _CRC.pack(zlib.crc32(payload, zlib.crc32(key))) != crc:
        raise ValueError("its checksum does not match")
    return payload
