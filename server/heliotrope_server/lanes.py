"""The gRPC servers of a shard in which the connections of clients end, and the short queues in front of them.

What is refused in Python costs half of an answer, and gRPC's core refuses for a tenth of that. So calls that are too
many have to be refused before Python sees them, by their number in gRPC's own queue
(`docs/decisions/0018-overload.md`).
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from heliotrope_server.peers import MESSAGE_OPTIONS

LANES = 2
"""Connections end in one of so many servers on one port, chosen by the system at random. Calls are taken from each in
turn: a client that floods one lane keeps out only who is in it too."""
MOST_PENDING = 64
"""Calls that wait in a lane to be taken; the next is refused. So many callers on one connection are never refused, and
two lanes of them wait for 90 ms where a shard answers 1,500 calls a second."""
_OPTIONS = [
    *MESSAGE_OPTIONS,
    ("grpc.so_reuseport", 1),
    ("grpc.server.max_pending_requests", MOST_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", MOST_PENDING),
    # A client whose machine or network went away says no goodbye: its connection would be held for ever.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

logger = logging.getLogger(__name__)


def make_lanes(interceptors: Sequence[grpc.aio.ServerInterceptor]) -> list[grpc.aio.Server]:
    """The servers, without services and ports."""
    return [grpc.aio.server(interceptors=list(interceptors), options=_OPTIONS) for _ in range(LANES)]


class SharedQueue:
    """Stands for a server where services are added to it, so that all of them wait in its one queue.

    A method that is registered has a queue of its own: a flood of two methods would wait twice as long. Where that is
    wanted, as for health checks, add the service to the server itself.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """Does not: without it the generic handlers answer."""


def let_threads_finish() -> None:
    """From now on no thread of this process is interrupted because another wakes up; call it before there are others.

    gRPC's threads would otherwise stop the one that runs Python for each call that comes in. As it is they take in what
    has come meanwhile, together, when it waits or has had its time: a refusal costs a third then.
    """
    if not hasattr(os, "sched_setscheduler"):
        return
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        logger.warning(
            "threads interrupt each other, so that refusals cost more: SCHED_BATCH is not allowed: %s", error
        )
