"""The private channel between two nodes as a way from payer to service party, beside WebSocket frames and HTTP.

A channel brings every message at least once and keeps it for as long as it takes; a stream wants a connection that is
either there or over, since an old iteration that comes late would be a wrong amount. So there are sessions:

    payer → service party   Knock(token)                           for each new session
    service party → payer   Welcome(token, session)                the older session of that channel is over
    both                    Data(session, number, frame)           numbers from 0 without a gap, in each direction
    payer → service party   Alive(session), answered by the same   while nothing else is said
    both                    Gone(session)                          it is over, or was never heard of

Sessions live in memory: what a restart finds of an older one is answered ``Gone``, and the payer knocks again. A
doubled number is passed over, a gap ends the session.

A node gives what comes to one program, and forgets it when that one is done with it. So the service party's node is
nobody else's, as a gateway's is: what is no message of a stream is dropped there and logged. A payer, who may be at
any node, leaves it lying and stops with ``channel_in_use``.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec
import structlog
import trio

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import HansaError, LocalError, PeerError
from services.client.errors import Refused, Unreachable
from services.client.owner import OwnerItem, OwnerLink
from services.client.tasks import single_errors
from services.stream.interfaces import Connection
from services.stream.wire import FRAME_BYTES_MAX, Said, SaidFrame, Told, ToldFrame, said_codec, told_codec

MAGIC: Final = b"hansa-stream 1 "
"""Before every payload: a gateway's packages travel on the same channels."""
ID_PREFIX: Final = "stream-"
SESSION_BYTES: Final = 16
ENVELOPE_BYTES_MAX = FRAME_BYTES_MAX + 256
FRAME_MESSAGES_MAX = 48
"""So many of the largest messages fit into a frame."""
WAITING_FRAMES_MAX = 256
"""Frames of a session that nobody has received yet; a payer that sends more loses the session."""
PAGE_ITEMS_MAX = 64
WELCOME_MS_MAX = 10_000
POLL_MS = 5_000
"""How long the node is asked to wait for the next message, and after how long a silent payer says that it is there."""
SILENT_MS_MAX = 20_000
"""After so long without a word a payer's session is over."""
GONE_MS_MAX = 1_000
_PAUSE_FIRST_MS, _PAUSE_MAX_MS = 50, 2_000

Token: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]

log = structlog.get_logger("stream-channel")


class Knock(Record, frozen=True, tag=1):
    """Payer: a new session, please."""

    token: Token


class Welcome(Record, frozen=True, tag=2):
    """Service party: here it is, named by 16 random bytes of mine, so that no old message can be of it."""

    token: Token
    session: Token


class Data(Record, frozen=True, tag=3):
    """Either: a frame."""

    session: Token
    number: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    frame: Annotated[bytes, msgspec.Meta(max_length=FRAME_BYTES_MAX)]


class Gone(Record, frozen=True, tag=4):
    """Either: the session is over."""

    session: Token


class Alive(Record, frozen=True, tag=5):
    """Payer, and the answer: the session is there."""

    session: Token


Envelope: TypeAlias = Knock | Welcome | Data | Gone | Alive
_codec: RecordCodec[Envelope] = RecordCodec(Envelope, bytes_max=ENVELOPE_BYTES_MAX)

M = TypeVar("M", bound=Said | Told)


class _Door:
    """One's own node: sends envelopes, and gives those that came."""

    def __init__(self, owner: OwnerLink) -> None:
        self._owner = owner
        self._run = secrets.token_hex(SESSION_BYTES)
        self._sent = 0

    async def send(self, channel: str, envelope: Envelope) -> None:
        """Leave a message at the node; sent again after a failure it would be the same one.

        Raises:
            Unreachable, Refused: errors as of :meth:`OwnerLink.send`.
        """
        self._sent += 1
        await self._owner.send(channel, f"{ID_PREFIX}{self._run}-{self._sent}", MAGIC + _codec.encode(envelope))

    async def receive(self) -> list[OwnerItem]:
        """Return what came and was not taken yet; waits ``POLL_MS`` for it. Errors as of :meth:`OwnerLink.receive`."""
        return await self._owner.receive(0, wait_ms=POLL_MS, limit=PAGE_ITEMS_MAX)

    async def done(self, position: int) -> None:
        """Let the node forget what was taken; if it does not hear this, the same comes again."""
        with suppress(Unreachable, Refused):
            await self._owner.done(position)


def _is_ours(item: OwnerItem) -> bool:
    return item.id.startswith(ID_PREFIX) if item.code else item.payload.startswith(MAGIC)


def _opened(item: OwnerItem) -> Envelope | None:
    """Return what a message says; None of one that the peer will never take: its session ends by silence."""
    if item.code:
        return None
    try:
        return _codec.decode_untrusted(item.payload[len(MAGIC) :])
    except PeerError as error:
        log.warning("message dropped", channel=item.channel, code=error.code)
        return None


