"""Benchmarks: `load` (rate, latency, recall), `quality` (replay of a real data set), `encode` (texts per second),
`train` (time of the training job), `start` (time to the first answer), `memory` (bytes of an item and a user),
`learning` (what feedback gains, and what fake feedback can do) and `peers` (other vector engines on the same data)."""

import sys
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsError

from heliotrope import HeliotropeError
from heliotrope_bench import report
from heliotrope_bench.errors import BenchError

Options = TypeVar("Options", bound=BaseSettings)

USAGE = """usage: heliotrope bench COMMAND [OPTIONS]

commands:
  load            rate, latency, errors and recall of a server under an open-loop load
  quality         replay of real data sets through the served system, beside other models
  quality-report  the page of tables and plots from what quality wrote
  encode          texts per second of the encoder, beside bare ONNX Runtime on the same batches
  train           time and memory of the training job, on as many events as you like
  start           seconds from the start of a server to its first answer
  memory          bytes of an item and of a user, in memory and on disk
  learning        what online learning gains with simulated users, and what an attack on it can do
  peers           whole requests beside pgvector, Chroma, Milvus Lite, Qdrant's engine, zvec and LanceDB

`quality` takes --results FOLDER for the raw results, the others but `quality-report` --out FILE.json.
`heliotrope bench COMMAND --help` describes the options."""


def main(arguments: list[str]) -> int:
    """Returns 0, 1 when a step failed, or 2 for arguments that can't be."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    command, *rest = arguments
    console = report.console()
    try:
        if command == "load":
            from heliotrope_bench import load

            load.run(parse(load.LoadOptions, rest), rest, console)
        elif command == "quality":
            from heliotrope_bench import quality

            quality.run(parse(quality.QualityOptions, rest), rest, console)
        elif command == "quality-report":
            from heliotrope_bench import quality_report

            quality_report.run(parse(quality_report.ReportOptions, rest), rest, console)
        elif command == "encode":
            from heliotrope_bench import encode

            encode.run(parse(encode.EncodeOptions, rest), rest, console)
        elif command == "train":
            from heliotrope_bench import train

            train.run(parse(train.TrainOptions, rest), rest, console)
        elif command == "start":
            from heliotrope_bench import start

            start.run(parse(start.StartOptions, rest), rest, console)
        elif command == "memory":
            from heliotrope_bench import memory

            memory.run(parse(memory.MemoryOptions, rest), rest, console)
        elif command == "learning":
            from heliotrope_bench import learning

            learning.run(parse(learning.LearningOptions, rest), rest, console)
        elif command == "peers":
            from heliotrope_bench.peers import command as peers

            peers.run(parse(peers.PeersOptions, rest), rest, console)
        else:
            print(
                f"heliotrope bench: there is no {command!r}; give load, quality, quality-report, encode, train, start, "
                "memory, learning or peers",
                file=sys.stderr,
            )
            return 2
    except (ValidationError, SettingsError) as error:
        print(f"heliotrope bench {command}: {first_problem(error)}", file=sys.stderr)
        return 2
    except (BenchError, HeliotropeError) as error:
        print(f"heliotrope bench {command}: {error}", file=sys.stderr)
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
