"""All sessions of a node: listening, dialling, one session a pair, penalties, and an orderly end.

**Who dials.** Both nodes of a pair know each other's address. The one with the smaller name dials at
once; the other waits ``second_dial_ms`` first, so that both rarely dial at the same time. When they do,
the session dialled by the smaller name stays; of two dialled by the same node, the newer one stays,
since its proof is the fresher one. Both ends judge by the same rule, so they agree. A node that turns a
new session down this way probes the old one, which breaks if nobody is behind it any more.

**Strangers.** A connection has ``handshake_ms_max`` for TLS and hello together (R69), and at most
``handshakes_max`` accepted ones are under way; beyond that the oldest gives way, because an honest peer
needs milliseconds. Errors are charged to the peer's name once it is proven, before that to its address.
A refused address cannot connect; addresses that peers are dialled at are never refused, since otherwise
whoever shares one with a validator could shut it out.

**Members.** Who belongs may change while the network runs (:meth:`Network.members_changed`): new roots count
from the next handshake on, new peers are dialled, and whoever is no longer let in loses its session at once.
A name whose sessions clash again and again is worn by two processes (``p2p.doubles``).

**Private connections** (``p2p.private``) come in at the same port and are told apart within TLS. They are shaken hands
with here and then handed over: their sessions, penalties and bounds are no affair of this module.

**Order.** Frames of one kind to one peer arrive in the order of ``send``, as long as the session lives;
a session that ends loses what was queued. Whoever needs a frame to arrive sends it again.
"""

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Protocol, TypeAlias

import structlog
import trio

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ChainId, NodeName
from p2p.doubles import DoubleWatch
from p2p.frames import FrameKind, encode_frame
from p2p.handshake import Handshake, Handshaker
from p2p.hello_machine import Side
from p2p.penalties import PenaltyBook
from p2p.recorder import FrameRecorder
from p2p.session import Handler, Session, SessionLimits, system_wall_ms, takes_over
from p2p.status import PeerStatus, peer_status
from p2p.tls import PRIVATE, PUBLIC, PeerIdentity, TlsIdentity, Trust, client_context, server_context, trust_also

__all__ = ["Admits", "Network", "NetworkConfig", "OnPeer", "PeerStatus"]

SETTLED_S = 1.0
"""A session that lived this long resets the dialler's back-off."""

log = structlog.get_logger("p2p")

Admits: TypeAlias = Callable[[NodeName, str, bytes], bool]
"""Tells whether a node (name, organisation, SHA-256 of its certificate) may speak now."""

OnPeer: TypeAlias = Callable[[NodeName, bool], None]
"""Told when a session with a peer begins (True) and when the last one has ended (False)."""


class PrivateSide(Protocol):
    """Who takes the private connections that come in."""

    def welcome(self, identity: PeerIdentity, side: Side) -> None:
        """Raise PeerError when this member may have no private session now."""

    async def serve(self, done: Handshake, address: str) -> None:
        """Run the session of an accepted connection to its end, and close its stream."""

    def recheck(self, is_admitted: Callable[[PeerIdentity], bool]) -> None:
        """End the sessions of peers that are admitted no longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Everything a node's network needs to know.

    ``port`` 0 takes a free one. ``peers`` are dialled, until :meth:`Network.members_changed` names others;
    who is not dialled may come in when ``admits`` lets it.
    """

    name: NodeName
    chain_id: ChainId
    identity: TlsIdentity
    trust: Trust
    host: str
    port: int
    peers: Mapping[NodeName, tuple[str, int]]
    handshake_ms_max: int = 5_000
    """Time from the first byte of a connection to the ACK of both sides."""
    handshakes_max: int = 64
    """Accepted connections whose handshake is under way."""
    sessions_max: int = 256
    """Sessions at the same time; more are turned down with ``too_many_sessions``."""
    second_dial_ms: int = 250
    """Head start of the smaller name of a pair."""
    back_off_ms_min: int = 50
    """First pause after a dial that failed; doubles up to ``back_off_ms_max``, each ± 50 %."""
    back_off_ms_max: int = 4_000
    """Longest pause between two dials."""
    limits: SessionLimits = field(default_factory=SessionLimits)
    recorder: FrameRecorder | None = None
    """Writes down every frame in clear, for tests."""


