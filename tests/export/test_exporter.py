import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from heliotrope_export import AgreementError, DestinationError, TextEncoder, agreement
from heliotrope_export.exporter import export_model
from heliotrope_export.manifest import read_manifest
from heliotrope_export.source import ARCHITECTURES
from tests.export.tiny_encoder import POSITIONS, save_tiny_encoder


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "bert"])
def test_every_architecture_exports_and_agrees_with_pytorch(architecture: str, tmp_path: Path) -> None:
    source = save_tiny_encoder(tmp_path / "source", architecture)
    export = export_model(str(source), tmp_path / "model", variants=("fp32", "fp16", "int8"))
    assert export.manifest.source.architecture == architecture
    assert export.manifest.variants["fp32"].agreement.cosine_min >= 0.9999
    assert export.manifest.variants["fp32"].fused_operators


def test_the_folder_says_where_it_came_from_and_how_good_it_is(tiny_model: Path) -> None:
    manifest = read_manifest(tiny_model)
    assert sorted(path.name for path in tiny_model.iterdir()) == [
        "manifest.json",
        "model.fp16.onnx",
        "model.fp32.onnx",
        "model.int8.onnx",
        "tokenizer.json",
    ]
    assert manifest.source.name == "tiny-bert"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= manifest.source.files.keys()
    assert manifest.space.dimension == 32
    assert manifest.space.max_tokens == POSITIONS
    assert manifest.variants["fp32"].fused_operators["Attention"] == 2  # one a layer
    assert manifest.variants["fp16"].agreement.cosine_min >= 0.999
    assert manifest.variants["fp16"].agreement.provider == "CPUExecutionProvider"
    assert manifest.variants["int8"].agreement.cosine_mean >= 0.97
    assert 0 < manifest.variants["int8"].agreement.overlap_at_10 <= 1


def test_the_real_bert_meets_its_bounds(model_folder: Path) -> None:
    manifest = read_manifest(model_folder)
    assert manifest.source.files["model.safetensors"].startswith("53aa5117")
    assert manifest.space.dimension == 384
    assert manifest.space.max_tokens == 256
    assert manifest.variants["fp32"].agreement.cosine_min >= 0.9999
    assert manifest.variants["int8"].agreement.cosine_mean >= 0.97
    assert manifest.variants["int8"].agreement.sentences >= 200


def test_a_current_folder_is_reused(tiny_source: Path, tiny_model: Path) -> None:
    before = (tiny_model / "manifest.json").stat().st_mtime_ns
    export = export_model(str(tiny_source), tiny_model, variants=("fp32",))
    assert export.reused
    assert (tiny_model / "manifest.json").stat().st_mtime_ns == before


def test_a_missing_variant_is_added_and_the_version_stays(tiny_source: Path, tmp_path: Path) -> None:
    first = export_model(str(tiny_source), tmp_path / "model", variants=("fp32",))
    second = export_model(str(tiny_source), tmp_path / "model", variants=("int8",))
    assert not second.reused
    assert list(second.manifest.variants) == ["fp32", "int8"]
    assert second.manifest.space.model_version == first.manifest.space.model_version
    TextEncoder.open(tmp_path / "model", variant="fp32")


def test_another_model_needs_force(tiny_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    first = export_model(str(tiny_source), out, variants=("fp32",))
    with pytest.raises(DestinationError, match=r"holds another model \(tiny-bert .*64 tokens\).*32 tokens; --force"):
        export_model(str(tiny_source), out, variants=("fp32",), max_tokens=32)
    assert read_manifest(out) == first.manifest
    forced = export_model(str(tiny_source), out, variants=("fp32",), max_tokens=32, force=True)
    assert forced.manifest.space.model_version != first.manifest.space.model_version
    assert TextEncoder.open(out).max_tokens == 32


def test_a_damaged_folder_needs_force(tiny_source: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    shutil.copytree(tiny_model, out)
    (out / "model.int8.onnx").unlink()
    with pytest.raises(DestinationError, match=r"model\.int8\.onnx is missing; --force replaces it"):
        export_model(str(tiny_source), out)
    assert not export_model(str(tiny_source), out, variants=("fp32",), force=True).reused


def test_a_folder_that_is_no_model_is_never_replaced(tiny_source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(DestinationError, match="not a model folder"):
        export_model(str(tiny_source), tmp_path, force=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_variant_that_misses_its_bound_is_not_published(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(agreement.BOUNDS, "int8", ("cosine_mean", 1.5))
    with pytest.raises(AgreementError, match=r"int8 has cosine_mean 0\.9\d+ .* at least 1\.5 is required"):
        export_model(str(tiny_source), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["writing int8", "publishing"])
def test_a_kill_leaves_nothing_half_published(step: str, tiny_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from heliotrope_export.exporter import export_model\n"
        "def announce(step, done, total):\n"
        "    if step == sys.argv[3]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "export_model(sys.argv[1], Path(sys.argv[2]), announce=announce)\n"
    )
    command = [sys.executable, "-c", script, str(tiny_source), str(out), step]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1  # what it was working on, aside

    export_model(str(tiny_source), out, variants=("fp32",))
    assert list(tmp_path.iterdir()) == [out]  # swept
    assert np.isfinite(TextEncoder.open(out).encode(["a text"]).vectors).all()
