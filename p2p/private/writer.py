"""The one writer of a node's private channels: everything that happens to them goes through its queue.

It takes all that waits, lets the machines decide, writes once, and only then sends, answers and tells the owner. So a
flood of messages costs few synced writes, and nothing is said that a crash could take back. Who brings records or
messages waits while the queue is full, which slows a peer down through TCP.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

import trio

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ChainId, NodeName
from consensus.ledger.keys import PrivateKey
from p2p.frames import encode_frame
from p2p.private.channel_machine import ChannelLimits, ChannelMachine, Send, SendMessage
from p2p.private.log import ChannelLog, Write
from p2p.private.port import ChannelFacts, ChannelName, ChannelStatus, PrivateStore
from p2p.private.records import ChannelRecord, Message, Open, encode_signed
from p2p.session import Session

TAKEN_BYTES_MAX = 8 * 1024 * 1024
"""Payloads of events that one write takes together."""
QUEUE_BYTES_MAX = 32 * 1024 * 1024
"""Payloads of events that wait, beyond which whoever brings more waits."""
EVENT_BYTES = 256
"""What an event counts besides its payload."""
TAKEN_EVENTS_MAX = 1_024
"""Events that one write takes together: each may cost a signature's check."""
STRETCH_EVENTS_MAX = 32
"""Events or records in a row after which everything else that the node does has its turn, consensus above all."""


@dataclass(slots=True, eq=False)
class Submit:
    """The owner gives a message; ``done`` is set once ``placed`` is durable or there is a ``refusal``."""

    channel: ChannelName
    id: str
    payload: bytes
    done: trio.Event = field(default_factory=trio.Event)
    placed: tuple[int, int] | None = None
    refusal: LocalError | None = None


