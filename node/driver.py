"""The driver: one task that steps the consensus engine and does in order what it asks for.

It is the only writer of chain and store. Events come in through one bounded channel; the engine's
effects are executed one after the other, so what must be durable before it is sent is durable before it
is sent. Synced writes hop to a worker thread, everything else runs here.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

import structlog
import trio

from consensus.ledger.block import (
    BLOCK_BYTES_MAX,
    BLOCK_TRANSACTIONS_MAX,
    Block,
    check_certified_untrusted,
    decode_block_untrusted,
)
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.transaction import Transaction
from consensus.ledger.validators import Certificate, certificate_codec
from consensus.pbft.engine import Engine
from consensus.pbft.events import (
    CLOCK_CODE,
    Advanced,
    Broadcast,
    CatchUp,
    Decide,
    Effect,
    Event,
    Evidence,
    Penalise,
    Persist,
    Propose,
    Proposed,
    Received,
    Send,
    Tick,
    Validate,
    Validated,
    ViewEntered,
    Work,
)
from consensus.pbft.messages import decode_message_untrusted, encode_message
from node import sync
from node.chain import Candidate, Chain
from node.clock import Clock, is_timely
from node.divergence import Divergence, compare
from node.mempool import Mempool
from node.results import Inquiry
from node.shares import InboxShares, Ticket
from node.stages import Stage
from node.storage import layout
from node.storage.store import Store, Write
from node.sync import FinalBlock
from node.votes import VoteBook
from p2p.frames import FrameKind
from p2p.network import Network

INBOX_EVENTS_MAX = 4_096
BLOCK_CALLS_MAX = 4_000
EXECUTION_MS = 100
MEASURED_CALLS_MIN = 64
EVIDENCE_MAX = 100

log = structlog.get_logger("driver")


@dataclass(frozen=True, slots=True)
class Commit:
    """A block that has just become final on this node."""

    candidate: Candidate
    certificate: Certificate


@dataclass(slots=True)
class BlockBudget:
    """How many calls an own block takes, so that executing it lasts about ``EXECUTION_MS`` on this machine.

    All replicas execute a block one after the other with its proposer; one that took as long as the
    view's time-out would change views although everyone is honest. Purely local: it bounds what this node
    proposes, not what it accepts.
    """

    calls_max: int = 1_000

    def measured(self, *, calls: int, took_ms: int) -> None:
        """Learn from a block that was large enough to tell."""
        if calls >= MEASURED_CALLS_MIN:
            fitting = EXECUTION_MS * calls // max(took_ms, 1)
            self.calls_max = min(max((self.calls_max + fitting) // 2, MEASURED_CALLS_MIN), BLOCK_CALLS_MAX)


@dataclass(frozen=True, slots=True)
class _Message:
    """A peer's message with what it counts against the peer's share of the inbox."""

    event: Received
    ticket: Ticket


@dataclass(slots=True)
class _Delivery:
    """A final block from a peer, and the event that says it was dealt with."""

    peer: NodeName
    item: FinalBlock
    done: trio.Event = field(default_factory=trio.Event)
    holds: bool = False


class _LookAtPool:
    """The pool may hold ready transactions now, or none any more.

    What it holds is read when this is handled: an answer given earlier could be older than a commit.
    """


_Item: TypeAlias = _Message | _Delivery | _LookAtPool | Tick
"""What waits in the driver's inbox."""


