from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

import pytest

from heliotrope_export import InstallationError, check_single_runtime


def installed(**versions: str) -> Callable[[str], str]:
    """A stand-in for importlib.metadata.version: this environment must not hold what the check refuses."""

    def version_of(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None

    return version_of


def test_this_environment_is_accepted() -> None:
    check_single_runtime()


def test_one_runtime_of_each_kind_is_accepted() -> None:
    check_single_runtime(installed(onnxruntime="1.32.0", faiss_cpu="1.12.0"))
    check_single_runtime(installed(onnxruntime_gpu="1.31.0", faiss_gpu="1.15.1"))
    check_single_runtime(installed())


def test_two_onnx_runtimes_are_refused() -> None:
    with pytest.raises(InstallationError, match=r"onnxruntime 1\.32\.0 and onnxruntime-gpu 1\.31\.0") as refused:
        check_single_runtime(installed(onnxruntime="1.32.0", onnxruntime_gpu="1.31.0"))
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in str(refused.value)


def test_two_builds_of_faiss_are_refused() -> None:
    with pytest.raises(InstallationError, match=r"pip uninstall -y faiss-cpu faiss-gpu`"):
        check_single_runtime(installed(onnxruntime="1.32.0", faiss_cpu="1.12.0", faiss_gpu="1.15.1"))
