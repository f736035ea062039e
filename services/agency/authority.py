"""The permission desk: opens the channels that signed agreements ask for, and enacts terms that both sides signed.

It keeps nothing: what waits stands on the chain, and is read again after every change there. So it may be killed at
any point, and while it is down joins wait and trade goes on. It sees no order: it has no node's owner socket, and
neither channel key nor business key.

Policy: who is named in ``refuse`` gets a refusal, everyone else whose agreement the chain has taken gets the channels;
a manual desk leaves applications to people (``hansa channel decide``). Terms with both signatures are always enacted.
What the contract does not take is tried again, later each time; an application that it never will take is refused.
"""

import gc
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog
import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.receipt import OK
from consensus.ledger.transaction import Call, make_call
from services.client.answers import ChainStatus
from services.client.client import Client, open_client
from services.client.errors import Refused, Unreachable
from services.client.events import Events
from services.client.keystore import Signer
from services.client.submission import Submitter
from services.client.tasks import single_errors
from services.messages.logs import configure_logs, ready_file, stop_signals

LANE = b"permission-desk"
OPEN = "open_channels"
CALLS_MAX = 64
"""How many decisions one transaction carries."""
PAGE = 100
LOOK_MS = 5_000
"""How often it looks without being told of a change: block time alone can make an agreement begin."""
RETRY_FIRST_MS = 5_000
RETRY_MAX_MS = 600_000

_HOPELESS = frozenset({"agreement_expired", "channel_revoked"})
"""Why an application's channels cannot be opened, now or later."""

_WAKING = frozenset({"application_made", "terms_accepted", "party_registered"})

T = TypeVar("T")

log = structlog.get_logger("authority")


@dataclass(frozen=True, slots=True)
class AuthoritySettings:
    """What a permission desk runs with.

    Args:
        run: folder of the file that says ready.
        genesis: of the chain.
        nodes: RPC roots of nodes.
        account: signs its decisions; has the role ``permission``.
        refuse: organisations whose applications, and those that name them, are refused.
        is_manual: leaves all applications to people.
        log_level: debug, info, warning or error.
    """

    run: Path
    genesis: Genesis
    nodes: tuple[str, ...]
    account: Signer
    refuse: frozenset[str] = frozenset()
    is_manual: bool = False
    log_level: str = "info"


class Application(msgspec.Struct, frozen=True, rename="camel"):
    """An application that waits; ``application`` is its id."""

    application: bytes
    bank: str
    issuers: list[str]
    number: str

    @property
    def place(self) -> str:
        """Where it stands in the listing."""
        return f"{self.bank}/{self.application.hex()}"


class Proposal(msgspec.Struct, frozen=True, rename="camel"):
    """A proposal of terms; ``proposal`` is its id, ``status`` ACCEPTED once both have signed."""

    proposal: bytes
    status: str
    bank: str
    issuer: str
    subject: str
    version: int

    @property
    def place(self) -> str:
        """Where it stands in the listing."""
        return self.proposal.hex()


