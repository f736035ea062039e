"""The program of the rights server: consumes business events, submits them to the contract, settles them.

It keeps nothing on disk: SIGTERM lets what is under way become final, and after ``kill -9`` the centre delivers
again what was not settled.
"""

import gc
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import structlog
import trio

from consensus.ledger.genesis import Genesis
from services.client.client import Client, open_client
from services.client.keystore import Signer
from services.client.submission import Submitter
from services.client.tasks import single_errors
from services.messages.link import open_link
from services.messages.logs import configure_logs, ready_file, stop_signals
from services.messages.port import MessageCenter
from services.rights.figures import Figures
from services.rights.health import serve_health
from services.rights.relay import Limits, Relay
from services.rights.shares import ShareTable

STOP_TIMEOUT_S = 7.0
"""How long what is under way may take to become final after SIGTERM; whoever ends programs waits ten seconds."""

log = structlog.get_logger("rights-server")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a rights server runs with.

    Args:
        name: of the consumer at the centre. Its lanes on the chain are named after it, so that two servers with
            one account need different names.
        run: folder of the file that says ready.
        genesis: the chain's document.
        nodes: RPC roots, ``http://HOST:PORT``; several, so that no single node is trusted or needed.
        account: signs transactions; an appointed rights server.
        center: ``HOST:PORT`` or ``unix:PATH`` of the message centre.
        center_token: what the centre wants to see.
        pack_max: events in one transaction.
        linger_ms: how long an event waits for others while a transaction could go.
        lanes: transactions under way at a time, unless the centre keeps one order over all events: then 1.
        window: deliveries unsettled at a time.
        shares: variant B: what the server computes itself; empty leaves all to the contract.
        log_level: debug, info, warning or error.
        health_port: where ``/healthz`` and ``/metrics`` are answered on 127.0.0.1; 0: nowhere.
    """

    name: str
    run: Path
    genesis: Genesis
    nodes: tuple[str, ...]
    account: Signer
    center: str
    center_token: str
    pack_max: int = 100
    linger_ms: int = 20
    lanes: int = 4
    window: int = 512
    shares: ShareTable = field(default_factory=ShareTable)
    log_level: str = "info"
    health_port: int = 0


async def run(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        LocalError: ``no_nodes``, ``bad_address``, and as :func:`serve`.
        Refused: as :func:`serve`.
    """
    configure_logs(settings.log_level)
    # What is loaded by now stays for ever: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    with single_errors():
        async with (
            stop_signals() as stopping,
            open_client(settings.genesis, settings.nodes) as client,
            open_link(settings.center, token=settings.center_token, name=settings.name) as center,
        ):
            await serve(settings, center, client, stopping)
    log.info("stopped")


async def serve(
    settings: ServerSettings,
    center: MessageCenter,
    client: Client,
    stopping: trio.Event,
    *,
    stop_timeout_s: float = STOP_TIMEOUT_S,
) -> None:
    """Relay from the centre to the chain until ``stopping`` is set or the centre is gone for good.

    Raises:
        LocalError: ``bad_window``, ``bad_lane``, ``bad_config``, ``port_in_use``: it cannot start.
        Refused: the centre wants another token.
    """
    figures = Figures()
    lanes = client.lanes(settings.account, count=settings.lanes, prefix=lane_prefix(settings.name))
    submitter = Submitter(client, settings.account, lanes)
    with single_errors():
        async with (
            trio.open_nursery() as nursery,
            center.consume(settings.name, window=settings.window) as subscription,
        ):
            relay = Relay(
                center,
                subscription,
                submitter,
                limits=Limits(settings.pack_max, settings.linger_ms, settings.lanes),
                table=settings.shares,
                figures=figures,
            )
            if settings.health_port:
                await nursery.start(serve_health, settings.health_port, submitter, figures)
            with ready_file(settings.run):
                log.info("ready", name=settings.name, account=f"0x{settings.account.address.hex()}")
                await relay.run(stopping, stop_timeout_s=stop_timeout_s)
            nursery.cancel_scope.cancel()


def lane_prefix(name: str) -> bytes:
    """Return what the lanes of the server of this name begin with: the same over restarts, another for another name."""
    return b"rs" + sha256(name.encode()).digest()[:8]