@dataclass(slots=True, eq=False)
class Forget:
    """The owner is done with what was delivered up to a position."""

    position: int
    done: trio.Event = field(default_factory=trio.Event)
    refusal: LocalError | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A record came in a session."""

    session: Session
    record: ChannelRecord


@dataclass(frozen=True, slots=True)
class Began:
    """A session stands."""

    session: Session


@dataclass(frozen=True, slots=True)
class Ended:
    """A session stands no more."""

    session: Session


@dataclass(frozen=True, slots=True)
class Changed:
    """The registry says this of all channels of ours."""

    facts: tuple[ChannelFacts, ...]


Event: TypeAlias = Submit | Forget | Received | Began | Ended | Changed


@dataclass(slots=True)
class _Channel:
    machine: ChannelMachine
    session: Session | None = None
    last_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterCalls:
    """What the writer calls: where the session with a node is, what a peer did wrong, what is done."""

    session_of: Callable[[NodeName], Session | None]
    refuse: Callable[[Session, PeerError], None]
    on_delivery: Callable[[], None]
    on_submit: Callable[[], None]


class Writer:
    """The machines of all channels, their log, and the queue before them; :meth:`work` runs it."""

    def __init__(
        self, store: PrivateStore, key: PrivateKey, chain_id: ChainId, limits: ChannelLimits, calls: WriterCalls
    ) -> None:
        self.log = ChannelLog(store)
        self._store = store
        self._key = key
        self._chain_id = chain_id
        self._limits = limits
        self._calls = calls
        self._channels: dict[ChannelName, _Channel] = {}
        self._events: deque[Event] = deque()
        self._event_bytes = 0
        self._wake = trio.Event()
        self._drained = trio.Event()

    def put(self, event: Event) -> None:
        """Queue an event."""
        self._events.append(event)
        self._event_bytes += _event_bytes(event)
        self._wake.set()

    async def put_slowly(self, event: Submit | Received) -> None:
        """Queue an event that brings a payload, once there is room."""
        while self._event_bytes > QUEUE_BYTES_MAX:
            await self._drained.wait()
        self.put(event)

    def status(self) -> list[ChannelStatus]:
        """Return how each channel stands, by name."""
        return [
            ChannelStatus(
                facts=channel.machine.facts,
                is_connected=self._is_connected(channel),
                waiting=channel.machine.waiting,
                waiting_bytes=channel.machine.waiting_bytes,
                sent=channel.machine.state.sent,
                delivered=channel.machine.state.delivered,
                received=channel.machine.state.received,
                last_error=channel.last_error,
            )
            for _, channel in sorted(self._channels.items())
        ]

    def _is_connected(self, channel: _Channel) -> bool:
        session = channel.session
        return session is not None and self._calls.session_of(session.name) is session

    def has_waiting(self, peer: NodeName) -> bool:
        """Tell whether a node is to get something."""
        return any(channel.machine.waiting for channel in self._of(peer))

    def note(self, peer: NodeName, code: str) -> None:
        """Remember what went wrong last with a node."""
        for channel in self._of(peer):
            channel.last_error = code

    async def work(self) -> None:
        """Work until cancelled.

        Raises:
            StorageError: the disk failed; the node has to stop.
        """
        while True:
            while not self._events:
                self._wake = trio.Event()
                await self._wake.wait()
            await self._work_once()
            await trio.lowlevel.checkpoint()

    async def _work_once(self) -> None:
        """Take what waits, write once, then send and answer."""
        answers: list[Submit | Forget] = []
        writes: list[Write] = []
        size = 0
        for count in range(1, TAKEN_EVENTS_MAX + 1):
            if not self._events or size > TAKEN_BYTES_MAX:
                break
            event = self._events.popleft()
            size += _event_bytes(event)
            writes += self._apply(event)
            if isinstance(event, Submit | Forget):
                answers.append(event)
            await _rest(count)
        sends: list[tuple[ChannelName, _Channel, Send]] = []
        for name, channel in self._channels.items():
            channel.machine.room(self.log.has_room)
            batch = channel.machine.take()
            writes += self.log.writes(name, batch.keep)
            sends += [(name, channel, item) for item in batch.send]
        if writes:
            await self._store.write(writes)
        before = self.log.last
        self.log.written()
        for count, (name, channel, item) in enumerate(sends, start=1):
            self._send(name, channel, item)
            await _rest(count)
        for answer in answers:
            answer.done.set()
        self._event_bytes -= size
        self._drained.set()
        self._drained = trio.Event()
        if self.log.last != before:
            self._calls.on_delivery()
        if answers:
            self._calls.on_submit()

    def _apply(self, event: Event) -> list[Write]:
        """Let the machines take an event; what they keep comes with their next batch."""
        match event:
            case Submit():
                self._submit(event)
            case Forget():
                try:
                    return self.log.done(event.position)
                except LocalError as error:
                    event.refusal = error
            case Received():
                self._receive(event.session, event.record)
            case Began(session):
                for channel in self._of(session.name):
                    channel.session = session
                    channel.machine.session_up()
            case Ended(session):
                for channel in self._channels.values():
                    if channel.session is session:
                        channel.session = None
                        channel.machine.session_down()
            case Changed(facts):
                for item in facts:
                    self._change(item)
            case _:
                assert_never(event)
        return []

    def _of(self, peer: NodeName) -> list[_Channel]:
        return [channel for channel in self._channels.values() if channel.machine.facts.peer == peer]

    def _submit(self, event: Submit) -> None:
        channel = self._channels.get(event.channel)
        if channel is None:
            event.refusal = LocalError("unknown_channel", f"there is no channel {event.channel} of ours")
            return
        event.placed = channel.machine.placed(event.id) or self.log.placed(event.channel, event.id)
        if event.placed is None:
            try:
                event.placed = channel.machine.submit(event.id, event.payload)
            except LocalError as error:
                event.refusal = error

    def _receive(self, session: Session, record: ChannelRecord) -> None:
        if session.reason:
            return  # It has ended: whatever is not taken comes again in the next one.
        channel = self._channels.get(record.channel)
        try:
            if channel is not None and channel.session is session:
                channel.machine.receive_untrusted(record)
                channel.last_error = ""
            elif not isinstance(record, Open):  # An opening may come before we have read of its channel.
                raise PeerError("wrong_channel", f"{session.name} has no part in {record.channel}")
        except PeerError as error:
            self._calls.refuse(session, error)

    def _change(self, facts: ChannelFacts) -> None:
        channel = self._channels.get(facts.name)
        if channel is None:
            state, entries = self.log.load(facts.name)
            machine = ChannelMachine(facts, self._chain_id, self._limits, state, entries)
            channel = self._channels[facts.name] = _Channel(machine)
        else:
            channel.machine.change(facts)
        session = self._calls.session_of(facts.peer)
        if channel.session is not session:
            channel.machine.session_down()
            channel.session = session
            if session is not None:
                channel.machine.session_up(is_asking=True)

    def _send(self, name: ChannelName, channel: _Channel, item: Send) -> None:
        """Sign a record and queue it; what a full queue holds still leaves, and the next session goes on from there."""
        session = channel.session
        if session is None or session.reason:
            return
        if isinstance(item, SendMessage):
            record: ChannelRecord = self.log.message(name, item.entry, to_bank=not channel.machine.facts.is_bank)
        else:
            record = item
        kind, payload = encode_signed(record, self._key, self._chain_id)
        if not session.send(kind, encode_frame(kind, payload)):
            session.finish("queue_full")


async def _rest(count: int) -> None:
    """Let everybody else run after each stretch."""
    if count % STRETCH_EVENTS_MAX == 0:
        await trio.lowlevel.checkpoint()


def _event_bytes(event: Event) -> int:
    match event:
        case Submit(payload=payload) | Received(record=Message(payload=payload)):
            return EVENT_BYTES + len(payload)
        case _:
            return EVENT_BYTES
