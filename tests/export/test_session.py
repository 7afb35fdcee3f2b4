import logging
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import get_available_providers

from heliotrope_export.manifest import VariantName
from heliotrope_export.session import CPU, CUDA, candidates, open_session, run_bound

ALL: list[VariantName] = ["fp32", "fp16", "int8"]


def test_a_gpu_prefers_fp16_and_a_cpu_int8() -> None:
    assert candidates(None, ALL, [CUDA, CPU])[0] == ("fp16", CUDA)
    assert candidates(None, ALL, [CPU])[0] == ("int8", CPU)
    assert candidates(None, ["fp32", "int8"], [CUDA, CPU])[0] == ("int8", CPU)
    assert candidates(None, ["fp32"], [CPU]) == [("fp32", CPU)]
    assert candidates(None, ["fp16"], [CPU]) == [("fp16", CPU)]


def test_a_variant_that_is_asked_for_is_the_only_candidate() -> None:
    assert candidates("fp32", ALL, [CUDA, CPU]) == [("fp32", CUDA), ("fp32", CPU)]
    assert candidates("fp16", ALL, [CPU]) == [("fp16", CPU)]
    assert candidates("int8", ALL, [CUDA, CPU]) == [("int8", CPU)]


@pytest.mark.skipif(CUDA in get_available_providers(), reason="this build of ONNX Runtime has CUDA")
def test_a_provider_that_does_not_work_is_reported_and_not_used(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if open_session(tiny_model / "model.fp16.onnx", CPU, threads=1) is None:
        pytest.fail("the CPU always works")
    with caplog.at_level(logging.WARNING), pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        assert open_session(tiny_model / "model.fp16.onnx", CUDA, threads=1) is None
    assert "CUDAExecutionProvider is offered but does not work on this machine" in caplog.text


def test_a_run_with_bound_memory_is_the_run(tiny_model: Path) -> None:
    session = open_session(tiny_model / "model.fp32.onnx", CPU, threads=1)
    assert session is not None
    tokens = np.array([[2, 9, 12, 3], [2, 30, 3, 1]])
    inputs = {"input_ids": tokens, "attention_mask": (tokens != 1).astype(np.int64)}
    inputs = {entry.name: inputs.get(entry.name, np.zeros_like(tokens)) for entry in session.get_inputs()}
    np.testing.assert_array_equal(run_bound(session, inputs, "cpu"), session.run(None, inputs)[0])
