"""The few calls on an fsspec file system that a store behind a URL needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class RemoteFolder:
    """A folder by its URL; names are relative to it."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._fs: Any
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def names(self, folder: str = "") -> list[str]:
        """What is directly in the folder, or in one below it; nothing where there is none."""
        path = f"{self._root}/{folder}".rstrip("/")
        try:
            return [entry.rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(path, detail=False, refresh=True)]
        except FileNotFoundError:
            return []

    def exists(self, name: str) -> bool:
        return bool(self._fs.exists(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes:
        return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        if "/" in name:
            self._fs.makedirs(f"{self._root}/{name.rsplit('/', 1)[0]}", exist_ok=True)
        self._fs.pipe_file(f"{self._root}/{name}", content)

    def upload(self, source: Path, name: str) -> None:
        self._fs.makedirs(f"{self._root}/{name.rsplit('/', 1)[0]}", exist_ok=True)
        self._fs.put_file(str(source), f"{self._root}/{name}")

    def download(self, name: str, target: Path) -> None:
        self._fs.get_file(f"{self._root}/{name}", str(target))

    def remove(self, name: str) -> None:
        self._fs.rm(f"{self._root}/{name}", recursive=True)

    def size(self, name: str) -> int:
        """Bytes of everything below `name`."""
        return int(self._fs.du(f"{self._root}/{name}", total=True))
