"""The business server: takes the events of orders and redemptions over HTTP, and answers once they are durable.

It knows the chain only to learn which campaigns there are; what it takes goes to the message centre, under its
signature. For comparison it can submit each event to the chain itself and answer after that
(:mod:`services.rights.direct`).
"""

import gc
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import structlog
import trio
from anycorn.typing import ASGIFramework

from consensus.ledger.errors import LocalError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import Address
from consensus.ledger.keys import PrivateKey
from services.client.client import Client, open_client
from services.client.keystore import Signer
from services.client.tasks import single_errors
from services.local import web
from services.local.pages import LOOPBACK_NAMES, Gate
from services.messages.link import open_link
from services.messages.logs import configure_logs, ready_file, stop_signals
from services.rights.answers import Taker
from services.rights.campaigns import Campaigns
from services.rights.direct import Direct
from services.rights.intake import Intake
from services.rights.metrics import BusinessMetrics
from services.rights.pages import Pages

NAME = "rights-business"
"""Under which the message centre sees it."""

log = structlog.get_logger("business")


@dataclass(frozen=True, slots=True)
class BusinessSettings:
    """What a business server runs with.

    Args:
        host: where it listens; beyond loopback only with a ``token``, behind a proxy that speaks TLS.
        port: 0 takes a free one.
        token: what callers show as ``Authorization: Bearer``; "" asks for none.
        run: folder of the file ``ready``.
        genesis: of the chain.
        nodes: URLs of nodes' RPC, ``http://HOST:PORT``.
        server: the business server's account, 20 bytes.
        event_key: signs events; the contract knows it for one of the server's.
        center: of the message centre, ``HOST:PORT`` or ``unix:PATH``.
        center_token: what the message centre asks for.
        direct: the server's account with its key: submits each event itself, without a message centre.
        is_direct_strict: only one event under way at a time, in the order in which they came.
        log_level: debug, info, warning or error.
        host_names: accepted in ``Host`` and ``Origin`` beside loopback's names and ``host``.
    """

    host: str
    port: int
    token: str
    run: Path
    genesis: Genesis
    nodes: tuple[str, ...]
    server: Address
    event_key: PrivateKey
    center: str
    center_token: str
    direct: Signer | None = None
    is_direct_strict: bool = False
    log_level: str = "info"
    host_names: frozenset[str] = frozenset()


async def run(settings: BusinessSettings) -> None:
    """Serve until SIGTERM or SIGINT; then answer what is under way, and end.

    Raises:
        LocalError: it cannot start: ``port_in_use``, ``bad_address``, ``token_missing``, ``no_nodes``.
    """
    configure_logs(settings.log_level)
    # What is loaded by now stays for ever: the collector need not walk it again while requests wait.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    with single_errors():
        async with stop_signals() as stopping:
            await serve(settings, stopping)
    log.info("stopped")


async def serve(
    settings: BusinessSettings, stopping: trio.Event, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until ``stopping`` is set; ``started`` gives the port. Errors as for :func:`run`."""
    if not settings.token and not _is_loopback(settings.host):
        raise LocalError("token_missing", f"{settings.host} is no loopback address: callers must show a token")
    metrics = BusinessMetrics()
    listening = web.open_socket(settings.host, settings.port)
    with listening, single_errors():
        async with open_client(settings.genesis, settings.nodes) as client, trio.open_nursery() as nursery:
            campaigns = Campaigns(client, settings.server)
            nursery.start_soon(campaigns.run)
            async with _open_taker(settings, client, metrics) as taker:
                names = LOOPBACK_NAMES | {name.lower() for name in (settings.host, *settings.host_names)}
                app = Gate(Pages(taker, campaigns, metrics).app(), names=names, token=settings.token)
                port = listening.getsockname()[1]
                with ready_file(settings.run):
                    log.info("ready", host=settings.host, port=port, direct=settings.direct is not None)
                    task_status.started(port)
                    await web.serve(
                        listening, cast(ASGIFramework, app), connections=metrics.connections, stopping=stopping
                    )
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_taker(settings: BusinessSettings, client: Client, metrics: BusinessMetrics) -> AsyncIterator[Taker]:
    if settings.direct is not None:
        yield Direct(client, settings.direct, is_strict=settings.is_direct_strict)
        return
    with single_errors():
        async with open_link(settings.center, token=settings.center_token, name=NAME) as center:
            intake = Intake(
                center,
                metrics,
                key=settings.event_key,
                chain_id=settings.genesis.chain_id(),
                server=settings.server,
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(intake.run)
                yield intake
                nursery.cancel_scope.cancel()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
