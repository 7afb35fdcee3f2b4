"""`heliotrope bench gpu`: a GPU beside the CPU of the same machine: is it right, and how fast is it.

Search: batches of queries like those served, through the retriever with the index of the snapshot and through the same
with each index on the device, in turns; recall@10 against exact scoring. Encoding: the same texts on both.

It needs a card, `heliotrope[server-gpu,bench]` and, for encoding, a model folder that was exported elsewhere. Without a
card it says so and ends with code 1.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from heliotrope_bench.errors import BenchError
from heliotrope_bench.report import print_table, write_report
from heliotrope_bench.synthetic_store import synthetic_store
from heliotrope_export import ExportError, TextEncoder
from heliotrope_export.session import CPU
from heliotrope_indexer.ann_index import SERVED_RECALL_AT_10, served_queries
from heliotrope_indexer.errors import IndexerError
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.device_index import build_device_index, device_problem
from heliotrope_server.gpu_retriever import GpuRetriever
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.live_view import live_view
from heliotrope_server.retriever import CandidateIndex, ExactRetriever, Retriever, make_retriever
from heliotrope_server.scoring import Query
from heliotrope_server.settings import IndexKind

BATCHES = (1, 16, 64, 256)
WANTED = 10
COSINE = 0.999
"""Between a vector of the device and the CPU's of float32; float16 keeps 0.9999 and more."""
SEARCH_COLUMNS = {
    "case": "",
    "batch": "d",
    "cpu_per_s": ",.0f",
    "device_per_s": ",.0f",
    "over_cpu": ".2f",
    "cpu_recall@10": ".4f",
    "device_recall@10": ".4f",
    "build_s": ".1f",
    "right": "",
    "note": "",
}
ENCODE_COLUMNS = {
    "case": "",
    "cpu_per_s": ",.0f",
    "device_per_s": ",.0f",
    "over_cpu": ".2f",
    "least_cosine": ".5f",
    "right": "",
    "note": "",
}

_WORDS = (
    "a the of and in for with on from about story song river night city war love game house light old new first last "
    "little great history science music garden stone winter summer captain daughter machine island letter dream road"
)

Build = Callable[[IndexKind, NDArray[np.float32], NDArray[np.float32], int], CandidateIndex]


class GpuOptions(BaseSettings):
    """Checks a GPU against the CPU and measures both, searching and encoding."""

    model_config = SettingsConfigDict(
        frozen=True, cli_prog_name="heliotrope bench gpu", cli_kebab_case=True, cli_hide_none_type=True
    )

    snapshots: Path | None = Field(None, description="snapshot store; default: a synthetic one of --items")
    items: Annotated[int, Field(ge=30_000, description="items of the synthetic snapshot")] = 200_000
    dimension: Annotated[int, Field(ge=4, description="dimensions of its vectors")] = 64
    model: Path | None = Field(None, description="model folder, best with fp32 and fp16; without it only search runs")
    rounds: Annotated[int, Field(ge=1, description="turns of the two; medians are shown")] = 7
    work: Path = Field(Path(".bench"), description="where the synthetic snapshot is kept between runs")
    out: Path = Field(Path("gpu.json"), description="raw results")


def run(options: GpuOptions, arguments: Sequence[str], console: Console) -> None:
    """Raises BenchError without a card, and where the device is wrong; what was measured is written before."""
    problem = device_problem()
    if problem is not None:
        raise BenchError(f"there is no GPU to measure: {problem}")
    store = options.snapshots or synthetic_store(options.work / "synthetic", options.items, options.dimension)
    try:
        catalogue = LiveCatalogue(SnapshotStore(store).open())
        console.print("search ...", style="dim")
        searched = search_rows(catalogue, build_device_index, options.rounds)
        encoded = []
        if options.model is not None:
            console.print("encode ...", style="dim")
            encoded = encode_rows(options.model, random_texts(), options.rounds)
    except (IndexerError, ExportError) as error:
        raise BenchError(str(error)) from error
    settings = {**options.model_dump(mode="json"), "items": catalogue.size}
    write_report(options.out, command=["bench", "gpu", *arguments], settings=settings, results=[*searched, *encoded])
    print_table(console, f"search in {catalogue.size:,} items, queries per second", searched, SEARCH_COLUMNS)
    if encoded:
        print_table(console, "encoding, texts per second", encoded, ENCODE_COLUMNS)
    check([*searched, *encoded])


def check(rows: Sequence[dict[str, Any]]) -> None:
    """Raises BenchError naming what the device got wrong, or that nothing ran on it."""
    wrong = dict.fromkeys(row["case"] for row in rows if row["right"] is False)
    if wrong:
        raise BenchError(f"the GPU is wrong: {', '.join(wrong)}")
    if not any(row["right"] for row in rows):
        raise BenchError("nothing ran on the GPU; the notes say why")


