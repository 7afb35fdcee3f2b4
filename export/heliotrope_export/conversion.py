"""PyTorch to ONNX: export through optimum, fuse with ONNX Runtime's transformer optimiser, pool, and quantise.

Imports torch, transformers and optimum inside its functions: importing this module costs nothing.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from heliotrope_export.errors import SourceError
from heliotrope_export.manifest import Pooling, VariantName
from heliotrope_export.source import LocalModel

OPSET = 18
MICROSOFT_DOMAIN = "com.microsoft"  # where the fused operators live


def load_torch_model(model: LocalModel) -> tuple[Any, Any]:
    """The PyTorch encoder in evaluation mode and its fast tokenizer, from local files only.

    Raises:
        SourceError: transformers cannot load it, weights are missing, or there is no fast tokenizer for it.
    """
    with quiet():
        from transformers import AutoModel, AutoTokenizer

        try:
            encoder, loading = AutoModel.from_pretrained(
                model.folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
            tokenizers: Any = AutoTokenizer  # its method has no types
            tokenizer = tokenizers.from_pretrained(
                model.folder, local_files_only=True, trust_remote_code=False, use_fast=True
            )
        except Exception as error:  # of transformers, safetensors and tokenizers, which share no base class
            raise SourceError(f"transformers cannot load {model.folder}: {error}") from error
    # transformers fills what the weights lack with random numbers. Only the pooler may lack them: it is not exported.
    if missing := [key for key in loading["missing_keys"] if not key.startswith("pooler.")]:
        raise SourceError(
            f"the weights in {model.folder} lack {len(missing)} tensors of the model, such as {missing[0]}"
        )
    if not tokenizer.is_fast:
        raise SourceError(f"{model.folder} has no fast tokenizer, and none can be derived from its files")
    return encoder.eval(), tokenizer


def export_graph(encoder: Any, model: LocalModel, scratch: Path) -> tuple[Path, dict[str, int]]:
    """Writes the fused float32 graph, ending in token vectors (b, t, D).

    Returns its path and how often each fused operator occurs.
    """
    with quiet():
        from onnxruntime.transformers.optimizer import optimize_model
        from optimum.exporters.onnx import onnx_export_from_model

        # Agreement is checked later, on real text and against every variant; optimum's own check uses random ids.
        onnx_export_from_model(
            encoder, scratch / "optimum", task="feature-extraction", opset=OPSET, do_validation=False
        )
        # opt_level 0: fusions only. ONNX Runtime's own passes run when a session opens, for the machine it opens on.
        optimised = optimize_model(
            str(scratch / "optimum" / "model.onnx"),
            model_type="bert",
            num_heads=model.heads,
            hidden_size=model.dimension,
            opt_level=0,
        )
        fused = {name: int(count) for name, count in optimised.get_fused_operator_statistics().items() if count}
        path = scratch / "tokens.fp32.onnx"
        optimised.save_model_to_file(str(path))
    return path, fused


def write_variant(variant: VariantName, tokens: Path, out: Path, *, pooling: Pooling) -> None:
    """Writes one variant of the graph, from token ids to pooled float32 vectors (b, D).

    Pooling is part of the graph: it moves t times less memory out of it, and is 2 % faster than NumPy (208 against
    203 texts/s, fp32, one core). It is added after the precision is lowered, so it always sums in float32.
    """
    with quiet():
        import onnx

        if variant == "fp16":
            graph = _half_precision(tokens)
        elif variant == "int8":
            graph = _quantised(tokens)
        else:
            graph = onnx.load(tokens)
        onnx.save(_pooled(graph, pooling), out)


def _half_precision(tokens: Path) -> Any:
    """float16 inside, float32 at the edges, so that one reader serves every variant."""
    import onnx
    from onnxruntime.transformers.onnx_model import OnnxModel

    wrapped = OnnxModel(onnx.load(tokens))
    wrapped.convert_float_to_float16(keep_io_types=True, use_symbolic_shape_infer=True)
    return wrapped.model


def _quantised(tokens: Path) -> Any:
    """Weights of matrix products as int8 per channel; activations quantised when they arise.

    Measured on 900 titles and descriptions with all-MiniLM-L6-v2 on a CPU with AVX2 but no VNNI, the kind on which
    8-bit weights can saturate. Mean cosine / overlap@10 with float32 / texts per second on one core:

        per channel                       0.9928   0.893   347     <- this
        per channel, 7-bit weights        0.9925   0.888   339     (reduce_range)
        per channel, embeddings too       0.9924   0.888   329     22 MB instead of 58 MB
        per tensor                        0.9631   0.795   338     misses the bound
        per tensor, 7-bit weights         0.8782   0.651   339     misses the bound

    Most of what is lost, the activations of the feed-forward layers lose: with the second product of the first three
    layers left in float32, overlap rises by 0.025 for 9 % of the speed.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(tokens)
    # True of this graph, since the optimiser has been over it; without it the quantiser asks for just that, on stderr.
    add_pre_process_metadata(model)
    out = tokens.with_name("tokens.int8.onnx")
    quantize_dynamic(
        model,
        out,
        per_channel=True,
        reduce_range=False,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Attention"],
        # ONNX shape inference does not know the fused operators, so their outputs have to be declared float.
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    return onnx.load(out)


def _pooled(model: Any, pooling: Pooling) -> Any:
    """Replaces the output (b, t, D) by the mean of the real tokens' vectors, or the first token's, (b, D)."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    tokens = next(output for output in graph.output if output.name == "last_hidden_state")
    dimension = tokens.type.tensor_type.shape.dim[2].dim_value

    def constant(name: str, values: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype=np.int64), name))
        return name

    if pooling == "cls":
        nodes = [helper.make_node("Gather", [tokens.name, constant("pool_first", 0)], ["pooled"], axis=1)]
    else:
        # mask (b, 1, t) @ tokens (b, t, D) sums without the (b, t, D) copy that multiplying by the mask would make.
        axis_1, axis_2 = constant("pool_axis_1", [1]), constant("pool_axis_2", [2])
        nodes = [
            helper.make_node("Cast", ["attention_mask"], ["pool_mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["pool_mask", axis_1], ["pool_row"]),
            helper.make_node("MatMul", ["pool_row", tokens.name], ["pool_sum"]),
            helper.make_node("ReduceSum", ["pool_row", axis_2], ["pool_count"], keepdims=1),
            helper.make_node("Div", ["pool_sum", "pool_count"], ["pool_mean"]),
            helper.make_node("Squeeze", ["pool_mean", axis_1], ["pooled"]),
        ]
    graph.node.extend(nodes)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch_size", dimension]))
    if not any(entry.domain == MICROSOFT_DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(MICROSOFT_DOMAIN, 1))
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the libraries' chatter away from people, and the libraries away from the network.

    The warnings are theirs about their own code (tracing, deprecations); nothing of ours runs inside except the calls
    to them, and what they produce is verified afterwards.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
