"""Generates the committed code from the .proto files, or checks that it is current.

`python -m tests.proto.generate` writes; `--check` generates into a temporary folder and fails if they
differ.
"""

import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTO_ROOT = Path(__file__).resolve().parents[2] / "proto"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(f"usage: python -m tests.proto.generate [--check]; got {arguments}", file=sys.stderr)
        return 2
    if not arguments:
        generate(PROTO_ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = differences(Path(folder))
    for name in stale:
        print(f"proto/{name} is not what the .proto files generate: run `make proto`", file=sys.stderr)
    return 1 if stale else 0


def generate(out: Path) -> None:
    """Runs protoc with the pinned plugins on every .proto file, writing below `out`."""
    sources = sorted(str(path.relative_to(PROTO_ROOT)) for path in PROTO_ROOT.rglob("*.proto"))
    include = Path(protoc.__file__).parent / "_proto"
    command = ["protoc", f"-I{PROTO_ROOT}", f"-I{include}"]
    # The plugins of this environment, also when it is not on the PATH.
    scripts = Path(sys.executable).parent
    command += [f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    command += [f"--python_out={out}", f"--grpc_python_out={out}"]
    command += [f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}"]
    if protoc.main(command + sources) != 0:
        raise SystemExit("protoc failed")


def differences(fresh: Path) -> list[str]:
    """Names, relative to proto/, of generated files that are missing, changed or left over."""
    wanted = {str(path.relative_to(fresh)) for path in fresh.rglob("*_pb2*.py*")}
    committed = {
        str(path.relative_to(PROTO_ROOT)) for path in PROTO_ROOT.rglob("*_pb2*.py*") if "__pycache__" not in path.parts
    }
    changed = {name for name in wanted & committed if not filecmp.cmp(fresh / name, PROTO_ROOT / name, shallow=False)}
    return sorted((wanted ^ committed) | changed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
