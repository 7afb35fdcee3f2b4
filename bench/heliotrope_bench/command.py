"""Benchmarks: one command for each thing that is measured."""

import sys
from importlib import import_module
from typing import NamedTuple, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsError

from heliotrope import HeliotropeError
from heliotrope_bench import report
from heliotrope_bench.errors import BenchError

Options = TypeVar("Options", bound=BaseSettings)


class Command(NamedTuple):
    """A module with a `run`, the class of its options, and what the usage says of it. Imported when it is called."""

    module: str
    options: str
    says: str


COMMANDS = {
    "suite": Command(
        "suite", "SuiteOptions", "what a nightly run measures: the commands of the machinery, and their page"
    ),
    "load": Command("load", "LoadOptions", "rate, latency, errors and recall of a server under an open-loop load"),
    "overload": Command(
        "overload", "OverloadOptions", "goodput, refusals and fairness at up to five times the highest rate"
    ),
    "lifecycle": Command(
        "lifecycle",
        "LifecycleOptions",
        "latency, completeness and recall while items stream in, through a rebuild, a swap and a rollback",
    ),
    "migration": Command(
        "migration",
        "MigrationOptions",
        "what users lose when the model under them changes, beside users rebuilt from their log",
    ),
    "shards": Command("shards", "ShardsOptions", "several shards beside one, asked by a client that knows the owners"),
    "peers": Command(
        "peers.command",
        "PeersOptions",
        "whole requests beside pgvector, Chroma, Milvus Lite, Qdrant's engine, zvec and LanceDB",
    ),
    "quality": Command(
        "quality", "QualityOptions", "replay of real data sets through the served system, beside other models"
    ),
    "quality-report": Command(
        "quality_report", "ReportOptions", "the page of tables and plots from what quality wrote"
    ),
    "encode": Command(
        "encode", "EncodeOptions", "texts per second of the encoder, beside bare ONNX Runtime on the same batches"
    ),
    "ann": Command(
        "ann.grid",
        "AnnOptions",
        "recall and rate of the retriever beside FAISS, HNSW libraries, ScaNN, SVS and Qdrant's engine",
    ),
    "growth": Command("ann.growth", "GrowthOptions", "what a request costs from 10,000 to a million items"),
    "live": Command("ann.live", "LiveOptions", "what up to 100,000 items that are added while serving cost a question"),
    "filters": Command(
        "ann.filters",
        "FiltersOptions",
        "rate and recall of filtered requests, by the share of the items admitted",
    ),
    "train": Command("train", "TrainOptions", "time and memory of the training job, on as many events as you like"),
    "start": Command("start", "StartOptions", "seconds from the start of a server to its first answer"),
    "swap": Command(
        "swap", "SwapOptions", "how long a shard stands when another snapshot is served, and what that takes"
    ),
    "memory": Command("memory", "MemoryOptions", "bytes of an item and of a user, in memory and on disk"),
    "learning": Command(
        "learning",
        "LearningOptions",
        "what online learning gains with simulated users, and what an attack on it can do",
    ),
    "rebuild": Command("rebuild", "RebuildOptions", "time, CPU and memory of the rebuild job, stage by stage"),
    "explain": Command(
        "explain_cost", "ExplainOptions", "what an explanation adds to a request, and what counterfactuals cost"
    ),
    "gpu": Command(
        "gpu", "GpuOptions", "a GPU beside the CPU, searching and encoding: is it right, and how fast is it"
    ),
    "report": Command(
        "page", "PageOptions", "one HTML page with plots of all raw results in a folder, and which bounds hold"
    ),
}

_WIDTH = max(map(len, COMMANDS)) + 2
USAGE = f"""usage: heliotrope bench COMMAND [OPTIONS]

commands:
{chr(10).join(f"  {name:{_WIDTH}}{command.says}" for name, command in COMMANDS.items())}

`quality` takes --results FOLDER for the raw results, the others but suite and the reports --out FILE.json.
`heliotrope bench COMMAND --help` describes the options."""


def main(arguments: list[str]) -> int:
    """Returns 0, 1 when a step failed, or 2 for arguments that can't be."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        *most, last = COMMANDS
        print(f"heliotrope bench: there is no {name!r}; give {', '.join(most)} or {last}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    module = import_module(f"heliotrope_bench.{command.module}")
    try:
        module.run(parse(getattr(module, command.options), rest), rest, report.console())
    except (ValidationError, SettingsError) as error:
        print(f"heliotrope bench {name}: {first_problem(error)}", file=sys.stderr)
        return 2
    except (BenchError, HeliotropeError) as error:
        print(f"heliotrope bench {name}: {error}", file=sys.stderr)
        return 1
    return 0


def parse(options: type[Options], arguments: list[str]) -> Options:
    """The options of a command line; exits with code 2 and the usage when argparse can't read it."""
    return CliApp.run(options, cli_args=arguments)


def first_problem(error: ValidationError | SettingsError) -> str:
    """One line naming the option and what is wrong with it."""
    if isinstance(error, SettingsError):
        return str(error)
    problem = error.errors()[0]
    name = "".join(f"--{part} ".replace("_", "-") for part in problem["loc"])
    return f"{name}{problem['msg']}"
