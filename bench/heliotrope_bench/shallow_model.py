"""A second text model without a download: the first layers of the one that is installed."""

import shutil
import tempfile
from pathlib import Path

from heliotrope_bench.job import run_job
from heliotrope_export.conversion import quiet
from heliotrope_export.source import find_model

LAYERS = 3


def shallow_model(work: Path, package: str) -> Path:
    """The model folder of the first layers of a packaged model, in `work`; exported on first use.

    It reads the same tokens and gives vectors of the same length, in a space of its own.
    """
    folder = work / "shallow-model"
    if (folder / "manifest.json").is_file():
        return folder
    source = find_model(package).folder
    with tempfile.TemporaryDirectory(prefix="heliotrope-shallow-") as name:
        cut = Path(name, "cut")
        shutil.copytree(source, cut, ignore=shutil.ignore_patterns("*.bin", "*.safetensors", "onnx", "openvino"))
        with quiet():
            from transformers import AutoModel

            whole = AutoModel.from_pretrained(source)
            whole.encoder.layer = whole.encoder.layer[:LAYERS]
            whole.config.num_hidden_layers = LAYERS
            whole.save_pretrained(cut)
        run_job(["export", str(cut), "--out", str(folder), "--variants", "fp32"])
    return folder
