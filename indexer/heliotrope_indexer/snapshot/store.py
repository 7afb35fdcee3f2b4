"""The store of all snapshot versions, in a local folder or behind an fsspec URL.

    STORE/CURRENT            the version that servers open, as text
    STORE/ACTIVATIONS        which versions were current before: see activations
    STORE/<version>/...      one snapshot, immutable
    STORE/rejects/...        what the rebuild jobs could not use (not part of any snapshot)
    STORE/failed/...         the figures of builds that were not fit to be published
    STORE/maps/<version>     what a server needs of a version that was removed: see heliotrope_server.folded_maps

A version becomes visible in one step and CURRENT moves last, so a crash leaves the previous one served.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from heliotrope_indexer.errors import SnapshotCorruptError, SnapshotFormatError, SnapshotNotFoundError
from heliotrope_indexer.manifest import MANIFEST_FILE, VERSION_PATTERN, Manifest
from heliotrope_indexer.snapshot.activations import (
    ACTIVATIONS_FILE,
    ActivationRecord,
    How,
    appended,
    parse,
    render,
    standing,
)
from heliotrope_indexer.snapshot.reader import Snapshot, read_manifest
from heliotrope_indexer.snapshot.remote_folder import RemoteFolder
from heliotrope_indexer.snapshot.writer import sync

CURRENT_FILE = "CURRENT"
_REMOVING = ".removing-"


class SnapshotStore:
    """Publishes, lists and opens snapshots."""

    def __init__(self, path: str | Path, *, cache: Path | None = None) -> None:
        """`path` is a folder or an fsspec URL (`s3://bucket/store`); nothing is touched yet.

        `cache` is where snapshots behind a URL are fetched to; the default is below the user's cache folder.
        """
        text = str(path)
        self._remote: RemoteFolder | None = None
        if "://" in text and not text.startswith("file://"):
            self._remote = RemoteFolder(text)
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
            self._folder = cache or Path.home() / ".cache" / "heliotrope" / "snapshots" / key
        else:
            self._folder = Path(text.removeprefix("file://"))
        self.path = text

    def versions(self) -> list[str]:
        """All complete versions, newest first; empty when there is no store yet."""
        if self._remote:
            names, holds = self._remote.names(), self._remote.exists
        else:
            names = [entry.name for entry in self._folder.iterdir()] if self._folder.is_dir() else []
            holds = lambda name: (self._folder / name).is_file()  # noqa: E731
        complete = [name for name in names if VERSION_PATTERN.match(name) and holds(f"{name}/{MANIFEST_FILE}")]
        return sorted(complete, reverse=True)

    def current(self) -> str:
        """The version that CURRENT names.

        Raises SnapshotNotFoundError or, for a damaged pointer, SnapshotCorruptError.
        """
        raw = self._read(CURRENT_FILE)
        if raw is None:
            raise SnapshotNotFoundError(f"{self.path} is no snapshot store, or nothing was published there yet")
        version = raw.decode("ascii", "replace").strip()
        if not VERSION_PATTERN.match(version):
            raise SnapshotCorruptError(f"{CURRENT_FILE} of {self.path} holds {version[:60]!r}, not a version")
        return version

    def open(self, version: str | None = None, *, verify: bool = True) -> Snapshot:
        """Opens a version (None: the current one), fetching it first when the store is behind a URL.

        Raises SnapshotNotFoundError, SnapshotFormatError or SnapshotCorruptError.
        """
        name = _checked_name(version) if version is not None else self.current()
        if self._remote:
            self._fetch(name)
        return Snapshot(self._existing(name), verify=verify)

    def manifest(self, version: str) -> Manifest:
        """The manifest of a version, without opening or fetching its arrays."""
        name = _checked_name(version)
        if not self._remote:
            return read_manifest(self._existing(name))
        manifest = Manifest.parse(self._remote_manifest(name), name=f"{self.path}/{name}/{MANIFEST_FILE}")
        _check_version(manifest, name)
        return manifest

    def publish(self, folder: Path) -> str:
        """Makes a folder written by `write_snapshot` a version of this store, and CURRENT; returns it.

        A local store takes the folder over (it is moved); behind a URL its files are uploaded, the manifest
        after the arrays. All hashes are checked first. Publishing the same version again only moves CURRENT.
        """
        manifest = read_manifest(folder)
        for name in manifest.files:
            manifest.check_file(folder / name)
        version = manifest.version
        if self._remote:
            for name in [*manifest.files, MANIFEST_FILE]:
                self._remote.upload(folder / name, f"{version}/{name}")
        elif not (self._folder / version).exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._take_over(folder, version)
        self.activate(version, how="publish")
        return version

    def activate(self, version: str, *, how: How = "activate") -> None:
        """Points CURRENT at a version that is already here; `how` is what the history calls it."""
        name = _checked_name(version)
        with self._changing():
            self.manifest(name)
            try:
                current: str | None = self.current()
            except (SnapshotNotFoundError, SnapshotCorruptError):
                current = None  # a damaged pointer is mended by moving it
            self._write(ACTIVATIONS_FILE, render(appended(self.history(), current, name, how)))
            self._write(CURRENT_FILE, f"{name}\n".encode())

    def roll_back(self) -> str:
        """Points CURRENT at what was current before; returns it. A second rollback goes further back.

        Raises SnapshotNotFoundError when nothing is known to have been there.
        """
        version = self.previous()
        self.activate(version, how="roll back")
        return version

    def previous(self, version: str | None = None) -> str:
        """What was current before a version (None: the current one) and is still here.

        Raises SnapshotNotFoundError when there is none.
        """
        served = self.current() if version is None else version
        stack = self.standing()
        here = set(self.versions())
        known = len(stack) - 1 - stack[::-1].index(served) if served in stack else 0
        for earlier in reversed(stack[:known]):
            if earlier != served and earlier in here:
                return earlier
        raise SnapshotNotFoundError(
            f"{self.path} knows of no version that was current before {served} and is still there; name one of its "
            f"{len(here)} versions to activate it"
        )

    def history(self) -> list[ActivationRecord]:
        """Every recorded move of CURRENT, oldest first. Raises SnapshotCorruptError for a damaged history."""
        raw = self._read(ACTIVATIONS_FILE)
        return [] if raw is None else parse(raw.decode("utf-8", "replace"), name=f"{self.path}/{ACTIVATIONS_FILE}")

    def standing(self) -> list[str]:
        """The versions that rollbacks would go through, oldest first; the last is the current one."""
        return standing(self.history(), self.current())

    def remove(self, version: str) -> int:
        """Removes a version and the list of its rejected rows; returns the bytes freed.

        It is out of sight before its first file goes. Raises SnapshotNotFoundError, and SnapshotFormatError for the
        current version.
        """
        name = _checked_name(version)
        with self._changing():
            if name == self.current():
                raise SnapshotFormatError(f"{name} is the current version of {self.path} and can't be removed")
            rejects = f"rejects/{name}.jsonl"
            if self._remote:
                self._remote_manifest(name)
                freed = self._remote.size(name)
                self._remote.remove(f"{name}/{MANIFEST_FILE}")
                self._remote.remove(name)
                if self._remote.exists(rejects):
                    freed += self._remote.size(rejects)
                    self._remote.remove(rejects)
                shutil.rmtree(self._folder / name, ignore_errors=True)
                return freed
            aside = self._folder / f"{_REMOVING}{name}"
            if not (self._folder / name).is_dir():
                raise SnapshotNotFoundError(f"{self.path} holds no version {name}")
            (self._folder / name).rename(aside)
            sync(self._folder)
            # What an interrupted removal left goes with it.
            freed = sum(_folder_bytes(path) for path in self._folder.glob(f"{_REMOVING}*"))
            for path in self._folder.glob(f"{_REMOVING}*"):
                shutil.rmtree(path)
            if (self._folder / rejects).exists():
                freed += (self._folder / rejects).stat().st_size
                (self._folder / rejects).unlink()
            return freed

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time among the processes of this host, also of a store behind a URL."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self, name: str) -> bytes | None:
        try:
            return self._remote.read(name) if self._remote else (self._folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _write(self, name: str, content: bytes) -> None:
        """Replaces a small file in one step."""
        if self._remote:
            self._remote.write(name, content)
            return
        path = self._folder / name
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            sync(path.parent.parent)
        aside = path.with_name(f".{path.name}-{os.getpid()}")
        aside.write_bytes(content)
        sync(aside)
        aside.rename(path)
        sync(path.parent)

    def keep_rejects(self, version: str, path: Path) -> str:
        """Files what the build of a version could not use as `rejects/<version>.jsonl`; returns where
        that is.
        """
        return self._keep(f"rejects/{_checked_name(version)}.jsonl", path)

    def keep_map(self, version: str, content: bytes) -> None:
        """Keeps, durably, how sums are carried over from a version that is to be removed."""
        self._write(f"maps/{_checked_name(version)}", content)

    def kept_map(self, version: str) -> bytes | None:
        """What was kept of a version that was removed."""
        return self._read(f"maps/{_checked_name(version)}")

    def prune_evidence(self, keep: int) -> int:
        """Removes the figures of all builds that were not published but the newest `keep`; returns how many builds."""
        if self._remote:
            names = self._remote.names("failed")
        else:
            folder = self._folder / "failed"
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        builds = sorted({name.partition(".")[0] for name in names}, reverse=True)
        for name in names:
            if name.partition(".")[0] in builds[:keep]:
                continue
            if self._remote:
                self._remote.remove(f"failed/{name}")
            else:
                (self._folder / "failed" / name).unlink()
        return len(builds[keep:])

    def keep_evidence(self, figures: Path, rejected: Path | None) -> str:
        """Files the figures (JSON) of a build that is not published, and what it could not use; returns where they
        are.
        """
        name = f"failed/{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        if rejected is not None:
            self._keep(f"{name}.rejects.jsonl", rejected)
        return self._keep(f"{name}.json", figures)

    def _keep(self, name: str, path: Path) -> str:
        if self._remote:
            self._remote.upload(path, name)
        else:
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self._folder / name)
        return f"{self.path.rstrip('/')}/{name}"

    def _take_over(self, folder: Path, version: str) -> None:
        if os.stat(folder).st_dev != os.stat(self._folder).st_dev:
            aside = self._folder / f".publishing-{version}-{os.getpid()}"
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(folder, aside)
            for path in aside.iterdir():
                sync(path)
            sync(aside)
            folder = aside
        folder.rename(self._folder / version)
        sync(self._folder)

    def _existing(self, version: str) -> Path:
        path = self._folder / version
        if not path.is_dir():
            raise SnapshotNotFoundError(f"{self.path} holds no version {version}; it holds {self.versions()[:5]}")
        _check_version(read_manifest(path), version)
        return path

    def _remote_manifest(self, version: str) -> str:
        assert self._remote
        try:
            return self._remote.read(f"{version}/{MANIFEST_FILE}").decode("utf-8", "replace")
        except FileNotFoundError as error:
            raise SnapshotNotFoundError(f"{self.path} holds no version {version}") from error

    def _fetch(self, version: str) -> None:
        """Downloads a version into the cache folder unless it is there; hashes are checked first."""
        assert self._remote
        if (self._folder / version).is_dir():
            return
        manifest = self.manifest(version)
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".fetching-", dir=self._folder))
        try:
            for name in [*manifest.files, MANIFEST_FILE]:
                try:
                    self._remote.download(f"{version}/{name}", aside / name)
                except FileNotFoundError as error:
                    raise SnapshotCorruptError(f"{name} is missing from {self.path}/{version}") from error
                if name != MANIFEST_FILE:
                    manifest.check_file(aside / name)
            try:
                aside.rename(self._folder / version)
            except OSError:
                # Another process of this host fetched the same version in the meantime: its copy is as good.
                if not (self._folder / version).is_dir():
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _checked_name(version: str) -> str:
    # Also keeps a version from a request from walking out of the store.
    if not VERSION_PATTERN.match(version):
        raise SnapshotFormatError(f"{version[:60]!r} is not a version: <yyyymmddThhmmssZ>-<12 hex digits>")
    return version


def _check_version(manifest: Manifest, folder_name: str) -> None:
    if manifest.version != folder_name:
        raise SnapshotFormatError(f"the snapshot in {folder_name} says it is version {manifest.version}")


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
