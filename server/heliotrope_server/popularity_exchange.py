"""Keeps each shard's picture of live popularity whole: every shard asks the others what changed."""

import asyncio
import logging

import grpc

from heliotrope.internal.v1 import peer_pb2
from heliotrope_server.engine import Engine
from heliotrope_server.peers import Peer, Peers

INTERVAL_S = 0.25

logger = logging.getLogger(__name__)


async def exchange_for_ever(engine: Engine, peers: Peers) -> None:
    """Asks each peer every INTERVAL_S. A peer that is down keeps its last counts, which go on decaying."""
    await asyncio.gather(*(_follow(engine, peers, peer) for peer in peers.others))


async def _follow(engine: Engine, peers: Peers, peer: Peer) -> None:
    version, incarnation = 0, ""
    while True:
        try:
            answer = await peer.internal.ExchangePopularity(
                peer_pb2.ExchangePopularityRequest(since_version=version), timeout=5.0
            )
        except grpc.aio.AioRpcError as error:
            logger.debug("shard %d does not answer: %s", peer.index, error.code())
        else:
            if answer.incarnation != incarnation:
                incarnation, restarted = answer.incarnation, version > 0
                if restarted:
                    engine.popularity.forget_peer(peer.index, engine.catalogue.rows)
                    version = 0
                    continue
            engine.popularity.merge_peer(
                peer.index,
                list(answer.item_ids),
                list(answer.counts),
                answer.landmark_s,
                engine.catalogue.rows,
            )
            version = answer.version
            if peer is peers.catalogue_writer() and answer.catalogue_sequence > engine.changes.sequence:
                # Its call to catch up did not get through: one of the two was stopped, or the socket was gone.
                engine.catch_up_catalogue()
        await asyncio.sleep(INTERVAL_S)
