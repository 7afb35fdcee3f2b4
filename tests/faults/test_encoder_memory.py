"""A process that has no memory left for the encoder: the call is refused, the next one is answered."""

import subprocess
import sys
from pathlib import Path

import pytest

from heliotrope_export.exporter import export_model
from tests.export.tiny_encoder import save_tiny_encoder

SCRIPT = """
import asyncio, resource, sys
from heliotrope_export import TextEncoder, encoder
from heliotrope_server import embedder as module
from heliotrope_server.embedder import Embedder
from heliotrope_server.errors import EncoderMemoryError

# One batch that takes 100 MB of the tiny model too: what is left must do for the tokenizer, which ends without memory.
encoder.TOKEN_BUDGET["CPUExecutionProvider"] = 1 << 20
module._TURN = COUNT = 2048
embedder = Embedder(TextEncoder.open(sys.argv[1], threads=1))
many = [" ".join("abcdefghij"[number % 10] * 60) + str(number) for number in range(COUNT)]

async def main():
    wanted = await embedder.embed(["before"])
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (32 << 20), resource.RLIM_INFINITY))
    for _ in range(3):
        try:
            await embedder.embed(many)
            print("answered")
        except EncoderMemoryError as error:
            print(error.code, error.reason, error.metadata["value"])
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print((await embedder.embed(many)).shape)
    print(bool(((await embedder.embed(["before"])) == wanted).all()))
    embedder.close()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space of a process")
def test_an_encoder_without_memory_refuses_the_call_and_answers_the_next(tmp_path: Path) -> None:
    export_model(str(save_tiny_encoder(tmp_path / "source")), tmp_path / "model", variants=("fp32",))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    characters = sum(len(" ".join("abcdefghij"[number % 10] * 60) + str(number)) for number in range(2048))
    refused = f"RESOURCE_EXHAUSTED ENCODER_OUT_OF_MEMORY {characters}"
    assert done.stdout.splitlines() == [refused, refused, refused, "(2048, 32)", "True"], done.stderr
