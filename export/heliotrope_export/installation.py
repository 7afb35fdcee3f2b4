"""The one rule about installed packages that pip cannot express: one runtime of each kind.

`onnxruntime` and `onnxruntime-gpu` install the same import package, as do `faiss-cpu` and `faiss-gpu`. pip lets both
in, the later one overwrites files of the earlier one, and what is then imported is neither.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from heliotrope_export.errors import InstallationError

# Distributions in one group provide the same import package.
RUNTIMES = (
    ("onnxruntime", "onnxruntime-gpu"),
    ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cuvs"),
)


def check_single_runtime(version_of: Callable[[str], str] = version) -> None:
    """Refuses an environment that holds two builds of ONNX Runtime or of FAISS.

    Reads the metadata of installed distributions only; imports neither. `version_of` maps a distribution's name to its
    version and raises PackageNotFoundError where it is not installed.

    Raises:
        InstallationError: naming the distributions and what to uninstall.
    """
    for group in RUNTIMES:
        found = {name: found for name in group if (found := _version_or_none(name, version_of)) is not None}
        if len(found) > 1:
            listed = " and ".join(f"{name} {found[name]}" for name in found)
            # Uninstalling one of them also removes files of the other, so both have to go.
            raise InstallationError(
                f"{listed} are installed together and overwrite each other's files: "
                f"run `pip uninstall -y {' '.join(found)}`, then install exactly one of them "
                "(`heliotrope[server]` for CPU, `heliotrope[server-gpu]` for CUDA)"
            )


def _version_or_none(name: str, version_of: Callable[[str], str]) -> str | None:
    try:
        return version_of(name)
    except PackageNotFoundError:
        return None
