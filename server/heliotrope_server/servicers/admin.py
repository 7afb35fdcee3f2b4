"""AdminService."""

import asyncio
import importlib.metadata
import time
from datetime import datetime
from typing import Any

import grpc

from heliotrope.v1 import admin_pb2 as pb
from heliotrope.v1 import admin_pb2_grpc
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.engine import Engine
from heliotrope_server.errors import FeedbackOffError
from heliotrope_server.learning_exchange import LEADER
from heliotrope_server.peers import Peer, Peers
from heliotrope_server.servicers.learning_status import add_shard_fields, learning_status
from heliotrope_server.servicers.routing import part_s, passed_on
from heliotrope_server.servicers.switch import Switch
from heliotrope_server.settings import SLOT_COUNT, slots_of

STATUS_TIMEOUT_S = 2.0


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """With `whole_server` off it speaks for its own shard only: what the shards ask of each other."""

    def __init__(
        self,
        engine: Engine,
        switch: Switch,
        store: SnapshotStore,
        peers: Peers,
        addresses: list[str],
        *,
        whole_server: bool,
    ) -> None:
        self._engine = engine
        self._switch = switch
        self._store = store
        self._peers = peers
        self._addresses = addresses
        self._whole_server = whole_server
        self._start_s = time.time()

    async def GetServingStatus(self, request: pb.GetServingStatusRequest, context: Any) -> pb.GetServingStatusResponse:
        answers = [self._own_answer()]
        if self._whole_server:
            answers += await asyncio.gather(*(self._answer_of(peer) for peer in self._peers.others))
        shards = sorted((answer.shards[0] for answer in answers), key=lambda shard: shard.shard_index)
        # Every shard that learns names the leader; only the leader itself has more to say.
        learning = [answer.learning for answer in answers if answer.HasField("learning")]
        withdrawals = [answer.withdrawal for answer in answers if answer.HasField("withdrawal")]
        return pb.GetServingStatusResponse(
            shards=shards,
            withdrawal=next(iter(withdrawals), None),
            slot_count=SLOT_COUNT,
            server_version=importlib.metadata.version("heliotrope"),
            learning=max(learning, key=lambda each: each.leader_reachable, default=None),
        )

    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: Any) -> pb.ListSnapshotsResponse:
        return pb.ListSnapshotsResponse(snapshots=await asyncio.to_thread(self._summaries))

    async def ActivateSnapshot(self, request: pb.ActivateSnapshotRequest, context: Any) -> pb.ActivateSnapshotResponse:
        leader = self._leader()
        if leader is not None:
            call = leader.admin.ActivateSnapshot(request, timeout=part_s(context), wait_for_ready=True)
            return await passed_on(leader, call)
        version, previous, map_error = await self._switch.activate(request.snapshot_version, part_s(context))
        return pb.ActivateSnapshotResponse(
            snapshot_version=version, previous_snapshot_version=previous, folded_migration_error=map_error
        )

    async def RollBackSnapshot(self, request: pb.RollBackSnapshotRequest, context: Any) -> pb.RollBackSnapshotResponse:
        leader = self._leader()
        if leader is not None:
            call = leader.admin.RollBackSnapshot(request, timeout=part_s(context), wait_for_ready=True)
            return await passed_on(leader, call)
        return pb.RollBackSnapshotResponse(snapshot_version=await self._switch.roll_back(part_s(context)))

    async def RollBackWeights(self, request: pb.RollBackWeightsRequest, context: Any) -> pb.RollBackWeightsResponse:
        leader = self._leader()
        if leader is not None:
            call = leader.admin.RollBackWeights(request, timeout=part_s(context), wait_for_ready=True)
            return await passed_on(leader, call)
        learning = self._engine.learning
        if learning is None or learning.leader is None:
            raise FeedbackOffError("LEARNING_OFF", "this server does not learn: start it with --learn-online")
        version, withdrawn = await learning.leader.roll_back()
        return pb.RollBackWeightsResponse(weights_version=version, withdrawn_weights_version=withdrawn)

    def _leader(self) -> Peer | None:
        """The shard that changes the whole server, one change at a time; None: this one, or it was asked by a peer."""
        return self._peers.of(LEADER) if self._whole_server else None

    async def _answer_of(self, peer: Any) -> pb.GetServingStatusResponse:
        try:
            answer: pb.GetServingStatusResponse = await peer.admin.GetServingStatus(
                pb.GetServingStatusRequest(), timeout=STATUS_TIMEOUT_S, wait_for_ready=True
            )
        except grpc.aio.AioRpcError:
            silent = self._placed(pb.ShardStatus(reachable=False), peer.index)
            return pb.GetServingStatusResponse(shards=[silent])
        return answer

    def _own_answer(self) -> pb.GetServingStatusResponse:
        status = self._own_status()
        learning = self._engine.learning
        if learning is not None:
            add_shard_fields(status, learning)
        return pb.GetServingStatusResponse(
            shards=[status], learning=learning_status(learning, LEADER), withdrawal=self._withdrawal()
        )

    def _withdrawal(self) -> pb.SnapshotWithdrawal | None:
        """Known to the leader alone."""
        if self._switch.withdrawal is None:
            return None
        version, move = self._switch.withdrawal
        message = pb.SnapshotWithdrawal(snapshot_version=version, reason=move.reason)
        message.withdraw_time.FromDatetime(datetime.fromisoformat(move.time))
        return message

    def _placed(self, status: pb.ShardStatus, index: int) -> pb.ShardStatus:
        slots = slots_of(index, self._peers.shard_count)
        status.shard_index, status.address = index, self._addresses[index]
        status.first_slot, status.end_slot = slots.start, slots.stop
        return status

    def _own_status(self) -> pb.ShardStatus:
        engine = self._engine
        status = pb.ShardStatus(
            snapshot_version=engine.catalogue.version,
            item_count=engine.catalogue.alive_count,
            delta_item_count=len(engine.catalogue.delta),
            profile_count=engine.profile_count(),
            applied_lsn=engine.applied_lsn,
            retriever=engine.answerer.retriever_description,
            encoder=engine.embedder.description,
            model_version=engine.catalogue.snapshot.manifest.model_version,
            recommend_count=engine.answerer.recommend_count,
            event_count=engine.event_count,
            uncertified_share=engine.answerer.uncertified_count / max(engine.answerer.recommend_count, 1),
            reachable=True,
        )
        status.start_time.FromMilliseconds(round(self._start_s * 1000))
        return self._placed(status, self._peers.own_index)

    def _summaries(self) -> list[pb.SnapshotSummary]:
        summaries = []
        for version in self._store.versions():
            manifest = self._store.manifest(version)
            summary = pb.SnapshotSummary(
                snapshot_version=version,
                item_count=manifest.n_items,
                dimension=manifest.dimension,
                recall_at_100=float(manifest.quality.get("recall_at_100", 0.0)),
                active=version == self._engine.catalogue.version,
            )
            summary.build_time.FromDatetime(datetime.fromisoformat(manifest.build_time))
            summaries.append(summary)
        return summaries
