"""Carries examples to the shard that learns, and word of other weights to the shards that do not."""

import asyncio
import logging

import grpc
import numpy as np

from heliotrope.internal.v1 import peer_pb2
from heliotrope_server.learning.example import ExampleGroup
from heliotrope_server.learning.online import OnlineLearning
from heliotrope_server.peers import Peer, Peers

LEADER = 0
"""Index of the shard that learns for all: the lowest."""

ANNOUNCE_TIMEOUT_S = 2.0

_GROUPS_PER_CALL = 200
_CALL_TIMEOUT_S = 5.0
_RETRY_S = 0.5

logger = logging.getLogger(__name__)


async def forward_for_ever(learning: OnlineLearning, leader: Peer) -> None:
    """Hands over the examples of this shard. While the leader is down they wait, up to a bound."""
    while True:
        await learning.outbox_filled.wait()
        groups = learning.take_outbox(_GROUPS_PER_CALL)
        request = peer_pb2.LearnExamplesRequest(groups=[to_message(group) for group in groups])
        try:
            await leader.internal.LearnExamples(request, timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            logger.debug("shard %d takes no examples: %s", leader.index, error.code())
            learning.put_back(groups)
            await asyncio.sleep(_RETRY_S)


async def announce_weights(peers: Peers) -> None:
    """Asks every other shard to look at the weights folder. One that does not answer will look by itself."""
    await asyncio.gather(*(_announce(peer) for peer in peers.others))


async def _announce(peer: Peer) -> None:
    try:
        await peer.internal.CatchUpWeights(peer_pb2.CatchUpWeightsRequest(), timeout=ANNOUNCE_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        logger.info("shard %d did not hear of the new weights: %s", peer.index, error.code())


def to_message(group: ExampleGroup) -> peer_pb2.ExampleGroup:
    return peer_pb2.ExampleGroup(
        user_id=group.user_id,
        snapshot_version=group.snapshot_version,
        interests=group.interests.ravel(),
        vectors=group.vectors.ravel(),
        features=group.features.ravel(),
        offsets=group.offsets,
        propensities=group.propensities,
        rewards=group.rewards,
    )


def from_message(message: peer_pb2.ExampleGroup) -> ExampleGroup:
    size = len(message.rewards)
    vectors = np.array(message.vectors, dtype=np.float32).reshape(size, -1)
    return ExampleGroup(
        message.user_id,
        message.snapshot_version,
        np.array(message.interests, dtype=np.float32).reshape(-1, vectors.shape[1]),
        vectors,
        np.array(message.features, dtype=np.float64).reshape(size, -1),
        np.array(message.offsets, dtype=np.float64),
        np.array(message.propensities, dtype=np.float64),
        np.array(message.rewards, dtype=np.float64),
    )
