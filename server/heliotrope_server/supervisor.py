"""Starts the shards of a server, restarts one that dies, and stops them together."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path

from heliotrope_export import TextEncoder, check_single_runtime
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_server.access import AccessFile
from heliotrope_server.access.certificates import Certificates
from heliotrope_server.activation import learn_old_maps
from heliotrope_server.device_index import device_problem
from heliotrope_server.errors import PortInUseError, StartError
from heliotrope_server.layout import lock_data, open_layout
from heliotrope_server.settings import ServerSettings
from heliotrope_server.shard import READY, ShardSettings

# A shard that was ready once is started again however often it dies; one that can't become ready this often in a row
# takes the server down, since something is wrong that another try won't mend.
MAX_FAILED_STARTS = 5
RESTART_DELAY_S = 0.1
_ENDED_BY_LMDB = (signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV)

logger = logging.getLogger(__name__)


class Supervisor:
    """Owns the data folder, the ports and the shard processes of one server."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Raises StartError when a shard can't start or keeps dying."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        runtime = Path(tempfile.mkdtemp(prefix="heliotrope-"))  # Unix socket paths must be short
        lock = lock_data(self._settings.data)
        reserved: list[socket.socket] = []
        try:
            # The shards import what they need while the files of the snapshot are hashed.
            for index in range(self._settings.shards):
                self._processes[index] = await _spawned()
            version, plans = await asyncio.to_thread(self._plan, runtime, reserved)
            await asyncio.gather(*(self._start(plan, self._processes[plan.index]) for plan in plans))
            entry = plans[0].listen[0]
            shards = "1 shard" if len(plans) == 1 else f"{len(plans)} shards"
            print(f"heliotrope: serving {version} on {entry} ({shards})", flush=True)
            await self._keep_running(plans)
        finally:
            await self._stop()
            for each in reserved:
                each.close()
            lock.close()
            shutil.rmtree(runtime, ignore_errors=True)

    def _plan(self, runtime: Path, reserved: list[socket.socket]) -> tuple[str, list[ShardSettings]]:
        """Checks what all shards need, once, and says what each shall do."""
        settings = self._settings
        check_single_runtime()
        if settings.access is not None:
            AccessFile(settings.access)
        if settings.tls_certificate and settings.tls_key:
            Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_authorities)
        ports = self._reserve_ports(reserved)
        store = SnapshotStore(settings.snapshots)
        snapshot = store.open()
        if settings.model is not None:
            # Verifies the hashes, so that a damaged model ends the start and not the first request.
            TextEncoder.open(settings.model)
        if settings.device == "cuda":
            problem = device_problem()
            if problem is not None:
                raise StartError(f"--device cuda: {problem}; start with --device auto or cpu")
        layout = open_layout(settings.data, settings.shards, snapshot, settings.engine, partial(learn_old_maps, store))
        sockets = [runtime / f"shard-{index}.sock" for index in range(settings.shards)]
        shown_host = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        plans = [
            ShardSettings(
                server=settings,
                layout=layout,
                index=index,
                sockets=sockets,
                addresses=[_address(shown_host, port) for port in ports[1:]],
                listen=[_address(settings.host, ports[0]), _address(settings.host, ports[1 + index])],
                encoder_threads=max(1, cores // settings.shards),
            )
            for index in range(settings.shards)
        ]
        return snapshot.version, plans

    def _reserve_ports(self, reserved: list[socket.socket]) -> list[int]:
        """The shared port, then one per shard. Bound here without listening, so that no one else can take them."""
        first = self._settings.port
        wanted = [first + offset if first else 0 for offset in range(1 + self._settings.shards)]
        ports = []
        for port in wanted:
            held = _bound(self._settings.host, port)
            reserved.append(held)
            ports.append(held.getsockname()[1])
        return ports

    async def _start(self, plan: ShardSettings, process: asyncio.subprocess.Process) -> None:
        """Has a new process serve one shard and waits until it is ready."""
        self._processes[plan.index] = process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(plan.model_dump_json().encode() + b"\n")
        if await process.stdout.readline() != READY:
            code = await process.wait()
            if -code in _ENDED_BY_LMDB:
                folder = plan.layout.shard_folder(plan.server.data, plan.index) / "profiles"
                raise StartError(
                    f"shard {plan.index} was ended by {signal.Signals(-code).name} while it started, as LMDB ends a "
                    f"process that reads a damaged store: `heliotrope verify` says whether {folder} is, "
                    "`heliotrope repair` mends it (docs/backup.md)"
                )
            raise StartError(f"shard {plan.index} could not start (exit code {code}); its message is above")

    async def _keep_running(self, plans: list[ShardSettings]) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        waits = {asyncio.create_task(self._processes[plan.index].wait()): plan for plan in plans}
        while True:
            done, _ = await asyncio.wait([stopping, *waits], return_when=asyncio.FIRST_COMPLETED)
            if stopping in done:
                for wait in waits:
                    wait.cancel()
                return
            for task in done:
                plan = waits.pop(task)
                code = self._processes[plan.index].returncode
                logger.error("shard %d ended unexpectedly (exit code %s)", plan.index, code)
                await self._restart(plan)
                waits[asyncio.create_task(self._processes[plan.index].wait())] = plan

    async def _restart(self, plan: ShardSettings) -> None:
        for failed in range(1, MAX_FAILED_STARTS + 1):
            await asyncio.sleep(RESTART_DELAY_S)
            if self._stopping.is_set():
                return
            try:
                await self._start(plan, await _spawned())
            except StartError:
                if failed == MAX_FAILED_STARTS:
                    raise
            else:
                logger.info("shard %d is back", plan.index)
                return

    async def _stop(self) -> None:
        """Asks every shard to drain; one that does not within the drain time and a little more is killed."""
        running = [process for process in self._processes.values() if process.returncode is None]
        for process in running:
            process.terminate()
        patience_s = self._settings.drain_s + 15.0
        for process in running:
            try:
                await asyncio.wait_for(process.wait(), patience_s)
            except TimeoutError:
                logger.error("a shard did not drain within %.0f s and is killed", patience_s)
                process.kill()
                await process.wait()


async def _spawned() -> asyncio.subprocess.Process:
    """A process that becomes a shard as soon as it is told which."""
    # One thread per shard in BLAS and OpenMP: shards are how the server uses more cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "heliotrope_server.shard",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Without SO_REUSEPORT first: with it, a port that another server shares would look free.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            port = probe.getsockname()[1]
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError as error:
        raise PortInUseError(f"{_address(host, port)} cannot be listened on: {error.strerror}") from error
    return held


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
