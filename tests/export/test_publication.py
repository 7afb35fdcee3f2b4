import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from heliotrope_export import publication
from heliotrope_export.publication import workshop


def publish(destination: Path, content: str) -> None:
    with workshop(destination) as place:
        for name in ("one", "other"):
            (place.folder / name).write_text(content)
        place.publish(destination)


def content(destination: Path) -> set[str]:
    return {path.read_text() for path in destination.iterdir()}


def test_a_folder_appears_and_is_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        publish(tmp_path / "deep" / "model", text)
        assert content(tmp_path / "deep" / "model") == {text}
        assert os.listdir(tmp_path / "deep") == ["model"]


def test_a_system_without_the_exchange_call_replaces_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldLibrary:
        """A C library from before renameat2."""

    monkeypatch.setattr(publication.ctypes, "CDLL", lambda *_, **__: OldLibrary())
    for text in ("old", "new"):
        publish(tmp_path / "model", text)
        assert content(tmp_path / "model") == {text}
    assert os.listdir(tmp_path) == ["model"]


def test_a_failure_leaves_the_old_folder_and_nothing_aside(tmp_path: Path) -> None:
    publish(tmp_path / "model", "old")
    with pytest.raises(RuntimeError), workshop(tmp_path / "model") as place:
        (place.folder / "one").write_text("new")
        raise RuntimeError
    assert content(tmp_path / "model") == {"old"}
    assert os.listdir(tmp_path) == ["model"]


def test_a_workshop_in_use_is_not_swept(tmp_path: Path) -> None:
    with workshop(tmp_path / "model") as first:
        publish(tmp_path / "model", "second")
        (first.folder / "one").write_text("first")
        first.publish(tmp_path / "model")
    assert content(tmp_path / "model") == {"first"}
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("operation", range(5))
def test_a_kill_during_publication_leaves_old_or_new(operation: int, tmp_path: Path) -> None:
    """Two files, their folder, then, after the exchange, the parent: killed at each of the syncs, and after them."""
    publish(tmp_path / "model", "old")
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from heliotrope_export import publication\n"
        "from tests.export.test_publication import publish\n"
        "sync, left = publication._sync, int(sys.argv[2])\n"
        "def dying(path):\n"
        "    global left\n"
        "    if left == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    left -= 1\n"
        "    sync(path)\n"
        "publication._sync = dying\n"
        "publish(Path(sys.argv[1]), 'new')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model"), str(operation)]
    done = subprocess.run(command, check=False)
    assert done.returncode == (0 if operation == 4 else -signal.SIGKILL)
    assert content(tmp_path / "model") == ({"old"} if operation < 3 else {"new"})

    publish(tmp_path / "model", "next")
    assert content(tmp_path / "model") == {"next"}
    assert os.listdir(tmp_path) == ["model"]
