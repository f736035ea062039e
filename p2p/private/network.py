"""The private channels of a node: one session with each partner's node, all channels with it inside, one writer.

**Sessions.** A partner is a node that the registry names at the other end of a channel that is not closed. The node of
the pair with the smaller name dials as soon as there is one; the other waits ``second_dial_ms`` and dials only when
something waits for that partner. Of two sessions one stays by the rule of ``p2p.network``. Connections come from
there and go to the same port; their sessions, errors and bounds are kept here and nowhere mixed with the public ones.
A record that breaks the rules ends the session and costs its sender points of its own book.

**One writer.** All that happens goes through one queue: the owner's messages, records of peers, sessions that begin and
end, news of the registry. A task takes all that waits, lets the machines decide, writes once, and only then sends,
answers and tells the owner. So a flood of messages costs few synced writes. Who brings records waits while the queue
is full, which slows the peer down through TCP.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Protocol, TypeAlias, assert_never

import structlog
import trio

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ChainId, NodeName
from consensus.ledger.keys import PrivateKey
from p2p.frames import FrameKind, encode_frame
from p2p.handshake import Handshake
from p2p.hello_machine import Side
from p2p.penalties import PenaltyBook
from p2p.private.channel_machine import ChannelLimits, ChannelMachine, Send, SendMessage
from p2p.private.log import ChannelLog, Write
from p2p.private.port import ChannelFacts, ChannelName, ChannelStatus, Delivery, Phase, PrivateStore
from p2p.private.records import ChannelRecord, Message, decode_record_untrusted, encode_signed
from p2p.session import Session, SessionLimits, system_wall_ms, takes_over
from p2p.tls import PeerIdentity

SETTLED_S = 1.0
"""A session that lived this long resets the dialler's back-off."""
TAKEN_BYTES_MAX = 8 * 1024 * 1024
"""Payloads of events that one write takes together."""
QUEUE_BYTES_MAX = 32 * 1024 * 1024
"""Payloads of events that wait for the writer, beyond which whoever brings more waits."""
EVENT_BYTES = 256
"""What an event counts besides its payload."""

log = structlog.get_logger("p2p.private")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateConfig:
    """What a node's channels need to know. ``key`` is the channel key, ``limits`` hold for each channel."""

    name: NodeName
    chain_id: ChainId
    key: PrivateKey
    limits: ChannelLimits = field(default_factory=ChannelLimits)
    session: SessionLimits = field(default_factory=lambda: SessionLimits(clock_ms=0, queue_bytes_max=32 * 1024 * 1024))
    sessions_max: int = 64
    """Sessions with partners at the same time."""
    second_dial_ms: int = 1_000
    """Head start of the smaller name of a pair."""
    back_off_ms_min: int = 50
    """First pause after a dial that failed; doubles up to ``back_off_ms_max``, each ± 50 %."""
    back_off_ms_max: int = 2_000
    """Longest pause between two dials."""


class Dialler(Protocol):
    """Where connections come from: the node's network."""

    async def dial_private(self, peer: NodeName) -> tuple[Handshake, str]:
        """Return a private connection to a member and its address, or raise PeerError."""


@dataclass(slots=True, eq=False)
class _Submit:
    channel: ChannelName
    id: str
    payload: bytes
    done: trio.Event = field(default_factory=trio.Event)
    placed: tuple[int, int] | None = None
    refusal: LocalError | None = None


@dataclass(slots=True, eq=False)
class _Done:
    position: int
    done: trio.Event = field(default_factory=trio.Event)
    refusal: LocalError | None = None


@dataclass(frozen=True, slots=True)
class _Received:
    session: Session
    record: ChannelRecord


@dataclass(frozen=True, slots=True)
class _Began:
    session: Session


@dataclass(frozen=True, slots=True)
class _Ended:
    session: Session


@dataclass(frozen=True, slots=True)
class _Changed:
    facts: tuple[ChannelFacts, ...]


_Event: TypeAlias = _Submit | _Done | _Received | _Began | _Ended | _Changed


@dataclass(slots=True)
class _Channel:
    machine: ChannelMachine
    session: Session | None = None
    last_error: str = ""


