"""The gateway: what stands beside an institution's node and speaks for its business ends on private channels.

It has the sales-node part (:mod:`services.agency.sales_node`) and the issuer-node part
(:mod:`services.agency.issuer_node`); this module has what both need: the loop over what comes from the node's owner
socket, the way out, the local socket, and the program around it.

A package stands in one state, and the tables are all there is (what is not in them changes nothing):

    at the bank                                       at the issuer
    –         orders_submit            → sent         –         package, root and signature hold  → received
    sent      answer that holds        → answered     –         package that can never be taken   → refused
    sent      refusal, or never taken  → refused      received  answer_submit                     → answered
    refused   answer that holds        → answered     refused   –
    –         own package comes back   → sent

Every round of answers is anchored by itself: ``waiting`` → ``MUTUAL`` or a code of the contract; a claim → ``CLAIMED``.

Rules: everything is durable before anything is said of it. The channel brings a message at least once, so each is
judged by what is kept and has no effect the second time. A message that does not hold is dropped with an alarm. A
package without an answer is asked for again and stays as it is: it is never assumed to have failed.
"""

import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
import trio

from consensus.ledger.errors import HansaError, LocalError, PeerError
from consensus.ledger.genesis import Genesis
from services.agency.chain import ChainReader
from services.agency.gateway_store import Alarm, Changes, GatewayStore, Posting, Store
from services.agency.packages import Message, message_codec
from services.client.answers import hex_of
from services.client.client import Client, open_client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.owner import OwnerItem, OwnerLink
from services.client.tasks import single_errors
from services.local.service import LocalService
from services.local.service import serve as serve_local
from services.local.vault import open_vault
from services.messages.logs import configure_logs, ready_file, stop_signals

RECEIVE_WAIT_MS = 20_000
RECEIVE_ITEMS_MAX = 16
POSTINGS_PAGE = 32
PAUSE_FIRST_MS = 50
PAUSE_MAX_MS = 2_000

T = TypeVar("T")

log = structlog.get_logger("gateway")


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What a gateway runs with.

    Args:
        name: of the program; its lane on the chain is named after it.
        organisation: whose it is, as ``membership`` spells it.
        run: folder of the socket and of the file that says ready.
        data: folder of its vault; ``key_file`` seals that.
        owner: the node's owner socket.
        genesis: the chain's document.
        nodes: RPC roots of the own node; it is believed.
        account: signs transactions, an account of the organisation.
        business: signs packages or answers.
        anchor_after_ms: after how long an issuer anchors what its bank has not.
        ask_after_ms: after how long a bank asks for an answer, and again.
        log_level: debug, info, warning or error.
    """

    name: str
    organisation: str
    run: Path
    data: Path
    key_file: Path
    owner: Path
    genesis: Genesis
    nodes: tuple[str, ...]
    account: Signer
    business: Signer
    anchor_after_ms: int = 60_000
    ask_after_ms: int = 30_000
    log_level: str = "info"

    @property
    def socket(self) -> Path:
        """Where the business ends call."""
        return self.run / "gateway.sock"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message came from: its channel and place there; ``is_bank``: we are the bank."""

    bank: str
    issuer: str
    epoch: int
    number: int
    is_bank: bool

    @property
    def parties(self) -> tuple[str, str]:
        """Bank and issuer."""
        return self.bank, self.issuer

    @property
    def channel(self) -> str:
        """``BANK/ISSUER``."""
        return f"{self.bank}/{self.issuer}"


class Part(Protocol):
    """A side's half of the gateway."""

    async def on_message(self, origin: Origin, message: Message) -> None:
        """Take a message of the other side; returning says that all of it is durable.

        Raises:
            PeerError: it does not hold; it is dropped with an alarm of this code.
            Unreachable, Refused: the chain cannot be read; the message comes again.
        """

    async def on_lost(self, origin: Origin, message_id: str, code: str) -> None:
        """Hear that our own message was not and never will be taken by the other side."""

    def add_methods(self, service: LocalService) -> None:
        """Add what this half offers to its business end."""


