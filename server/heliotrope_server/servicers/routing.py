"""Passing calls on to the shard that owns them."""

from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc

from heliotrope_server.errors import ShardUnreachableError
from heliotrope_server.peers import Peer, Peers

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 10.0
UNREACHABLE = "SHARD_UNREACHABLE"


class Router:
    """Decides where a user's call is handled. With `forward` off, everything is handled here."""

    def __init__(self, peers: Peers, *, forward: bool) -> None:
        self.peers = peers
        self.forward = forward

    def owner(self, user_id: str) -> Peer | None:
        """The peer to pass a call on to; None: handle it here."""
        return self.peers.owner(user_id) if self.forward else None

    def catalogue_writer(self) -> Peer | None:
        return self.peers.catalogue_writer() if self.forward else None


def remaining_s(context: Any) -> float:
    """Seconds until the caller's deadline; calls between shards always have one."""
    remaining = context.time_remaining()
    return DEFAULT_TIMEOUT_S if remaining is None else max(float(remaining), 0.001)


async def passed_on(peer: Peer, call: Awaitable[T]) -> T:
    """Awaits a call to a peer. Its refusals pass through; when it does not answer, says which shard it was."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE and not has_details(error):
            raise unreachable(peer) from error
        raise


def unreachable(peer: Peer) -> ShardUnreachableError:
    return ShardUnreachableError(
        UNREACHABLE,
        f"shard {peer.index}, which owns this, does not answer; it may be restarting",
        shard=peer.index,
    )


def has_details(error: grpc.aio.AioRpcError) -> bool:
    """Whether the peer itself refused (with ErrorInfo), as opposed to the transport."""
    return any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
