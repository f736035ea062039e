"""The event system: one program with its own store, which follows the chain, notifies, scans, and answers callers.

Its parts know nothing of each other: each reads the store and writes to it, and is woken by what the others wrote. Any
of them may find node, centre or database away; it then waits and tries again, and ``status`` says what is in its way.
"""

import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from consensus.ledger.errors import HansaError, InvariantError, LocalError, StorageError
from consensus.ledger.genesis import Genesis
from services.client.client import Client, open_client
from services.client.keystore import Signer
from services.client.tasks import single_errors
from services.local.service import LocalService
from services.local.service import serve as serve_local
from services.messages.link import open_link
from services.messages.logs import configure_logs, ready_file, stop_signals
from services.messages.port import PUBLISH_MESSAGES_MAX, MessageCenter
from services.settlement.census import Census
from services.settlement.clerk import Clerk
from services.settlement.database import open_events
from services.settlement.engine import Engine, Rules
from services.settlement.interfaces import EventsStatus, StatusQuery
from services.settlement.listener import Listener
from services.settlement.relay import Relay
from services.settlement.scanner import Scanner
from services.settlement.states import CHAIN, MESSAGES
from services.settlement.store import EventStore, Selection
from services.settlement.watched import WatchedStore

NAME = "settle-events"
SOCKET = "events.sock"
PAUSE_FIRST_MS = 100
PAUSE_MAX_MS = 5_000
LOOK_MS = 5_000
"""How often relay and clerk look without being woken: a write whose answer was lost wakes nobody."""
COUNT_MAX = 1_000
"""Flagged events and waiting notices are counted up to here."""

log = structlog.get_logger("events")


@dataclass(frozen=True, slots=True)
class EventsSettings:
    """What the event system runs with.

    Args:
        run: folder of the socket and of the file that says ready.
        database: URL of its store.
        genesis: the chain's document.
        nodes: RPC roots; every validator should be among them, since the scan asks each.
        agent: signs lifts and reversals; the account that trades name as agent.
        center: ``HOST:PORT`` or ``unix:PATH`` of the message centre, ``center_token`` what it asks for.
        is_relay_on: follow the chain and notify at once.
        is_scan_on: scan every ``scan_interval_ms``.
        ratio: validators that must agree in a scan; 0: as many as a certificate needs.
        log_level: debug, info, warning or error.
    """

    run: Path
    database: str
    genesis: Genesis
    nodes: tuple[str, ...]
    agent: Signer
    center: str
    center_token: str
    is_relay_on: bool = True
    is_scan_on: bool = True
    ratio: int = 0
    scan_interval_ms: int = 1_000
    log_level: str = "info"

    @property
    def socket(self) -> Path:
        """Where callers call."""
        return self.run / SOCKET


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


