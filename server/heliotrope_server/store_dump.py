"""A profile store as a stream of pieces that stay the same where the profiles do.

A piece is a sequence of msgpack arrays (database, key, value), in the order of the keys. It ends behind a key that a
hash picks, not after a number of bytes, so that a profile that grew or is new changes its own piece and no other. LMDB
pages could not be told apart like that: every checkpoint moves them. Deleted profiles, which stay in LMDB's free pages,
are not in a dump.
"""

import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from heliotrope_server.data_source import StoreEntry
from heliotrope_server.profile_store import MAP_BYTES
from heliotrope_server.store_reader import MAX_DATABASES

ENTRIES = 32  # in a piece, on average: 1,000 of 100,000 users change a quarter of the pieces, at 128 two thirds
MAX_PIECE_BYTES = 8 << 20


def dump_pieces(entries: Iterable[StoreEntry]) -> Iterator[bytes]:
    """The pieces of a store."""
    waiting: list[bytes] = []
    size = 0
    for entry in entries:
        packed = msgpack.packb(entry)
        waiting.append(packed)
        size += len(packed)
        if zlib.crc32(entry.key) % ENTRIES == 0 or size >= MAX_PIECE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


def piece_entries(piece: bytes) -> Iterator[StoreEntry]:
    """The entries of one piece."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(piece)
    for database, key, value in unpacker:
        yield StoreEntry(database, key, value)


def load_store(folder: Path, pieces: Iterable[bytes]) -> None:
    """Makes a profile store of a dump, durably."""
    folder.mkdir(parents=True)
    with closing(lmdb.open(str(folder), map_size=MAP_BYTES, max_dbs=MAX_DATABASES, sync=False)) as environment:
        databases: dict[str, Any] = {}
        for piece in pieces:
            entries = list(piece_entries(piece))
            for name in {entry.database for entry in entries} - databases.keys():
                databases[name] = environment.open_db(name.encode())
            with environment.begin(write=True) as transaction:
                for database, key, value in entries:
                    transaction.put(key, value, db=databases[database])
        environment.sync(True)
