"""What was done to the server and to what it holds of people, by whom: a file that only grows.

Each line is a JSON object with the hash of the line before it (`previous`) and its own (`hash`), so that a line that
was changed, left out or put in shows; the last line can be kept elsewhere to show that the end is missing. Users stand
in it as keyed hashes: DATA/audit.key tells whether a line is about a user whose id one knows.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from heliotrope_server.errors import AuditLogError
from heliotrope_server.record_log import sync_folder

KEY_FILE = "audit.key"
FOLDER = "audit"
_FIRST = "0" * 64


class AuditLog:
    """The log of one shard. A line is on disk when `write` returns."""

    def __init__(self, data: Path, shard_index: int) -> None:
        """Opens it, or begins it. Raises AuditLogError when what is there is not whole."""
        self._key = audit_key(data)
        path = data / FOLDER / f"shard-{shard_index:03d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        self._number, self._last = 0, _FIRST
        self._writing = threading.Lock()
        if path.exists():
            _cut_torn_line(path)
            for entry in verified(path):
                self._number, self._last = entry["number"], entry["hash"]
        self._file = path.open("ab")
        sync_folder(path.parent)

    def write(self, what: str, principal: str, peer: str, **facts: str) -> None:
        """Adds a line; `facts` say more. Raises OSError."""
        with self._writing:
            entry: dict[str, Any] = {
                "number": self._number + 1,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "what": what,
                "principal": principal,
                "peer": peer,
                **facts,
                "previous": self._last,
            }
            entry["hash"] = _hash(entry)
            start = self._file.tell()
            try:
                self._file.write(json.dumps(entry).encode() + b"\n")
                self._file.flush()
                os.fdatasync(self._file.fileno())
            except OSError:
                self._file.truncate(start)
                raise
            self._number, self._last = entry["number"], entry["hash"]

    def pseudonym(self, user_id: str) -> str:
        """How a user stands in the log."""
        return pseudonym(self._key, user_id)

    def close(self) -> None:
        self._file.close()


def audit_key(data: Path) -> bytes:
    """The key of the pseudonyms in a data folder; made when there is none."""
    path = data / KEY_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != 32:
            raise AuditLogError(f"{path} has {len(key)} bytes, not 32") from None
        return key
    key = secrets.token_bytes(32)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(data)
    return key


def pseudonym(key: bytes, user_id: str) -> str:
    return hmac.new(key, user_id.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def verified(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log in order. Raises AuditLogError at the first that does not follow from those before it."""
    last = _FIRST
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                sound = entry["number"] == number and entry["previous"] == last and entry["hash"] == _hash(entry)
            except (ValueError, KeyError, TypeError) as error:
                raise AuditLogError(f"{path}: line {number} is no entry: {error}") from error
            if not sound:
                raise AuditLogError(f"{path}: line {number} was changed, or lines before it were")
            last = entry["hash"]
            yield entry


def _hash(entry: dict[str, Any]) -> str:
    content = {key: value for key, value in entry.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _cut_torn_line(path: Path) -> None:
    """Takes away what a power cut left of a line that nobody was told of."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("rb+") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
