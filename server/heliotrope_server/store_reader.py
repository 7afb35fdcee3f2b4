"""Reads a profile store to standard output, as `python -m heliotrope_server.store_reader FOLDER`.

In a process of its own, for LMDB aborts the process in which it meets a page that makes no sense. The output is msgpack
arrays (database, key, value), by database and key, as of one checkpoint; the exit code is 0 only if all was read. LMDB
has no checksums, so that it is also read whether each key is in its place and is found where its tree says.
"""

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import lmdb
import msgpack

MAX_DATABASES = 16


def main(folder: str) -> int:
    try:
        for entry in _entries(folder):
            sys.stdout.buffer.write(msgpack.packb(entry))
        sys.stdout.buffer.flush()
    except (lmdb.Error, _MisplacedError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


class _MisplacedError(Exception):
    """The tree contradicts itself."""


def _entries(folder: str) -> Iterator[tuple[str, bytes, bytes]]:
    with closing(lmdb.open(folder, readonly=True, max_dbs=MAX_DATABASES)) as environment:
        environment.reader_check()  # a reader that was killed would keep its pages from being used again
        with environment.begin() as transaction:
            for name in [bytes(key) for key, _ in transaction.cursor()]:
                database = environment.open_db(name, txn=transaction, create=False)
                for key, value in _in_order(transaction, database, name.decode()):
                    yield name.decode(), key, value


def _in_order(transaction: lmdb.Transaction, database: Any, name: str) -> Iterator[tuple[bytes, bytes]]:
    count, before = 0, b""
    for key, value in ((bytes(key), bytes(value)) for key, value in transaction.cursor(database)):
        if key <= before or transaction.get(key, db=database) != value:
            raise _MisplacedError(f"{name} has {key!r} out of its place")
        yield key, value
        count, before = count + 1, key
    wanted = transaction.stat(database)["entries"]
    if count != wanted:
        raise _MisplacedError(f"{name} has {count} of {wanted} entries")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
