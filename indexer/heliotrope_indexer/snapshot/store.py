"""The store of all snapshot versions, in a local folder or behind an fsspec URL.

    STORE/CURRENT            the version that servers open, as text
    STORE/<version>/...      one snapshot, immutable
    STORE/rejects/...        what the rebuild jobs could not use (not part of any snapshot)

A version becomes visible in one step and CURRENT moves last, so a crash leaves the previous one served.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from heliotrope_indexer.errors import SnapshotCorruptError, SnapshotFormatError, SnapshotNotFoundError
from heliotrope_indexer.manifest import MANIFEST_FILE, VERSION_PATTERN, Manifest
from heliotrope_indexer.snapshot.reader import Snapshot, read_manifest
from heliotrope_indexer.snapshot.writer import sync

CURRENT_FILE = "CURRENT"


class SnapshotStore:
    """Publishes, lists and opens snapshots."""

    def __init__(self, path: str | Path, *, cache: Path | None = None) -> None:
        """`path` is a folder or an fsspec URL (`s3://bucket/store`); nothing is touched yet.

        `cache` is where snapshots behind a URL are fetched to; the default is below the user's cache folder.
        """
        text = str(path)
        self._remote: _RemoteFolder | None = None
        if "://" in text and not text.startswith("file://"):
            self._remote = _RemoteFolder(text)
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
        try:
            raw = self._remote.read(CURRENT_FILE) if self._remote else (self._folder / CURRENT_FILE).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SnapshotNotFoundError(
                f"{self.path} is no snapshot store, or nothing was published there yet"
            ) from error
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
        self.activate(version)
        return version

    def activate(self, version: str) -> None:
        """Points CURRENT at a version that is already here: how a rollback is done."""
        name = _checked_name(version)
        self.manifest(name)
        if self._remote:
            self._remote.write(CURRENT_FILE, f"{name}\n".encode())
            return
        aside = self._folder / f".{CURRENT_FILE}-{os.getpid()}"
        aside.write_text(f"{name}\n", encoding="ascii")
        sync(aside)
        aside.rename(self._folder / CURRENT_FILE)
        sync(self._folder)

    def keep_rejects(self, version: str, path: Path) -> str:
        """Files what the build of a version could not use as `rejects/<version>.jsonl`; returns where
        that is.
        """
        name = f"rejects/{_checked_name(version)}.jsonl"
        if self._remote:
            self._remote.upload(path, name)
        else:
            (self._folder / "rejects").mkdir(parents=True, exist_ok=True)
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


class _RemoteFolder:
    """The few calls on an fsspec file system that the store needs."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._fs: Any
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def names(self) -> list[str]:
        try:
            return [
                entry.rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(self._root, detail=False, refresh=True)
            ]
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        return bool(self._fs.exists(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes:
        return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        self._fs.pipe_file(f"{self._root}/{name}", content)

    def upload(self, source: Path, name: str) -> None:
        self._fs.makedirs(f"{self._root}/{name.rsplit('/', 1)[0]}", exist_ok=True)
        self._fs.put_file(str(source), f"{self._root}/{name}")

    def download(self, name: str, target: Path) -> None:
        self._fs.get_file(f"{self._root}/{name}", str(target))


def _checked_name(version: str) -> str:
    # Also keeps a version from a request from walking out of the store.
    if not VERSION_PATTERN.match(version):
        raise SnapshotFormatError(f"{version[:60]!r} is not a version: <yyyymmddThhmmssZ>-<12 hex digits>")
    return version


def _check_version(manifest: Manifest, folder_name: str) -> None:
    if manifest.version != folder_name:
        raise SnapshotFormatError(f"the snapshot in {folder_name} says it is version {manifest.version}")
