"""Two sides of a channel back to back, each with a machine, a log and a store that outlives them; no I/O, no clock.

A side does what ``p2p.private.network`` does: it lets the machine take events, writes once, then sends. It can be
killed before the write, after it, or between two sends. The registry is a history that each side reads at its own
pace; the wire between them loses, doubles and changes the order of what is on it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PrivateKey
from p2p.frames import FrameKind
from p2p.private.channel_machine import ChannelLimits, ChannelMachine, SendMessage
from p2p.private.log import ChannelLog
from p2p.private.port import ChannelFacts, Delivery, Phase
from p2p.private.records import Message, Open, Receipt, decode_record_untrusted, encode_signed
from tests.p2p.private.support import NAME, MemoryStore
from tests.p2p.support import CHAIN

LIMITS = ChannelLimits(window_messages_max=3, window_bytes_max=100, outbox_messages_max=8, outbox_bytes_max=1_000)
SIDES = ("bank", "issuer")
KEYS = {
    side: [PrivateKey.from_secret(20 + place * 4 + index) for index in range(4)] for place, side in enumerate(SIDES)
}


@dataclass(frozen=True, slots=True)
class Entered:
    """One state of the registry: epoch, phase, and which of its keys each side has registered."""

    epoch: int
    phase: Phase
    bank_key: int = 0
    issuer_key: int = 0


@dataclass(slots=True)
class Pair:
    """Both sides, the registry, the wire, and everything that ever happened."""

    registry: list[Entered] = field(default_factory=lambda: [Entered(1, Phase.OPEN)])
    wire: dict[str, list[tuple[FrameKind, bytes]]] = field(default_factory=lambda: {side: [] for side in SIDES})
    """What is under way from a side."""
    is_connected: bool = False
    submitted: dict[str, dict[str, tuple[int, int, bytes]]] = field(default_factory=lambda: {s: {} for s in SIDES})
    """Ids that were answered, with epoch, number and payload."""
    delivered: dict[str, list[Delivery]] = field(default_factory=lambda: {side: [] for side in SIDES})
    """What became durable at a side, its own failures too."""
    refusals: list[str] = field(default_factory=list)
    on_send: Callable[[str, Message | Receipt | Open], None] = lambda side, record: None
    sides: dict[str, "OneSide"] = field(init=False)

    def __post_init__(self) -> None:
        self.sides = {side: OneSide(self, side) for side in SIDES}

    def other(self, side: str) -> str:
        """Return the other side's name."""
        return SIDES[1 - SIDES.index(side)]

    def connect(self) -> None:
        """Begin a session; what was under way in the one before is lost."""
        self.disconnect()
        self.is_connected = True
        for side in self.sides.values():
            side.machine.session_up()

    def disconnect(self) -> None:
        """End the session."""
        self.is_connected = False
        for name, side in self.sides.items():
            self.wire[name].clear()
            side.machine.session_down()

    def arrive(self, sender: str, index: int = 0, *, stays: bool = False) -> None:
        """Let a record reach the other side, out of its turn when ``index`` is not 0; it may come again."""
        kind, payload = self.wire[sender][index] if stays else self.wire[sender].pop(index)
        machine = self.sides[self.other(sender)].machine
        taken = machine.state.received
        try:
            machine.receive_untrusted(decode_record_untrusted(kind, payload))
        except PeerError as error:
            self.refusals.append(error.code)
            self.disconnect()
        if machine.state.received != taken:
            assert machine.phase is Phase.OPEN or (machine.phase is Phase.GRACE and machine.facts.is_bank)

    def settle(self) -> None:
        """Let everything happen in order until nothing is left to do."""
        for side in self.sides.values():
            side.read = len(self.registry) - 1
            side.key = self.current_key(side.name)
            side.change()
            side.machine.room(has_room=True)
        self.connect()
        is_busy = True
        while is_busy:
            is_busy = False
            for name in SIDES:
                self.sides[name].work()
                while self.wire[name]:
                    self.arrive(name)
                    assert self.is_connected, self.refusals[-1]
                    is_busy = True

    def current_key(self, side: str) -> int:
        """Return which key of a side the registry has now."""
        return self.registry[-1].bank_key if side == "bank" else self.registry[-1].issuer_key


class OneSide:
    """A machine on its log; ``restart`` forgets everything that is not in the store."""

    def __init__(self, pair: Pair, name: str) -> None:
        self.pair = pair
        self.name = name
        self.store = MemoryStore()
        self.read = 0
        self.key = 0
        self.answers: list[tuple[str, bytes, tuple[int, int]]] = []
        self.restart()

    @property
    def is_bank(self) -> bool:
        """Whether this is the bank's side."""
        return self.name == "bank"

    def facts(self) -> ChannelFacts:
        """Return what this side has read of the registry."""
        entered, other = self.pair.registry[self.read], self.pair.other(self.name)
        index = entered.issuer_key if self.is_bank else entered.bank_key
        key = KEYS[other][index].public.compressed
        return ChannelFacts(NAME, entered.epoch, entered.phase, self.is_bank, NodeName(other), key)

    def restart(self) -> None:
        """Begin anew from the store."""
        self.log = ChannelLog(self.store)
        state, entries = self.log.load(NAME)
        self.machine = ChannelMachine(self.facts(), CHAIN, LIMITS, state, entries)
        self.answers.clear()

    def crash(self) -> None:
        """Die: the session goes with it."""
        self.restart()
        self.pair.disconnect()

    def change(self) -> None:
        """Take over what was read of the registry."""
        self.machine.change(self.facts())

    def submit(self, message_id: str, payload: bytes) -> None:
        """Submit as the owner does; the answer comes with the next write."""
        placed = self.machine.placed(message_id) or self.log.placed(NAME, message_id)
        placed = placed or self.machine.submit(message_id, payload)
        self.answers.append((message_id, payload, placed))

    def work(self, *, dies_before_write: bool = False, sends_max: int | None = None) -> None:
        """Write what is to be kept, then send; or die at one of these points."""
        batch = self.machine.take()
        before = self.log.last
        writes = self.log.writes(NAME, batch.keep)
        if dies_before_write:
            self.crash()
            return
        if writes:
            self.store.put(writes)
        self.log.written()
        if self.log.last > before:
            self.pair.delivered[self.name] += self.log.receive(before, limit=1_000, bytes_max=1 << 30)
        for item in batch.send[:sends_max]:
            self._send(item)
        if sends_max is not None:
            for message_id, payload, placed in self.answers[:sends_max]:
                self._answered(message_id, payload, placed)
            self.crash()
            return
        for message_id, payload, placed in self.answers:
            self._answered(message_id, payload, placed)
        self.answers.clear()

    def _answered(self, message_id: str, payload: bytes, placed: tuple[int, int]) -> None:
        known = self.pair.submitted[self.name].setdefault(message_id, (*placed, payload))
        assert known[:2] == placed

    def _send(self, item: SendMessage | Receipt | Open) -> None:
        if isinstance(item, SendMessage):
            record: Message | Receipt | Open = self.log.message(NAME, item.entry, to_bank=not self.is_bank)
        else:
            record = item
        self.pair.on_send(self.name, record)
        self.pair.wire[self.name].append(encode_signed(record, KEYS[self.name][self.key], CHAIN))
