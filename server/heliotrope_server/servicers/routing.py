"""Passing calls on to the shard that owns them."""

from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from heliotrope_server.errors import DeadlinePassedError, OverloadedError, RequestError, ShardUnreachableError
from heliotrope_server.peers import Peer, Peers

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 10.0
PART = 0.9
UNREACHABLE = "SHARD_UNREACHABLE"
RETRY_AFTER_S = 0.05
"""Where gRPC itself refused a call before the peer saw it, and so the peer could not say."""


class Router:
    """Decides where a user's call is handled. With `forward` off, everything is handled here."""

    def __init__(self, peers: Peers, *, forward: bool) -> None:
        self.peers = peers
        self.forward = forward

    @property
    def alone(self) -> bool:
        """Whether all users are handled here."""
        return not self.forward or self.peers.shard_count == 1

    def owner(self, user_id: str) -> Peer | None:
        """The peer to pass a call on to; None: handle it here."""
        return self.peers.owner(user_id) if self.forward else None

    def split(self, user_ids: Iterable[str]) -> tuple[list[int], list[tuple[Peer, list[int]]]]:
        """Places of the users that are handled here, and for each peer those to pass on to it."""
        own: list[int] = []
        foreign: dict[int, tuple[Peer, list[int]]] = {}
        for place, user_id in enumerate(user_ids):
            peer = self.owner(user_id)
            if peer is None:
                own.append(place)
            else:
                foreign.setdefault(peer.index, (peer, []))[1].append(place)
        return own, list(foreign.values())

    def catalogue_writer(self) -> Peer | None:
        return self.peers.catalogue_writer() if self.forward else None


def part_s(context: Any) -> float:
    """Seconds for another shard's part of a call: less than the caller has left, so that it hears which shard does not
    answer, and the parts of the others still arrive. Calls between shards always have a deadline.
    """
    remaining = context.time_remaining()
    return PART * (DEFAULT_TIMEOUT_S if remaining is None else max(float(remaining), 0.001))


async def passed_on(peer: Peer, call: Awaitable[T]) -> T:
    """Awaits a call to a peer. Its refusals are raised as they were there; its silence names it."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise relayed(peer, error) from error


def unreachable(peer: Peer) -> ShardUnreachableError:
    return ShardUnreachableError(
        UNREACHABLE,
        f"shard {peer.index}, which owns this, does not answer; it may be restarting",
        shard=peer.index,
    )


def relayed(peer: Peer, error: grpc.aio.AioRpcError) -> RequestError:
    """The refusal of a peer as the error that it was, or what its silence means."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    if status is None or not any(detail.Unpack(info) for detail in status.details):
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and peer.connected:
            return DeadlinePassedError("DEADLINE_PASSED", f"shard {peer.index} did not answer in time")
        if error.code() is grpc.StatusCode.CANCELLED:
            return OverloadedError(
                f"more calls wait for shard {peer.index} than it admits", retry_after_s=RETRY_AFTER_S, shard=peer.index
            )
        return unreachable(peer)
    if info.reason == OverloadedError.reason:
        return OverloadedError.again(status.message, info.metadata)
    refusal = RequestError(info.reason, status.message, **info.metadata)
    refusal.code = error.code().name
    return refusal
