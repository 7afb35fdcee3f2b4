"""Opening an ONNX graph on the device that suits it, and running it there."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from heliotrope_export.errors import ModelCorruptError
from heliotrope_export.manifest import VariantName

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

CUDA_DEVICE = "cuda"

log = logging.getLogger(__name__)


def candidates(
    variant: VariantName | None, published: Collection[VariantName], available: Collection[str]
) -> list[tuple[VariantName, str]]:
    """(variant, provider) pairs in the order to try them.

    With no variant asked for: fp16 where there is CUDA, else int8, else fp32, else what there is. int8 is always for
    the CPU: dynamically quantised operators have no CUDA kernels, and would bounce between the two memories.
    """
    automatic: list[tuple[VariantName, str]] = [("fp16", CUDA), ("int8", CPU), ("fp32", CPU), ("fp16", CPU)]
    asked: list[tuple[VariantName, str]] = []
    if variant is not None:
        asked = [(variant, CPU)] if variant == "int8" else [(variant, CUDA), (variant, CPU)]
    return [
        (name, provider)
        for name, provider in (asked or automatic)
        if name in published and (provider == CPU or provider in available)
    ]


def open_session(path: Path, provider: str, *, threads: int | None) -> Any | None:
    """An `onnxruntime.InferenceSession` on exactly this provider, or None where CUDA turns out not to work.

    A GPU build offers CUDA on every machine; whether there is a device shows only here, when ONNX Runtime falls back
    to the CPU. That session is dropped, since another variant suits the CPU better.

    Raises:
        ModelCorruptError: ONNX Runtime cannot load the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: one per core
    options.log_severity_level = 3  # errors; what matters of the warnings is said below
    providers = [provider] if provider == CPU else [provider, CPU]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises a family of unrelated C++ exception types
        raise ModelCorruptError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error
    if session.get_providers()[0] != provider:
        log.warning("%s is offered but does not work on this machine: %s runs on the CPU", provider, path.name)
        return None
    return session


def run_bound(session: Any, inputs: Mapping[str, NDArray[np.int64]], device: str) -> NDArray[np.float32]:
    """The first output for these inputs, with both bound to memory of the device ("cuda", or "cpu" in tests).

    ONNX Runtime then neither plans nor makes copies of its own: one goes in for each input, one comes out. Raises what
    it raises.
    """
    (output, *_) = session.get_outputs()
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    binding.bind_output(output.name, device, 0)
    session.run_with_iobinding(binding)
    found: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
    return found
