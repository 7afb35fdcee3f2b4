"""PeerService: what shards say to each other."""

import uuid
from typing import Any

from heliotrope.internal.v1 import peer_pb2 as pb
from heliotrope.internal.v1 import peer_pb2_grpc
from heliotrope_server.activation import Activation
from heliotrope_server.canary import Canary
from heliotrope_server.engine import Engine
from heliotrope_server.learning_exchange import from_message
from heliotrope_server.servicers.switch import Switch


class PeerServicer(peer_pb2_grpc.PeerServiceServicer):
    def __init__(self, engine: Engine, activation: Activation, canary: Canary, switch: Switch) -> None:
        self._engine = engine
        self._activation = activation
        self._canary = canary
        self._switch = switch
        self._incarnation = uuid.uuid4().hex

    async def ExchangePopularity(
        self, request: pb.ExchangePopularityRequest, context: Any
    ) -> pb.ExchangePopularityResponse:
        popularity = self._engine.popularity
        item_ids, counts = popularity.changes(request.since_version)
        return pb.ExchangePopularityResponse(
            version=popularity.version,
            incarnation=self._incarnation,
            item_ids=item_ids,
            counts=counts,
            landmark_s=popularity.landmark_s,
            catalogue_sequence=self._engine.changes.sequence,
        )

    async def ExchangeResiduals(
        self, request: pb.ExchangeResidualsRequest, context: Any
    ) -> pb.ExchangeResidualsResponse:
        residuals = self._engine.residuals
        item_ids, counts, sums = residuals.changes(request.since_version)
        return pb.ExchangeResidualsResponse(
            version=residuals.version,
            incarnation=self._incarnation,
            snapshot_version=residuals.space,
            item_ids=item_ids,
            user_counts=counts,
            sums=sums.astype("<f4").tobytes(),
        )

    async def CatchUpCatalog(self, request: pb.CatchUpCatalogRequest, context: Any) -> pb.CatchUpCatalogResponse:
        self._engine.catch_up_catalogue()
        return pb.CatchUpCatalogResponse()

    async def PrepareSnapshot(self, request: pb.PrepareSnapshotRequest, context: Any) -> pb.PrepareSnapshotResponse:
        await self._activation.prepare(request.snapshot_version)
        return pb.PrepareSnapshotResponse()

    async def AbandonSnapshot(self, request: pb.AbandonSnapshotRequest, context: Any) -> pb.AbandonSnapshotResponse:
        self._activation.abandon()
        return pb.AbandonSnapshotResponse()

    async def CommitSnapshot(self, request: pb.CommitSnapshotRequest, context: Any) -> pb.CommitSnapshotResponse:
        before = self._engine.catalogue.version
        error = await self._activation.commit(request.snapshot_version)
        if request.snapshot_version != before:
            self._canary.begin(watched=request.watched)
        return pb.CommitSnapshotResponse(folded_migration_error=error)

    async def WithdrawSnapshot(self, request: pb.WithdrawSnapshotRequest, context: Any) -> pb.WithdrawSnapshotResponse:
        await self._switch.withdraw(request.snapshot_version, request.reason)
        return pb.WithdrawSnapshotResponse()

    async def LearnExamples(self, request: pb.LearnExamplesRequest, context: Any) -> pb.LearnExamplesResponse:
        learning = self._engine.learning
        if learning is not None and learning.leader is not None:
            for group in request.groups:
                learning.leader.take(from_message(group))
        return pb.LearnExamplesResponse()

    async def CatchUpWeights(self, request: pb.CatchUpWeightsRequest, context: Any) -> pb.CatchUpWeightsResponse:
        learning = self._engine.learning
        if learning is not None and learning.keeper is not None:
            learning.keeper.catch_up()
        return pb.CatchUpWeightsResponse()
