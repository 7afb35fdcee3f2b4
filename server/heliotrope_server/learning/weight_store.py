"""Learned weights on disk, shared by all shards of a host: the leader writes, everyone reads.

    DATA/weights/<snapshot version>/000007.weights   one promoted version
    DATA/weights/<snapshot version>/CURRENT.json     which version is in use, and which were withdrawn

    weights file = b"HELIOWTS" u32 format version, u32 CRC-32 of the payload, payload (msgpack; little endian arrays)

Every file is written aside, synced and renamed, CURRENT last, so a crash leaves the version before in use. Each
snapshot has its own folder: weights belong to the vector space that they were learned in.
"""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np

from heliotrope_server.errors import DataFolderError
from heliotrope_server.learning.validation import Difference, Verdict
from heliotrope_server.learning.weights import Weights
from heliotrope_server.record_log import sync_folder

FORMAT_VERSION = 1
KEPT_VERSIONS = 16
CURRENT_FILE = "CURRENT.json"

_HEADER = struct.Struct("<8sII")
_MAGIC = b"HELIOWTS"


class Promotion(NamedTuple):
    """How a version came to be: what it was learned from, when, and what it was promoted for."""

    version: int
    parent: int
    time_s: float
    verdict: Verdict


class Pointer(NamedTuple):
    """Which version is in use (0: the snapshot's own), the last number given out, and the versions taken back."""

    version: int = 0
    last_version: int = 0
    withdrawn: tuple[int, ...] = ()


class WeightStore:
    """The versions of one snapshot. Reads never see a half-written file."""

    def __init__(self, folder: Path, snapshot_version: str) -> None:
        """`folder` is DATA/weights."""
        self.folder = folder / snapshot_version
        self.snapshot_version = snapshot_version

    def stamp(self) -> tuple[int, int] | None:
        """Changes whenever CURRENT does; None when nothing was ever promoted. Cheap."""
        try:
            status = (self.folder / CURRENT_FILE).stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino

    def pointer(self) -> Pointer:
        """Raises DataFolderError for a damaged file."""
        path = self.folder / CURRENT_FILE
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return Pointer(int(raw["version"]), int(raw["last_version"]), tuple(raw["withdrawn"]))
        except FileNotFoundError:
            return Pointer()
        except (ValueError, KeyError, TypeError) as error:
            raise DataFolderError(f"{path} is damaged: {error}") from error

    def point(self, pointer: Pointer) -> None:
        """Makes another version the one in use, durably."""
        self._write(self.folder / CURRENT_FILE, json.dumps(pointer._asdict()).encode() + b"\n")

    def save(self, weights: Weights, promotion: Promotion) -> None:
        """Writes one version, durably; it is in use only after `point`.

        Removes the oldest beyond KEPT_VERSIONS, but never the parent: that one is in use until then.
        """
        payload = msgpack.packb(
            {
                "snapshot_version": self.snapshot_version,
                "version": weights.version,
                "parent": promotion.parent,
                "time_s": promotion.time_s,
                "shape": list(weights.matrices.shape),
                "matrices": weights.matrices.astype("<f4").tobytes(),
                "theta": weights.theta.tolist(),
                "verdict": _plain(promotion.verdict),
            }
        )
        path = self._path(weights.version)
        self._write(path, _HEADER.pack(_MAGIC, FORMAT_VERSION, zlib.crc32(payload)) + payload)
        for old in self.versions()[KEPT_VERSIONS:]:
            if old != promotion.parent:
                self._path(old).unlink()

    def load(self, version: int) -> tuple[Weights, Promotion]:
        """Raises DataFolderError for a file that is missing, damaged, or of another snapshot or format."""
        path = self._path(version)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise DataFolderError(f"{path} is missing") from error
        magic, format_version, checksum = _HEADER.unpack_from(data) if len(data) >= _HEADER.size else (b"", 0, 0)
        payload = data[_HEADER.size :]
        if magic != _MAGIC or zlib.crc32(payload) != checksum:
            raise DataFolderError(f"{path} is damaged: its checksum does not match")
        if format_version != FORMAT_VERSION:
            raise DataFolderError(f"{path} has format version {format_version}; this server reads {FORMAT_VERSION}")
        raw = msgpack.unpackb(payload)
        if (raw["snapshot_version"], raw["version"]) != (self.snapshot_version, version):
            raise DataFolderError(
                f"{path} holds version {raw['version']} of the weights of snapshot {raw['snapshot_version']}"
            )
        matrices = np.frombuffer(raw["matrices"], dtype="<f4").reshape(raw["shape"])
        promotion = Promotion(version, raw["parent"], raw["time_s"], _verdict(*raw["verdict"]))
        return Weights(version, matrices, np.array(raw["theta"])), promotion

    def versions(self) -> list[int]:
        """The kept versions, newest first."""
        return sorted((int(path.stem) for path in self.folder.glob("*.weights")), reverse=True)

    def _path(self, version: int) -> Path:
        return self.folder / f"{version:06d}.weights"

    def _write(self, path: Path, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}")
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
        sync_folder(self.folder)


def _plain(verdict: Verdict) -> list[Any]:
    return [
        [verdict.examples, verdict.users],
        [verdict.defender_loss, verdict.challenger_loss],
        list(verdict.gain),
        None if verdict.off_policy is None else list(verdict.off_policy),
        [verdict.defender_off_policy_loss, verdict.challenger_off_policy_loss],
    ]


def _verdict(
    counts: list[int], losses: list[float], gain: list[float], off_policy: list[float] | None, estimates: list[float]
) -> Verdict:
    difference = None if off_policy is None else Difference(*off_policy)
    examples, users = counts
    return Verdict(examples, users, losses[0], losses[1], Difference(*gain), difference, estimates[0], estimates[1])