class EventSystem:
    """The parts of the event system, wired; :meth:`run` them."""

    def __init__(
        self,
        settings: EventsSettings,
        store: EventStore,
        client: Client,
        center: MessageCenter,
        *,
        now_ms: Callable[[], int] = _clock_ms,
    ) -> None:
        self.settings = settings
        self.store = WatchedStore(store)
        self.relay = Relay(self.store, center)
        self.census = Census(client, ratio=settings.ratio)
        self.listener = Listener(client, self.store, now_ms=now_ms)
        self.clerk = Clerk(client, self.store, settings.agent, now_ms=now_ms)
        self.scanner = Scanner(
            self.store, self.census, client, self.relay, interval_ms=settings.scan_interval_ms, now_ms=now_ms
        )
        self.engine = Engine(
            self.store,
            Rules(client.chain_id, bytes(settings.agent.address)),
            chain_time_ms=lambda: self.listener.time_ms,
            on_repair=self.scanner.wake,
            now_ms=now_ms,
        )
        self.store.ring(MESSAGES, self.relay.wake)
        self.store.ring(CHAIN, self.clerk.wake)

    def add_methods(self, service: LocalService) -> None:
        """Add all methods of the socket."""
        self.engine.add_methods(service)
        service.add("status", StatusQuery, self.status)

    async def status(self, _: StatusQuery) -> EventsStatus:
        """Return how the event system stands."""
        totals = await self.store.totals()
        flagged = await self.store.listed(Selection(is_flagged=True), "", COUNT_MAX)
        notices = await self.store.notices((*MESSAGES, *CHAIN), 0, PUBLISH_MESSAGES_MAX)
        parts = {"clerk": self.clerk.trouble, "relay": self.relay.trouble}
        if self.settings.is_relay_on:
            parts["listener"] = self.listener.trouble
        if self.settings.is_scan_on:
            parts["scan"] = self.scanner.trouble
        return EventsStatus(
            totals={state.value: count for state, count in totals.items()},
            flagged=len(flagged),
            waiting_notices=len(notices),
            height=self.listener.height,
            is_relay_on=self.settings.is_relay_on,
            is_scan_on=self.settings.is_scan_on,
            ratio=self.census.ratio,
            agent=bytes(self.settings.agent.address),
            trouble=parts,
        )

    async def run(self) -> None:
        """Run what is switched on, for ever.

        Raises:
            StorageError, InvariantError: nothing more can be relied on.
            LocalError: the configuration cannot be right.
        """
        parts = {"clerk": self.clerk.run, "look": self._look}
        if self.settings.is_relay_on:
            parts |= {"listener": self.listener.run, "relay": self.relay.run}
        if self.settings.is_scan_on:
            parts |= {"scan": self.scanner.run}
        async with trio.open_nursery() as nursery:
            for name, part in parts.items():
                nursery.start_soon(_keep, name, part)

    async def _look(self) -> None:
        while True:
            await trio.sleep(LOOK_MS / 1000)
            self.relay.wake()
            self.clerk.wake()


async def _keep(name: str, part: Callable[[], Awaitable[None]]) -> None:
    """Run a part; start it again, after a growing pause, where something it needs is away."""
    pause_ms = PAUSE_FIRST_MS
    while True:
        began = trio.current_time()
        try:
            await part()
        except HansaError as error:
            if isinstance(error, StorageError | InvariantError | LocalError):
                raise
            log.warning("a part starts again", part=name, code=error.code, why=error.message)
        if trio.current_time() - began > PAUSE_MAX_MS / 1000:
            pause_ms = PAUSE_FIRST_MS
        await trio.sleep(pause_ms / 1000)
        pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)


async def run(settings: EventsSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        LocalError: it cannot start: ``already_running``, ``store_locked``, ``no_nodes``, ``bad_address``, ….
        StorageError: the disk failed.
        Unreachable: ``database_unreachable`` at start.
    """
    configure_logs(settings.log_level)
    # What is loaded by now stays for ever: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    with single_errors():
        async with (
            stop_signals() as stopping,
            open_client(settings.genesis, settings.nodes) as client,
            open_link(settings.center, token=settings.center_token, name=NAME) as center,
            open_events(settings.database) as store,
        ):
            await serve(settings, store, client, center, stopping)
    log.info("stopped")


async def serve(
    settings: EventsSettings,
    store: EventStore,
    client: Client,
    center: MessageCenter,
    stopping: trio.Event,
    *,
    now_ms: Callable[[], int] = _clock_ms,
    task_status: trio.TaskStatus[EventSystem] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``stopping`` is set; errors as :func:`run`."""
    system = EventSystem(settings, store, client, center, now_ms=now_ms)
    service = LocalService()
    system.add_methods(service)
    ending, failures = trio.Event(), list[HansaError]()

    async def run_parts() -> None:
        try:
            with single_errors():
                await system.run()
        except HansaError as error:  # the socket closes in order first: its server must not be cut off
            log.error("stopped", code=error.code, why=error.message)
            failures.append(error)
        ending.set()

    async def follow() -> None:
        await stopping.wait()
        ending.set()

    with single_errors(), ready_file(settings.run):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_parts)
            nursery.start_soon(follow)
            async with trio.open_nursery() as front:
                await front.start(serve_local, settings.socket, service, ending)
                log.info("ready", agent=f"0x{settings.agent.address.hex()}")
                task_status.started(system)
            nursery.cancel_scope.cancel()
    for error in failures:
        raise error
