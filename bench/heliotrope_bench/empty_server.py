"""The ceiling of a gRPC server in Python: an asyncio handler that does nothing and answers with nothing.

`python -m heliotrope_bench.empty_server` listens on a free port, prints it, and answers until SIGTERM: single calls and
each message of a stream with nothing.
"""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Self

import grpc

from heliotrope_bench.errors import ServerLostError
from heliotrope_bench.job import pinned

SERVICE = "heliotrope.v1.RecommendationService"
METHOD, BATCH_METHOD, STREAM_METHOD = "Recommend", "BatchRecommend", "StreamRecommend"


class EmptyServer:
    """The empty handler in a process of its own, pinned to `cpus`."""

    def __init__(self, cpus: Iterable[int] | None) -> None:
        self._cpus = cpus
        self.address = ""

    def __enter__(self) -> Self:
        with pinned(self._cpus):
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("port "):
            self._process.kill()
            raise ServerLostError(f"the empty server did not start; it said {line!r}")
        self.pid = self._process.pid
        self.address = f"127.0.0.1:{line.split()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()


async def serve() -> None:
    """Prints `port N` when ready."""
    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        METHOD: grpc.unary_unary_rpc_method_handler(_nothing),
        BATCH_METHOD: grpc.unary_unary_rpc_method_handler(_nothing),
        STREAM_METHOD: grpc.stream_stream_rpc_method_handler(_nothing_each),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    print(f"port {port}", flush=True)
    await stopping.wait()
    await server.stop(None)


async def _nothing(request: bytes, context: object) -> bytes:
    return b""


async def _nothing_each(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield b""


if __name__ == "__main__":
    asyncio.run(serve())
