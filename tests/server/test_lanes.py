"""What waits in front of a shard: a lane in a thread of its own, whose first call holds up its event loop."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from heliotrope_server.lanes import MOST_PENDING, SharedQueue, make_lanes

SERVICE = "test.Blocked"


class Lane:
    """`run` serves until `over` is set; `entered` tells that a call holds it up, until `release` is set."""

    def __init__(self, register: Callable[[Any], Any]) -> None:
        self._register = register
        self.address = ""
        self.ready, self.entered, self.release, self.over = (threading.Event() for _ in range(4))

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        server, *_ = make_lanes([])
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(self._blocked) for name in ("A", "B")
        }
        services = self._register(server)
        services.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        services.add_registered_method_handlers(SERVICE, handlers)
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self.ready.set()
        await asyncio.to_thread(self.over.wait)
        await server.stop(None)

    async def _blocked(self, _request: bytes, _context: Any) -> bytes:
        self.entered.set()
        self.release.wait()
        return b"done"


@contextmanager
def serving(register: Callable[[Any], Any]) -> Iterator[Lane]:
    lane = Lane(register)
    thread = threading.Thread(target=lane.run)
    thread.start()
    try:
        assert lane.ready.wait(30.0)
        yield lane
    finally:
        lane.release.set()
        lane.over.set()
        thread.join()


def outcomes(lane: Lane, calls_of_each: int, refused: int) -> Counter[grpc.StatusCode]:
    """Codes of calls of both methods over one connection, behind one that is held up until `refused` have ended."""
    with grpc.insecure_channel(lane.address) as channel:
        methods: list[grpc.UnaryUnaryMultiCallable[bytes, bytes]] = [
            channel.unary_unary(f"/{SERVICE}/{name}") for name in ("A", "B")
        ]
        first = methods[0].future(b"", timeout=60.0)
        assert lane.entered.wait(30.0)
        ended = threading.Semaphore(0)
        asked = [method.future(b"", timeout=60.0) for _ in range(calls_of_each) for method in methods]
        for call in asked:
            call.add_done_callback(lambda _: ended.release())
        for _ in range(refused):
            ended.acquire()
        lane.release.set()
        return Counter(call.code() for call in [first, *asked])


def test_as_many_callers_on_one_connection_as_may_wait_are_never_refused() -> None:
    with serving(SharedQueue) as lane:
        codes = outcomes(lane, MOST_PENDING // 2, 0)
    assert codes == {grpc.StatusCode.OK: 1 + MOST_PENDING}


@pytest.mark.parametrize(("register", "queues"), [(SharedQueue, 1), (lambda server: server, 2)])
def test_methods_wait_in_one_queue_unless_they_are_registered(register: Callable[[Any], Any], queues: int) -> None:
    # One call is held up; for each queue another has been handed to Python already, and gRPC lets one more wait.
    most = 1 + queues * (MOST_PENDING + 2)
    with serving(register) as lane:
        codes = outcomes(lane, 150, 301 - most)
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
    assert queues * MOST_PENDING <= codes[grpc.StatusCode.OK] <= most
