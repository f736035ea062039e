"""One life of a node's program: what ``node/driver.py``, ``node/intake.py`` and ``node/sync.py`` do, without trio.

The driver's task is a generator that yields each synced write and goes on once that is durable, so the host
decides how long the disk takes and whether the machine still lives afterwards. Keep it in step with the real
driver: it is the one part of a node that the simulator does not run as it is.
"""

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
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
from node.driver import BLOCK_CALLS_MAX, CLOCK_TOLERANCE_MS, Divergence
from node.intake import REPEAT_AFTER_MS, REPEATED_MAX
from node.mempool import Mempool, PoolLimits
from node.storage import layout
from node.storage.store import Write
from node.sync import FinalBlock, SyncRequest, SyncResponse, request_codec, response_codec
from p2p.frames import FrameKind
from tests.sim.disk import Disk

SYNC_TIMEOUT_MS = 3_000
PASSES_MAX = 4


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

    def boundary(self) -> None:
        """Pass from one effect to the next: where a crash may hit."""

    def observe(self, effect: Evidence | Penalise | ViewEntered) -> None:
        """Take note of what the engine reports."""

    def committed(self, candidate: Candidate, certificate: Certificate) -> None:
        """Take note of a block that is durable and acknowledged."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Final blocks from a peer."""

    peer: NodeName
    blocks: Sequence[FinalBlock]


Item: TypeAlias = Event | Chunk
Task: TypeAlias = Generator[Sequence[Write], None, None]


class Process:
    """Engine, chain and mempool of a running node."""

    def __init__(
        self, *, name: NodeName, disk: Disk, genesis: Genesis, executor: Executor, config: Config, around: Surroundings
    ) -> None:
        self.name = name
        self.chain = Chain(disk, genesis, executor)
        self.mempool = Mempool(executor, self.chain.verifier, PoolLimits(passes_max=PASSES_MAX))
        records = {key[1:]: value for key, value in disk.scan(layout.VOTE)}
        self.engine = Engine.restore(config, self.chain.head, records)
        self._verifier = config.verifier
        self._disk = disk
        self._around = around
        self._work = Work(waiting=False)
        self._repeated_ms = around.monotonic_ms()
        self.sync = Fetcher(around, self.chain.head.header.height)

    # -- the driver's task -----------------------------------------------------------------------------

    def handle(self, item: Item) -> Task:
        """Deal with one item of the inbox; yields what must be durable before it goes on."""
        if isinstance(item, Chunk):
            yield from self._commit_chunk(item)
        else:
            yield from self._step(item)

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
                return [self._propose(effect)]
            case Validate(block, first_seen):
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
        candidate, refused = self.chain.build(self.name, time_ms, selected)
        for transaction, _ in refused:
            self.mempool.remove(transaction)
        return Proposed(effect.height, effect.view, candidate.block)

    def _validate(self, block: Block, *, first_seen: bool) -> Validated:
        if first_seen and abs(block.header.time_ms - self._around.wall_ms()) > CLOCK_TOLERANCE_MS:
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
        self.mempool.expire(head.header.time_ms)
        self._around.committed(candidate, certificate)
        self._work = self._current_work()
        return [self._work, Advanced(head)]

    def _commit_chunk(self, chunk: Chunk) -> Task:
        was_useful = False
        try:
            for item in chunk.blocks:
                block = decode_block_untrusted(item.block)
                certificate = certificate_codec.decode_untrusted(item.certificate)
                if block.height != self.chain.head.header.height + 1:
                    continue
                self._check_certified(block, certificate)
                for event in (yield from self._commit(block, certificate)):
                    yield from self._step(event)
                was_useful = True
        except PeerError as error:
            self._around.observe(Penalise(chunk.peer, error.code))
            was_useful = False
        self.sync.chunk_done(was_useful=was_useful)

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

    def tick(self) -> list[Event]:
        """Return what the passing of time puts into the inbox."""
        now_ms = self._around.monotonic_ms()
        if now_ms - self._repeated_ms >= REPEAT_AFTER_MS:
            self._repeated_ms = now_ms
            self._hand_on(self.mempool.waiting_since(now_ms - REPEAT_AFTER_MS, count_max=REPEATED_MAX))
        self.sync.tick(now_ms)
        return [Tick(now_ms), *self.work_changed()]

    def work_changed(self) -> list[Event]:
        """Return the mempool's level when it is another than the engine knows."""
        work = self._current_work()
        if work == self._work:
            return []
        self._work = work
        return [work]

    def _current_work(self) -> Work:
        overdue = self.mempool.is_overdue(now_ms=self._around.monotonic_ms())
        return Work(waiting=self.mempool.is_waiting, overdue=overdue)

    def submit(self, raw: bytes) -> None:
        """Take a client's transaction and hand it on."""
        if self._admit(raw):
            self._hand_on([raw])

    def receive_transactions(self, payload: bytes) -> None:
        """Take transactions that a peer hands on."""
        raws = decode(payload)
        for raw in raws if isinstance(raws, list) else []:
            if isinstance(raw, bytes):
                self._admit(raw)

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
            for peer in self._around.peers():
                self._around.send_frame(peer, FrameKind.TRANSACTIONS, payload)


class Fetcher:
    """Catching up from one peer at a time, passing over those that are silent or of no use."""

    def __init__(self, around: Surroundings, height: int) -> None:
        self._around = around
        self._height = height
        self._target_height = 0
        self._peers: list[NodeName] = []
        self._number = 0
        self._asked: tuple[NodeName, int] | None = None
        self._committing = False

    def want(self, height: int, source: NodeName) -> None:
        """Catch up to a certified height, asking first the peer that showed the certificate."""
        if height > self._target_height:
            self._target_height = height
            self._peers = [source, *(peer for peer in self._around.peers() if peer != source)]
        self._ask()

    def advanced(self, height: int) -> None:
        """Take note of the own height."""
        self._height = height

    def tick(self, now_ms: int) -> None:
        """Pass over a peer that does not answer."""
        if self._asked is not None and now_ms - self._asked[1] >= SYNC_TIMEOUT_MS:
            self._next_peer()
        self._ask()

    def answered(self, peer: NodeName, payload: bytes) -> Chunk | None:
        """Return the blocks of an answer that was asked for."""
        response: SyncResponse = response_codec.decode_untrusted(payload)
        if self._asked is None or peer != self._asked[0] or response.number != self._number:
            return None
        if not response.blocks:
            self._next_peer()
            return None
        self._asked, self._committing = None, True
        return Chunk(peer, response.blocks)

    def chunk_done(self, *, was_useful: bool) -> None:
        """Go on with the same peer, or with the next."""
        self._committing = False
        if not was_useful:
            self._next_peer()
        else:
            self._ask()

    def _next_peer(self) -> None:
        self._asked = None
        self._peers.append(self._peers.pop(0))

    def _ask(self) -> None:
        if self._asked is None and not self._committing and self._target_height > self._height and self._peers:
            self._number += 1
            self._asked = (self._peers[0], self._around.monotonic_ms())
            request = request_codec.encode(SyncRequest(self._number, self._height + 1))
            self._around.send_frame(self._peers[0], FrameKind.SYNC_REQUEST, request)
