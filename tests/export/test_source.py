import json
import shutil
from pathlib import Path

import pytest

from heliotrope_export import SourceError
from heliotrope_export.conversion import load_torch_model
from heliotrope_export.source import find_model
from tests.conftest import MODEL_PACKAGE
from tests.export.tiny_encoder import POSITIONS, save_tiny_encoder


@pytest.fixture
def source(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder to change."""
    shutil.copytree(tiny_source, tmp_path / "source")
    return tmp_path / "source"


def write(path: Path, fields: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(fields))


def declare_pooling(source: Path, mode: str, *more: str) -> None:
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *((kind, f"9_{kind}") for kind in more)]
    write(source / "modules.json", [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds])
    modes = {f"pooling_mode_{name}": name == mode for name in ("cls_token", "mean_tokens", "max_tokens")}
    write(source / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **modes})


@pytest.mark.parametrize("name", [MODEL_PACKAGE, MODEL_PACKAGE.replace("-", "_")])
def test_a_model_inside_a_package(name: str, model_folder: Path) -> None:
    model = find_model(name)
    assert model.source.kind == "package"
    assert (model.source.name, model.source.version) == (MODEL_PACKAGE, "0.1.0")
    assert (model.dimension, model.heads, model.pooling) == (384, 12, "mean")
    assert model.max_tokens == 256  # as sentence_bert_config.json says; BERT itself takes 512


def test_a_name_that_is_nowhere() -> None:
    with pytest.raises(SourceError, match="no model 'bert-huge': it is neither a local folder nor"):
        find_model("bert-huge")


def test_a_package_without_a_model() -> None:
    with pytest.raises(SourceError, match=r"exactly one folder with config\.json and weights; found: none"):
        find_model("numpy")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"it has no config\.json"):
        find_model(str(tmp_path))


def test_a_model_that_is_no_bert(source: Path) -> None:
    write(source / "config.json", {"model_type": "gpt2"})
    with pytest.raises(SourceError, match=r"model_type 'gpt2'; the BERT-family encoders .* are albert, bert"):
        find_model(str(source))


def test_missing_weights(source: Path) -> None:
    (source / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"has no weights: one of model\.safetensors"):
        find_model(str(source))
    write(source / "model.safetensors.index.json", {"weight_map": {"a": "part-1.safetensors"}})
    with pytest.raises(SourceError, match=r"lacks the weight files part-1\.safetensors"):
        find_model(str(source))


def test_max_tokens_is_what_is_declared_within_what_is_possible(source: Path) -> None:
    assert find_model(str(source)).max_tokens == POSITIONS
    assert find_model(str(source), max_tokens=10).max_tokens == 10
    write(source / "sentence_bert_config.json", {"max_seq_length": 48})
    assert find_model(str(source)).max_tokens == 48
    for tokens in (2, POSITIONS + 1):
        with pytest.raises(SourceError, match=f"max_tokens is {tokens}; this model takes 3 to {POSITIONS}"):
            find_model(str(source), max_tokens=tokens)


def test_roberta_has_two_positions_less_than_its_table(tmp_path: Path) -> None:
    assert find_model(str(save_tiny_encoder(tmp_path, "roberta"))).max_tokens == POSITIONS - 2


def test_pooling_is_what_is_declared(source: Path) -> None:
    assert find_model(str(source)).pooling == "mean"
    declare_pooling(source, "cls_token", "Normalize")
    assert find_model(str(source)).pooling == "cls"
    declare_pooling(source, "max_tokens")
    with pytest.raises(SourceError, match="pools by pooling_mode_max_tokens; mean or cls"):
        find_model(str(source))
    declare_pooling(source, "mean_tokens", "Dense")
    with pytest.raises(SourceError, match="has a Dense module"):
        find_model(str(source))


def test_weights_of_another_model_are_refused(source: Path) -> None:
    """transformers would fill the missing layer with random numbers, and the export would agree with those."""
    config = json.loads((source / "config.json").read_text())
    write(source / "config.json", {**config, "num_hidden_layers": 3})
    with pytest.raises(SourceError, match=r"lack 16 tensors of the model, such as encoder\.layer\.2"):
        load_torch_model(find_model(str(source)))


def test_damaged_weights_are_refused(source: Path) -> None:
    (source / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(SourceError, match="transformers cannot load"):
        load_torch_model(find_model(str(source)))
