"""What a shard knows of the others: who owns a user, and how to reach them."""

import logging
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import grpc

from heliotrope.internal.v1 import peer_pb2_grpc
from heliotrope.v1 import (
    admin_pb2_grpc,
    catalog_pb2_grpc,
    event_pb2_grpc,
    feedback_pb2_grpc,
    profile_pb2_grpc,
    recommendation_pb2_grpc,
)
from heliotrope_server.settings import SLOT_COUNT, slots_of

MAX_MESSAGE_BYTES = 32 << 20
MESSAGE_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]

logger = logging.getLogger(__name__)


class Peer:
    """The services of another shard, over its Unix socket."""

    def __init__(self, index: int, socket: Path) -> None:
        self.index = index
        # A shard that restarts is back within a second or two; gRPC's own back-off would keep callers out for longer.
        options = [
            *MESSAGE_OPTIONS,
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.initial_reconnect_backoff_ms", 50),
        ]
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=options)
        self.recommendations = recommendation_pb2_grpc.RecommendationServiceStub(self._channel)
        self.events = event_pb2_grpc.EventServiceStub(self._channel)
        self.feedback = feedback_pb2_grpc.FeedbackServiceStub(self._channel)
        self.profiles = profile_pb2_grpc.ProfileServiceStub(self._channel)
        self.catalog = catalog_pb2_grpc.CatalogServiceStub(self._channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self._channel)
        self.internal = peer_pb2_grpc.PeerServiceStub(self._channel)

    @property
    def connected(self) -> bool:
        """Whether the other shard has taken the connection: if it is silent then, it is stopped or busy, not gone."""
        return bool(self._channel.get_state() is grpc.ChannelConnectivity.READY)

    async def close(self) -> None:
        await self._channel.close()


class Peers:
    """The shard map, with a Peer for every shard but this one."""

    def __init__(self, own_index: int, sockets: Sequence[Path]) -> None:
        self.own_index = own_index
        self.shard_count = len(sockets)
        self._first_slots = [slots_of(index, len(sockets)).start for index in range(len(sockets))]
        self.others = [Peer(index, socket) for index, socket in enumerate(sockets) if index != own_index]
        self._by_index = {peer.index: peer for peer in self.others}

    def owner(self, user_id: str) -> Peer | None:
        """The shard that owns a user; None: this one."""
        return self._by_index.get(self.owner_index(user_id))

    def owner_index(self, user_id: str) -> int:
        if self.shard_count == 1:
            return 0
        return bisect_right(self._first_slots, slot_of(user_id)) - 1

    def catalogue_writer(self) -> Peer | None:
        """The shard that writes the catalogue log, shard 0; None: this one."""
        return self._by_index.get(0)

    def of(self, index: int) -> Peer | None:
        """A shard by its index; None: this one."""
        return self._by_index.get(index)

    async def close(self) -> None:
        for peer in self.others:
            await peer.close()


def slot_of(user_id: str) -> int:
    """The hash slot of a user: CRC-32 of the UTF-8 id, modulo the number of slots."""
    return zlib.crc32(user_id.encode()) % SLOT_COUNT
