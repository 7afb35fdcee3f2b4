"""An encoder on a GPU whose device fails: a real session that only claims to be there stands for it."""

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime import get_available_providers

from heliotrope_export import TextEncoder
from heliotrope_export.encoder import TOKEN_BUDGET, TOKEN_BUDGET_ACCELERATOR, load_tokenizer
from heliotrope_export.manifest import read_manifest
from heliotrope_export.session import CPU, CUDA, open_session

TEXTS = ["a thing", "another thing, and a longer one", "", "b"]


class Claims:
    """A session on the CPU that says it runs on CUDA: binding memory there fails, as on a device that is gone."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]


def encoder_on_a_lost_device(model: Path) -> tuple[TextEncoder, list[int]]:
    """The encoder, and a list that grows each time its graph is opened on the CPU."""
    graph, opened = model / "model.fp16.onnx", []

    def on_cpu() -> Any:
        opened.append(1)
        return open_session(graph, CPU, threads=1)

    tokenizer, space = load_tokenizer(model / "tokenizer.json"), read_manifest(model).space
    return TextEncoder(Claims(on_cpu()), tokenizer, space, "fp16", on_cpu), opened


pytestmark = pytest.mark.skipif(CUDA in get_available_providers(), reason="this build of ONNX Runtime has CUDA")


def test_the_same_variant_goes_on_on_the_cpu(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder, opened = encoder_on_a_lost_device(tiny_model)
    assert (encoder.provider, encoder.token_budget) == (CUDA, TOKEN_BUDGET_ACCELERATOR)
    with caplog.at_level(logging.ERROR):
        found = encoder.encode(TEXTS)
        again = encoder.encode(TEXTS)
    expected = TextEncoder.open(tiny_model, variant="fp16", threads=1).encode(TEXTS)
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-5)
    np.testing.assert_allclose(again.vectors, expected.vectors, atol=1e-5)
    assert (encoder.provider, encoder.token_budget) == (CPU, TOKEN_BUDGET[CPU])
    assert encoder.description == f"{CPU} fp16 ({CUDA} lost)"
    assert caplog.text.count(f"{CUDA} fails, the encoder goes on with {CPU}") == 1
    assert len(opened) == 2


def test_several_threads_lose_the_device_once(tiny_model: Path) -> None:
    encoder, opened = encoder_on_a_lost_device(tiny_model)
    expected = TextEncoder.open(tiny_model, variant="fp16", threads=1).encode(TEXTS).vectors
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(partial(encoder.encode, TEXTS)) for _ in range(8)]:
            np.testing.assert_allclose(future.result().vectors, expected, atol=1e-5)
    assert len(opened) == 2


def test_what_is_wrong_on_the_cpu_too_is_raised(tiny_model: Path) -> None:
    encoder, _ = encoder_on_a_lost_device(tiny_model)
    encoder._on_cpu = lambda: Claims(None)
    with pytest.raises(AttributeError):
        encoder.encode(TEXTS)
