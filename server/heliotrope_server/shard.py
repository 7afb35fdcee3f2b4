"""One shard: a process with an engine and two gRPC servers, one for clients and one for the other shards.

Started by the supervisor as `python -m heliotrope_server.shard`. The first line of standard input is its ShardSettings
as JSON; when standard input closes, the supervisor is gone and the shard drains. It writes one line, `ready`, to
standard output.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pydantic import BaseModel, ConfigDict

from heliotrope.internal.v1 import peer_pb2, peer_pb2_grpc
from heliotrope.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    profile_pb2,
    profile_pb2_grpc,
    recommendation_pb2,
)
from heliotrope_export import TextEncoder
from heliotrope_indexer.job_folder import job_home
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.access import AccessFile, AccessInterceptor, AuditLog
from heliotrope_server.access.certificates import Certificates
from heliotrope_server.activation import Activation, check_model, learn_old_maps
from heliotrope_server.byte_gate import ByteGate
from heliotrope_server.canary import Canary
from heliotrope_server.embedder import Embedder
from heliotrope_server.engine import Engine
from heliotrope_server.garbage import settle
from heliotrope_server.gpu_retriever import SearchDevice
from heliotrope_server.interceptor import ErrorInterceptor
from heliotrope_server.lanes import SharedQueue, let_threads_finish, make_lanes
from heliotrope_server.layout import DRAIN_PATIENCE_S, Layout, lock_shard
from heliotrope_server.learning.online import OnlineLearning
from heliotrope_server.learning_exchange import LEADER, announce_weights, forward_for_ever
from heliotrope_server.live_catalogue import LiveCatalogue
from heliotrope_server.peer_socket import PeerSocket
from heliotrope_server.peers import MESSAGE_OPTIONS, Peers
from heliotrope_server.popularity_exchange import exchange_for_ever
from heliotrope_server.record_log import RecordLog
from heliotrope_server.residual_exchange import exchange_residuals_for_ever
from heliotrope_server.servicers import (
    AdminServicer,
    CatalogServicer,
    EventServicer,
    FeedbackServicer,
    PeerServicer,
    ProfileServicer,
    RecommendationServicer,
)
from heliotrope_server.servicers.routing import Router, passed_on
from heliotrope_server.servicers.switch import Switch, follow_for_ever
from heliotrope_server.settings import ServerSettings
from heliotrope_server.steady_clock import SteadyClock

READY = b"ready\n"
HEALTH_INTERVAL_S = 0.5
INTAKE_BYTES = 32 << 20
"""Of events that may wait for the disk of a shard, and of texts for its encoder."""
SWITCH_INTERVAL_S = 0.0005
WITHDRAW_TIMEOUT_S = 300.0

_SERVICES = [
    recommendation_pb2.DESCRIPTOR.services_by_name["RecommendationService"].full_name,
    event_pb2.DESCRIPTOR.services_by_name["EventService"].full_name,
    feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name,
    profile_pb2.DESCRIPTOR.services_by_name["ProfileService"].full_name,
    catalog_pb2.DESCRIPTOR.services_by_name["CatalogService"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
]

logger = logging.getLogger(__name__)


class ShardSettings(BaseModel):
    """What the supervisor tells a shard. `sockets` and `addresses` are those of all shards."""

    model_config = ConfigDict(frozen=True)

    server: ServerSettings
    layout: Layout
    index: int
    sockets: list[Path]
    addresses: list[str]
    listen: list[str]
    served: Path
    """The file with the version that this server serves: CURRENT at its start, then that of the last switch."""
    encoder_threads: int = 1


class Shard:
    """Builds the parts from the settings, serves, and takes them down in order."""

    def __init__(self, settings: ShardSettings) -> None:
        self._settings = settings
        self._drain = asyncio.Event()

    def request_drain(self) -> None:
        self._drain.set()

    async def run(self) -> None:
        """Serves until `request_drain`, then drains. Raises StartError and the errors of the artefacts."""
        settings, server = self._settings, self._settings.server
        store = SnapshotStore(server.snapshots)
        encoder = TextEncoder.open(server.model, threads=settings.encoder_threads) if server.model else None
        folder = settings.layout.shard_folder(server.data, settings.index)
        lock = await lock_shard(folder, server.drain_s + DRAIN_PATIENCE_S)
        # Its hashes were verified, by the supervisor or by a switch. Not CURRENT: a build may have published meanwhile.
        catalogue = LiveCatalogue(store.open(settings.served.read_text(), verify=False))
        device = SearchDevice(server.device, server.device_index)
        device.prepare(catalogue)
        engine = Engine(
            folder,
            server.data / "catalogue",
            catalogue,
            Embedder(encoder, job_home(server.snapshots) / "embeddings"),
            settings.layout.clock(settings.index),
            server.engine,
            wall_clock=SteadyClock(),
            make_retriever=device.make_retriever,
        )
        engine.changes.catch_up()
        check_model(catalogue.snapshot, engine)
        catalogue_log = RecordLog(server.data / "catalogue") if settings.index == 0 else None
        await engine.start(partial(learn_old_maps, store))
        activation = Activation(engine, store, device.prepare)
        peers = Peers(settings.index, settings.sockets)
        leader = peers.of(LEADER)

        async def withdraw(version: str, reason: str) -> None:
            if leader is None:
                await switch.withdraw(version, reason)
                return
            request = peer_pb2.WithdrawSnapshotRequest(snapshot_version=version, reason=reason)
            await passed_on(leader, leader.internal.WithdrawSnapshot(request, timeout=WITHDRAW_TIMEOUT_S))

        canary = Canary(engine, server.canary_window_s, withdraw)
        switch = Switch(engine, activation, canary, store, peers, settings.served)
        engine.learning = self._learning(engine, peers, folder)
        health_servicer = health.aio.HealthServicer()

        events, texts = ByteGate("the disk", INTAKE_BYTES), ByteGate("the encoder", INTAKE_BYTES)
        add_services = partial(self._add_services, engine, switch, store, peers, catalogue_log, events, texts)
        peer_servicer = PeerServicer(engine, activation, canary, switch)

        def make_internal() -> Any:
            # What another shard passes on was admitted there, over one connection.
            made = grpc.aio.server(interceptors=[ErrorInterceptor()], options=MESSAGE_OPTIONS)
            add_services([made], [made], public=False)
            peer_pb2_grpc.add_PeerServiceServicer_to_server(peer_servicer, made)
            return made

        internal = PeerSocket(settings.sockets[settings.index], make_internal)
        audit = AuditLog(server.data, settings.index)
        access = AccessInterceptor(AccessFile(server.access) if server.access else None, audit)
        lanes = make_lanes([ErrorInterceptor(), access])
        # Health and administration have queues of their own: they answer beside a flood.
        add_services([SharedQueue(lane) for lane in lanes], lanes, public=True)
        certificates = self._certificates()
        for lane in lanes:
            health_pb2_grpc.add_HealthServicer_to_server(health_servicer, lane)
            reflection.enable_server_reflection([*_SERVICES, reflection.SERVICE_NAME, health.SERVICE_NAME], lane)
            self._listen(lane, certificates)

        if leader is None:
            await switch.begin()
        await internal.open()
        for lane in lanes:
            await lane.start()
        exchange = asyncio.create_task(exchange_for_ever(engine, peers))
        residual_exchange = asyncio.create_task(exchange_residuals_for_ever(engine, peers))
        watch = asyncio.create_task(_watch(engine, health_servicer, certificates))
        forward = self._start_learning(engine.learning, peers)
        canary.start()
        follow = asyncio.create_task(follow_for_ever(engine, activation, canary, settings.served))
        keep_socket = asyncio.create_task(internal.keep_for_ever())
        # What was loaded lives for ever: the collector need not look at it again.
        settle()
        # The threads that write logs and checkpoints need the interpreter for microseconds; with the default of 5 ms
        # each of their turns would show in the tail.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        await self._drain.wait()

        # In this order: tell load balancers, let running calls finish, then close what they used.
        watch.cancel()
        canary.stop()
        follow.cancel()
        await health_servicer.enter_graceful_shutdown()
        await asyncio.gather(*(lane.stop(server.drain_s) for lane in lanes))
        keep_socket.cancel()
        await internal.close(server.drain_s)
        exchange.cancel()
        if forward is not None:
            forward.cancel()
        if engine.learning is not None:
            await engine.learning.stop()
        residual_exchange.cancel()
        await peers.close()
        await engine.stop()
        if catalogue_log is not None:
            catalogue_log.close()
        audit.close()
        lock.close()
        logger.info("shard %d drained at LSN %d", settings.index, engine.applied_lsn)

    def _learning(self, engine: Engine, peers: Peers, folder: Path) -> OnlineLearning | None:
        """Online learning or the impression log, if either is on. Needs an engine that has started."""
        server = self._settings.server
        if not (server.learning.learn_online or server.learning.impression_log_share):
            return None
        leads = self._settings.index == LEADER
        announce = partial(announce_weights, peers) if leads else None
        return OnlineLearning(
            folder,
            server.data / "weights",
            engine.answerer,
            engine.popularity,
            server.learning,
            engine.now_s,
            announce,
        )

    def _start_learning(self, learning: OnlineLearning | None, peers: Peers) -> "asyncio.Task[None] | None":
        """Starts it; returns the task that carries examples to the leader, where that is another shard."""
        if learning is None:
            return None
        learning.start()
        leader = peers.of(LEADER)
        if learning.keeper is None or leader is None:
            return None
        return asyncio.create_task(forward_for_ever(learning, leader))

    def _add_services(
        self,
        engine: Engine,
        switch: Switch,
        store: SnapshotStore,
        peers: Peers,
        catalogue_log: RecordLog | None,
        events: ByteGate,
        texts: ByteGate,
        servers: Sequence[Any],
        admin_servers: Sequence[Any],
        *,
        public: bool,
    ) -> None:
        """Adds one set of servicers to all of these servers, and that for administration to those."""
        router = Router(peers, forward=public)
        recommendation, event = RecommendationServicer(engine, router), EventServicer(engine, router, events)
        feedback, profile = FeedbackServicer(engine, router), ProfileServicer(engine, router, texts)
        catalog = CatalogServicer(engine, router, catalogue_log, texts)
        admin = AdminServicer(engine, switch, store, peers, self._settings.addresses, whole_server=public)
        for server in servers:
            recommendation.add_to(server)
            event_pb2_grpc.add_EventServiceServicer_to_server(event, server)
            feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(feedback, server)
            profile_pb2_grpc.add_ProfileServiceServicer_to_server(profile, server)
            catalog_pb2_grpc.add_CatalogServiceServicer_to_server(catalog, server)
        for server in admin_servers:
            admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)

    def _certificates(self) -> Certificates | None:
        settings = self._settings.server
        if not (settings.tls_certificate and settings.tls_key):
            return None
        return Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_authorities)

    def _listen(self, server: Any, certificates: Certificates | None) -> None:
        for address in self._settings.listen:
            if certificates is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, certificates.credentials())


async def _watch(engine: Engine, servicer: Any, certificates: Certificates | None) -> None:
    """Turns health to NOT_SERVING when the log or the checkpoints have failed; looks for new certificates."""
    while True:
        if certificates is not None:
            certificates.look()
        status = (
            health_pb2.HealthCheckResponse.SERVING if engine.healthy else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for service in ["", *_SERVICES]:
            await servicer.set(service, status)
        await asyncio.sleep(HEALTH_INTERVAL_S)


async def _serve(settings: ShardSettings) -> None:
    shard = Shard(settings)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, shard.request_drain)
    # Ctrl-C reaches the whole process group; the supervisor decides what follows.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_reader(sys.stdin.fileno(), shard.request_drain)
    await shard.run()


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    let_threads_finish()
    settings = ShardSettings.model_validate_json(sys.stdin.buffer.readline())
    from heliotrope_server.command import one_line_errors

    with one_line_errors() as outcome:
        asyncio.run(_serve(settings))
    return outcome.code


if __name__ == "__main__":
    raise SystemExit(main())
