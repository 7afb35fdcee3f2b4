"""`heliotrope bench encode`: the text encoder beside bare ONNX Runtime on the very same batches, in turns.

What is left between the two is tokenising, sorting, padding and copying: the price of taking texts instead of tensors.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.dataset import movielens_100k_of_wheel
from heliotrope_bench.encode_grid import COLUMNS as GRID_COLUMNS
from heliotrope_bench.encode_grid import measure_grid
from heliotrope_bench.errors import BenchError
from heliotrope_bench.report import print_table, write_report
from heliotrope_export import ExportError, TextEncoder
from heliotrope_export.manifest import read_manifest, variant_file
from heliotrope_export.source import find_model
from heliotrope_export.token_batch import token_batches

COLUMNS = {
    "case": "",
    "rate_per_s": ",.0f",
    "bare_per_s": ",.0f",
    "of_bare": ".1%",
    "of_bare_by_cpu": ".1%",
    "tokens_per_text": ".1f",
}


class EncodeOptions(BaseSettings):
    """Measures texts per second of each published variant of a model against bare ONNX Runtime."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench encode", cli_kebab_case=True, cli_hide_none_type=True
    )

    model: Path = Field(description="model folder")
    texts: Path | None = Field(None, description="file with a text per line; default: the MovieLens 100k titles")
    threads: Annotated[int, Field(ge=1)] = Field(1, description="threads of the encoder and of bare ONNX Runtime")
    rounds: Annotated[int, Field(ge=1)] = Field(5, description="turns of the two")
    source: str | None = Field(
        None, description="what the model was exported from: by length and batch, beside PyTorch and others"
    )
    out: Path | None = Field(None, description="file for the raw results, as JSON")


def run(options: EncodeOptions, arguments: Sequence[str], console: Console) -> None:
    """Runs all variants that the CPU provider can take; raises a BenchError when the model can't be read."""
    texts = _texts(options.texts)
    try:
        variants = [name for name in read_manifest(options.model).variants if name != "fp16"]
        rows = [_measure(options, variant, texts) for variant in variants]
        grid = []
        if options.source is not None:
            words = [word for text in texts for word in text.split()]
            folder = find_model(options.source).folder
            grid = measure_grid(options.model, folder, variants, words, threads=options.threads, rounds=options.rounds)
    except ExportError as error:
        raise BenchError(str(error)) from error
    if options.out:
        settings = {**options.model_dump(mode="json"), "texts": len(texts)}
        write_report(options.out, command=["bench", "encode", *arguments], settings=settings, results=[*rows, *grid])
    print_table(console, f"{len(texts):,} texts, {options.threads} thread(s), medians", rows, COLUMNS)
    if grid:
        print_table(console, "by length and batch, medians", grid, GRID_COLUMNS)


def _texts(path: Path | None) -> list[str]:
    if path is None:
        return [f"{item.title}. {', '.join(item.categories)}" for item in movielens_100k_of_wheel().items]
    try:
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read {path}: {error}") from error
    if not texts:
        raise BenchError(f"{path} holds no text")
    return texts


def _measure(options: EncodeOptions, variant: str, texts: Sequence[str]) -> dict[str, Any]:
    encoder = TextEncoder.open(options.model, variant=variant, threads=options.threads)
    if encoder.provider != "CPUExecutionProvider":
        raise BenchError(f"the comparison is made on the CPU; {variant} runs on {encoder.provider}")
    token_ids, _ = encoder.tokenize(texts)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    session = onnxruntime.InferenceSession(
        str(options.model / variant_file(encoder.variant)),  # type: ignore[arg-type]
        settings,
        providers=["CPUExecutionProvider"],
    )
    wanted = {entry.name for entry in session.get_inputs()}
    feeds = []
    for batch in token_batches(token_ids, budget=encoder.token_budget, pad_token_id=0):
        feed = {"input_ids": batch.token_ids, "attention_mask": batch.attention_mask}
        if "token_type_ids" in wanted:
            feed["token_type_ids"] = np.zeros_like(batch.token_ids)
        feeds.append(feed)

    def bare() -> None:
        for feed in feeds:
            session.run(None, feed)

    def ours() -> None:
        encoder.encode(texts)

    bare()
    ours()
    pairs = [(_seconds(bare), _seconds(ours)) for _ in range(options.rounds)]
    return {
        "case": f"{variant}, {encoder.provider}",
        "rate_per_s": len(texts) / statistics.median(wall for _, (wall, _) in pairs),
        "bare_per_s": len(texts) / statistics.median(wall for (wall, _), _ in pairs),
        # Ratios pair by pair: a machine whose speed drifts drifts for both.
        "of_bare": statistics.median(bare[0] / ours[0] for bare, ours in pairs),
        "of_bare_by_cpu": statistics.median(bare[1] / ours[1] for bare, ours in pairs),
        "tokens_per_text": sum(map(len, token_ids)) / len(texts),
        "batches": len(feeds),
    }


def _seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu
