"""From a local BERT to a published model folder: inspect, convert, verify, publish."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from heliotrope_export import agreement, conversion
from heliotrope_export.encoder import TextEncoder, load_tokenizer
from heliotrope_export.errors import DestinationError, ModelError, ModelNotFoundError
from heliotrope_export.installation import check_single_runtime
from heliotrope_export.manifest import (
    MANIFEST_FILE,
    RECIPE_VERSION,
    TOKENIZER_FILE,
    VARIANTS,
    Manifest,
    VariantName,
    VariantRecord,
    VectorSpace,
    check_files,
    file_record,
    model_version,
    read_manifest,
    variant_file,
)
from heliotrope_export.publication import Workshop, workshop
from heliotrope_export.session import CPU, open_session
from heliotrope_export.source import LocalModel, find_model

LIBRARIES = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "tokenizers")

# Hears (what starts now, steps done, steps in all).
Announce = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Export:
    """What an export ended with. `reused`: the folder was current and nothing was written."""

    manifest: Manifest
    reused: bool


def export_model(
    name: str,
    out: Path,
    *,
    variants: Sequence[VariantName] = ("fp32", "int8"),
    max_tokens: int | None = None,
    force: bool = False,
    announce: Announce = lambda step, done, total: None,
) -> Export:
    """Publishes `name` (a folder or an installed package) as a model folder at `out`.

    A folder that already holds this model with these variants is left alone. One that holds this model with other
    variants is replaced by one that has them all. Anything else needs `force`, and a folder that is not a model folder
    is never replaced.

    Raises:
        SourceError, DestinationError, AgreementError, InstallationError.
    """
    check_single_runtime()
    model = find_model(name, max_tokens=max_tokens)
    current = _current(model, out, force=force)
    if current is not None and set(variants) <= current.variants.keys():
        return Export(current, reused=True)
    kept = current.variants.keys() if current is not None else set()
    wanted = [variant for variant in VARIANTS if variant in variants or variant in kept]
    with workshop(out) as place:
        manifest = _build(model, place, wanted, announce)
        place.publish(out)
    return Export(manifest, reused=False)


def _current(model: LocalModel, out: Path, *, force: bool) -> Manifest | None:
    """The manifest of `out` where that holds this very model, sound; None where it is free to be written.

    Raises:
        DestinationError: `out` holds something else and `force` does not help, or is not set.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        found = read_manifest(out)
    except ModelNotFoundError:
        raise DestinationError(f"{out} exists and is not a model folder; it will not be replaced") from None
    except ModelError as error:
        problem = str(error)
    else:
        if found.space.model_version == _model_version(model):
            try:
                check_files(out, found, [TOKENIZER_FILE, *(variant_file(name) for name in found.variants)])
                return found
            except ModelError as error:
                problem = str(error)
        else:
            problem = (
                f"{out} holds another model ({found.source.name} {found.space.model_version}, "
                f"{found.space.max_tokens} tokens), not {model.source.name} {_model_version(model)}, "
                f"{model.max_tokens} tokens"
            )
    if force:
        return None
    raise DestinationError(f"{problem}; --force replaces it")


def _build(model: LocalModel, place: Workshop, variants: list[VariantName], announce: Announce) -> Manifest:
    """Fills `place.folder` with verified files and their manifest."""
    done, total = 0, 4 + 2 * len(variants)

    def start(step: str) -> None:
        nonlocal done
        announce(step, done, total)
        done += 1

    start("loading the PyTorch model")
    encoder, tokenizer = conversion.load_torch_model(model)
    start("embedding the sentences with PyTorch")
    ordinary, awkward = agreement.sentences(model.max_tokens)
    reference = agreement.torch_vectors(
        encoder, tokenizer, ordinary + awkward, max_tokens=model.max_tokens, pooling=model.pooling
    )
    start("exporting the graph")
    tokens, fused = conversion.export_graph(encoder, model, place.scratch)
    _save_tokenizer(tokenizer, place.folder / TOKENIZER_FILE, max_tokens=model.max_tokens)
    space = VectorSpace(
        model_version=_model_version(model),
        recipe_version=RECIPE_VERSION,
        dimension=model.dimension,
        max_tokens=model.max_tokens,
        pooling=model.pooling,
        pad_token_id=tokenizer.pad_token_id,
    )
    records: dict[VariantName, VariantRecord] = {}
    for variant in variants:
        graph = place.folder / variant_file(variant)
        start(f"writing {variant}")
        conversion.write_variant(variant, tokens, graph, pooling=model.pooling)
        start(f"verifying {variant}")
        # Verified is what will be read: the files as published, through the reader that everybody uses.
        session = open_session(graph, CPU, threads=None)
        reader = TextEncoder(session, load_tokenizer(place.folder / TOKENIZER_FILE), space, variant)
        found = agreement.measure(reader, reference)
        agreement.check(variant, found)
        records[variant] = VariantRecord(file=file_record(graph), agreement=found, fused_operators=fused)
    start("publishing")
    manifest = Manifest(
        created_time=datetime.now(UTC).isoformat(timespec="seconds"),
        space=space,
        source=model.source,
        libraries={name: version(name) for name in LIBRARIES},
        tokenizer=file_record(place.folder / TOKENIZER_FILE),
        variants=records,
    )
    (place.folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")
    return manifest


def _save_tokenizer(tokenizer: Any, path: Path, *, max_tokens: int) -> None:
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length=max_tokens)
    backend.save(str(path))


def _model_version(model: LocalModel) -> str:
    return model_version(model.source.files, max_tokens=model.max_tokens, pooling=model.pooling)
