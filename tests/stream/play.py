"""Two parties of a stream over a contract in memory: honest ones as their machines say; their disks outlast crashes.

Each message lies in a list until somebody delivers, repeats or drops it; each transaction waits until ``work``. A party
that crashes forgets all but its disk, in the middle of its effects or of a transaction.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, assert_never

from consensus.ledger.errors import PeerError
from consensus.ledger.keys import Purpose
from consensus.ledger.receipt import OK
from consensus.ledger.streams import Terms, close_hash, read_iteration_untrusted
from consensus.ledger.transaction import Transaction, decode_transaction_untrusted, make_call
from services.stream import payermachine as payer_side
from services.stream import servicemachine as service_side
from services.stream.payermachine import Owed, PayerStream
from services.stream.servicemachine import Kept, Outcome, ServiceStream
from services.stream.wire import Close, Closed, Iterate, Said, Told
from tests.contracts.domain.streams import FUNDS, PAYER, SERVICE, Streams

SLICE_MS = 5_000
"""How often the parties look at clock and chain, at the least."""
BLOCKED_MS_MAX = 50_000
"""How long a service party may see no chain, or full blocks, in one go: what the window is long enough for."""


class Crash(Exception):
    """A party ends in the middle of something."""


@dataclass
class World:
    """A chain with one stream, what is on its way between the parties, and what the meter has supplied."""

    terms: Terms
    streams: Streams
    stream: bytes = b""
    to_service: list[Said] = field(default_factory=list)
    to_payer: list[Told] = field(default_factory=list)
    units: int = 0
    """Supplied in truth."""
    is_full: bool = False
    """Whether all blocks are full of other people's transactions."""
    spent: int = 0
    """What the payer gave away beside the stream."""
    block_ms: int = 0
    """Time of the last block."""
    total: int = 0
    """All that there is of the unit."""

    @classmethod
    def make(cls, **changes: Any) -> "World":
        """Return a world with an open stream."""
        streams = Streams()
        world = cls(streams.terms(**changes), streams)
        world.stream = streams.open(world.terms)
        world.block_ms = world.now_ms
        world.total = streams.held()
        return world

    @property
    def now_ms(self) -> int:
        """Everybody's clock, which is also the time of the last block that there might be."""
        return self.streams.chain.time_ms

    def submit(self, transaction: Transaction) -> Outcome:
        """Bring a transaction into a block."""
        if self.is_full:
            return Outcome.UNKNOWN
        try:
            receipt = self.streams.upload(transaction)
        except PeerError:
            return Outcome.REFUSED
        self.block_ms = self.now_ms
        self.check()
        return Outcome.FINAL if receipt.status == OK else Outcome.REFUSED

    def call(self, who: str, method: str, **arguments: Any) -> Outcome:
        """Bring a call of the contract into a block."""
        call = make_call("streams", method, arguments)
        return self.submit(self.streams.chain.transaction(who, call))

    def spend(self, leave: int) -> None:
        """Let the payer give away what it has available, but for so much."""
        amount = self.streams.balance(PAYER) - leave
        if amount > 0:
            call = make_call("tokens", "transfer", self.streams.transfer("carol", amount))
            if self.submit(self.streams.chain.transaction(PAYER, call)) == Outcome.FINAL:
                self.spent += amount

    def check(self) -> None:
        """See that nothing was made or lost, and that the stream pays within its deposit."""
        record = self.streams.record(self.stream)
        assert self.streams.held() == self.total
        held = record.deposit - record.taken - (record.fine if record.is_fined else 0)
        assert self.streams.escrow(self.stream) == (held if record.status == "OPEN" else 0)
        assert 0 <= record.taken <= record.deposit - record.fine
        assert record.taken <= record.paid

    def service_gain(self) -> int:
        """What the service party got by the stream, the fine included."""
        return self.streams.balance(SERVICE) - FUNDS

    def payer_loss(self) -> int:
        """What the payer has lost by the stream, by now."""
        return FUNDS - self.spent - self.streams.balance(PAYER) - self.streams.escrow(self.stream)

    def look(self) -> tuple[Any, Any, int, int]:
        """Return what a party sees of the chain: record, lane, time and uptime of the last block."""
        record, lane = self.streams.record(self.stream), self.streams.lane(self.stream)
        return record, lane, self.block_ms, self.streams.chain.next_uptime_ms


@dataclass
class Party:
    """What honest parties have in common: effects, and a countdown to a crash between two of them."""

    world: World
    crash_in: int = -1
    """Crash after so many effects; −1: not."""
    pending: list[Any] = field(default_factory=list)
    """Transactions that were decided and not submitted."""

    def run(self, effects: Iterable[Any]) -> None:
        """Execute effects, unless a crash comes in between."""
        try:
            for effect in effects:
                if self.crash_in == 0:
                    raise Crash
                self.crash_in -= self.crash_in > 0
                self.execute(effect)
        except Crash:
            self.restart()

    def execute(self, effect: Any) -> None:
        """Do what one effect says."""
        raise NotImplementedError

    def restart(self) -> None:
        """Begin again from the disk."""
        raise NotImplementedError


