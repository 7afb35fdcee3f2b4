"""AdminService."""

import asyncio
import importlib.metadata
import time
from datetime import datetime
from functools import partial
from typing import Any

import grpc

from heliotrope.internal.v1 import peer_pb2
from heliotrope.v1 import admin_pb2 as pb
from heliotrope.v1 import admin_pb2_grpc
from heliotrope_indexer.errors import IndexerError, SnapshotNotFoundError
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_indexer.snapshot.activations import How
from heliotrope_server.activation import Activation
from heliotrope_server.engine import Engine
from heliotrope_server.errors import FeedbackOffError, SnapshotUnusableError
from heliotrope_server.learning_exchange import LEADER
from heliotrope_server.peers import Peer, Peers
from heliotrope_server.servicers.learning_status import add_shard_fields, learning_status
from heliotrope_server.servicers.routing import passed_on, remaining_s
from heliotrope_server.settings import SLOT_COUNT, slots_of

STATUS_TIMEOUT_S = 2.0


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """With `whole_server` off it speaks for its own shard only: what the shards ask of each other."""

    def __init__(
        self,
        engine: Engine,
        activation: Activation,
        store: SnapshotStore,
        peers: Peers,
        addresses: list[str],
        *,
        whole_server: bool,
    ) -> None:
        self._engine = engine
        self._activation = activation
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
        return pb.GetServingStatusResponse(
            shards=shards,
            slot_count=SLOT_COUNT,
            server_version=importlib.metadata.version("heliotrope"),
            learning=max(learning, key=lambda each: each.leader_reachable, default=None),
        )

    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: Any) -> pb.ListSnapshotsResponse:
        return pb.ListSnapshotsResponse(snapshots=await asyncio.to_thread(self._summaries))

    async def ActivateSnapshot(self, request: pb.ActivateSnapshotRequest, context: Any) -> pb.ActivateSnapshotResponse:
        leader = self._leader()
        if leader is not None:
            call = leader.admin.ActivateSnapshot(request, timeout=remaining_s(context), wait_for_ready=True)
            return await passed_on(leader, call)
        async with self._activation.switching:
            previous = self._engine.catalogue.version
            try:
                version = request.snapshot_version or self._store.current()
            except IndexerError as error:
                raise SnapshotUnusableError("SNAPSHOT_UNUSABLE", str(error)) from error
            map_error = await self._switch(version, "activate", remaining_s(context))
            return pb.ActivateSnapshotResponse(
                snapshot_version=version,
                previous_snapshot_version=previous,
                folded_migration_error=map_error,
            )

    async def RollBackSnapshot(self, request: pb.RollBackSnapshotRequest, context: Any) -> pb.RollBackSnapshotResponse:
        leader = self._leader()
        if leader is not None:
            call = leader.admin.RollBackSnapshot(request, timeout=remaining_s(context), wait_for_ready=True)
            return await passed_on(leader, call)
        async with self._activation.switching:
            try:
                # The store remembers, so that a rollback works after a restart as well.
                version = await asyncio.to_thread(self._store.previous, self._engine.catalogue.version)
            except SnapshotNotFoundError as error:
                raise SnapshotUnusableError("NO_PREVIOUS_SNAPSHOT", str(error)) from error
            except IndexerError as error:
                raise SnapshotUnusableError("SNAPSHOT_UNUSABLE", str(error)) from error
            await self._switch(version, "roll back", remaining_s(context))
            return pb.RollBackSnapshotResponse(snapshot_version=version)

    async def RollBackWeights(self, request: pb.RollBackWeightsRequest, context: Any) -> pb.RollBackWeightsResponse:
        leader = self._leader()
        if leader is not None:
            call = leader.admin.RollBackWeights(request, timeout=remaining_s(context), wait_for_ready=True)
            return await passed_on(leader, call)
        learning = self._engine.learning
        if learning is None or learning.leader is None:
            raise FeedbackOffError("LEARNING_OFF", "this server does not learn: start it with --learn-online")
        version, withdrawn = await learning.leader.roll_back()
        return pb.RollBackWeightsResponse(weights_version=version, withdrawn_weights_version=withdrawn)

    def _leader(self) -> Peer | None:
        """The shard that changes the whole server, one change at a time; None: this one, or it was asked by a peer."""
        return self._peers.of(LEADER) if self._whole_server else None

    async def _switch(self, version: str, how: How, timeout_s: float) -> float:
        """Prepares on every shard, then commits on every shard. Raises, with nothing changed, if one can't prepare."""
        prepare = peer_pb2.PrepareSnapshotRequest(snapshot_version=version)
        await self._activation.prepare(version)
        await asyncio.gather(
            *(
                passed_on(peer, peer.internal.PrepareSnapshot(prepare, timeout=timeout_s, wait_for_ready=True))
                for peer in self._peers.others
            )
        )
        # CURRENT first: a shard that dies and restarts from here on comes up with the new snapshot.
        await asyncio.to_thread(partial(self._store.activate, version, how=how))
        commit = peer_pb2.CommitSnapshotRequest(snapshot_version=version)
        error = self._activation.commit(version)
        committed = await asyncio.gather(
            *(
                passed_on(peer, peer.internal.CommitSnapshot(commit, timeout=timeout_s, wait_for_ready=True))
                for peer in self._peers.others
            )
        )
        return max([error, *(answer.folded_migration_error for answer in committed)])

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
        return pb.GetServingStatusResponse(shards=[status], learning=learning_status(learning, LEADER))

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
