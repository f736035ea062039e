"""One life of a node's program: what ``node/driver.py``, ``node/intake.py`` and ``node/sync.py`` do, without trio.

The driver's task is a generator that yields each synced write and goes on once that is durable, so the host
decides how long the disk takes and whether the machine still lives afterwards. Keep it in step with the real
driver: it is the one part of a node that the simulator does not run as it is.
"""

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, assert_never

from consensus.ledger.block import (
    BLOCK_BYTES_MAX,
    BLOCK_TRANSACTIONS_MAX,
    Block,
    check_certified_untrusted,
    decode_block_untrusted,
)
from consensus.ledger.codec import decode, encode
from consensus.ledger.errors import PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import NodeName
from consensus.ledger.transaction import Transaction
from consensus.ledger.validators import Certificate, certificate_codec
from consensus.pbft.certificates import check_commit_certificate_untrusted
from consensus.pbft.config import Config
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
from consensus.pbft.messages import Message
from consensus.pbft.roster import Roster
from consensus.pbft.signing import KeyVerifier
from contracts.runtime.execution import BlockContext, Executor
from node.chain import Candidate, Chain
from node.clock import is_timely
from node.divergence import Divergence
from node.driver import BLOCK_CALLS_MAX
from node.intake import REPEAT_AFTER_MS, REPEATED_MAX
from node.mempool import Mempool, PoolLimits
from node.program import NOT_VOTING
from node.shares import InboxShares, Ticket
from node.storage import layout
from node.storage.store import Write
from node.sync import HOLD_S, SLOW_SHARE, FinalBlock, SyncRequest, SyncResponse, request_codec, response_codec
from node.vote_log import open_log_beside
from p2p.frames import FrameKind
from tests.sim.disk import Disk, KeyFile

SYNC_TIMEOUT_MS = 3_000
PASSES_MAX = 4
OUTSIDE_MAX = 1_000
"""Messages that one connection holds before the sender's own queue is full and drops them."""


class Surroundings(Protocol):
    """What a process sees of its machine and of the network. All times in ms."""

    def wall_ms(self) -> int:
        """Return what this machine takes for UTC."""

    def monotonic_ms(self) -> int:
        """Return this machine's running time, drift and all."""

    def peers(self) -> Sequence[NodeName]:
        """Return all other nodes."""

    def send_message(self, to: NodeName, message: Message) -> None:
        """Send a consensus message."""

    def send_frame(self, to: NodeName, kind: FrameKind, payload: bytes) -> None:
        """Send anything else."""

    def enqueue(self, item: "Item") -> None:
        """Put something into the inbox."""

    def boundary(self) -> None:
        """Pass from one effect to the next: where a crash may hit."""

    def selected(self, transactions: list[Transaction]) -> list[Transaction]:
        """Return what the own proposal takes of what the pool offers: all of it, unless the machine lies."""

    def observe(self, effect: Evidence | Penalise | ViewEntered) -> None:
        """Take note of what the engine reports."""

    def committed(self, candidate: Candidate, certificate: Certificate) -> None:
        """Take note of a block that is durable and acknowledged."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A final block from a peer."""

    peer: NodeName
    item: FinalBlock


@dataclass(frozen=True, slots=True)
class Arrival:
    """A peer's message, and what it holds of the peer's share of the inbox."""

    event: Received
    ticket: Ticket


class LookAtPool:
    """What the pool holds is read when this is handled."""


Item: TypeAlias = Event | Delivery | Arrival | LookAtPool
Task: TypeAlias = Generator[Sequence[Write], None, None]