def _pages(messages: Sequence[M]) -> list[list[M]]:
    return [list(messages[at : at + FRAME_MESSAGES_MAX]) for at in range(0, len(messages), FRAME_MESSAGES_MAX)]


# -- the payer's end ---------------------------------------------------------------------------------------


class PrivateLink:
    """A payer's session on a channel, a :class:`services.stream.interfaces.Link`; made by :func:`open_private`."""

    def __init__(self, door: _Door, channel: str) -> None:
        self._door = door
        self._channel = channel
        self._token = secrets.token_bytes(SESSION_BYTES)
        self._session = b""
        self._sent = self._received = 0
        self._told: list[Told] = []
        self._failure: HansaError | None = None
        self._heard_s = self._alive_s = trio.current_time()

    async def knock(self) -> None:
        """Begin the session.

        Raises:
            Unreachable: ``service_unreachable``: nobody answers, or there is no such channel.
        """
        await self._send(Knock(self._token))
        with trio.move_on_after(WELCOME_MS_MAX / 1000):
            while not self._session:
                await self._take()
            return
        raise self._lost(f"nobody answers within {WELCOME_MS_MAX} ms")

    async def send(self, messages: list[Said]) -> None:
        """See :class:`services.stream.interfaces.Link`."""
        if self._failure is not None:
            raise self._failure
        for page in _pages(messages):
            number, self._sent = self._sent, self._sent + 1
            await self._send(Data(self._session, number, said_codec.encode(SaidFrame(page))))

    async def receive(self) -> list[Told]:
        """See :class:`services.stream.interfaces.Link`; LocalError ``channel_in_use``."""
        while not self._told:
            if self._failure is not None:
                raise self._failure
            now_s = trio.current_time()
            if now_s - self._heard_s > SILENT_MS_MAX / 1000:
                raise self._lost(f"silent for {SILENT_MS_MAX} ms")
            if now_s - max(self._heard_s, self._alive_s) > POLL_MS / 1000:
                self._alive_s = now_s
                await self._send(Alive(self._session))
            await self._take()
        told, self._told = self._told, []
        return told

    async def leave(self) -> None:
        """Say that the session is over, if that goes at once."""
        if self._session:
            with trio.move_on_after(GONE_MS_MAX / 1000, shield=True), suppress(HansaError):
                await self._door.send(self._channel, Gone(self._session))

    async def _send(self, envelope: Envelope) -> None:
        try:
            await self._door.send(self._channel, envelope)
        except (Unreachable, Refused) as error:
            # Whether it was taken is not known, so its number cannot be used again.
            self._failure = self._lost(f"{error.code}: {error}")
            raise self._failure from None

    async def _take(self) -> None:
        """Take what came, then let the node forget it: given up in between, it comes again and is passed over."""
        try:
            items = await self._door.receive()
        except (Unreachable, Refused) as error:
            raise self._lost(f"{error.code}: {error}") from None
        ours = list(takewhile(_is_ours, items))
        for item in ours:
            envelope = _opened(item)
            if item.channel == self._channel and envelope is not None:
                self._on(envelope)
        if ours:
            await self._door.done(ours[-1].position)
        elif items:
            channel = items[0].channel
            raise LocalError("channel_in_use", f"on {channel} there is a message for another program of this node")

    def _on(self, envelope: Envelope) -> None:
        match envelope:
            case Welcome(token, session):
                # A service party that was restarted may hear the same knock again: its second session is nobody's.
                if token == self._token and not self._session:
                    self._session = session
                    self._heard_s = trio.current_time()
            case Knock():
                pass
            case Data() | Gone() | Alive() if envelope.session != self._session:
                pass
            case Data(_, number, frame):
                self._heard_s = trio.current_time()
                if number > self._received:
                    self._failure = self._failure or self._lost("a frame is missing")
                elif number == self._received and self._failure is None:
                    self._received += 1
                    try:
                        self._told += told_codec.decode_untrusted(frame).messages
                    except PeerError as error:
                        self._failure = error
            case Gone():
                self._failure = self._failure or self._lost("the service party has ended the session")
            case Alive():
                self._heard_s = trio.current_time()

    def _lost(self, why: str) -> Unreachable:
        return Unreachable(f"channel {self._channel}: {why}", "service_unreachable")


@asynccontextmanager
async def open_private(owner: Path, channel: str) -> AsyncIterator[PrivateLink]:
    """Give a session on a channel, ``BANK/ISSUER``, of the node whose owner's socket this is.

    Raises:
        Unreachable: ``service_unreachable``.
        LocalError: ``channel_in_use``.
    """
    async with OwnerLink(owner) as node:
        link = PrivateLink(_Door(node), channel)
        await link.knock()
        try:
            yield link
        finally:
            await link.leave()


