"""The private channels of a node: one session with each partner's node, and all channels with it inside.

**Sessions.** A partner is a node that the registry names at the other end of a channel that is not closed. The node of
the pair with the smaller name dials as soon as there is one; the other waits ``second_dial_ms`` and dials only when
something waits for that partner. Of two sessions one stays by the rule of ``p2p.network``. Connections come from
there and go to the same port; their sessions, errors and bounds are kept here and nowhere mixed with the public ones.
A record that breaks the rules ends the session and costs its sender points of a book of their own, in which a new
epoch or a new channel key begins a new page: who was at fault may have been mended.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Protocol

import structlog
import trio

from consensus.ledger.errors import InvariantError, PeerError
from consensus.ledger.ids import ChainId, NodeName
from consensus.ledger.keys import PrivateKey
from p2p.frames import FrameKind
from p2p.handshake import Handshake
from p2p.hello_machine import Side
from p2p.penalties import PenaltyBook
from p2p.private.channel_machine import ChannelLimits
from p2p.private.port import ChannelFacts, ChannelName, ChannelStatus, Delivery, Phase, PrivateStore
from p2p.private.records import decode_record_untrusted
from p2p.private.writer import Began, Changed, Ended, Forget, Received, Submit, Writer, WriterCalls
from p2p.session import Session, SessionLimits, system_wall_ms, takes_over
from p2p.tls import PeerIdentity

SETTLED_S = 1.0
"""A session that lived this long resets the dialler's back-off."""

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


class PrivateNetwork:
    """The private channels of one node. ``run`` it; every other method from any task of the same trio loop.

    Args:
        config: names, keys and bounds.
        store: where outboxes and the inbox are kept, sealed; it belongs to the caller and to nobody else.
        random: source of the jitter in dialling.

    Raises:
        StorageError: the store holds what cannot be.
    """

    def __init__(
        self,
        config: PrivateConfig,
        store: PrivateStore,
        *,
        random: Random,
    ) -> None:
        self._config = config
        self._random = random
        self._delivered = trio.Event()
        self._writer = Writer(
            store,
            config.key,
            config.chain_id,
            config.limits,
            WriterCalls(
                session_of=lambda peer: self._sessions.get(peer),
                refuse=self._refuse,
                on_delivery=self._delivery,
                on_submit=self._signal_change,
            ),
        )
        self._facts: dict[ChannelName, ChannelFacts] = {}
        self._sessions: dict[NodeName, Session] = {}
        self._dialling: set[NodeName] = set()
        self._penalties = PenaltyBook()
        self.refused: Counter[str] = Counter()
        """How often partners broke a rule, by code."""
        self._nursery: trio.Nursery | None = None
        self._network: Dialler | None = None
        self._changed = trio.Event()

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
                await self._writer.work()
            finally:
                self._nursery = None

    def channels_changed(self, facts: Iterable[ChannelFacts]) -> None:
        """Take over all channels of ours as the newest state has them; one that is not named counts as closed."""
        named = {item.name: item for item in facts}
        for name, known in self._facts.items():
            if name not in named:
                named[name] = ChannelFacts(name, known.epoch, Phase.CLOSED, known.is_bank, known.peer, known.peer_key)
        self._facts = named
        self._writer.put(Changed(tuple(named.values())))
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
        event = Submit(channel, message_id, payload)
        await self._writer.put_slowly(event)
        await event.done.wait()
        if event.placed is None:
            raise event.refusal or InvariantError("a message is neither placed nor refused")
        return event.placed

    def receive(self, after: int, *, limit: int, bytes_max: int) -> list[Delivery]:
        """Return what waits for the owner behind a position; see :meth:`ChannelLog.receive`."""
        return self._writer.log.receive(after, limit=limit, bytes_max=bytes_max)

    async def wait(self, after: int) -> None:
        """Return when something lies behind a position, at once when the position was never given."""
        while not self._writer.log.waits(after):
            await self._delivered.wait()

    async def done(self, position: int) -> None:
        """Forget what was delivered up to a position.

        Raises:
            LocalError: ``position_ahead``.
        """
        event = Forget(position)
        self._writer.put(event)
        await event.done.wait()
        if event.refusal is not None:
            raise event.refusal

    def status(self) -> list[ChannelStatus]:
        """Return how each channel stands, by name."""
        return self._writer.status()

    # Sessions

    def welcome(self, identity: PeerIdentity, side: Side) -> None:
        """Refuse a member that may have no private session now; ``p2p.network`` asks before it accepts.

        Raises:
            PeerError: ``no_channel``, ``refused_for_a_while``, ``duplicate_session`` or ``too_many_sessions``.
        """
        if identity.name not in self._partners():
            raise PeerError("no_channel", f"there is no open channel with {identity.name}")
        if self._penalties.refusal_left_s(self._page(identity.name), now_s=trio.current_time()) > 0:
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
                    self._writer.put(Ended(previous))
                self._writer.put(Began(session))
            await session.run()
        finally:
            if self._sessions.get(name) is session:
                del self._sessions[name]
                self._writer.put(Ended(session))
                self._signal_change()
                self._writer.note(name, session.reason or "closed")
                log.info("partner gone", peer=name, code=session.reason or "closed")
            await trio.aclose_forcefully(session.stream)  # last: nothing comes after it where this task is cancelled

    def recheck(self, is_admitted: Callable[[PeerIdentity], bool]) -> None:
        """End the sessions of partners that the network admits no longer."""
        for session in list(self._sessions.values()):
            if not is_admitted(session.identity):
                session.finish("not_admitted", drop_queue=True)

    def _partners(self) -> set[NodeName]:
        return {facts.peer for facts in self._facts.values() if facts.phase is not Phase.CLOSED}

    def _page(self, peer: NodeName) -> str:
        """Return under what a partner's errors are counted."""
        channels = sorted((facts.epoch, facts.peer_key.hex()) for facts in self._facts.values() if facts.peer == peer)
        return f"{peer} {channels}"

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
            if peer in self._sessions or (is_second and not self._writer.has_waiting(peer)):
                await self._changed.wait()
                continue
            if is_second and failures == 0:
                await trio.sleep(config.second_dial_ms / 1000)
            refusal_s = self._penalties.refusal_left_s(self._page(peer), now_s=trio.current_time())
            if refusal_s > 0:
                with trio.move_on_after(refusal_s):
                    await self._changed.wait()
                continue
            if peer in self._sessions or peer not in self._partners():
                continue
            began_s = trio.current_time()
            try:
                done, address = await network.dial_private(peer)
            except PeerError as error:
                self._writer.note(peer, error.code)
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
            self._refuse(session, error)
            return
        await self._writer.put_slowly(Received(session, record))

    def _blame(self, name: NodeName, code: str) -> bool:
        self.refused[code] += 1
        self._writer.note(name, code)
        return self._penalties.add(self._page(name), f"private_{code}", now_s=trio.current_time())

    def _refuse(self, session: Session, error: PeerError) -> None:
        """End a session for what its peer did."""
        log.warning("partner error", peer=session.name, code=error.code, why=error.message)
        self._blame(session.name, error.code)
        session.finish(error.code, drop_queue=True)

    def _delivery(self) -> None:
        self._delivered.set()
        self._delivered = trio.Event()

    def _signal_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


async def _nobody(peer: NodeName, kind: FrameKind, payload: bytes) -> None:
    """Stand in until the session knows itself."""