class Process:
    """Engine, chain and mempool of a running node."""

    def __init__(
        self,
        *,
        name: NodeName,
        disk: Disk,
        key_file: KeyFile,
        genesis: Genesis,
        executor: Executor,
        config: Config,
        around: Surroundings,
    ) -> None:
        self.name = name
        self.chain = Chain(disk, genesis, executor)
        self.mempool = Mempool(executor, self.chain.verifier, PoolLimits(passes_max=PASSES_MAX))
        self.may_vote, records = open_log_beside(disk, key_file, config.signer.public_key)
        if not self.may_vote:
            config = replace(config, name=NOT_VOTING)
        self.engine = Engine.restore(config, self.chain.head, records)
        self._verifier = config.verifier
        self._disk = disk
        self._around = around
        self._work = Work(waiting=False)
        self._is_to_look = False
        self._postponed: Propose | None = None
        self._repeated_ms = around.monotonic_ms()
        self.sync = Fetcher(around, self.chain.head.header.height)
        self._shares = InboxShares()
        self._outside: dict[NodeName, deque[tuple[Received, int]]] = {}
        """Messages, with their size, that wait in their sender's connection until the sender's share has room."""

    # -- the driver's task -----------------------------------------------------------------------------

    def handle(self, item: Item) -> Task:
        """Deal with one item of the inbox; yields what must be durable before it goes on."""
        match item:
            case Arrival(event, ticket):
                self._shares.give_back(ticket)
                self._let_in()
                yield from self._step(event)
            case Delivery():
                yield from self._take_final(item)
            case LookAtPool():
                self._is_to_look = False
                work = self._current_work()
                if work != self._work:
                    self._work = work
                    yield from self._step(work)
            case Tick():
                yield from self._step(item)
                if self._postponed is not None and not self.sync.holds_back:
                    postponed, self._postponed = self._postponed, None
                    for answer in (yield from self._execute(postponed)):
                        yield from self._step(answer)
            case _:
                yield from self._step(item)

    def receive(self, peer: NodeName, message: Message, payload_bytes: int) -> None:
        """Take a consensus message when the peer's share of the inbox has room for it."""
        waiting = self._outside.setdefault(peer, deque())
        if len(waiting) < OUTSIDE_MAX:
            waiting.append((Received(peer, message), payload_bytes))
            self._let_in()

    def _let_in(self) -> None:
        for peer in list(self._outside):
            waiting = self._outside[peer]
            is_observer = peer not in self.chain.head.validators.names
            while waiting:
                event, size = waiting[0]
                ticket = self._shares.take(peer, size, is_observer=is_observer)
                if ticket is None:
                    break
                waiting.popleft()
                self._around.enqueue(Arrival(event, ticket))
            else:
                del self._outside[peer]

    def _step(self, first: Event) -> Task:
        events: deque[Event] = deque([first])
        while events:
            for effect in self.engine.step(events.popleft()):
                self._around.boundary()
                events.extend((yield from self._execute(effect)))

    def _execute(self, effect: Effect) -> Generator[Sequence[Write], None, Sequence[Event]]:
        match effect:
            case Persist(records):
                yield [(layout.VOTE + key, value) for key, value in records]
            case Send(to, message):
                self._around.send_message(to, message)
            case Broadcast(message):
                for peer in self._around.peers():
                    self._around.send_message(peer, message)
            case Propose():
                if effect.parent == self.chain.head.hash:
                    if not self.sync.holds_back:
                        return [self._propose(effect)]
                    self._postponed = effect
            case Validate(block, first_seen):
                if block.height > self.chain.head.header.height:
                    return [self._validate(block, first_seen=first_seen)]
            case Decide(block, certificate):
                return (yield from self._commit(block, certificate))
            case CatchUp(certificate, source):
                self.sync.want(certificate.height, source)
            case Penalise() | Evidence() | ViewEntered():
                self._around.observe(effect)
            case _:
                assert_never(effect)
        return ()

    def _propose(self, effect: Propose) -> Proposed:
        time_ms = max(self._around.wall_ms(), self.chain.head.header.time_ms + 1)
        selected = self.mempool.select(
            count_max=BLOCK_TRANSACTIONS_MAX, bytes_max=BLOCK_BYTES_MAX, calls_max=BLOCK_CALLS_MAX, time_ms=time_ms
        )
        candidate, refused = self.chain.build(self.name, time_ms, self._around.selected(selected))
        for transaction, error in refused:
            if error.code != "lane_gap":
                self.mempool.remove(transaction, code=error.code)
        return Proposed(effect.height, effect.view, candidate.block)

    def _validate(self, block: Block, *, first_seen: bool) -> Validated:
        parent_ms, wall_ms = self.chain.head.header.time_ms, self._around.wall_ms()
        if first_seen and not is_timely(block.header.time_ms, parent_ms=parent_ms, wall_ms=wall_ms):
            return Validated(block.hash, False, CLOCK_CODE)
        try:
            self.chain.check_untrusted(block)
        except PeerError as error:
            return Validated(block.hash, False, error.code)
        return Validated(block.hash, True, "")

    def _commit(self, block: Block, certificate: Certificate) -> Generator[Sequence[Write], None, Sequence[Event]]:
        if block.height <= self.chain.head.header.height:
            return ()
        try:
            candidate = self.chain.check_untrusted(block)
        except PeerError as error:
            raise Divergence(block, error) from error
        yield self.chain.commit_batch(candidate, certificate)
        head = self.chain.adopt(candidate, certificate)
        self.sync.advanced(head.header.height)
        self.mempool.committed(candidate.transactions)
        self.mempool.accounts_changed(candidate.execution.writes, self.chain.state)
        self.mempool.expire(head.header.time_ms)
        self._around.committed(candidate, certificate)
        self._work = self._current_work()
        return [self._work, Advanced(head)]

    def _take_final(self, delivery: Delivery) -> Task:
        holds = False
        try:
            block = decode_block_untrusted(delivery.item.block)
            certificate = certificate_codec.decode_untrusted(delivery.item.certificate)
            next_height = self.chain.head.header.height + 1
            if block.height == next_height:
                self._check_certified(block, certificate)
                self.chain.check_body_untrusted(block)
        except PeerError as error:
            self._around.observe(Penalise(delivery.peer, error.code))
        else:
            holds = block.height <= next_height
            if block.height == next_height:
                for event in (yield from self._commit(block, certificate)):
                    yield from self._step(event)
        self.sync.delivered(holds=holds)

    def _check_certified(self, block: Block, certificate: Certificate) -> None:
        """Do what ``check_certified_untrusted`` does, with whatever signatures this schedule uses."""
        validators = self.chain.head.validators
        if isinstance(self._verifier, KeyVerifier):
            check_certified_untrusted(block.header, certificate, validators)
            return
        if block.header.validators_hash != validators.hash():
            raise PeerError("bad_certificate", "the header names another validator set")
        if (certificate.height, certificate.block_hash) != (block.height, block.hash):
            raise PeerError("bad_certificate", "the certificate is of another block")
        check_commit_certificate_untrusted(certificate, Roster(validators, self._verifier))

    # -- clock and transactions ------------------------------------------------------------------------

    def tick(self) -> None:
        """Put into the inbox what the passing of time brings."""
        now_ms = self._around.monotonic_ms()
        if now_ms - self._repeated_ms >= REPEAT_AFTER_MS:
            self._repeated_ms = now_ms
            self._hand_on(self.mempool.waiting_since(now_ms - REPEAT_AFTER_MS, count_max=REPEATED_MAX))
        self.sync.tick(now_ms)
        self._around.enqueue(Tick(now_ms))
        self.work_changed()

    def work_changed(self) -> None:
        """Have the pool looked at when it holds something else than the engine knows."""
        if not self._is_to_look and self._current_work() != self._work:
            self._is_to_look = True
            self._around.enqueue(LookAtPool())

    def _current_work(self) -> Work:
        overdue = self.mempool.is_overdue(now_ms=self._around.monotonic_ms())
        return Work(waiting=self.mempool.is_waiting, overdue=overdue)

    def submit(self, raw: bytes) -> None:
        """Take a client's transaction and hand it on."""
        if self._admit(raw):
            self._hand_on([raw])
        self.work_changed()

    def receive_transactions(self, payload: bytes) -> None:
        """Take transactions that a peer hands on."""
        raws = decode(payload)
        for raw in raws if isinstance(raws, list) else []:
            if isinstance(raw, bytes):
                self._admit(raw)
        self.work_changed()

    def _admit(self, raw: bytes) -> bool:
        try:
            return (
                self.mempool.add_untrusted(
                    raw, self.chain.state, self._next_block(), now_ms=self._around.monotonic_ms()
                )
                is not None
            )
        except PeerError:
            return False

    def _next_block(self) -> BlockContext:
        return self.chain.next_block("", max(self._around.wall_ms(), self.chain.head.header.time_ms + 1))

    def _hand_on(self, raws: Sequence[bytes]) -> None:
        if raws:
            payload = encode(list(raws))
            validators = self.chain.head.validators.names
            for peer in self._around.peers():
                if peer in validators:
                    self._around.send_frame(peer, FrameKind.TRANSACTIONS, payload)