class ServiceParty(Party):
    """An honest service party."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        opened_ms = world.streams.record(world.stream).opened_at_ms
        self.disk = Kept(world.stream, world.terms, opened_ms=opened_ms)
        self.key = world.streams.key(PAYER).public
        self.allowed = 0
        self.restart()

    def restart(self) -> None:
        """Begin again from the disk; what the meter was allowed and has counted it keeps."""
        self.crash_in, self.pending = -1, []
        limit = self.world.terms.deposit - self.world.terms.fine + self.world.terms.credit
        self.machine = ServiceStream(self.disk, limit)

    def execute(self, effect: service_side.Effect) -> None:
        """Do what one effect says."""
        match effect:
            case service_side.Keep():
                self.disk = self.machine.kept
            case service_side.Tell(message=message):
                self.world.to_payer.append(message)
            case service_side.AgreeToClose(due=due):
                signature = sign_close(self.world, SERVICE, due)
                self.world.to_payer.append(Closed(self.world.stream, due, signature))
            case service_side.Upload() | service_side.Claim() | service_side.CloseTogether():
                self.pending.append(effect)
            case _:
                assert_never(effect)

    def work(self, *, is_crashed: bool = False) -> None:
        """Submit what is pending; a crash comes before the outcome is known."""
        while self.pending:
            effect = self.pending.pop(0)
            stream = self.world.stream
            match effect:
                case service_side.Upload(raw=raw):
                    outcome = self.world.submit(decode_transaction_untrusted(raw))
                case service_side.Claim(raw=raw):
                    outcome = self.world.call(SERVICE, "claim", stream=stream, raw=raw)
                case service_side.CloseTogether(due=due, signature=signature):
                    outcome = self.world.call(SERVICE, "close", stream=stream, due=due, signature=signature)
            if is_crashed:
                self.restart()
            else:
                self.run(self.machine.uploaded(outcome, self.world.now_ms))

    def hear(self, message: Said) -> None:
        """Take a message, judged as the program does."""
        now_ms = self.world.now_ms
        match message:
            case Iterate(stream=stream, raw=raw) if stream == self.world.stream:
                chain_id, payer = self.world.streams.chain.chain_id, self.world.terms.payer
                try:
                    read = read_iteration_untrusted(raw, chain_id=chain_id, payer=payer, stream=stream, key=self.key)
                except PeerError:
                    return
                self.run(self.machine.iterated(read, now_ms))
            case Close(stream=stream, due=due, signature=signature) if stream == self.world.stream:
                payload, chain_id = close_hash(stream, due), self.world.streams.chain.chain_id
                if self.key.verifies(signature, Purpose.STREAM_CLOSE, chain_id, payload):
                    self.run(self.machine.close_asked(due, signature, now_ms))
            case _:
                pass

    def read_meter(self, *, is_done: bool = False) -> None:
        """Read the meter, and allow it what the machine allows by what is durable."""
        self.run(self.machine.metered(self.world.units, is_done, self.world.now_ms))
        self.allowed = max(self.allowed, self.machine.allowed_units)

    def look(self) -> None:
        """See the chain."""
        self.run(self.machine.chain_seen(*self.world.look()))


class PayerParty(Party):
    """An honest payer, with a meter of its own that counts what is supplied in truth, or without."""

    def __init__(self, world: World, *, has_meter: bool) -> None:
        super().__init__(world)
        self.disk = Owed(world.stream, world.terms, opened_ms=world.streams.record(world.stream).opened_at_ms)
        self.has_meter = has_meter
        self.signed: list[Transaction] = []
        self.consents: list[tuple[int, bytes]] = []
        self.stopped: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Begin again from the disk."""
        self.crash_in, self.pending = -1, []
        limit = self.world.terms.deposit - self.world.terms.fine + self.world.terms.credit
        self.machine = PayerStream(self.disk, limit, has_meter=self.has_meter)

    def execute(self, effect: payer_side.Effect) -> None:
        """Do what one effect says."""
        world = self.world
        match effect:
            case payer_side.Keep():
                self.disk = self.machine.owed
            case payer_side.Sign(due=due):
                made = world.streams.iteration(world.stream, due, valid_ms=world.terms.validity_ms - 1_000)
                for following in self.machine.signed(made.raw, made.body.valid_until_ms):
                    if self.crash_in == 0:
                        raise Crash
                    self.crash_in -= self.crash_in > 0
                    self.execute(following)
            case payer_side.Send(message=message):
                if isinstance(message, Iterate):
                    self.signed.append(decode_transaction_untrusted(message.raw))
                world.to_service.append(message)
            case payer_side.AskClose(due=due):
                signature = sign_close(world, PAYER, due)
                self.consents.append((due, signature))
                world.to_service.append(Close(world.stream, due, signature))
            case payer_side.CloseTogether():
                self.pending.append(effect)
            case payer_side.Stop(reason=reason):
                self.stopped.append(reason)
            case _:
                assert_never(effect)

    def work(self, *, is_crashed: bool = False) -> None:
        """Submit what is pending."""
        while self.pending:
            effect = self.pending.pop(0)
            fields = {"stream": self.world.stream, "due": effect.due, "signature": effect.signature}
            outcome = self.world.call(PAYER, "close", **fields)
            if is_crashed:
                self.restart()
            elif outcome != Outcome.FINAL:
                self.run(self.machine.close_failed())

    def hear(self, message: Told) -> None:
        """Take a message."""
        self.run(self.machine.told(message, self.world.now_ms))

    def read_meter(self) -> None:
        """Read the payer's own meter."""
        if self.has_meter:
            self.run(self.machine.metered(self.world.units, self.world.now_ms))

    def look(self) -> None:
        """See the chain."""
        self.run(self.machine.chain_seen(self.world.look()[0]))


def sign_close(world: World, who: str, due: int) -> bytes:
    """Return somebody's signature to close with this total."""
    signature: bytes = world.streams.consent(world.stream, due, by=who)["signature"]
    return signature