@dataclass(frozen=True, slots=True)
class _Retry:
    """When what the chain did not take is tried again, by trio's clock, and how long that was put off."""

    at: float
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What the desk does about an application or a proposal, and what its log says of it."""

    about: bytes
    call: Call
    facts: dict[str, object]


class Desk:
    """One look at what waits, one transaction with what is decided, and again."""

    def __init__(self, settings: AuthoritySettings, client: Client, now_ms: Callable[[], int]) -> None:
        self._settings = settings
        self._client = client
        lanes = client.lanes(settings.account, prefix=LANE)
        self._submitter = Submitter(client, settings.account, lanes, now_ms=now_ms)
        self._changed = trio.Event()
        self._retries: dict[bytes, _Retry] = {}
        self._hopeless: dict[bytes, str] = {}

    async def run(self) -> None:
        """Decide whatever comes, for ever."""
        with single_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                while True:
                    self._changed = trio.Event()
                    await self._look()
                    with trio.move_on_after(LOOK_MS / 1000):
                        await self._changed.wait()

    async def _listen(self) -> None:
        while True:
            try:
                async for event in Events(self._client, contract="cooperation", from_height=await self._height()):
                    if event.name in _WAKING:
                        self._changed.set()
            except (Unreachable, Refused, PeerError) as error:  # what is missed meanwhile stands in the listings
                log.warning("cannot listen", code=error.code, why=error.message)
                await self._client.pause()

    async def _height(self) -> int:
        """Return how high the chain is, as soon as a node says it; what came before stands in the listings."""
        while True:
            try:
                return (await self._client.request("chain_status", {}, ChainStatus)).height
            except (Unreachable, Refused, PeerError):
                await self._client.pause()

    async def _look(self) -> None:
        """Decide all that waits now; what cannot be read waits for the next look."""
        try:
            decisions = [] if self._settings.is_manual else await self._applications()
            decisions += await self._terms()
        except (Unreachable, Refused, PeerError) as error:
            log.warning("cannot look", code=error.code, why=error.message)
            return
        waiting = {item.about for item in decisions}
        self._retries = {about: retry for about, retry in self._retries.items() if about in waiting}
        self._hopeless = {about: code for about, code in self._hopeless.items() if about in waiting}
        now = trio.current_time()
        due = [item for item in decisions if item.about not in self._retries or self._retries[item.about].at <= now]
        for start in range(0, len(due), CALLS_MAX):
            await self._submit(due[start : start + CALLS_MAX])

    async def _applications(self) -> list[Decision]:
        found: list[Application] = []
        while page := await self._page("pending", found[-1].place if found else "", Application):
            found += page
        return [decide(item, self._settings.refuse, self._hopeless.get(item.application, "")) for item in found]

    async def _terms(self) -> list[Decision]:
        found: list[Proposal] = []
        while page := await self._page("proposals", found[-1].place if found else "", Proposal):
            found += page
        return [enact(item) for item in found if item.status == "ACCEPTED"]

    async def _page(self, method: str, after: str, kind: type[T]) -> list[T]:
        """Return what stands after a place; no key has a sign below ``-``."""
        arguments: dict[str, Value] = {"start": f"{after}!" if after else "", "limit": PAGE}
        answer = await self._client.query("cooperation", method, arguments)
        try:
            return msgspec.convert(answer, list[kind])  # type: ignore[valid-type]
        except msgspec.ValidationError as error:
            raise PeerError("bad_answer", f"cooperation.{method}: {error}") from None

    async def _submit(self, decisions: Sequence[Decision]) -> None:
        outcome = await self._submitter.submit([item.call for item in decisions])
        for item, receipt in zip(decisions, outcome.receipts, strict=True):
            if receipt.status == OK:
                self._retries.pop(item.about, None)
                log.info(item.call.method, height=outcome.height, **item.facts)
                continue
            if receipt.code in _HOPELESS and item.call.method == OPEN:
                self._hopeless[item.about] = receipt.code
                self._changed.set()
                continue
            # The chain says why; most often it is too early, or somebody else was faster.
            wait_ms = RETRY_FIRST_MS
            if (before := self._retries.get(item.about)) is not None:
                wait_ms = min(2 * before.wait_ms, RETRY_MAX_MS)
            self._retries[item.about] = _Retry(trio.current_time() + wait_ms / 1000, wait_ms)
            log.warning(f"{item.call.method} failed", code=receipt.code, again_in_ms=wait_ms, **item.facts)


def decide(application: Application, refuse: Collection[str], hopeless: str = "") -> Decision:
    """Return what the policy says of an application that waits; ``hopeless``: why the chain will never open it."""
    facts: dict[str, object] = {"number": application.number, "bank": application.bank, "issuers": application.issuers}
    refused = [name for name in (application.bank, *application.issuers) if name in refuse]
    if hopeless:
        call = refuse_call(application.application, f"the channels cannot be opened: {hopeless}")
    elif refused:
        call = refuse_call(application.application, f"the permission desk opens no channel to {refused[0]}")
    else:
        call = open_call(application.application)
    return Decision(application.application, call, facts)


def enact(proposal: Proposal) -> Decision:
    """Return what is done about terms that both have signed."""
    facts: dict[str, object] = {"bank": proposal.bank, "issuer": proposal.issuer, "subject": proposal.subject}
    call = make_call("cooperation", "enact_terms", {"proposal": proposal.proposal})
    return Decision(proposal.proposal, call, facts | {"version": proposal.version})


def open_call(application: bytes) -> Call:
    """Return the call that opens the channels of an application."""
    return make_call("cooperation", OPEN, {"application": application})


def refuse_call(application: bytes, reason: str) -> Call:
    """Return the call that refuses an application, with a reason for people."""
    return make_call("cooperation", "refuse_application", {"application": application, "reason": reason})


async def run(settings: AuthoritySettings) -> None:
    """Decide until SIGTERM or SIGINT.

    Raises:
        LocalError: it cannot start: ``already_running``, ``no_nodes``.
    """
    configure_logs(settings.log_level)
    gc.collect()
    gc.freeze()
    with single_errors():
        async with stop_signals() as stopping:
            await serve(settings, stopping)
    log.info("stopped")


async def serve(
    settings: AuthoritySettings,
    stopping: trio.Event,
    *,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Decide until ``stopping`` is set; what is under way then may still become final. Errors as for :func:`run`."""
    with single_errors():
        async with (
            open_client(settings.genesis, settings.nodes, now_ms=now_ms) as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(Desk(settings, client, now_ms).run)
            with ready_file(settings.run):
                log.info("ready", account=settings.account.name, manual=settings.is_manual)
                task_status.started()
                await stopping.wait()
            nursery.cancel_scope.cancel()