def search_rows(
    catalogue: LiveCatalogue, build: Build, rounds: int, batches: Sequence[int] = BATCHES
) -> list[dict[str, Any]]:
    """A row for each index and batch size; one with a note for an index that the device can't have.

    Raises BenchError for a snapshot that is too small to have an index, and when the device is lost on the way.
    """
    search, snapshot = catalogue.parameters.search, catalogue.snapshot
    if search is None:
        raise BenchError(
            f"snapshot {catalogue.version} has {catalogue.size:,} items and no index: it is served exactly"
        )
    vectors, bias = snapshot.vectors.view(np.ndarray), snapshot.bias.view(np.ndarray)
    vectors_of_queries = served_queries(
        vectors, snapshot.scoring_matrices, catalogue.prior, catalogue.parameters.kappas, count=max(batches)
    )
    nothing = np.empty(0, dtype=np.int64)
    queries = [Query(vector, WANTED, nothing) for vector in vectors_of_queries]
    live = live_view(catalogue, np.zeros(catalogue.size))
    best = [set(ranking.rows.tolist()) for ranking in ExactRetriever(catalogue).rank(queries, live)]

    def recall(retriever: Retriever) -> float:
        found = retriever.rank(queries, live)
        return sum(len(rows & set(one.rows.tolist())) for rows, one in zip(best, found, strict=True)) / (
            WANTED * len(queries)
        )

    cpu = make_retriever(catalogue)
    rows: list[dict[str, Any]] = []
    for kind in get_args(IndexKind):
        case, started = f"search, {kind}", time.perf_counter()
        try:
            index = build(kind, vectors, bias, search.nprobe)
        except (RuntimeError, MemoryError) as error:
            rows.append({"case": case, "right": None, "note": str(error)})
            continue
        build_s = time.perf_counter() - started
        device = GpuRetriever(catalogue, index, f"cuda {kind}")
        recalls = {"cpu_recall@10": recall(cpu), "device_recall@10": recall(device)}
        for batch in batches:
            asked = queries[:batch]
            seconds = _in_turns(lambda: cpu.rank(asked, live), lambda: device.rank(asked, live), rounds)  # noqa: B023
            rows.append(
                {
                    "case": case,
                    "batch": batch,
                    **_compared(batch, seconds),
                    **recalls,
                    "build_s": build_s,
                    "right": recalls["device_recall@10"] >= SERVED_RECALL_AT_10,
                }
            )
        if not device.on_device:
            raise BenchError(f"the GPU was lost while the {kind} index was measured: {device.description}")
    return rows


def encode_rows(model: Path, texts: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """A row for each variant that ONNX Runtime takes to the device, beside the fastest one of the CPU.

    Vectors are compared with those of fp32 on the CPU. Raises an ExportError.
    """
    exact = TextEncoder.open(model, variant="fp32", providers=[CPU])
    fastest = TextEncoder.open(model, providers=[CPU])
    reference = exact.encode(texts).vectors
    rows: list[dict[str, Any]] = []
    for variant in ("fp32", "fp16"):
        case = f"encode, {variant}"
        try:
            device = TextEncoder.open(model, variant=variant)
        except ExportError as error:
            rows.append({"case": case, "right": None, "note": str(error)})
            continue
        if device.provider == CPU:
            rows.append({"case": case, "right": None, "note": "ONNX Runtime has no CUDA that works here"})
            continue
        rows.append({"case": case, **encoders_compared(device, fastest, reference, texts, rounds)})
        if device.provider == CPU:
            raise BenchError(f"the GPU was lost while {variant} was measured: {device.description}")
    return rows


def encoders_compared(
    device: TextEncoder, cpu: TextEncoder, reference: NDArray[np.float32], texts: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Rates of the two, and the least cosine of the device's vectors with the reference (n, D)."""
    found = device.encode(texts).vectors
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
    least = float(((found * reference).sum(axis=1) / lengths).min())
    seconds = _in_turns(lambda: cpu.encode(texts), lambda: device.encode(texts), rounds)
    return {
        **_compared(len(texts), seconds),
        "cpu": cpu.description,
        "least_cosine": least,
        "right": least >= COSINE,
    }


def _in_turns(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both, pair by pair, after one of each that does not count."""
    first()
    second()
    return [(_seconds(first), _seconds(second)) for _ in range(rounds)]


def _compared(units: int, seconds: Sequence[tuple[float, float]]) -> dict[str, float]:
    return {
        "cpu_per_s": units / statistics.median(cpu for cpu, _ in seconds),
        "device_per_s": units / statistics.median(device for _, device in seconds),
        "over_cpu": statistics.median(cpu / device for cpu, device in seconds),
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def random_texts(count: int = 2_000) -> list[str]:
    """Seeded texts of 3 to 40 words, short ones more often, as titles and descriptions are."""
    generator, words = np.random.default_rng(0), _WORDS.split()
    lengths = (3 + generator.exponential(8.0, size=count)).astype(int).clip(max=40)
    return [" ".join(generator.choice(words, size=length)) for length in lengths]
