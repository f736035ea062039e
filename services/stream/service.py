"""The service party's program: payers over HTTP and WebSocket, its owner on a local socket, its streams on disk.

It answers as soon as it runs: what it cannot do while nodes or meter are away, it says when it is asked for. What an
earlier run has left open goes on.
"""

import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import structlog
import trio
from anycorn.typing import ASGIFramework

from consensus.ledger.genesis import Genesis
from services.client.client import open_client
from services.client.keystore import Signer
from services.client.tasks import single_errors
from services.local import web
from services.local.asking import Program, open_program
from services.local.pages import LOOPBACK_NAMES
from services.local.service import LocalService
from services.local.service import serve as serve_local
from services.messages.logs import configure_logs, ready_file, stop_signals
from services.stream.desk import Desk
from services.stream.frames import converse
from services.stream.handover import HandOver
from services.stream.meter import open_meter
from services.stream.metrics import ServiceMetrics
from services.stream.owner import Owner
from services.stream.pages import Pages, StreamGate
from services.stream.private import serve_channels
from services.stream.service_chain import ServiceChain
from services.stream.service_config import StreamServiceFile
from services.stream.service_interface import SERVICE_SOCKET
from services.stream.store import StreamStore, open_store

WATCHER_MS_MAX = 5_000
"""How long a watcher may take to take an iteration."""

log = structlog.get_logger("stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What a service party runs with; :class:`services.stream.service_config.StreamServiceFile` says what it means."""

    file: StreamServiceFile
    run: Path
    data: Path
    host: str
    port: int
    token: str
    owner: Path | None
    watcher_token: str
    database: str
    genesis: Genesis
    signer: Signer

    @property
    def socket(self) -> Path:
        """Where the owner calls."""
        return self.run / SERVICE_SOCKET


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of a running service party; made by :func:`open_service`."""

    store: StreamStore
    desk: Desk
    owner: Owner
    metrics: ServiceMetrics
    handover: HandOver | None


@asynccontextmanager
async def open_service(
    settings: ServiceSettings, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
) -> AsyncIterator[Service]:
    """Give a service party for the time of the block.

    Raises:
        LocalError: ``store_locked``, ``bad_database``, ``bad_url``, ``bad_meter_name``, ``no_nodes``.
        StorageError: the disk. Unreachable: ``database_unreachable``.
    """
    file, metrics = settings.file, ServiceMetrics()
    async with (
        open_store(settings.database) as store,
        open_client(settings.genesis, file.nodes, now_ms=now_ms) as client,
        open_meter(file.meter, settings.data / "meter") as meter,
    ):
        chain = ServiceChain(client, settings.signer, now_ms)
        desk = Desk(store, chain, meter, metrics, now_ms, meter_ms=file.meter_ms, chain_ms=file.chain_ms)
        owner = Owner(file, store, chain, desk, metrics, now_ms)
        if not file.watcher:
            yield Service(store, desk, owner, metrics, None)
            return
        program = Program(file.watcher, "watcher", "watcher_unreachable")
        async with open_program(program, token=settings.watcher_token, answer_ms_max=WATCHER_MS_MAX) as watcher:
            yield Service(store, desk, owner, metrics, HandOver(desk, client.chain_id, watcher, file.watcher_ms))


async def run(settings: ServiceSettings) -> None:
    """Serve until SIGTERM or SIGINT; then answer what is under way, and end.

    Raises:
        LocalError: it cannot start: ``port_in_use``, ``bad_address``, ``already_running``, ``store_locked``, ….
        StorageError: the disk failed.
    """
    configure_logs(settings.file.log_level)
    # What is loaded by now stays for ever: the collector need not walk it again while payers wait.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    with single_errors():
        async with stop_signals() as stopping, open_service(settings) as service:
            await serve(settings, service, stopping)
    log.info("stopped")


async def serve(
    settings: ServiceSettings,
    service: Service,
    stopping: trio.Event,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``stopping`` is set; ``started`` gives the port. Errors as for :func:`run`."""
    local = LocalService()
    service.owner.add_methods(local)
    pages = Pages(service.desk, service.owner, stopping)
    names = LOOPBACK_NAMES | {name.lower() for name in (settings.host, *settings.file.hosts)}
    app = cast(ASGIFramework, StreamGate(pages.app(), names=names, token=settings.token))
    with single_errors(), web.open_socket(settings.host, settings.port) as listening, ready_file(settings.run):
        async with trio.open_nursery() as background:
            await background.start(service.desk.run)
            background.start_soon(_stop_when_failed, pages, stopping)
            if service.handover is not None:
                background.start_soon(service.handover.run)
            if settings.owner is not None:
                background.start_soon(serve_channels, settings.owner, partial(converse, service.desk))
            async with trio.open_nursery() as front:
                await front.start(serve_local, settings.socket, local, stopping)
                port = listening.getsockname()[1]
                log.info("ready", account=settings.signer.name, host=settings.host, port=port)
                task_status.started(port)
                await web.serve(listening, app, connections=service.metrics.connections, stopping=stopping)
            background.cancel_scope.cancel()
        await service.store.flush()
    if pages.failure is not None:
        raise pages.failure


async def _stop_when_failed(pages: Pages, stopping: trio.Event) -> None:
    await pages.failed.wait()
    stopping.set()