class Network:
    """The sessions of one node; ``run`` it, and ``send`` from any task of the same trio loop.

    Args:
        config: names, keys, addresses and bounds.
        handler: takes each frame of a peer, in order for each peer; several peers at the same time.
        admits: asked when a session is about to stand, and again by :meth:`recheck`.
        random: source of the jitter in dialling; nothing else depends on it.
        on_peer: told about sessions that begin and end.
        wall_ms: our clock, which peers' clocks are compared with; ms since 1970 UTC.
        private: takes private connections; None turns them away.
    """

    def __init__(
        self,
        config: NetworkConfig,
        handler: Handler,
        *,
        admits: Admits,
        random: Random,
        on_peer: OnPeer = lambda name, connected: None,
        wall_ms: Callable[[], int] = system_wall_ms,
        private: PrivateSide | None = None,
    ) -> None:
        self._config = config
        self._private = private
        self._handler = handler
        self._admits = admits
        self._random = random
        self._on_peer = on_peer
        self._wall_ms = wall_ms
        self._handshaker = Handshaker(
            chain_id=config.chain_id,
            identity=config.identity,
            trust=config.trust,
            server_context=server_context(config.identity, config.trust, (PUBLIC, PRIVATE) if private else (PUBLIC,)),
            client_context=client_context(config.identity, config.trust),
            welcome=self._check_welcome,
            timeout_ms=config.handshake_ms_max,
            private_welcome=self._check_private_welcome,
            private_context=client_context(config.identity, config.trust, PRIVATE),
            recorder=config.recorder,
        )
        self._sessions: dict[NodeName, Session] = {}
        self._peers = dict(config.peers)
        self._dialling: set[NodeName] = set()
        self._nursery: trio.Nursery | None = None
        self._doubles = DoubleWatch()
        self._penalties = PenaltyBook()
        self._last_errors: dict[NodeName, str] = {}
        self._last_stranger = ("", "")
        self._handshakes: dict[trio.CancelScope, None] = {}
        self._changed = trio.Event()
        self._stopping = trio.Event()

    @property
    def name(self) -> NodeName:
        """Our own name."""
        return self._config.name

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and dial until :meth:`stop` or cancellation; reports the port it listens on when started.

        Raises:
            LocalError: ``port_in_use`` or ``bad_address`` when it cannot listen.
        """
        config = self._config
        listeners = await _listen(config.host, config.port)
        port: int = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_listeners, self._accept, listeners, handler_nursery=nursery)
            nursery.start_soon(serve)
            self._nursery = nursery
            self._dial_all()
            log.info("listening", host=config.host, port=port)
            task_status.started(port)
            try:
                await self._stopping.wait()
                for session in self._sessions.values():
                    session.finish("shutting_down")
                with trio.move_on_after(config.limits.close_ms_max / 1000):
                    while self._sessions:
                        await self._changed.wait()
            finally:
                self._nursery = None  # a block that becomes final meanwhile may still name new members
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Begin the end: queues leave within ``close_ms_max``, then :meth:`run` returns."""
        self._stopping.set()

    def send(self, to: NodeName, kind: FrameKind, payload: bytes) -> bool:
        """Queue a frame for a peer; false when it is not connected or its queue refuses (see ``p2p.session``).

        Raises:
            LocalError: ``frame_too_large``.
        """
        session = self._sessions.get(to)
        return session is not None and session.send(kind, encode_frame(kind, payload))

    def broadcast(self, kind: FrameKind, payload: bytes, *, among: Iterable[NodeName] | None = None) -> int:
        """Queue a frame for all connected peers, or those named; return how many queues took it.

        Raises:
            LocalError: ``frame_too_large``.
        """
        frame = encode_frame(kind, payload)
        names = self._sessions if among is None else among
        sessions = [session for name in names if (session := self._sessions.get(name)) is not None]
        return sum(session.send(kind, frame) for session in sessions)

    def connected(self) -> tuple[NodeName, ...]:
        """Return the names of the peers with a session, in order."""
        return tuple(sorted(self._sessions))

    def peers(self) -> list[PeerStatus]:
        """Return the status of every peer that is dialled or connected, by name."""
        names = (set(self._peers) | set(self._sessions)) - {self._config.name}
        now_s = trio.current_time()
        return [
            peer_status(
                name,
                self._sessions.get(name),
                dialled_at=self._peers.get(name),
                penalty_points=self._penalties.points(name, now_s=now_s),
                is_refused=self._penalties.refusal_left_s(name, now_s=now_s) > 0,
                last_error=self._last_errors.get(name, ""),
                is_doubled=self._doubles.is_doubled(name, now_s=now_s),
            )
            for name in sorted(names)
        ]

    def penalise(self, name: NodeName, code: str) -> bool:
        """Charge a peer for an error; at the limit its session ends and it is refused for a while (true)."""
        refused = self._blame(name, code)
        session = self._sessions.get(name)
        if refused and session is not None:
            session.finish("refused_for_a_while", drop_queue=True)
        return refused

    def members_changed(self, trust: Trust, peers: Mapping[NodeName, tuple[str, int]]) -> None:
        """Take over who belongs now: the roots that count, and whom to dial where.

        Handshakes from now on are judged by ``trust``; sessions that ``admits`` no longer lets in end at once,
        and what was queued for them does not leave. Roots that TLS cannot load are left out and logged.
        """
        shaker = self._handshaker
        contexts = (shaker.server_context, shaker.client_context, shaker.private_context)
        for context in [context for context in contexts if context is not None]:
            for organisation in trust_also(context, trust, known=self._handshaker.trust):
                log.warning("root not usable", organisation=organisation)
        self._handshaker = replace(self._handshaker, trust=trust)
        self._peers = dict(list(peers.items())[: self._config.sessions_max])
        self._dial_all()
        self.recheck()
        self._signal_change()

    def recheck(self) -> None:
        """Ask ``admits`` again for every session and end those it no longer lets in."""
        for session in list(self._sessions.values()):
            if not self._is_admitted(session.identity):
                session.finish("not_admitted", drop_queue=True)
        if self._private is not None:
            self._private.recheck(self._is_admitted)

    # Dialling

    def _dial_all(self) -> None:
        """See to it that every peer is being dialled; who is no longer one ceases by itself."""
        for peer in sorted(set(self._peers) - self._dialling - {self._config.name}):
            if self._nursery is not None:
                self._dialling.add(peer)
                self._nursery.start_soon(self._keep_dialling, peer)

    async def _keep_dialling(self, peer: NodeName) -> None:
        config = self._config
        failures = 0
        while True:
            while peer in self._sessions:
                await self._changed.wait()
            if config.name > peer and failures == 0:
                await trio.sleep(config.second_dial_ms / 1000)
            await trio.sleep(self._penalties.refusal_left_s(peer, now_s=trio.current_time()))
            if peer in self._sessions:
                continue
            if peer not in self._peers:
                break
            if await self._dial(peer, *self._peers[peer]):
                failures = 0
                continue
            failures += 1
            pause_ms = min(config.back_off_ms_max, config.back_off_ms_min << min(failures - 1, 16))
            await trio.sleep(pause_ms / 1000 * (0.5 + self._random.random()))
        self._dialling.remove(peer)

    async def _dial(self, peer: NodeName, host: str, port: int) -> bool:
        """Connect, shake hands and run the session to its end; false when it ended before it had settled."""
        try:
            done = await self._connect(peer, host, port, PUBLIC)
        except PeerError as error:
            if peer not in self._sessions:
                self._note(peer, error.code, error.message)
            return False
        return await self._run_session(done, f"{host}:{port}", dialled=True)

    async def dial_private(self, peer: NodeName) -> tuple[Handshake, str]:
        """Return a private connection to a member, not yet served, and its address.

        Raises:
            PeerError: ``unreachable``, ``not_admitted`` (no address, or no member), or a code of ``p2p.handshake``.
        """
        if peer not in self._peers:
            raise PeerError("not_admitted", f"{peer} has no address")
        host, port = self._peers[peer]
        done = await self._connect(peer, host, port, PRIVATE)
        if not self._is_admitted(done.identity):  # membership changed within the handshake
            await trio.aclose_forcefully(done.stream)
            raise PeerError("not_admitted", f"{peer} was shut out within the handshake")
        return done, f"{host}:{port}"

    async def _connect(self, peer: NodeName, host: str, port: int, protocol: str) -> Handshake:
        try:
            with trio.fail_after(self._config.handshake_ms_max / 1000):
                transport = await trio.open_tcp_stream(host, port)
        except (OSError, UnicodeError, trio.TooSlowError) as error:  # the second of a name that cannot be one
            raise PeerError("unreachable", str(error)) from None
        return await self._handshaker.shake(transport, Side.DIALLER, expected=peer, protocol=protocol)

    # Accepting

    async def _accept(self, transport: trio.SocketStream) -> None:
        try:
            address = transport.socket.getpeername()[0]
        except OSError:
            await trio.aclose_forcefully(transport)
            return
        now_s = trio.current_time()
        if self._stopping.is_set() or self._penalties.refusal_left_s(address, now_s=now_s) > 0:
            await trio.aclose_forcefully(transport)
            return
        if len(self._handshakes) >= self._config.handshakes_max:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
        done = None
        with trio.CancelScope() as scope:
            self._handshakes[scope] = None
            try:
                done = await self._handshaker.shake(transport, Side.LISTENER)
            except PeerError as error:
                self._note_stranger(address, error)
                if all(address != host for host, _ in self._peers.values()):
                    self._penalties.add(address, error.code, now_s=trio.current_time())
            finally:
                self._handshakes.pop(scope, None)
        if done is None:
            return
        if done.protocol != PRIVATE or self._private is None:
            await self._run_session(done, address, dialled=False)
        elif self._is_admitted(done.identity):
            await self._private.serve(done, address)
        else:  # membership changed within the handshake
            await trio.aclose_forcefully(done.stream)

    def _check_private_welcome(self, identity: PeerIdentity, side: Side) -> None:
        """Refuse a proven peer that is no member, or may not have a private session now."""
        if identity.name == self._config.name or not self._is_admitted(identity) or self._private is None:
            raise PeerError("not_admitted", f"{identity.name} of {identity.organisation} is no member node")
        self._private.welcome(identity, side)

    def _check_welcome(self, identity: PeerIdentity, side: Side) -> None:
        """Refuse a proven peer that may not have a session now."""
        if identity.name == self._config.name:
            raise PeerError("unexpected_peer", "the peer bears our own name")
        if not self._is_admitted(identity):
            raise PeerError("not_admitted", f"{identity.name} of {identity.organisation} is no member node")
        if self._penalties.refusal_left_s(identity.name, now_s=trio.current_time()) > 0:
            raise PeerError("refused_for_a_while", f"{identity.name} made too many errors")
        session = self._sessions.get(identity.name)
        if session is not None and not takes_over(self.name, session, dialled=side is Side.DIALLER):
            session.probe()
            self._note_clash(session, identity)
            raise PeerError("duplicate_session", f"{identity.name} has a session already")
        if session is None and len(self._sessions) >= self._config.sessions_max:
            raise PeerError("too_many_sessions", f"{self._config.sessions_max} sessions stand")

    def _is_admitted(self, identity: PeerIdentity) -> bool:
        return self._admits(identity.name, identity.organisation, identity.fingerprint)

    # Sessions

    async def _run_session(self, done: Handshake, address: str, *, dialled: bool) -> bool:
        """Run a session to its end and tell whether it had settled before."""
        name = done.identity.name
        began_s = trio.current_time()
        session = Session(
            identity=done.identity,
            stream=done.stream,
            decoder=done.decoder,
            handler=self._handler,
            blame=self._blame,
            limits=self._config.limits,
            address=address,
            dialled=dialled,
            connected_since_ms=system_wall_ms(),
            wall_ms=self._wall_ms,
        )
        try:
            previous = self._sessions.get(name)
            if not self._is_admitted(done.identity):
                session.finish("not_admitted", drop_queue=True)  # membership changed within the handshake
            elif previous is not None and not takes_over(self.name, previous, dialled=dialled):
                session.finish("duplicate_session")
            else:
                self._sessions[name] = session
                self._signal_change()
                log.info("peer connected", peer=name, address=address, dialled=dialled)
                if previous is not None:
                    self._note_clash(previous, done.identity)
                    previous.finish("duplicate_session")
                else:
                    self._on_peer(name, True)
            await session.run()
        finally:
            await trio.aclose_forcefully(session.stream)
            if self._sessions.get(name) is session:
                del self._sessions[name]
                self._signal_change()
                self._note(name, session.reason or "closed", "the session ended")
                self._on_peer(name, False)
        return trio.current_time() - began_s >= SETTLED_S

    def _signal_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _blame(self, name: NodeName, code: str) -> bool:
        log.warning("peer error", peer=name, code=code)
        return self._penalties.add(name, code, now_s=trio.current_time())

    def _note_stranger(self, address: str, error: PeerError) -> None:
        """Log what went wrong with a stranger; a flood of the same from one address makes one line."""
        if self._last_stranger != (address, error.code):
            log.info("handshake failed", address=address, code=error.code, message=error.message)
        self._last_stranger = (address, error.code)

    def _note_clash(self, session: Session, newcomer: PeerIdentity) -> None:
        """Note that a peer has come a second time; with a successor certificate it was restarted, else maybe copied."""
        if newcomer.fingerprint == session.identity.fingerprint and self._doubles.clashed(
            newcomer.name, now_s=trio.current_time()
        ):
            log.warning("two processes under one name", peer=newcomer.name, address=session.address)

    def _note(self, name: NodeName, code: str, message: str) -> None:
        if self._last_errors.get(name) != code:
            log.info("peer down", peer=name, code=code, message=message)
        self._last_errors[name] = code


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        code = "port_in_use" if error.errno == errno.EADDRINUSE else "bad_address"
        raise LocalError(code, f"cannot listen on {host}:{port}: {error}") from None
