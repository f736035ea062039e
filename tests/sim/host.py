"""One machine: its disk, its clocks, whether it lives, and what runs on it."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Protocol

from consensus.ledger.block import Block
from consensus.ledger.errors import HansaError, PeerError, StorageError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import NodeName
from consensus.ledger.transaction import Transaction
from consensus.ledger.validators import Certificate, ValidatorSet
from consensus.pbft.config import Config
from consensus.pbft.events import Evidence, Penalise, ViewEntered
from consensus.pbft.messages import (
    Decided,
    Message,
    NewView,
    PrePrepare,
    Status,
    ViewChange,
    decode_message_untrusted,
    encode_message,
)
from consensus.pbft.signing import Signer, Verifier
from contracts.runtime.execution import Executor
from node.chain import Candidate, Chain
from node.driver import INBOX_EVENTS_MAX
from node.storage.store import Write
from node.sync import response_codec, serve_request_untrusted
from p2p.frames import FrameKind
from tests.sim.byzantine import Parcel, Strategy
from tests.sim.checkers import Checkers, Violation, statement_of
from tests.sim.disk import Disk, Drive, KeyFile
from tests.sim.network import Fabric
from tests.sim.plan import Plan
from tests.sim.process import Item, Process, Task
from tests.sim.scheduler import Scheduler, Trace

TWINS = 2
CRASH_AT_START_PERMILLE = 100


class Crash(Exception):
    """The machine dies here."""


class World(Protocol):
    """What hosts share."""

    plan: Plan
    scheduler: Scheduler
    fabric: Fabric
    trace: Trace
    checkers: Checkers
    genesis: Genesis
    validators: ValidatorSet
    """Who votes on the first block."""
    hosts: "dict[NodeName, list[Host]]"
    executor: Executor
    verifier: Verifier
    foreign: Mapping[NodeName, Signer]
    """Everyone's key at work on another chain, whose votes a liar may have seen."""
    epoch_ms: int

    def check_time(self, block: Block) -> None:
        """Check a block's time by the clocks of those who must have voted for it."""


