"""The platform program: its owner on a local socket, payers' clients over HTTP, its keys and payments in a vault.

It answers as soon as it runs: what it cannot do while nodes or account system are away, it says when it is asked for.
Its key registers itself on the chain, and what an earlier run has left open is finished. All money is simulated.
"""

import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
import structlog
import trio
from anycorn.typing import ASGIFramework

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.genesis import Genesis
from services.accounts.link import open_accounts
from services.accounts.pages import Simulated
from services.accounts.port import AccountSystem
from services.client.client import Client, open_client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.tasks import single_errors
from services.local import web
from services.local.pages import LOOPBACK_NAMES, Gate
from services.local.service import LocalService
from services.local.service import serve as serve_local
from services.local.vault import Vault, open_vault
from services.messages.logs import configure_logs, ready_file, stop_signals
from services.payee.delegating import Delegator
from services.payee.epochs import Epochs
from services.payee.interfaces import (
    DraftRecord,
    NoParams,
    PaymentsQuery,
    PlatformStatus,
    PutRecord,
    RecordsQuery,
    Register,
    RemoveRecord,
    Rotate,
    Trust,
)
from services.payee.metrics import PlatformMetrics
from services.payee.pages import Pages
from services.payee.payments import PaymentDesk
from services.payee.platform_chain import PlatformChain
from services.payee.platform_config import PLATFORM_SOCKET
from services.payee.platform_store import PlatformStore
from services.payee.records import RecordDesk

PAUSE_FIRST_MS, PAUSE_MAX_MS = 200, 15_000
"""How long until the platform tries again to register its key: doubling."""

log = structlog.get_logger("platform")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformSettings:
    """What a platform runs with; :class:`services.payee.platform_config.PlatformFile` says what the fields mean."""

    server: str
    run: Path
    data: Path
    key_file: Path
    host: str
    port: int
    token: str
    host_names: frozenset[str]
    accounts_url: str
    accounts_token: str
    genesis: Genesis
    nodes: tuple[str, ...]
    signer: Signer
    log_level: str = "info"

    @property
    def socket(self) -> Path:
        """Where the owner calls."""
        return self.run / PLATFORM_SOCKET


@dataclass(frozen=True, slots=True)
class Platform:
    """The parts of a running platform; made by :func:`open_platform`."""

    records: RecordDesk
    epochs: Epochs
    payments: PaymentDesk
    delegator: Delegator
    metrics: PlatformMetrics

    def add_methods(self, service: LocalService) -> None:
        """Add the owner's methods."""
        service.add("draft_record", DraftRecord, self.records.draft_record)
        service.add("put_record", PutRecord, self.records.put_record)
        service.add("remove_record", RemoveRecord, self.records.remove_record)
        service.add("records", RecordsQuery, self.records.records)
        service.add("register", Register, self.epochs.register)
        service.add("rotate", Rotate, self.epochs.rotate)
        service.add("trust", Trust, self.epochs.trust)
        service.add("status", NoParams, self.status)
        service.add("payments", PaymentsQuery, self.payments.payments)

    async def status(self, params: NoParams) -> PlatformStatus:
        """Return how the platform stands, with what stands in its way."""
        found = await self.epochs.status(params)
        return found if found.trouble else msgspec.structs.replace(found, trouble=self.payments.trouble)

    async def register_patiently(self) -> None:
        """Register the platform's key, however long it takes until that can be done."""
        pause_ms = PAUSE_FIRST_MS
        while True:
            try:
                await self.epochs.make_registered()
            except (Unreachable, Refused, PeerError, LocalError) as error:
                if error.code != self.epochs.trouble:
                    log.warning("not registered", code=error.code, why=error.message)
                self.epochs.trouble = error.code
            else:
                self.epochs.trouble = ""
                return
            await trio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)


async def make_platform(
    server: str, vault: Vault, client: Client, signer: Signer, accounts: AccountSystem, now_ms: Callable[[], int]
) -> Platform:
    """Return a platform on its vault; its key is made at the first time."""
    store, metrics = PlatformStore(vault), PlatformMetrics()
    key = await store.key()
    chain = PlatformChain(client, signer, server, now_ms)
    records = RecordDesk(store, chain, key)
    epochs = Epochs(store, chain, records, key)
    payments = PaymentDesk(store, chain, records, accounts, metrics, now_ms)
    return Platform(records, epochs, payments, Delegator(server, chain.chain_id, key, now_ms), metrics)


@asynccontextmanager
async def open_platform(
    settings: PlatformSettings, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
) -> AsyncIterator[Platform]:
    """Give a platform for the time of the block.

    Raises:
        LocalError: ``store_locked``, ``key_lost``, ``bad_key``, ``key_permissions``, ``bad_url``.
        StorageError: the vault.
    """
    async with (
        open_vault(settings.data, settings.key_file) as vault,
        open_client(settings.genesis, settings.nodes, now_ms=now_ms) as client,
        open_accounts(settings.accounts_url, token=settings.accounts_token) as accounts,
    ):
        yield await make_platform(settings.server, vault, client, settings.signer, accounts, now_ms)


async def run(settings: PlatformSettings) -> None:
    """Serve until SIGTERM or SIGINT; then answer what is under way, and end.

    Raises:
        LocalError: it cannot start: ``port_in_use``, ``bad_address``, ``already_running``, ``store_locked``, ….
        StorageError: the disk failed.
    """
    configure_logs(settings.log_level)
    # What is loaded by now stays for ever: the collector need not walk it again while requests wait.
    gc.collect()
    gc.freeze()
    with single_errors():
        async with stop_signals() as stopping, open_platform(settings) as platform:
            await serve(settings, platform, stopping)
    log.info("stopped")


async def serve(
    settings: PlatformSettings,
    platform: Platform,
    stopping: trio.Event,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``stopping`` is set; ``started`` gives the port. Errors as for :func:`run`."""
    service = LocalService()
    platform.add_methods(service)
    pages = Pages(platform.records, platform.payments, platform.delegator, platform.metrics)
    names = LOOPBACK_NAMES | {name.lower() for name in (settings.host, *settings.host_names)}
    app = cast(ASGIFramework, Simulated(Gate(pages.app(), names=names, token=settings.token)))
    with single_errors(), web.open_socket(settings.host, settings.port) as listening, ready_file(settings.run):
        async with trio.open_nursery() as background:
            background.start_soon(platform.register_patiently)
            background.start_soon(platform.payments.finish_forever)
            background.start_soon(_stop_when_failed, pages, stopping)
            async with trio.open_nursery() as front:
                await front.start(serve_local, settings.socket, service, stopping)
                port = listening.getsockname()[1]
                log.info("ready", server=settings.server, host=settings.host, port=port, money="simulated")
                task_status.started(port)
                await web.serve(listening, app, connections=platform.metrics.connections, stopping=stopping)
            background.cancel_scope.cancel()
    if pages.failure is not None:
        raise pages.failure


async def _stop_when_failed(pages: Pages, stopping: trio.Event) -> None:
    await pages.failed.wait()
    stopping.set()