class Fetcher:
    """Catching up from one peer at a time; gives up when no peer was of use, until a certificate comes again."""

    def __init__(self, around: Surroundings, height: int) -> None:
        self._around = around
        self._height = height
        self._target_height = 0
        self._source: NodeName | None = None
        self._failures: dict[NodeName, int] = {}
        self._round: list[NodeName] = []
        self._round_height: int | None = None
        self._number = 0
        self._asked_ms: int | None = None
        self._asked_height = 0
        self._blocks: deque[FinalBlock] = deque()
        self._is_delivering = False
        self._is_slow = False
        self._moved_ms = 0

    @property
    def is_running(self) -> bool:
        """Whether a certificate names a height above ours."""
        return self._target_height > self._height

    @property
    def holds_back(self) -> bool:
        """Whether a proposal had better wait."""
        return self.is_running and self._around.monotonic_ms() - self._moved_ms < 1_000 * HOLD_S

    def want(self, height: int, source: NodeName) -> None:
        """Catch up to a certified height, asking first the peer that showed the certificate."""
        if height > self._target_height:
            if not self.is_running:
                self._moved_ms = self._around.monotonic_ms()
            self._target_height, self._source = height, source
        self._ask()

    def advanced(self, height: int) -> None:
        """Take note of the own height."""
        self._height = height

    def tick(self, now_ms: int) -> None:
        """Leave a peer that does not answer."""
        if self._asked_ms is not None and now_ms - self._asked_ms >= SYNC_TIMEOUT_MS:
            self._asked_ms, self._is_slow = None, True
            self._peer_done()

    def answered(self, peer: NodeName, payload: bytes) -> None:
        """Take the blocks of an answer that was asked for."""
        if self._asked_ms is None or peer != self._round[0]:
            return
        response: SyncResponse = response_codec.decode_untrusted(payload)
        if response.number == self._number:
            self._is_slow = self._around.monotonic_ms() - self._asked_ms > SLOW_SHARE * SYNC_TIMEOUT_MS
            self._asked_ms = None
            self._blocks = deque(response.blocks)
            self._deliver()

    def delivered(self, *, holds: bool) -> None:
        """Go on with the next block, or leave the peer whose block does not hold or follow."""
        self._is_delivering = False
        if holds:
            self._moved_ms = self._around.monotonic_ms()
        else:
            self._blocks.clear()
        self._deliver()

    def _deliver(self) -> None:
        if self._blocks:
            self._is_delivering = True
            self._around.enqueue(Delivery(self._round[0], self._blocks.popleft()))
        else:
            self._peer_done()

    def _peer_done(self) -> None:
        peer = self._round[0]
        advanced = self._height > self._asked_height
        if advanced:
            self._failures.pop(peer, None)
        else:
            self._failures[peer] = self._failures.get(peer, 0) + 1
        if self._is_slow or not advanced:
            del self._round[0]
        self._ask()

    def _ask(self) -> None:
        if self._asked_ms is not None or self._is_delivering:
            return
        if self.is_running and not self._round and self._round_height == self._height:
            self._target_height = self._height
        if not self.is_running:
            self._round, self._round_height = [], None
            return
        if not self._round:
            self._round = sorted(
                self._around.peers(), key=lambda name: (self._failures.get(name, 0), name != self._source)
            )
            self._round_height = self._height
        self._number += 1
        self._asked_ms, self._asked_height = self._around.monotonic_ms(), self._height
        request = request_codec.encode(SyncRequest(self._number, self._height + 1))
        self._around.send_frame(self._round[0], FrameKind.SYNC_REQUEST, request)
