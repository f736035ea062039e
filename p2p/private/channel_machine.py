"""One side of one private channel: events in, and out of :meth:`ChannelMachine.take` what to keep and what to send.

**Order.** Whoever drives the machine makes all of ``Batch.keep`` durable in one write before anything of
``Batch.send`` leaves and before an owner hears of what was taken; after a failed write it stops. So the machine may
treat what it decided as done, a process may die at any point, and nothing that was sent is unknown after it.

**Directions.** Messages from the bank are numbered apart from those to it, each from 1 in every epoch. The sender keeps
an entry until a signed record of the peer names it; the receiver keeps each message for its owner before it says so,
and takes number n + 1 after n and nothing else. Hence exactly once and in order, within an epoch.

**Openings.** At the start of a session, and whenever the registry changes what may pass, each side says how far it has
taken the other's messages (``Open``). Messages go only to a peer that has said so for this epoch in this session, and
begin behind what it named: that is how loss, doubling and restarts are made good.

**Revocation.** In the grace time the issuer's side takes nothing more. It keeps that (``is_final``) before it says
where it stopped; with its word the bank's side knows of each message whether it was taken. What was never handed to
a session needs no word of anyone. What is in doubt when the channel is closed stays so until it is opened anew: an
opening also names the end of the last epoch in which its signer took anything, and since nothing is sent in an epoch
before the peer's opening in it was heard, there is no other epoch in doubt.

**Peers that do not agree about the epoch.** Both read the same chain, one of them earlier. Openings of a later epoch
are left aside, an epoch entered within a session asks for the peer's opening; messages of an older one count as under
way until the peer has opened the new one, and as a fault after that.

Every refusal leaves the state as it was. Pure.
"""

from dataclasses import dataclass, field
from typing import Annotated, TypeAlias, assert_never

import msgspec

from consensus.ledger.codec import Record
from consensus.ledger.errors import InvariantError, LocalError, PeerError
from consensus.ledger.ids import ZERO_HASH, ChainId
from consensus.ledger.merkle import HashBytes
from p2p.private.port import PAYLOAD_BYTES_MAX, ChannelFacts, Phase
from p2p.private.records import ChannelRecord, Message, Open, Receipt, check_signature_untrusted

ID_CHARACTERS_MAX = 128
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelLimits:
    """Bounds of one side of a channel."""

    window_messages_max: int = 256
    """Messages sent and not yet acknowledged."""
    window_bytes_max: int = 6 * 1024 * 1024
    """Their payloads; a single message always fits into an empty window."""
    outbox_messages_max: int = 4_096
    """Messages kept until the peer has them."""
    outbox_bytes_max: int = 64 * 1024 * 1024
    """Their payloads."""


class ChannelState(Record, frozen=True):
    """What one side has to remember besides the messages it keeps. Heads are ``ZERO_HASH`` where the number is 0.

    ``sent`` was given to the newest message of ours, ``attempted`` to the newest that a session ever got, the peer
    has all up to ``delivered``. ``received`` of the peer's were taken, none more when ``is_final``. ``last_…`` is
    the end of the newest epoch before this one in which any were taken. ``ordinal`` counts ours over all epochs.
    """

    epoch: Count = 0
    sent: Count = 0
    sent_head: HashBytes = ZERO_HASH
    attempted: Count = 0
    delivered: Count = 0
    delivered_head: HashBytes = ZERO_HASH
    received: Count = 0
    received_head: HashBytes = ZERO_HASH
    is_final: bool = False
    is_refused: bool = False
    """Nothing more of ours goes in this epoch, by the peer's word or by what we read once of the registry."""
    last_epoch: Count = 0
    last_number: Count = 0
    last_head: HashBytes = ZERO_HASH
    ordinal: Count = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A message of ours that the peer is not known to have; its payload of ``size`` bytes is kept in the log."""

    epoch: int
    number: int
    id: str
    size: int
    head: bytes


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Keep our message; ``previous`` is the head before it, ``ordinal`` its place among all of this channel."""

    entry: Entry
    previous: bytes
    payload: bytes
    ordinal: int