class Gateway:
    """What both parts have in common."""

    def __init__(
        self,
        settings: GatewaySettings,
        store: Store,
        chain: ChainReader,
        owner: OwnerLink,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        first_position: int = 0,
    ) -> None:
        self.settings = settings
        self.organisation = settings.organisation
        self.chain_id = settings.genesis.chain_id()
        self.business = settings.business.key
        self.store = GatewayStore(store, first=first_position)
        self.chain = chain
        self.owner = owner
        self.now_ms = now_ms
        self.node = ""
        """Name of the node, once it has answered."""

    def alarm(self, changes: Changes, code: str, channel: str, about: str) -> None:
        """Remember and log something that ought not to happen; ``about`` never holds payload."""
        log.error("alarm", code=code, channel=channel, about=about)
        changes.alarms.append(Alarm(self.now_ms(), code, channel, about))

    def post(self, changes: Changes, bank: str, issuer: str, message_id: str, message: Message) -> None:
        """Have a small message sent."""
        changes.postings.append(Posting(bank, issuer, message_id, message_codec.encode(message), b""))

    def post_kept(self, changes: Changes, bank: str, issuer: str, message_id: str, key: bytes) -> None:
        """Have a kept message sent: ``p ROOT`` or ``a ROOT ROUND OUTCOME``."""
        changes.postings.append(Posting(bank, issuer, message_id, b"", key))

    async def check_signed(self, origin: Origin, check: Callable[[bytes], None], *, is_bank_key: bool) -> None:
        """Check something with the business keys of one side of a channel: those known, then those that count now.

        Raises:
            PeerError: what ``check`` raises for each of them, or ``unknown_channel``.
        """
        error = PeerError("unknown_channel", f"the chain has no channel {origin.channel}")
        for is_newest in (False, True):
            signers = await self.chain.signers(origin.bank, origin.issuer, is_newest=is_newest)
            if signers is None:
                continue
            for key in signers.bank_keys if is_bank_key else signers.issuer_keys:
                try:
                    await trio.to_thread.run_sync(check, key)
                except PeerError as caught:
                    if caught.code != "bad_signature":
                        raise
                    error = caught
                else:
                    return
        raise error

    # -- in --------------------------------------------------------------------------------------------

    async def receive_forever(self, sales: Part, issuer: Part) -> None:
        """Take what comes from the node, for ever."""
        while True:
            items = await patiently(
                "node", lambda: self.owner.receive(0, wait_ms=RECEIVE_WAIT_MS, limit=RECEIVE_ITEMS_MAX)
            )
            for item in items:
                origin = self._origin(item)
                await self._take(item, origin, sales if origin.is_bank else issuer)
            if items:
                await patiently("node", partial(self._done, items[-1].position))

    async def _done(self, position: int) -> None:
        try:
            await self.owner.done(position)
        except Refused as error:
            if error.code != "position_ahead":  # the node's store was replaced: it has nothing to forget
                raise

    def _origin(self, item: OwnerItem) -> Origin:
        bank, _, issuer = item.channel.partition("/")
        return Origin(bank, issuer, item.epoch, item.number, is_bank=bank == self.organisation)

    async def _take(self, item: OwnerItem, origin: Origin, part: Part) -> None:
        try:
            if item.code:
                await patiently("chain", lambda: part.on_lost(origin, item.id, item.code))
                return
            message = message_codec.decode_untrusted(item.payload)
            await patiently("chain", lambda: part.on_message(origin, message))
        except PeerError as error:
            changes = Changes()
            # Its words may quote what the message holds.
            self.alarm(changes, error.code, origin.channel, f"message {origin.epoch}-{origin.number}")
            await self.store.commit(changes)

    # -- out -------------------------------------------------------------------------------------------

    async def post_forever(self, sales: Part, issuer: Part) -> None:
        """Bring to the node what is to be sent, in its order on each channel, for ever."""
        pause_ms = PAUSE_FIRST_MS
        while True:
            newest = self.store.postings.last
            if await self._post_all(sales, issuer):
                pause_ms = PAUSE_FIRST_MS
                await self.store.postings.wait(newest, RECEIVE_WAIT_MS)
            else:
                await trio.sleep(pause_ms / 1000)
                pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)

    async def _post_all(self, sales: Part, issuer: Part) -> bool:
        """Return whether nothing is left; a channel that takes nothing now keeps no other one waiting."""
        after, full, is_all = 0, set[str](), True
        while page := self.store.postings_after(after, POSTINGS_PAGE):
            taken: list[int] = []
            for place, posting in page:
                channel = f"{posting.bank}/{posting.issuer}"
                if channel in full:
                    continue
                try:
                    await self.owner.send(channel, posting.id, self.store.payload(posting))
                except Unreachable as error:
                    log.warning("node in trouble", code=error.code)
                    await self.store.posted(taken)
                    return False
                except Refused as error:
                    is_bank = posting.bank == self.organisation
                    origin = Origin(posting.bank, posting.issuer, 0, 0, is_bank=is_bank)
                    if not await self._is_final(origin, error.code):
                        full.add(channel)
                        is_all = False
                        continue
                    await (sales if is_bank else issuer).on_lost(origin, posting.id, error.code)
                taken.append(place)
            await self.store.posted(taken)
            after = page[-1][0]
        return is_all

    async def _is_final(self, origin: Origin, code: str) -> bool:
        """Tell whether the node will never take a message; a channel just opened may be news to its private part."""
        if code in {"too_large", "bad_id", "invalid_params"}:
            return True
        if code not in {"unknown_channel", "channel_closed", "channel_revoked"}:
            return False
        try:
            channel = await self.chain.channel(*origin.parties)
        except (Unreachable, Refused):
            return False
        return channel is None or channel.status != "OPEN" or channel.expires_ms <= self.now_ms()

    async def check_node(self) -> None:
        """Make sure, once the node answers, that it is the organisation's and on this chain.

        Raises:
            LocalError: ``wrong_node``.
        """
        status = await patiently("node", self.owner.status)
        if (status.organisation, status.chain_id) != (self.organisation, hex_of(self.chain_id)):
            message = f"{self.settings.owner} is a node of {status.organisation} on chain {status.chain_id}"
            raise LocalError("wrong_node", message)
        self.node = status.node


