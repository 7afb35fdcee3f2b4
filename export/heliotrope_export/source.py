"""The model to export: where its files are, and what they say about it.

Reads JSON and imports no deep-learning library, so that finding out that nothing has to be done is fast.
"""

import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from heliotrope_export.errors import SourceError
from heliotrope_export.manifest import Pooling, Source, sha256_of

# Encoders of the BERT family that optimum exports and ONNX Runtime's BERT optimiser knows how to fuse.
ARCHITECTURES = (
    "albert",
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
# These number positions from padding_idx + 1, so that many of their position embeddings are never used.
OFFSET_POSITIONS = ("camembert", "mpnet", "roberta", "xlm-roberta")

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_SOURCES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class LocalModel:
    """A BERT-family encoder on disk, inspected but not loaded."""

    folder: Path
    source: Source
    dimension: int
    heads: int
    max_tokens: int
    pooling: Pooling


def find_model(name: str, *, max_tokens: int | None = None) -> LocalModel:
    """Inspects a local folder, or the folder inside an installed distribution that holds a model.

    A folder wins over a distribution of the same name. A distribution is found through its metadata and not imported,
    and its name may be written with dashes or underscores. Nothing is ever downloaded.

    `max_tokens` defaults to the length that the model declares it was made for.

    Raises:
        SourceError: not found, not a BERT-family encoder, files missing, or `max_tokens` beyond its positions.
    """
    folder = Path(name)
    if folder.is_dir():
        kind, version, label = "folder", None, folder.resolve().name
    else:
        folder, version, label = _inside_distribution(name)
        kind = "package"
    config = _read_json(folder / "config.json")
    architecture = config.get("model_type")
    if architecture not in ARCHITECTURES:
        raise SourceError(
            f"{name} has model_type {architecture!r}; the BERT-family encoders that can be exported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    source = Source.model_validate(
        {
            "name": label,
            "kind": kind,
            "version": version,
            "architecture": architecture,
            "files": {path.name: sha256_of(path) for path in _files(folder, name)},
        }
    )
    return LocalModel(
        folder=folder,
        source=source,
        # distilbert has its own names for both.
        dimension=int(config.get("hidden_size") or config["dim"]),
        heads=int(config.get("num_attention_heads") or config["n_heads"]),
        max_tokens=_max_tokens(folder, config, max_tokens),
        pooling=_pooling(folder),
    )


def _inside_distribution(name: str) -> tuple[Path, str, str]:
    try:
        found = distribution(name)
    except (PackageNotFoundError, ValueError):
        raise SourceError(
            f"no model {name!r}: it is neither a local folder nor the name of an installed package"
        ) from None
    files = found.files or []
    weights = {file.parent for file in files if file.name in WEIGHTS}
    folders = sorted({file.parent for file in files if file.name == "config.json"} & weights)
    if len(folders) != 1:
        listed = ", ".join(str(folder) for folder in folders) or "none"
        raise SourceError(
            f"the package {name} must hold exactly one folder with config.json and weights; found: {listed}"
        )
    return Path(str(found.locate_file(folders[0]))), found.version, found.metadata["Name"]


def _files(folder: Path, name: str) -> list[Path]:
    """Every file that the vectors depend on: configuration, the weights that would be loaded, tokenizer."""
    weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if weights is None:
        raise SourceError(f"{name} has no weights: one of {', '.join(WEIGHTS)} is needed in {folder}")
    shards: list[Path] = []
    if weights.name.endswith(".index.json"):
        shards = [folder / shard for shard in sorted(set(_read_json(weights)["weight_map"].values()))]
        if missing := [shard.name for shard in shards if not shard.is_file()]:
            raise SourceError(f"{name} lacks the weight files {', '.join(missing)} that {weights.name} names")
    tokenizer = [folder / file for file in TOKENIZER_SOURCES if (folder / file).is_file()]
    return [folder / "config.json", weights, *shards, *tokenizer]


def _max_tokens(folder: Path, config: dict[str, Any], asked: int | None) -> int:
    positions = int(config["max_position_embeddings"])
    if config["model_type"] in OFFSET_POSITIONS:
        positions -= int(config.get("pad_token_id", 1)) + 1
    if asked is not None:
        if not 3 <= asked <= positions:
            raise SourceError(f"max_tokens is {asked}; this model takes 3 to {positions}")
        return asked
    # What sentence-transformers trained with is shorter than what BERT could take, and is the honest default. The
    # tokenizer's own limit may be a huge number that stands for "unset".
    declared = [
        _read_json(folder / "sentence_bert_config.json", optional=True).get("max_seq_length"),
        _read_json(folder / "tokenizer_config.json", optional=True).get("model_max_length"),
    ]
    return min([positions, *(int(limit) for limit in declared if limit)])


def _pooling(folder: Path) -> Pooling:
    """The pooling that a sentence-transformers folder declares; mean where nothing is declared.

    Its Normalize module is left to whoever uses the vectors. Any other module would be lost, and is refused.
    """
    modules = _read_json(folder / "modules.json", optional=True, default=[])
    kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    if unknown := kinds.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise SourceError(
            f"{folder / 'modules.json'} has a {', '.join(sorted(unknown))} module, which ONNX export lacks"
        )
    declared = _read_json(folder / kinds["Pooling"] / "config.json") if "Pooling" in kinds else {}
    modes = {mode for mode, on in declared.items() if mode.startswith("pooling_mode_") and on is True}
    if modes == {"pooling_mode_cls_token"}:
        return "cls"
    if modes <= {"pooling_mode_mean_tokens"}:
        return "mean"
    raise SourceError(f"{folder} pools by {', '.join(sorted(modes))}; mean or cls is supported")


def _read_json(path: Path, *, optional: bool = False, default: Any = None) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        if optional:
            return {} if default is None else default
        raise SourceError(f"no model at {path.parent}: it has no {path.name}") from None
    except ValueError as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
