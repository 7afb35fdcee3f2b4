"""Keeps each shard's residuals of young items whole: every shard asks the others what their users said."""

import asyncio
import logging

import grpc
import numpy as np

from heliotrope.internal.v1 import peer_pb2
from heliotrope_server.engine import Engine
from heliotrope_server.peers import Peer, Peers

INTERVAL_S = 0.25

logger = logging.getLogger(__name__)


async def exchange_residuals_for_ever(engine: Engine, peers: Peers) -> None:
    """Asks each peer every INTERVAL_S, while the snapshot lets young items move. A peer that is down keeps its word."""
    await asyncio.gather(*(_follow(engine, peer) for peer in peers.others))


async def _follow(engine: Engine, peer: Peer) -> None:
    version, incarnation, space = 0, "", ""
    while True:
        await asyncio.sleep(INTERVAL_S)
        if not engine.residuals.active:
            continue
        if space != engine.residuals.space:
            version, space = 0, engine.residuals.space  # a swap: `bind` has dropped what peers said
        try:
            answer = await peer.internal.ExchangeResiduals(
                peer_pb2.ExchangeResidualsRequest(since_version=version), timeout=5.0
            )
        except grpc.aio.AioRpcError as error:
            logger.debug("shard %d does not answer: %s", peer.index, error.code())
            continue
        if not answer.snapshot_version == space == engine.residuals.space:
            continue  # one of the two shards is about to swap
        if answer.incarnation != incarnation:
            incarnation, restarted = answer.incarnation, version > 0
            if restarted:
                engine.residuals.forget_peer(peer.index)
                version = 0
                continue
        sums = np.frombuffer(answer.sums, dtype="<f4").reshape(len(answer.item_ids), engine.catalogue.dimension)
        engine.residuals.merge_peer(peer.index, list(answer.item_ids), list(answer.user_counts), sums)
        version = answer.version