async def patiently(whom: str, ask: Callable[[], Awaitable[T]]) -> T:
    """Return what is answered, however long node or chain are away."""
    pause_ms, trouble = PAUSE_FIRST_MS, ""
    while True:
        try:
            return await ask()
        except (Unreachable, Refused) as error:
            if error.code != trouble:
                log.warning(f"{whom} in trouble", code=error.code)
            trouble = error.code
        await trio.sleep(pause_ms / 1000)
        pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)


async def run(settings: GatewaySettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        LocalError: it cannot start: ``already_running``, ``store_locked``, ``no_nodes``, ``wrong_node``, ….
        StorageError: the disk failed.
    """
    configure_logs(settings.log_level)
    # What is loaded by now stays for ever: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    with single_errors():
        async with stop_signals() as stopping, open_vault(settings.data, settings.key_file) as vault:
            # A store that was made anew, or an older one that was put back, counts on above what the ends have seen.
            await serve(settings, vault, stopping, first_position=time.time_ns() // 1_000_000)
    log.info("stopped")


async def serve(
    settings: GatewaySettings,
    store: Store,
    stopping: trio.Event,
    *,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    first_position: int = 0,
    task_status: trio.TaskStatus[Gateway] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``stopping`` is set; errors as for :func:`run`.

    News and packages that come from now on have positions above ``first_position``.
    """
    with single_errors():
        async with (
            open_client(settings.genesis, settings.nodes, now_ms=now_ms) as client,
            OwnerLink(settings.owner) as owner,
            trio.open_nursery() as background,
        ):
            gateway = Gateway(settings, store, ChainReader(client), owner, now_ms=now_ms, first_position=first_position)
            service, ending = LocalService(), Ending(stopping)
            background.start_soon(ending.follow)
            for loop in _loops(gateway, client, service):
                background.start_soon(ending.guard, loop)
            async with trio.open_nursery() as front:
                with ready_file(settings.run):
                    await front.start(serve_local, settings.socket, service, ending.event)
                    log.info("ready", organisation=settings.organisation)
                    task_status.started(gateway)
                    await ending.event.wait()
            background.cancel_scope.cancel()
        ending.check()


class Ending:
    """When a program ends: when it is told to, or when a loop fails for good; its socket closes in order first."""

    def __init__(self, stopping: trio.Event) -> None:
        self.event = trio.Event()
        self._stopping = stopping
        self._failure: HansaError | None = None

    async def follow(self) -> None:
        """End when the program is told to."""
        await self._stopping.wait()
        self.event.set()

    async def guard(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop; end when it fails."""
        try:
            await loop()
        except HansaError as error:
            self._failure = self._failure or error
            self.event.set()

    def check(self) -> None:
        """Raise what a loop has failed with."""
        if self._failure is not None:
            raise self._failure


def _loops(gateway: Gateway, client: Client, service: LocalService) -> list[Callable[[], Awaitable[None]]]:
    """Make both parts, add their methods, and return what runs beside the socket."""
    # The parts know the gateway, so they are known here and not above.
    from services.agency.anchoring import Anchoring
    from services.agency.desk import Desk
    from services.agency.issuer_node import IssuerNode
    from services.agency.sales_node import SalesNode

    anchoring = Anchoring(gateway, client)
    sales, issuer = SalesNode(gateway), IssuerNode(gateway)
    for part in (sales, issuer, Desk(gateway, client, anchoring, sales, issuer)):
        part.add_methods(service)
    return [
        gateway.check_node,
        partial(gateway.receive_forever, sales, issuer),
        partial(gateway.post_forever, sales, issuer),
        sales.ask_forever,
        anchoring.run,
    ]