@dataclass(frozen=True, slots=True)
class Remove:
    """Forget our message: the peer has it."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Fail:
    """Forget our message and tell the owner: the peer will never take it."""

    entry: Entry
    code: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Keep the peer's message for the owner."""

    message: Message


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Send our message, out of the log."""

    entry: Entry


Keep: TypeAlias = Enqueue | Remove | Fail | Deliver | ChannelState
Send: TypeAlias = SendMessage | Receipt | Open


@dataclass(slots=True)
class Batch:
    """What to make durable in one write, and what to send after it, both in this order; records are not signed yet."""

    keep: list[Keep] = field(default_factory=list)
    send: list[Send] = field(default_factory=list)


class ChannelMachine:
    """One side of one channel; see the module.

    Args:
        facts: what the registry says of it.
        chain_id: the chain that signatures are for.
        limits: bounds.
        state: what was kept, a new one for a channel that was never used.
        entries: our messages that were kept, by epoch and number ascending.
    """

    def __init__(
        self,
        facts: ChannelFacts,
        chain_id: ChainId,
        limits: ChannelLimits,
        state: ChannelState,
        entries: list[Entry],
    ) -> None:
        self._facts = facts
        self._chain_id = chain_id
        self._limits = limits
        self._state = state
        self._entries = {(entry.epoch, entry.number): entry for entry in entries}
        self._ids = {entry.id: entry for entry in entries}
        self._bytes = sum(entry.size for entry in entries)
        self._batch = Batch()
        self._kept_state = state
        self._is_up = False
        self._peer_epoch = 0
        """Epoch that the peer has opened within this session, 0 for none."""
        self._next = 0
        """Number of our message that goes next to the peer, once it has opened."""
        self._flight_bytes = 0
        self._has_room = True
        self._is_skipping = False
        """A message was left for want of room: those behind it are no fault of the peer."""
        self._owes_receipt = False
        self._owes_open = False
        self._is_asking = False
        self.change(facts)

    @property
    def facts(self) -> ChannelFacts:
        """What the registry said last."""
        return self._facts

    @property
    def state(self) -> ChannelState:
        """What is, or with the next batch will be, durable."""
        return self._state

    @property
    def phase(self) -> Phase:
        """What may pass; nothing while the registry that we read is older than what this side has seen."""
        return self._facts.phase if self._facts.epoch == self._state.epoch else Phase.CLOSED

    @property
    def waiting(self) -> int:
        """How many messages the peer is not known to have."""
        return len(self._entries)

    @property
    def waiting_bytes(self) -> int:
        """Size of their payloads."""
        return self._bytes

    def placed(self, message_id: str) -> tuple[int, int] | None:
        """Return epoch and number of a message of this id that waits."""
        entry = self._ids.get(message_id)
        return None if entry is None else (entry.epoch, entry.number)

    def take(self) -> Batch:
        """Return what has to be kept and then sent by now; it counts as done."""
        self._transmit()
        batch, self._batch = self._batch, Batch()
        if self._state != self._kept_state:
            batch.keep.append(self._state)
            self._kept_state = self._state
        first: list[Send] = []
        if self._is_up and self.phase is not Phase.CLOSED:
            if self._owes_open:
                first.append(self._open())
            elif self._owes_receipt:
                state, place = self._state, self._place(to_bank=self._facts.is_bank)
                first.append(Receipt(*place, state.received, state.received_head))
        self._owes_open = self._owes_receipt = self._is_asking = False
        batch.send[:0] = first
        return batch

    # Events of our own side

    def change(self, facts: ChannelFacts) -> None:
        """Take over what the registry says now."""
        before = (self._state.epoch, self.phase)
        self._facts = facts
        if facts.epoch < self._state.epoch:
            return  # Our node is behind what it saw before: until it is not, nothing passes and nothing is given up.
        if facts.epoch > self._state.epoch:
            self._enter(facts.epoch)
        phase = self.phase
        if phase is Phase.CLOSED or (phase is Phase.GRACE and not facts.is_bank):
            self._update(is_final=True)
        if phase is Phase.CLOSED or (phase is Phase.GRACE and facts.is_bank):
            self._update(is_refused=True)  # a chain that is read anew opens the channel again for a while
        if phase is Phase.CLOSED:
            self._fail_unattempted("channel_closed")
        elif phase is Phase.GRACE and facts.is_bank:
            self._fail_unattempted("channel_revoked")
        if (self._state.epoch, phase) != before:
            self._owes_open = True
            self._is_asking = self._is_asking or self._state.epoch != before[0]

    def submit(self, message_id: str, payload: bytes) -> tuple[int, int]:
        """Take a message of the owner and return its epoch and number.

        Raises:
            LocalError: ``channel_closed``, ``channel_revoked``, ``outbox_full``, ``too_large`` or ``bad_id``.
        """
        state, limits = self._state, self._limits
        if not (0 < len(message_id) <= ID_CHARACTERS_MAX and message_id.isascii() and message_id.isprintable()):
            raise LocalError("bad_id", f"a message's id is 1 to {ID_CHARACTERS_MAX} printable characters of ASCII")
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise LocalError("too_large", f"{len(payload)} bytes, a message holds at most {PAYLOAD_BYTES_MAX}")
        if self.phase is Phase.CLOSED:
            raise LocalError("channel_closed", f"{self._facts.name} is closed")
        if (self.phase is Phase.GRACE and self._facts.is_bank) or state.is_refused:
            raise LocalError("channel_revoked", f"{self._facts.name} is revoked: nothing new goes to the issuer")
        if self.waiting >= limits.outbox_messages_max or self._bytes + len(payload) > limits.outbox_bytes_max:
            raise LocalError("outbox_full", f"{self.waiting} messages to {self._facts.peer} wait already")
        number = state.sent + 1
        message = Message(*self._place(to_bank=self._sends_to_bank), number, state.sent_head, payload)
        entry = Entry(state.epoch, number, message_id, len(payload), message.head)
        self._entries[entry.epoch, number] = self._ids[message_id] = entry
        self._bytes += entry.size
        self._batch.keep.append(Enqueue(entry, state.sent_head, payload, state.ordinal))
        self._update(sent=number, sent_head=entry.head, ordinal=state.ordinal + 1)
        return state.epoch, number

    def session_up(self, *, is_asking: bool = False) -> None:
        """A session with the peer stands; one that stood before we read of the channel is asked for its opening."""
        self.session_down()
        self._is_up = self._owes_open = True
        self._is_asking = is_asking

    def session_down(self) -> None:
        """The session has ended; what was under way may be lost."""
        self._is_up = self._owes_open = self._owes_receipt = self._is_skipping = self._is_asking = False
        self._peer_epoch = self._flight_bytes = 0

    def room(self, has_room: bool) -> None:
        """The owner's inbox is full, or has room again."""
        self._owes_open = self._owes_open or (has_room and not self._has_room and self._is_skipping)
        self._has_room = has_room

    # Events of the peer

    def receive_untrusted(self, record: ChannelRecord) -> None:
        """Take a record of the peer's session.

        Raises:
            PeerError: ``wrong_channel``, ``wrong_direction``, ``wrong_epoch``, ``wrong_number``, ``wrong_previous``,
                ``wrong_head``, ``bad_signature``, ``bad_key``, ``malformed``, ``peer_ahead``, ``peer_behind``. The
                session has to end.
        """
        if record.channel != self._facts.name:
            raise PeerError("wrong_channel", f"a record of {record.channel} in {self._facts.name}")
        is_theirs = isinstance(record, Message)
        if record.to_bank != (self._facts.is_bank if is_theirs else self._sends_to_bank):
            raise PeerError("wrong_direction", f"{type(record).__name__.lower()} in the other direction")
        check_signature_untrusted(record, self._facts.peer_key, self._chain_id)
        match record:
            case Message():
                self._on_message_untrusted(record)
            case Receipt():
                self._on_receipt_untrusted(record)
            case Open():
                self._on_open_untrusted(record)
            case _:
                assert_never(record)

    def _on_message_untrusted(self, message: Message) -> None:
        state, head = self._state, message.head
        if message.epoch != state.epoch:
            if message.epoch > state.epoch or self._peer_epoch == state.epoch:
                raise PeerError("wrong_epoch", f"a message of epoch {message.epoch} in epoch {state.epoch}")
            return  # It left the peer before that had read of the new epoch.
        if message.number <= state.received:
            if message.number == state.received and head != state.received_head:
                raise PeerError("wrong_head", f"message {message.number} comes with another content")
            self._owes_receipt = True
            return
        if state.is_final:
            self._owes_open = True
            return
        if message.number != state.received + 1:
            if self._is_skipping:
                return
            raise PeerError("wrong_number", f"message {message.number} after {state.received}")
        if message.previous != state.received_head:
            raise PeerError("wrong_previous", f"message {message.number} follows another one than {state.received}")
        self._is_skipping = not self._has_room
        if self._has_room:
            self._batch.keep.append(Deliver(message))
            self._update(received=message.number, received_head=head)
            self._owes_receipt = True

    def _on_receipt_untrusted(self, receipt: Receipt) -> None:
        if receipt.epoch > self._state.epoch:
            raise PeerError("wrong_epoch", f"a receipt of epoch {receipt.epoch} in epoch {self._state.epoch}")
        if receipt.epoch == self._state.epoch and receipt.number < self._state.delivered:
            return  # An older one says nothing new.
        self._check_end_untrusted(receipt.epoch, receipt.number, receipt.head)
        self._delivered(receipt.epoch, receipt.number)

    def _on_open_untrusted(self, opened: Open) -> None:
        if opened.is_final and opened.to_bank:
            raise PeerError("malformed", "only what goes to the issuer can end before the channel does")
        state = self._state
        if opened.epoch > state.epoch:
            return  # Ours asks for it again, once we have read of that epoch.
        self._check_end_untrusted(opened.epoch, opened.number, opened.head)
        if opened.last_epoch >= opened.epoch:
            raise PeerError("malformed", "an epoch that ended is not before this one")
        self._check_end_untrusted(opened.last_epoch, opened.last_number, opened.last_head)
        if opened.epoch == state.epoch and opened.number < state.delivered:
            raise PeerError(
                "peer_behind", f"the peer knows {opened.number} of {state.delivered} messages: lost its log"
            )
        self._delivered(opened.epoch, opened.number)
        self._delivered(opened.last_epoch, opened.last_number)
        for entry in [entry for entry in self._entries.values() if entry.epoch < opened.epoch]:
            self._fail(entry, "channel_closed")
        if opened.is_final:
            for entry in [entry for entry in self._entries.values() if entry.epoch == opened.epoch]:
                self._fail(entry, "channel_revoked")
        if opened.epoch == state.epoch:
            self._peer_epoch, self._next, self._flight_bytes = opened.epoch, opened.number + 1, 0
            self._update(is_refused=state.is_refused or opened.is_final)
            self._owes_open = self._owes_open or opened.is_asking

    def _check_end_untrusted(self, epoch: int, number: int, head: bytes) -> None:
        """Check that the peer may have taken so many of our messages in this epoch, and that they were these."""
        state, entry = self._state, self._entries.get((epoch, number))
        if entry is not None:
            is_ahead = epoch == state.epoch and number > state.attempted
            known = entry.head
        elif epoch == state.epoch:
            is_ahead = number > state.delivered
            known = state.delivered_head if number == state.delivered else head
        else:
            is_ahead = any(other.epoch == epoch and other.number < number for other in self._entries.values())
            known = head
        if is_ahead:
            raise PeerError("peer_ahead", f"the peer knows message {number} that it never got: is our log lost?")
        if known != head:
            raise PeerError("wrong_head", f"the peer has another message {number}")

    # What follows

    @property
    def _sends_to_bank(self) -> bool:
        return not self._facts.is_bank

    def _place(self, *, to_bank: bool) -> tuple[str, str, int, bool]:
        return (*self._facts.name, self._state.epoch, to_bank)

    def _open(self) -> Open:
        state = self._state
        return Open(
            *self._place(to_bank=self._facts.is_bank),
            number=state.received,
            head=state.received_head,
            is_final=state.is_final and not self._facts.is_bank,
            is_asking=self._is_asking,
            last_epoch=state.last_epoch,
            last_number=state.last_number,
            last_head=state.last_head,
        )

    def _enter(self, epoch: int) -> None:
        """Begin an epoch. Ours of the one before stay in doubt where a session had them."""
        self._fail_unattempted("channel_closed")
        state = self._state
        last = (state.last_epoch, state.last_number, state.last_head)
        if state.received:
            last = (state.epoch, state.received, state.received_head)
        self._state = ChannelState(
            epoch=epoch, last_epoch=last[0], last_number=last[1], last_head=last[2], ordinal=state.ordinal
        )
        self._owes_receipt = self._is_skipping = False
        self._flight_bytes = 0

    def _delivered(self, epoch: int, number: int) -> None:
        """Forget our messages of an epoch up to this one."""
        state = self._state
        if epoch == state.epoch and number > state.delivered:
            last = self._entries.get((epoch, number))
            if last is None:
                raise InvariantError("a message is neither kept nor acknowledged")
            first = state.delivered + 1
            self._update(delivered=number, delivered_head=last.head)
            entries = [self._entries[epoch, count] for count in range(first, number + 1)]
            if self._peer_epoch == epoch:
                self._flight_bytes -= sum(entry.size for entry in entries if entry.number < self._next)
                self._next = max(self._next, number + 1)
        elif epoch < state.epoch:
            entries = [e for e in self._entries.values() if e.epoch == epoch and e.number <= number]
        else:
            return
        for entry in entries:
            self._forget(entry)
            self._batch.keep.append(Remove(entry))

    def _fail_unattempted(self, code: str) -> None:
        """Give up what no session ever got; of the rest the peer has to speak."""
        state = self._state
        for entry in list(self._entries.values()):
            if entry.epoch == state.epoch and entry.number > state.attempted:
                self._fail(entry, code)

    def _fail(self, entry: Entry, code: str) -> None:
        self._forget(entry)
        self._batch.keep.append(Fail(entry, code))

    def _forget(self, entry: Entry) -> None:
        del self._entries[entry.epoch, entry.number]
        self._ids.pop(entry.id, None)
        self._bytes -= entry.size

    def _transmit(self) -> None:
        """Send what the window lets through."""
        state, limits = self._state, self._limits
        is_open = self.phase is Phase.OPEN or (self.phase is Phase.GRACE and not self._facts.is_bank)
        if not (self._is_up and is_open and self._peer_epoch == state.epoch) or state.is_refused:
            return
        while self._next <= state.sent and self._next - state.delivered <= limits.window_messages_max:
            entry = self._entries[state.epoch, self._next]
            if self._flight_bytes and self._flight_bytes + entry.size > limits.window_bytes_max:
                break
            self._batch.send.append(SendMessage(entry))
            self._flight_bytes += entry.size
            self._next += 1
        self._update(attempted=max(state.attempted, self._next - 1))

    def _update(self, **changes: int | bytes | bool) -> None:
        self._state = msgspec.structs.replace(self._state, **changes)
