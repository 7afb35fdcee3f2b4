import logging
import warnings
from pathlib import Path

import numpy as np
import onnxruntime

from heliotrope_export import conversion
from heliotrope_export.session import CPU, open_session
from heliotrope_export.source import find_model

IDS = np.array([[0, 9, 12, 30, 2], [0, 7, 2, 1, 1]], dtype=np.int64)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=np.int64)
INPUTS = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": np.zeros_like(IDS)}


def test_pooling_in_the_graph_is_pooling_by_hand(tiny_source: Path, tmp_path: Path) -> None:
    model = find_model(str(tiny_source))
    encoder, _ = conversion.load_torch_model(model)
    graph, fused = conversion.export_graph(encoder, model, tmp_path)
    assert fused["Attention"] == 2
    tokens = onnxruntime.InferenceSession(str(graph), providers=[CPU]).run(None, INPUTS)[0]
    assert tokens.shape == (2, 5, 32)
    by_hand = {"mean": np.stack([tokens[0].mean(0), tokens[1, :3].mean(0)]), "cls": tokens[:, 0]}
    for pooling, expected in by_hand.items():
        out = tmp_path / f"{pooling}.onnx"
        conversion.write_variant("fp32", graph, out, pooling=pooling)  # type: ignore[arg-type]
        session = open_session(out, CPU, threads=1)
        assert session is not None
        np.testing.assert_allclose(session.run(None, INPUTS)[0], expected, atol=1e-5)


def test_quiet_restores_what_it_silences() -> None:
    before = (logging.root.manager.disable, list(warnings.filters))
    with conversion.quiet():
        warnings.warn("from a library", DeprecationWarning, stacklevel=1)
    assert (logging.root.manager.disable, list(warnings.filters)) == before