class Host:
    """A correct node, or a liar when it has strategies; twins are two hosts of one name."""

    def __init__(
        self, world: World, name: NodeName, signer: Signer, content: dict[bytes, bytes], twin: int = 0
    ) -> None:
        self.name = name
        self.twin = twin
        self.signer = signer
        self.foreign = world.foreign
        self.process: Process | None = None
        self.strategies: list[Strategy] = []
        self.is_correct = name in world.checkers.correct
        self.audience: frozenset[NodeName] | None = None
        """Whom a twin hears and speaks to; None is everyone."""
        self.world = world
        self.random = Random(f"{world.plan.seed}/{name}/{twin}")
        self.skew_ms = self._draw_skew_ms() + 7 * twin
        self.rate = 1_000 + self.random.randint(-world.plan.drift_permille, world.plan.drift_permille)
        self.is_fragile = name in world.checkers.fragile
        self.drive = Drive(
            world.plan,
            Random(f"{world.plan.seed}/{name}/{twin}/disk"),
            lambda: self.now_ms,
            is_fragile=self.is_fragile,
        )
        self.disk = Disk(content, self._let_write)
        self.key_file = KeyFile(self._let_write)
        self.inbox: deque[Item] = deque()
        self.crash_countdown: int | None = None
        """Effect boundaries until the machine dies."""
        self.is_wiped = False
        self.is_halted = False
        """Whether the program refuses to go on with what is on the disk."""
        self.halts = 0
        """How often it did."""
        self._is_healed = False
        self._is_frozen = False
        self._origin_ms = 0
        self._life = 0
        self._task: Task | None = None
        self._is_writing = False
        self._batch: Sequence[Write] = ()
        """What is being written."""
        self._last_sent: tuple[Message, bytes, str] | None = None
        self.boot()
        world.scheduler.after(self.random.randint(0, world.plan.tick_ms), self._tick)

    def _draw_skew_ms(self) -> int:
        plan = self.world.plan
        skew_ms_max = plan.skew_ms_max if self.random.randrange(1_000) < plan.skew_permille else 0
        return self.random.randint(-skew_ms_max, skew_ms_max)

    # -- life and death --------------------------------------------------------------------------------

    @property
    def chain(self) -> Chain | None:
        """The running chain."""
        return None if self.process is None else self.process.chain

    @property
    def validators(self) -> ValidatorSet:
        """Who votes next, as this machine knows it; a liar that lost its seat lies to those of old."""
        validators = self.world.validators if self.process is None else self.process.chain.head.validators
        return validators if self.name in validators.names else self.world.validators

    @property
    def now_ms(self) -> int:
        """Simulated time."""
        return self.world.scheduler.now_ms

    def boot(self) -> None:
        """Start the program on what the disk holds; nothing when it runs."""
        if self.process is not None or self.is_halted:
            return
        self._origin_ms = self.random.randint(0, 1 << 40)
        if self.world.plan.crash_every_ms and self.drive.draw(CRASH_AT_START_PERMILLE):
            self.crash_countdown = 1
        self.world.checkers.silenced.discard((self.name, self.twin))
        try:
            self._start()
        except Crash:
            self._die("crashes while it starts")
        except HansaError as error:
            self._stop(error)

    def _start(self) -> None:
        world = self.world
        if self.is_correct:
            world.checkers.restarted(self.name, self.disk)
        process = Process(
            name=self.name,
            disk=self.disk,
            key_file=self.key_file,
            genesis=world.genesis,
            executor=world.executor,
            config=Config(name=self.name, signer=self.signer, verifier=world.verifier),
            around=self,
        )
        head = process.chain.head
        if self.is_correct:
            world.checkers.learn(head.header.height + 1, head.validators)
            if not process.may_vote and not self.is_wiped:
                raise Violation("restart", f"{self.name} does not find its own vote log")
        self.process = process
        voting = "" if process.may_vote else ", not voting"
        self._note(f"starts at height {head.header.height} view {process.engine.view}{voting}")

    def crash(self) -> None:
        """Lose everything but the disk, and the write under way if it is not durable."""
        if self.process is not None:
            self.drive.tear(self.disk, self._batch)
            self._die("crashes")

    def _die(self, how: str) -> None:
        self._note(how)
        self._life += 1
        self.process = self._task = self.crash_countdown = None
        self._is_writing, self._batch = False, ()
        self.inbox.clear()
        self.world.scheduler.after(self.random.randint(1, self.world.plan.downtime_ms_max), self.boot)

    def _stop(self, error: HansaError) -> None:
        """End the program because it says so: the disk refuses, or what is there cannot be."""
        self.world.checkers.silenced.add((self.name, self.twin))
        self._die(f"stops: {error.code}")
        if error.code == "disk_failed":
            return
        if self.is_correct:
            raise Violation("halt", f"{self.name} stops: {error}") from error
        self.is_halted = True
        self.halts += 1
        if self.is_fragile:
            after_ms = self.random.randint(1, self.world.plan.downtime_ms_max)
            self.world.scheduler.after(after_ms, self.replace_disk)

    def wipe(self, content: dict[bytes, bytes]) -> None:
        """Lose the disk too; without its log the key never votes again."""
        if self.process is not None:
            self._die("loses its disk")
        self.disk = Disk(content, self._let_write)
        self.is_wiped = self.key_file.load() is not None  # else the key has not voted yet
        self.is_halted = False

    def replace_disk(self) -> None:
        """Put in an empty disk and start; the key stays, so nothing is voted with it."""
        self.wipe({})
        self.boot()

    def use_key(self, signer: Signer) -> None:
        """Start anew with another vote key, whose log begins now; the store stays."""
        if self.process is not None:
            self._die("gets a new key")
        self.signer = signer
        self.key_file = KeyFile(self._let_write)
        self.is_wiped = False

    def freeze(self) -> None:
        """Stop working; what comes in waits."""
        self._is_frozen = True
        self._note("freezes")

    def thaw(self) -> None:
        """Go on."""
        if self._is_frozen:
            self._note("thaws")
            self._is_frozen = False
            self._pump()

    def heal(self) -> None:
        """End everything that is wrong with the machine."""
        self.crash_countdown = None
        self._is_healed = self.drive.is_healed = True
        self.skew_ms = 7 * self.twin
        if self.is_fragile and (self.drive.damages or self.is_halted):
            self.wipe({})
        self.boot()
        self.thaw()

    # -- work ------------------------------------------------------------------------------------------

    def deliver(self, sender: NodeName, kind: FrameKind, payload: bytes) -> None:
        """Take a frame from the network."""
        process = self.process
        if process is None or len(self.inbox) >= INBOX_EVENTS_MAX:
            return
        try:
            self._take(process, sender, kind, payload)
        except PeerError as error:
            if sender in self.world.checkers.correct:
                raise Violation("framed", f"{self.name} cannot read {sender}: {error}") from error
        except StorageError as error:
            self._stop(error)
        self._pump()

    def _take(self, process: Process, sender: NodeName, kind: FrameKind, payload: bytes) -> None:
        match kind:
            case FrameKind.CONSENSUS:
                message = decode_message_untrusted(payload)
                for strategy in self.strategies:
                    self._dispatch(strategy.incoming(sender, message))
                process.receive(sender, message, len(payload))
            case FrameKind.TRANSACTIONS:
                process.receive_transactions(payload)
            case FrameKind.SYNC_REQUEST:
                self._answer(sender, payload)
            case FrameKind.SYNC_RESPONSE:
                process.sync.answered(sender, payload)

    def submit(self, raw: bytes) -> None:
        """Take a transaction from a client."""
        if self.process is not None and not self._is_frozen:
            try:
                self.process.submit(raw)
            except StorageError as error:
                self._stop(error)
            self._pump()

    def _tick(self) -> None:
        self.world.scheduler.after(self.world.plan.tick_ms, self._tick)
        if self.process is None or self._is_frozen:
            return
        for strategy in self.strategies:
            self._dispatch(strategy.tick())
        self.process.tick()
        self._pump()

    def _pump(self) -> None:
        """Work through the inbox until a write takes time or nothing is left."""
        try:
            while self.process is not None and not self._is_frozen and not self._is_writing:
                if self._task is None:
                    if not self.inbox:
                        return
                    self._task = self.process.handle(self.inbox.popleft())
                batch = next(self._task, None)
                if batch is None:
                    self._task = None
                else:
                    self._write(batch)
        except Crash:
            self.crash()
        except (Violation, KeyboardInterrupt):
            raise
        except StorageError as error:
            self._stop(error)
        except Exception as error:
            if self.is_correct or (self.is_fragile and not isinstance(error, HansaError)):
                raise Violation("exception", f"{self.name}: {type(error).__name__}: {error}") from error
            if isinstance(error, HansaError):
                self._stop(error)
            else:
                self.crash()

    def _write(self, batch: Sequence[Write]) -> None:
        self._batch = batch
        self.boundary()
        slowness_ms = self.world.plan.disk_ms_max
        if slowness_ms == 0:
            self._store(batch)
            return
        self._is_writing = True
        life = self._life
        self.world.scheduler.after(self.random.randint(0, slowness_ms), lambda: self._durable(life, batch))

    def _store(self, batch: Sequence[Write]) -> None:
        """Let the disk have a batch; when it refuses, the program hears it and must not say anything more (R47)."""
        try:
            self.disk.write(self.drive.misdirect(batch))
        except StorageError as error:
            self.world.checkers.silenced.add((self.name, self.twin))
            task, self._task = self._task, None
            if task is not None:
                with suppress(StopIteration):
                    task.throw(error)
            raise Violation("failed_write_ignored", f"{self.name} goes on after its disk refused a write") from error
        self._batch = ()
        self.boundary()

    def _durable(self, life: int, batch: Sequence[Write]) -> None:
        if life != self._life:
            return
        try:
            self._store(batch)
        except Crash:
            self.crash()
        except StorageError as error:
            self._stop(error)
        else:
            self.world.scheduler.after(self.random.randint(0, 1), lambda: self._written(life))

    def _let_write(self, put: Callable[[], None]) -> None:
        """Be the gate of disk and key file: a program that starts may die before each of its writes, too."""
        if self.process is None:
            self.boundary()
        self.drive.let_write(put)

    def _written(self, life: int) -> None:
        if life == self._life:
            self._is_writing = False
            self._pump()

    def _answer(self, sender: NodeName, payload: bytes) -> None:
        answer = serve_request_untrusted(payload, self.disk)
        delay_ms = max((strategy.answer_delay_ms for strategy in self.strategies), default=0)
        if self.strategies:
            response = response_codec.decode_untrusted(answer)
            for strategy in self.strategies:
                twisted = strategy.answer(response)
                if twisted is None:
                    return
                response = twisted
            answer = response_codec.encode(response)
        self.send_frame(sender, FrameKind.SYNC_RESPONSE, answer, extra_ms=delay_ms)

    # -- what the process sees -------------------------------------------------------------------------

    def wall_ms(self) -> int:
        """Return what this machine takes for UTC; its oscillator drives that too, until it is set right."""
        drift_ms = 0 if self._is_healed else self.now_ms * (self.rate - 1_000) // 1_000
        return self.world.epoch_ms + self.now_ms + drift_ms + self.skew_ms

    def monotonic_ms(self) -> int:
        """Return this machine's running time."""
        return self._origin_ms + self.now_ms * self.rate // 1_000

    def peers(self) -> Sequence[NodeName]:
        """Return all other nodes."""
        return [name for name in self.world.hosts if name != self.name]

    def send_message(self, to: NodeName, message: Message) -> None:
        """Send a consensus message, as it is or as the liar wants it."""
        if self._last_sent is None or self._last_sent[0] is not message:
            self._check_sent(message)
        if not self.strategies:
            self._send(Parcel(to, message))
            return
        parcels = [Parcel(to, message)]
        for strategy in self.strategies:
            parcels = [twisted for parcel in parcels for twisted in strategy.outgoing(parcel)]
        self._dispatch(parcels)

    def _check_sent(self, message: Message) -> None:
        if self.is_correct or self.is_fragile:
            self.world.checkers.sent(self.name, self.signer.public_key, message, self.disk, self.now_ms)
        if self.is_wiped and statement_of(message, self.name, self.name) is not None:
            raise Violation("voted_without_log", f"{self.name} sends {summary(message)} after its disk was wiped")

    def _dispatch(self, parcels: list[Parcel]) -> None:
        for parcel in parcels:
            self._send(parcel)

    def _send(self, parcel: Parcel) -> None:
        self.world.checkers.spoke(self.name, self.twin)
        message = parcel.message
        if self._last_sent is None or self._last_sent[0] is not message:
            self._last_sent = (message, encode_message(message), summary(message))
        _, payload, text = self._last_sent
        if self.audience is None or parcel.to in self.audience:
            self._note(f"-> {parcel.to} {text}")
            self.world.fabric.send(
                self.name,
                parcel.to,
                FrameKind.CONSENSUS,
                payload,
                content=type(message).__name__,
                extra_ms=parcel.delay_ms,
            )

    def send_frame(self, to: NodeName, kind: FrameKind, payload: bytes, *, extra_ms: int = 0) -> None:
        """Send anything else, unless the liar keeps it back."""
        self.world.checkers.spoke(self.name, self.twin)
        if not all(strategy.passes_on(to, kind) for strategy in self.strategies):
            return
        if self.audience is None or to in self.audience:
            self._note(f"-> {to} {kind.name} {len(payload)} bytes")
            self.world.fabric.send(self.name, to, kind, payload, extra_ms=extra_ms)

    def enqueue(self, item: Item) -> None:
        """Put something into the inbox."""
        self.inbox.append(item)

    def boundary(self) -> None:
        """Die here when it is time."""
        if self.crash_countdown is not None:
            self.crash_countdown -= 1
            if self.crash_countdown <= 0:
                raise Crash

    def selected(self, transactions: list[Transaction]) -> list[Transaction]:
        """Return what the own proposal takes of what the pool offers."""
        for strategy in self.strategies:
            transactions = strategy.select(transactions)
        return transactions

    def observe(self, effect: Evidence | Penalise | ViewEntered) -> None:
        """Take note of what the engine reports."""
        if isinstance(effect, ViewEntered):
            self._note(f"enters {effect.height}/{effect.view}{'' if effect.opened else ' (gathering)'}")
            return
        self._note(f"{type(effect).__name__} {effect.code if isinstance(effect, Penalise) else effect.kind}")
        if self.is_correct:
            self.world.checkers.observed(self.name, effect)

    def committed(self, candidate: Candidate, certificate: Certificate) -> None:
        """Take note of a block that is durable."""
        block = candidate.block
        self._note(f"commits {block.height} {block.hash.hex()[:8]} with {len(block.transactions)} transactions")
        if self.is_correct:
            self.world.check_time(block)
        if self.is_correct or self.is_fragile:
            self.world.checkers.committed(self.name, candidate, certificate)

    def _note(self, what: str) -> None:
        self.world.trace.note(self.now_ms, f"{self.name}{'*' * self.twin}", what)


def summary(message: Message) -> str:
    """Return what a message says in a few words."""
    kind = type(message).__name__
    match message:
        case PrePrepare():
            return f"{kind} {message.height}/{message.view} {message.block.header.hash().hex()[:8]}"
        case ViewChange(vote=vote):
            claim = "" if vote.claim is None else f" claims {vote.claim.view} {vote.claim.block_hash.hex()[:8]}"
            return f"{kind} {vote.height}/{vote.view}{claim}"
        case NewView():
            required = "" if message.certificate is None else f" {message.certificate.block_hash.hex()[:8]}"
            return f"{kind} {message.height}/{message.view}{required}"
        case Decided(certificate=certificate):
            return f"{kind} {certificate.height}/{certificate.view}"
        case Status():
            return f"{kind} {message.height}/{message.view} {message.has_proposal}"
        case _:
            view = getattr(message, "view", "-")
            return f"{kind} {message.height}/{view} {getattr(message, 'block_hash', b'').hex()[:8]}"