# -- the service party's end -------------------------------------------------------------------------------


class _Session:
    """A payer's session, a :class:`services.stream.interfaces.Connection`."""

    def __init__(self, door: _Door, channel: str, token: bytes) -> None:
        self.token = token
        self.id = secrets.token_bytes(SESSION_BYTES)
        self.scope = trio.CancelScope()
        self.is_held = False
        """Whether the conversation has begun."""
        self._door = door
        self._channel = channel
        self._sent = self._received = 0
        self._into, self._frames = trio.open_memory_channel[bytes](WAITING_FRAMES_MAX)
        self._sending = trio.Lock()

    async def send(self, messages: list[Told]) -> None:
        """See :class:`services.stream.interfaces.Connection`."""
        async with self._sending:
            for page in _pages(messages):
                number, self._sent = self._sent, self._sent + 1
                data = Data(self.id, number, told_codec.encode(ToldFrame(page)))
                try:
                    await self._door.send(self._channel, data)
                except (Unreachable, Refused) as error:
                    raise Unreachable(f"channel {self._channel}: {error.code}: {error}", "payer_unreachable") from None

    async def receive(self) -> list[Said]:
        """See :class:`services.stream.interfaces.Connection`."""
        try:
            frame = await self._frames.receive()
        except trio.EndOfChannel:
            raise Unreachable(f"channel {self._channel}: the session is over", "payer_unreachable") from None
        return said_codec.decode_untrusted(frame).messages

    def take(self, number: int, frame: bytes) -> bool:
        """Take a frame; return whether the session goes on."""
        if number == self._received:
            self._received += 1
            try:
                self._into.send_nowait(frame)
            except trio.WouldBlock:
                return False
        return number < self._received

    def end(self) -> None:
        """Let :meth:`receive` end once all that came was taken."""
        self._into.close()


class _Sessions:
    """All sessions of a node, at most one on each channel."""

    def __init__(self, door: _Door, converse: Callable[[Connection], Awaitable[None]], nursery: trio.Nursery) -> None:
        self._door = door
        self._converse = converse
        self._nursery = nursery
        self._by_channel: dict[str, _Session] = {}

    async def run(self) -> None:
        """Take what comes from the node, for ever; while it is down nothing is lost."""
        pause_ms = _PAUSE_FIRST_MS
        while True:
            try:
                items = await self._door.receive()
                pause_ms = _PAUSE_FIRST_MS
                for item in items:
                    if not _is_ours(item):
                        log.error("alarm", code="channel_in_use", channel=item.channel, about="no message of a stream")
                    elif (envelope := _opened(item)) is not None:
                        await self._on(item.channel, envelope)
                if items:
                    await self._door.done(items[-1].position)
            except (Unreachable, Refused) as error:
                log.warning("node in trouble", code=error.code)
                await trio.sleep(pause_ms / 1000)
                pause_ms = min(2 * pause_ms, _PAUSE_MAX_MS)

    async def _on(self, channel: str, envelope: Envelope) -> None:
        session = self._by_channel.get(channel)
        match envelope:
            case Knock(token):
                if session is None or session.token != token:
                    if session is not None:
                        session.scope.cancel()
                    session = self._by_channel[channel] = _Session(self._door, channel, token)
                await self._door.send(channel, Welcome(token, session.id))
                # Only now: what is told before the payer knows the session would be lost.
                if not session.is_held:
                    session.is_held = True
                    self._nursery.start_soon(self._hold, channel, session)
            case Welcome():
                pass
            case Gone():
                if session is not None and session.id == envelope.session:
                    session.end()
            case Data() | Alive() if session is None or session.id != envelope.session:
                await self._door.send(channel, Gone(envelope.session))
            case Data(_, number, frame):
                if session is not None and not session.take(number, frame):
                    log.warning("session ended", channel=channel, code="frames_lost")
                    session.scope.cancel()
            case Alive():
                await self._door.send(channel, envelope)

    async def _hold(self, channel: str, session: _Session) -> None:
        """Converse with a payer, and tell it when that is over."""
        try:
            with session.scope:
                await self._converse(session)
        except HansaError as error:
            log.info("session over", channel=channel, code=error.code)
        if self._by_channel.get(channel) is session:
            del self._by_channel[channel]
        with suppress(Unreachable, Refused):
            await self._door.send(channel, Gone(session.id))


async def serve_channels(owner: Path, converse: Callable[[Connection], Awaitable[None]]) -> None:
    """Hold one conversation with each payer that comes over a channel of the node, until cancelled.

    ``converse`` returns, or raises a ``HansaError``, when that connection is over.
    """
    with single_errors():
        async with OwnerLink(owner) as node, trio.open_nursery() as nursery:
            await _Sessions(_Door(node), converse, nursery).run()
