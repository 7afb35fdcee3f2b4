"""A tiny encoder and its export, made once: what need not be the real model runs on these."""

from pathlib import Path

import pytest

from heliotrope_export.exporter import export_model
from tests.export.tiny_encoder import save_tiny_encoder


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers saved. Read-only."""
    return save_tiny_encoder(tmp_path_factory.mktemp("source") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_model(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder published in every variant. Read-only."""
    out = tmp_path_factory.mktemp("published") / "tiny"
    export_model(str(tiny_source), out, variants=("fp32", "fp16", "int8"))
    return out
