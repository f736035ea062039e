"""The account system's program: the books over HTTP on this machine. All money in it is simulated."""

import gc
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import structlog
import trio
from anycorn.typing import ASGIFramework

from consensus.ledger.errors import LocalError
from services.accounts.faults import FaultPanel
from services.accounts.metrics import AccountsMetrics
from services.accounts.pages import Pages, Simulated
from services.accounts.store import open_store
from services.client.tasks import single_errors
from services.local import web
from services.local.pages import LOOPBACK_NAMES, Gate
from services.messages.logs import configure_logs, ready_file, stop_signals

log = structlog.get_logger("accounts")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountsSettings:
    """What the account system runs with.

    Args:
        host: where it listens; beyond loopback only with a ``token``, behind a proxy that speaks TLS.
        port: 0 takes a free one.
        token: what callers show as ``Authorization: Bearer``; "" asks for none.
        run: folder of the file ``ready``.
        database: SQLAlchemy URL of the books.
        is_fault_panel_open: callers may have it misbehave.
        host_names: accepted in ``Host`` and ``Origin`` beside loopback's names and ``host``.
        log_level: debug, info, warning or error.
    """

    host: str
    port: int
    token: str
    run: Path
    database: str
    is_fault_panel_open: bool = False
    host_names: frozenset[str] = frozenset()
    log_level: str = "info"


async def run(settings: AccountsSettings) -> None:
    """Serve until SIGTERM or SIGINT; then answer what is under way, and end.

    Raises:
        LocalError: it cannot start: ``port_in_use``, ``bad_address``, ``token_missing``, ``already_running``,
            ``store_locked``, ``bad_database``.
        StorageError: the disk failed, or holds another program's tables.
        Unreachable: ``database_unreachable`` at the start.
    """
    configure_logs(settings.log_level)
    # What is loaded by now stays for ever: the collector need not walk it again while requests wait.
    gc.collect()
    gc.freeze()
    with single_errors():
        async with stop_signals() as stopping:
            await serve(settings, stopping)
    log.info("stopped")


async def serve(
    settings: AccountsSettings, stopping: trio.Event, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until ``stopping`` is set; ``started`` gives the port. Errors as for :func:`run`."""
    if not settings.token and not _is_loopback(settings.host):
        raise LocalError("token_missing", f"{settings.host} is no loopback address: callers must show a token")
    metrics = AccountsMetrics()
    panel = FaultPanel() if settings.is_fault_panel_open else None
    names = LOOPBACK_NAMES | {name.lower() for name in (settings.host, *settings.host_names)}
    with web.open_socket(settings.host, settings.port) as listening, single_errors():
        async with open_store(settings.database) as store:
            pages = Pages(store, metrics, panel)
            app = Simulated(Gate(pages.app(), names=names, token=settings.token))
            port = listening.getsockname()[1]
            with ready_file(settings.run):
                log.info("ready", host=settings.host, port=port, money="simulated", fault_panel=panel is not None)
                task_status.started(port)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_stop_when_failed, pages, stopping)
                    served = cast(ASGIFramework, app)
                    await web.serve(listening, served, connections=metrics.connections, stopping=stopping)
                    nursery.cancel_scope.cancel()
        if pages.failure is not None:
            raise pages.failure


async def _stop_when_failed(pages: Pages, stopping: trio.Event) -> None:
    await pages.failed.wait()
    stopping.set()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