class PrivateNetwork:
    """The private channels of one node. ``run`` it; every other method from any task of the same trio loop.

    Args:
        config: names, keys and bounds.
        store: where outboxes and the inbox are kept, sealed; it belongs to the caller and to nobody else.
        random: source of the jitter in dialling.
        on_delivery: told when something new waits for the owner.

    Raises:
        StorageError: the store holds what cannot be.
    """

    def __init__(
        self,
        config: PrivateConfig,
        store: PrivateStore,
        *,
        random: Random,
        on_delivery: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._store = store
        self._random = random
        self._on_delivery = on_delivery
        self._log = ChannelLog(store)
        self._channels: dict[ChannelName, _Channel] = {}
        self._facts: dict[ChannelName, ChannelFacts] = {}
        self._sessions: dict[NodeName, Session] = {}
        self._dialling: set[NodeName] = set()
        self._penalties = PenaltyBook()
        self.refused: Counter[str] = Counter()
        """How often partners broke a rule, by code."""
        self._nursery: trio.Nursery | None = None
        self._network: Dialler | None = None
        self._events: deque[_Event] = deque()
        self._event_bytes = 0
        self._wake = trio.Event()
        self._drained = trio.Event()
        self._changed = trio.Event()
        self._delivered = trio.Event()

    # What the node's other parts use

    async def run(self, network: Dialler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Dial partners and work until cancelled.

        Raises:
            StorageError: the disk failed; the node has to stop.
        """
        async with trio.open_nursery() as nursery:
            self._nursery, self._network = nursery, network
            self._dial_all()
            task_status.started()
            try:
                await self._work()
            finally:
                self._nursery = None

    def channels_changed(self, facts: Iterable[ChannelFacts]) -> None:
        """Take over all channels of ours as the newest state has them; one that is not named counts as closed."""
        named = {item.name: item for item in facts}
        for name, known in self._facts.items():
            if name not in named:
                named[name] = ChannelFacts(name, known.epoch, Phase.CLOSED, known.is_bank, known.peer, known.peer_key)
        self._facts = named
        self._put(_Changed(tuple(named.values())), 0)
        partners = self._partners()
        for peer, session in self._sessions.items():
            if peer not in partners:
                session.finish("channel_closed", drop_queue=True)
        self._dial_all()
        self._signal_change()

    async def send(self, channel: ChannelName, message_id: str, payload: bytes) -> tuple[int, int]:
        """Keep a message for the partner; return its epoch and number once it is on the disk.

        The same id again gives the same answer, whatever it holds: until its failure was reported done, and as long
        as it is among the channel's last ``IDS_KEPT``.

        Raises:
            LocalError: ``unknown_channel``, or a code of :meth:`ChannelMachine.submit`.
        """
        if channel not in self._facts:
            raise LocalError("unknown_channel", f"there is no channel {channel} of ours")
        event = _Submit(channel, message_id, payload)
        await self._put_slowly(event, len(payload))
        await event.done.wait()
        if event.placed is None:
            raise event.refusal or LocalError("channel_closed", f"{channel} is closed")
        return event.placed

    def receive(self, after: int, *, limit: int, bytes_max: int) -> list[Delivery]:
        """Return what waits for the owner behind a position; see :meth:`ChannelLog.receive`."""
        return self._log.receive(after, limit=limit, bytes_max=bytes_max)

    async def wait(self, after: int) -> None:
        """Return when something lies behind a position, at once when the position was never given."""
        while self._log.last == after:
            await self._delivered.wait()

    async def done(self, position: int) -> None:
        """Forget what was delivered up to a position.

        Raises:
            LocalError: ``position_ahead``.
        """
        event = _Done(position)
        self._put(event, 0)
        await event.done.wait()
        if event.refusal is not None:
            raise event.refusal

    def status(self) -> list[ChannelStatus]:
        """Return how each channel stands, by name."""
        return [
            ChannelStatus(
                facts=channel.machine.facts,
                is_connected=channel.session is not None,
                waiting=channel.machine.waiting,
                waiting_bytes=channel.machine.waiting_bytes,
                sent=channel.machine.state.sent,
                delivered=channel.machine.state.delivered,
                received=channel.machine.state.received,
                last_error=channel.last_error,
            )
            for _, channel in sorted(self._channels.items())
        ]

    # Sessions

    def welcome(self, identity: PeerIdentity, side: Side) -> None:
        """Refuse a member that may have no private session now; ``p2p.network`` asks before it accepts.

        Raises:
            PeerError: ``no_channel``, ``refused_for_a_while``, ``duplicate_session`` or ``too_many_sessions``.
        """
        if identity.name not in self._partners():
            raise PeerError("no_channel", f"there is no open channel with {identity.name}")
        if self._penalties.refusal_left_s(identity.name, now_s=trio.current_time()) > 0:
            raise PeerError("refused_for_a_while", f"{identity.name} made too many errors")
        session = self._sessions.get(identity.name)
        if session is not None and not takes_over(self._config.name, session, dialled=side is Side.DIALLER):
            session.probe()
            raise PeerError("duplicate_session", f"{identity.name} has a private session already")
        if session is None and len(self._sessions) >= self._config.sessions_max:
            raise PeerError("too_many_sessions", f"{self._config.sessions_max} private sessions stand")

    async def serve(self, done: Handshake, address: str, *, dialled: bool = False) -> None:
        """Run the session of a proven partner to its end and close its stream."""
        name = done.identity.name
        session = Session(
            identity=done.identity,
            stream=done.stream,
            decoder=done.decoder,
            handler=_nobody,
            blame=self._blame,
            limits=self._config.session,
            address=address,
            dialled=dialled,
            connected_since_ms=system_wall_ms(),
        )
        session.handler = partial(self._take_untrusted, session)
        try:
            previous = self._sessions.get(name)
            if self._nursery is None or name not in self._partners():
                session.finish("no_channel", drop_queue=True)  # the registry changed within the handshake
            elif previous is not None and not takes_over(self._config.name, previous, dialled=dialled):
                session.finish("duplicate_session")
            else:
                self._sessions[name] = session
                log.info("partner connected", peer=name, address=address, dialled=dialled)
                if previous is not None:
                    previous.finish("duplicate_session", drop_queue=True)
                    self._put(_Ended(previous), 0)
                self._put(_Began(session), 0)
            await session.run()
        finally:
            await trio.aclose_forcefully(session.stream)
            if self._sessions.get(name) is session:
                del self._sessions[name]
                self._put(_Ended(session), 0)
                self._signal_change()
                self._note(name, session.reason or "closed")
                log.info("partner gone", peer=name, code=session.reason or "closed")

    def recheck(self, is_admitted: Callable[[PeerIdentity], bool]) -> None:
        """End the sessions of partners that the network admits no longer."""
        for session in list(self._sessions.values()):
            if not is_admitted(session.identity):
                session.finish("not_admitted", drop_queue=True)

    def _partners(self) -> set[NodeName]:
        return {facts.peer for facts in self._facts.values() if facts.phase is not Phase.CLOSED}

    def _has_waiting(self, peer: NodeName) -> bool:
        machines = [channel.machine for channel in self._channels.values()]
        return any(machine.waiting for machine in machines if machine.facts.peer == peer)

    def _dial_all(self) -> None:
        for peer in sorted(self._partners() - self._dialling - {self._config.name}):
            if self._nursery is not None and self._network is not None:
                self._dialling.add(peer)
                self._nursery.start_soon(self._keep_dialling, self._network, peer)

    async def _keep_dialling(self, network: Dialler, peer: NodeName) -> None:
        config = self._config
        failures = 0
        while peer in self._partners():
            is_second = config.name > peer
            if peer in self._sessions or (is_second and not self._has_waiting(peer)):
                await self._changed.wait()
                continue
            if is_second and failures == 0:
                await trio.sleep(config.second_dial_ms / 1000)
            await trio.sleep(self._penalties.refusal_left_s(peer, now_s=trio.current_time()))
            if peer in self._sessions or peer not in self._partners():
                continue
            began_s = trio.current_time()
            try:
                done, address = await network.dial_private(peer)
            except PeerError as error:
                self._note(peer, error.code)
            else:
                await self.serve(done, address, dialled=True)
                if trio.current_time() - began_s >= SETTLED_S:
                    failures = 0
                    continue
            failures += 1
            pause_ms = min(config.back_off_ms_max, config.back_off_ms_min << min(failures - 1, 16))
            await trio.sleep(pause_ms / 1000 * (0.5 + self._random.random()))
        self._dialling.remove(peer)

    async def _take_untrusted(self, session: Session, peer: NodeName, kind: FrameKind, payload: bytes) -> None:
        try:
            record = decode_record_untrusted(kind, payload)
        except PeerError as error:
            self._end(session, error.code)
            return
        await self._put_slowly(_Received(session, record), len(payload))

    def _blame(self, name: NodeName, code: str) -> bool:
        log.warning("partner error", peer=name, code=code)
        self.refused[code] += 1
        self._note(name, code)
        return self._penalties.add(name, f"private_{code}", now_s=trio.current_time())

    def _end(self, session: Session, code: str) -> None:
        """End a session for what its peer did."""
        self._blame(session.name, code)
        session.finish(code, drop_queue=True)

    def _note(self, peer: NodeName, code: str) -> None:
        for channel in self._channels.values():
            if channel.machine.facts.peer == peer:
                channel.last_error = code

    def _signal_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # The writer

    def _put(self, event: _Event, size: int) -> None:
        self._events.append(event)
        self._event_bytes += size + EVENT_BYTES
        self._wake.set()

    async def _put_slowly(self, event: _Submit | _Received, size: int) -> None:
        while self._event_bytes > QUEUE_BYTES_MAX:
            await self._drained.wait()
        self._put(event, size)

    async def _work(self) -> None:
        while True:
            while not self._events:
                self._wake = trio.Event()
                await self._wake.wait()
            await self._work_once()
            await trio.lowlevel.checkpoint()

    async def _work_once(self) -> None:
        """Take what waits, write once, then send and answer."""
        answers: list[_Submit | _Done] = []
        writes: list[Write] = []
        size = 0
        while self._events and size <= TAKEN_BYTES_MAX:
            event = self._events.popleft()
            payload = _payload_bytes(event)
            size += payload + EVENT_BYTES
            writes += self._apply(event)
            if isinstance(event, _Submit | _Done):
                answers.append(event)
        self._event_bytes = max(0, self._event_bytes - size)
        sends: list[tuple[ChannelName, _Channel, Send]] = []
        for name, channel in self._channels.items():
            channel.machine.room(self._log.has_room)
            batch = channel.machine.take()
            writes += self._log.writes(name, batch.keep)
            sends += [(name, channel, item) for item in batch.send]
        if writes:
            await self._store.write(writes)
        before = self._log.last
        self._log.written()
        for name, channel, item in sends:
            self._send(name, channel, item)
        for answer in answers:
            answer.done.set()
        if self._log.last != before:
            self._delivered.set()
            self._delivered = trio.Event()
            self._on_delivery()
        self._drained.set()
        self._drained = trio.Event()
        if answers:
            self._signal_change()

    def _apply(self, event: _Event) -> list[Write]:
        """Let the machines take an event; what they keep comes with their next batch."""
        match event:
            case _Submit():
                self._submit(event)
            case _Done():
                try:
                    return self._log.done(event.position)
                except LocalError as error:
                    event.refusal = error
            case _Received():
                self._receive(event.session, event.record)
            case _Began():
                for channel in self._channels.values():
                    if channel.machine.facts.peer == event.session.name:
                        channel.session = event.session
                        channel.machine.session_up()
            case _Ended():
                for channel in self._channels.values():
                    if channel.session is event.session:
                        channel.session = None
                        channel.machine.session_down()
            case _Changed():
                for facts in event.facts:
                    self._change(facts)
            case _:
                assert_never(event)
        return []

    def _submit(self, event: _Submit) -> None:
        channel = self._channels.get(event.channel)
        if channel is None:
            return
        event.placed = channel.machine.placed(event.id) or self._log.placed(event.channel, event.id)
        if event.placed is None:
            try:
                event.placed = channel.machine.submit(event.id, event.payload)
            except LocalError as error:
                event.refusal = error

    def _receive(self, session: Session, record: ChannelRecord) -> None:
        if session.reason or self._sessions.get(session.name) is not session:
            return
        channel = self._channels.get(record.channel)
        try:
            if channel is None or channel.session is not session:
                raise PeerError("wrong_channel", f"{session.name} has no part in {record.channel}")
            channel.machine.receive_untrusted(record)
            channel.last_error = ""
        except PeerError as error:
            self._end(session, error.code)

    def _change(self, facts: ChannelFacts) -> None:
        channel = self._channels.get(facts.name)
        if channel is None:
            state, entries = self._log.load(facts.name)
            machine = ChannelMachine(facts, self._config.chain_id, self._config.limits, state, entries)
            channel = self._channels[facts.name] = _Channel(machine)
        else:
            channel.machine.change(facts)
        session = self._sessions.get(facts.peer)
        if channel.session is not session:
            channel.machine.session_down()
            channel.session = session
            if session is not None:
                channel.machine.session_up()

    def _send(self, name: ChannelName, channel: _Channel, item: Send) -> None:
        """Sign a record and queue it for the partner; a queue that is full ends the session, which begins anew."""
        session = channel.session
        if session is None or session.reason:
            return
        if isinstance(item, SendMessage):
            record: ChannelRecord = self._log.message(name, item.entry, to_bank=not channel.machine.facts.is_bank)
        else:
            record = item
        kind, payload = encode_signed(record, self._config.key, self._config.chain_id)
        if not session.send(kind, encode_frame(kind, payload)):
            session.finish("queue_full", drop_queue=True)


async def _nobody(peer: NodeName, kind: FrameKind, payload: bytes) -> None:
    """Stand in until the session knows itself."""


def _payload_bytes(event: _Event) -> int:
    match event:
        case _Submit():
            return len(event.payload)
        case _Received(record=Message() as message):
            return len(message.payload)
        case _:
            return 0