class Driver:
    """Owns engine, chain and mempool of a running node."""

    def __init__(
        self,
        *,
        name: NodeName,
        chain: Chain,
        store: Store,
        mempool: Mempool,
        engine: Engine,
        network: Network,
        clock: Clock,
        tick_ms: int = 25,
    ) -> None:
        self._name = name
        self.chain = chain
        self.mempool = mempool
        self.engine = engine
        self._store = store
        self._stages = chain.stages
        self._network = network
        self._clock = clock
        self._tick_ms = tick_ms
        self._budget = BlockBudget()
        self._inbox_in, self._inbox_out = trio.open_memory_channel[_Item](INBOX_EVENTS_MAX)
        self._shares = InboxShares()
        self._validators = frozenset(chain.head.validators.names)
        self._taken = trio.Event()
        self._sync_server = sync.Server(store)
        self._catch_up = sync.CatchUp(network, self._deliver)
        self._inquiry = Inquiry(network)
        self._catch_up.advanced(chain.head.header.height)
        self._work = Work(waiting=False)
        self._is_to_look = False
        self._postponed: Propose | None = None
        """A question for a block that waits until nothing is left to catch up with."""
        self._own: tuple[int, int, tuple[Transaction, ...]] | None = None
        """The newest own proposal: height, view, transactions."""
        self._on_commit: list[Callable[[Commit], None]] = []
        self._on_view: list[Callable[[], None]] = []
        self.evidence: deque[Evidence] = deque(maxlen=EVIDENCE_MAX)
        self.votes = VoteBook(name, chain.head.header.height, chain.head.validators.names)
        self.view_changes = 0

    # -- what comes in ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Step the engine until cancelled.

        Raises:
            StorageError: the disk failed; nothing was sent that depends on the failed write.
            InvariantError: a certified block gives another result here; the node must not go on.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            nursery.start_soon(self._catch_up.run)
            task_status.started()
            async for item in self._inbox_out:
                await self._take(item)

    async def _take(self, item: _Item) -> None:
        match item:
            case _Message(event, ticket):
                self._let_in(ticket)
                self.votes.said(event.sender, event.message, now_ms=self._clock.monotonic_ms())
                await self._step(event)
            case _Delivery():
                await self._take_final(item)
            case _LookAtPool():
                self._is_to_look = False
                work = self._current_work()
                if work != self._work:
                    self._work = work
                    await self._step(work)
            case Tick():
                await self._step(item)
                if self._postponed is not None and not self._catch_up.holds_back:
                    postponed, self._postponed = self._postponed, None
                    for answer in await self._execute(postponed):
                        await self._step(answer)
            case _:
                assert_never(item)

    async def receive_untrusted(self, peer: NodeName, payload: bytes) -> None:
        """Take a consensus message from a peer, waiting while the peer's share of the inbox is full.

        Raises:
            PeerError: what decoding says.
        """
        event = Received(peer, decode_message_untrusted(payload))
        while (ticket := self._take_share(peer, len(payload))) is None:
            await self._taken.wait()
        try:
            await self._inbox_in.send(_Message(event, ticket))
        except trio.Cancelled:
            self._let_in(ticket)
            raise

    def _take_share(self, peer: NodeName, payload_bytes: int) -> Ticket | None:
        return self._shares.take(peer, payload_bytes, is_observer=peer not in self._validators)

    def _let_in(self, ticket: Ticket) -> None:
        """Give a peer back its share of the inbox."""
        self._shares.give_back(ticket)
        self._taken.set()
        self._taken = trio.Event()

    async def answer_request_untrusted(self, peer: NodeName, payload: bytes) -> bytes:
        """Return the final blocks that a peer asks for.

        Raises:
            PeerError: ``malformed`` or ``too_large``.
        """
        return await self._sync_server.answer_untrusted(peer, payload)

    async def answer_results_untrusted(self, peer: NodeName, payload: bytes) -> bytes:
        """Return the results of a block to a peer that got others.

        Raises:
            PeerError: ``malformed`` or ``too_large``.
        """
        return await self._sync_server.answer_results_untrusted(peer, payload)

    def take_results(self, peer: NodeName, payload: bytes) -> None:
        """Take a peer's answer to our question for the results of a block."""
        self._inquiry.answered(peer, payload)

    def take_response_untrusted(self, peer: NodeName, payload: bytes) -> None:
        """Take a peer's answer to our own request for blocks.

        Raises:
            PeerError: ``malformed`` or ``too_large``.
        """
        self._catch_up.answered_untrusted(peer, payload)

    def on_commit(self, listener: Callable[["Commit"], None]) -> None:
        """Call a function for every block, right after it is durable; it must not block or raise."""
        self._on_commit.append(listener)

    def on_view(self, listener: Callable[[], None]) -> None:
        """Call a function whenever the engine enters a view; it must not block or raise."""
        self._on_view.append(listener)

    def work_changed(self) -> None:
        """Tell the engine when the mempool begins or ceases to hold ready or overdue transactions."""
        if self._is_to_look or self._current_work() == self._work:
            return
        try:
            self._inbox_in.send_nowait(_LookAtPool())
        except trio.WouldBlock:
            return  # The next tick tells it.
        self._is_to_look = True

    def _current_work(self) -> Work:
        overdue = self.mempool.is_overdue(now_ms=self._clock.monotonic_ms())
        return Work(waiting=self.mempool.is_waiting, overdue=overdue)

    async def _tick(self) -> None:
        while True:
            await self._inbox_in.send(Tick(self._clock.monotonic_ms()))
            self.work_changed()
            await trio.sleep(self._tick_ms / 1_000)

    @property
    def certified_height(self) -> int:
        """The highest block that a certificate has been seen for; above the head while catching up."""
        return max(self._catch_up.target_height, self.chain.head.header.height)

    # -- what the engine asks for ----------------------------------------------------------------------

    async def _step(self, first: Event) -> None:
        """Step the engine with an event and with all that follows from it at once."""
        events: deque[Event] = deque([first])
        while events:
            for effect in self.engine.step(events.popleft()):
                events.extend(await self._execute(effect))

    async def _execute(self, effect: Effect) -> Sequence[Event]:
        """Do what one effect asks for and return the events that answer it."""
        match effect:
            case Persist(records):
                await self._write([(layout.VOTE + key, value) for key, value in records])
            case Send(to, message):
                self._network.send(to, FrameKind.CONSENSUS, encode_message(message))
            case Broadcast(message):
                self.votes.said(self._name, message, now_ms=self._clock.monotonic_ms())
                self._network.broadcast(FrameKind.CONSENSUS, encode_message(message))
            case Propose():
                # The engine may still be at a height that catch-up has just finished; ``Advanced`` is on its way.
                if effect.parent == self.chain.head.hash:
                    if not self._catch_up.holds_back:
                        return [self._propose(effect)]
                    self._postponed = effect
            case Validate(block, first_seen):
                if block.height > self.chain.head.header.height:
                    return [self._validate(block, first_seen=first_seen)]
            case Decide(block, certificate):
                return await self._commit(block, certificate, connected=self._network.connected)
            case CatchUp(certificate, source):
                self._catch_up.want(certificate.height, source)
            case Penalise(peer, code):
                self._network.penalise(peer, code)
            case Evidence():
                self._keep_evidence(effect)
            case ViewEntered(height, view, primary, opened):
                # View 0 is the ordinary course of things: a line for each block would drown the rest.
                tell = log.info if view > 0 else log.debug
                tell("view entered", height=height, view=view, primary=primary, opened=opened)
                self.view_changes += view > 0 and not opened
                self._note_refusal(height, view)
                for notice in self._on_view:
                    notice()
            case _:
                assert_never(effect)
        return ()

    def _propose(self, effect: Propose) -> Proposed:
        time_ms = max(self._clock.wall_ms(), self.chain.head.header.time_ms + 1)
        with self._stages.timed(Stage.PROPOSE):
            selected = self.mempool.select(
                count_max=BLOCK_TRANSACTIONS_MAX,
                bytes_max=BLOCK_BYTES_MAX,
                calls_max=self._budget.calls_max,
                time_ms=time_ms,
            )
        begin_ms = self._clock.monotonic_ms()
        candidate, refused = self.chain.build(self._name, time_ms, selected)
        self._budget.measured(
            calls=sum(len(transaction.body.calls) for transaction in selected),
            took_ms=self._clock.monotonic_ms() - begin_ms,
        )
        for transaction, error in refused:
            # It was admissible when it came; a block since, a rotated key say, has changed that.
            if error.code != "lane_gap":
                log.info("transaction dropped", transaction=transaction.id.hex(), code=error.code)
                self.mempool.remove(transaction, code=error.code)
        self._own = (effect.height, effect.view, candidate.transactions)
        return Proposed(effect.height, effect.view, candidate.block)

    def _note_refusal(self, height: int, view: int) -> None:
        """Tell the pool when the view ended in which this node made a proposal."""
        if self._own is not None and self._own[0] == height and view > self._own[1]:
            self.mempool.refused(self._own[2])
            self._own = None

    def _validate(self, block: Block, *, first_seen: bool) -> Validated:
        parent_ms, wall_ms = self.chain.head.header.time_ms, self._clock.wall_ms()
        if first_seen and not is_timely(block.header.time_ms, parent_ms=parent_ms, wall_ms=wall_ms):
            return Validated(block.hash, False, CLOCK_CODE)
        try:
            self.chain.check_untrusted(block)
        except PeerError as error:
            log.warning("proposal refused", height=block.height, code=error.code, why=error.message)
            return Validated(block.hash, False, error.code)
        return Validated(block.hash, True, "")

    def _keep_evidence(self, evidence: Evidence) -> None:
        self.evidence.append(evidence)
        log.warning(
            "evidence",
            kind=evidence.kind,
            signer=evidence.signer,
            height=evidence.height,
            view=evidence.view,
            code=evidence.code,
        )

    # -- committing ------------------------------------------------------------------------------------

    async def _commit(
        self, block: Block, certificate: Certificate, *, connected: Callable[[], Collection[NodeName]] | None = None
    ) -> Sequence[Event]:
        """Make a decided block final: disk first, then memory, then everyone who waits for it."""
        if block.height <= self.chain.head.header.height:
            return ()
        candidate = await self._certified(block)
        with self._stages.timed(Stage.RECORDS):
            batch = self.chain.commit_batch(candidate, certificate)
        await self._write(batch)
        with self._stages.timed(Stage.ADOPT):
            head = self.chain.adopt(candidate, certificate)
        self._validators = frozenset(head.validators.names)
        self._catch_up.advanced(head.header.height)
        self.votes.final(head.header.height, head.validators.names, connected)
        with self._stages.timed(Stage.POOL):
            self.mempool.committed(candidate.transactions)
            self.mempool.accounts_changed(candidate.execution.writes, self.chain.state)
            self.mempool.expire(head.header.time_ms)
            for listener in self._on_commit:
                listener(Commit(candidate, certificate))
        self._work = self._current_work()
        return [self._work, Advanced(head)]

    async def _certified(self, block: Block) -> Candidate:
        """Return the result of a certified block; that it must hold here too is what a chain is."""
        try:
            return self.chain.check_untrusted(block)
        except PeerError as error:
            log.error("a certified block does not hold here", height=block.height, why=error.message)
            certified = await self._inquiry.ask(block.header)
            raise Divergence(block, error, compare(self.chain, block, error, certified)) from error

    async def _write(self, batch: Sequence[Write]) -> None:
        await trio.to_thread.run_sync(self._write_now, batch)

    def _write_now(self, batch: Sequence[Write]) -> None:
        with self._stages.timed(Stage.WRITE):
            self._store.write(batch)

    # -- catching up -----------------------------------------------------------------------------------

    async def _deliver(self, peer: NodeName, item: FinalBlock) -> bool:
        """Hand a final block to the driver's own task and wait until it has dealt with it."""
        delivery = _Delivery(peer, item)
        await self._inbox_in.send(delivery)
        await delivery.done.wait()
        return delivery.holds

    async def _take_final(self, delivery: _Delivery) -> None:
        """Commit a block that a peer says is final; once that is proven, another result here is our own trouble."""
        try:
            block = decode_block_untrusted(delivery.item.block)
            certificate = certificate_codec.decode_untrusted(delivery.item.certificate)
            next_height = self.chain.head.header.height + 1
            if block.height == next_height:
                check_certified_untrusted(block.header, certificate, self.chain.head.validators)
                # The certificate speaks of the header; whose transactions do not fit it has made them up.
                self.chain.check_body_untrusted(block)
        except PeerError as error:
            log.warning("bad sync answer", peer=delivery.peer, code=error.code, why=error.message)
            self._network.penalise(delivery.peer, error.code)
        else:
            delivery.holds = block.height <= next_height
            if block.height == next_height:
                for event in await self._commit(block, certificate):
                    await self._step(event)
        delivery.done.set()
