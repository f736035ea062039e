"""A payer's ways to a service party: WebSocket frames, or HTTP requests where no WebSocket is let through.

Both are a :class:`services.stream.interfaces.Link`: what comes of a service party is decoded and bounded here, and
believed nowhere. Receiving may be given up at any moment and loses nothing.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec
import trio
import wsproto
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from consensus.ledger.errors import LocalError, PeerError
from services.client.errors import Refused, Unreachable
from services.client.tasks import single_errors
from services.local.pages import Failed
from services.stream.opening import UNREACHABLE
from services.stream.service_interface import FRAME_MEDIA_TYPE, ChallengeGiven, bytes_of_hex
from services.stream.wire import (
    FRAME_BYTES_MAX,
    MESSAGES_MAX,
    Challenge,
    Said,
    SaidFrame,
    Told,
    said_codec,
    told_codec,
)

CONNECT_MS_MAX = 3_000
SEND_MS_MAX = 10_000
"""How long a frame may take to leave; then the connection counts as lost."""
ANSWER_MS_MAX = 15_000
POLL_MS: Final = 250
"""How often a service party is asked by HTTP how things stand, while nothing is sent to it."""
_READ_BYTES = 64 * 1024
_FRAME_MESSAGES = min(MESSAGES_MAX, 48)
"""So many of the largest messages fit into a frame."""


class FramesLink:
    """Frames over one WebSocket; made by :func:`open_frames`."""

    def __init__(self, url: str, stream: trio.abc.Stream) -> None:
        """Take over a connected stream; nothing is said yet."""
        self._url = url
        self._stream = stream
        self._protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._sending = trio.Lock()
        self._told: list[Told] = []
        self._early: list[wsproto.events.Event] = []
        """What came together with the answer to the handshake."""
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._is_over = False

    async def send(self, messages: list[Said]) -> None:
        """See :class:`services.stream.interfaces.Link`."""
        for frame in _frames(messages):
            await self._send(BytesMessage(frame))

    async def receive(self) -> list[Told]:
        """See :class:`services.stream.interfaces.Link`; PeerError ``malformed``, ``too_large``."""
        while not self._told:
            if self._is_over and not self._early:
                raise self._lost("it closed the connection")
            events, self._early = self._early or await self._events(), []
            # First all that came, then the answers: who gives up while one leaves has lost nothing.
            for answer in [answer for event in events if (answer := self._on_event(event)) is not None]:
                await self._send(answer)
        told, self._told = self._told, []
        return told

    async def handshake(self, token: str) -> None:
        """Upgrade the connection; ``token`` is "" where none is wanted.

        Raises:
            Unreachable: the other side refuses or speaks no WebSocket.
        """
        parts = urlsplit(self._url)
        headers = [(name.encode(), value.encode()) for name, value in _authorization(token).items()]
        await self._send(Request(host=parts.netloc, target=parts.path, extra_headers=headers))
        while True:
            for number, event in enumerate(events := await self._events()):
                if isinstance(event, AcceptConnection):
                    self._early = events[number + 1 :]
                    return
                why = f"HTTP status {event.status_code}" if isinstance(event, RejectConnection) else "it closed"
                raise self._lost(f"no WebSocket: {why}")

    async def _events(self) -> list[wsproto.events.Event]:
        try:
            data = bytes(await self._stream.receive_some(_READ_BYTES))
            self._protocol.receive_data(data or None)
            events = [*self._protocol.events()]
        except (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError) as error:
            raise self._lost(str(error) or type(error).__name__) from None
        if not data:
            self._is_over = True
        return events

    def _on_event(self, event: wsproto.events.Event) -> Pong | None:
        """Take what came, and return what it is answered with."""
        match event:
            case TextMessage():
                raise PeerError("malformed", f"{self._url} sends text where frames are binary")
            case BytesMessage():
                self._parts.append(bytes(event.data))
                self._parts_bytes += len(event.data)
                if self._parts_bytes > FRAME_BYTES_MAX:
                    raise PeerError("too_large", f"{self._url} sends a frame above {FRAME_BYTES_MAX} bytes")
                if event.message_finished:
                    frame, self._parts, self._parts_bytes = b"".join(self._parts), [], 0
                    self._told += told_codec.decode_untrusted(frame).messages
            case Ping():
                return event.response()
            case CloseConnection():
                self._is_over = True
        return None

    async def _send(self, event: wsproto.events.Event) -> None:
        """Send one event whole, also where the caller is cancelled meanwhile: half a frame would end the connection."""
        async with self._sending:
            try:
                data = self._protocol.send(event)
                with trio.move_on_after(SEND_MS_MAX / 1000, shield=True) as scope:
                    await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError) as error:
                raise self._lost(str(error) or type(error).__name__) from None
            if scope.cancelled_caught:
                self._is_over = True
                raise self._lost(f"it takes nothing for {SEND_MS_MAX} ms")

    def _lost(self, why: str) -> Unreachable:
        return Unreachable(f"{self._url}: {why}", UNREACHABLE)


@asynccontextmanager
async def open_frames(url: str, *, token: str = "", tls: ssl.SSLContext | None = None) -> AsyncIterator[FramesLink]:
    """Connect to a service party at ``http://HOST:PORT`` (or https, ws, wss) for the time of the block.

    Raises:
        LocalError: ``bad_url``.
        Unreachable: ``service_unreachable``.
    """
    secure, host, port, netloc = _parsed(url)
    address = f"{'wss' if secure else 'ws'}://{netloc}/frames"
    try:
        with trio.fail_after(CONNECT_MS_MAX / 1000):
            stream: trio.abc.Stream
            if secure:
                stream = await trio.open_ssl_over_tcp_stream(host, port, ssl_context=tls)
            else:
                stream = await trio.open_tcp_stream(host, port)
            link = FramesLink(address, stream)
            try:
                await link.handshake(token)
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
    # A name that no host can have is a UnicodeError of the resolver.
    except (OSError, UnicodeError, trio.BrokenResourceError) as error:
        raise Unreachable(f"{url} cannot be reached: {error}", UNREACHABLE) from None
    except trio.TooSlowError:
        raise Unreachable(f"{url} did not open within {CONNECT_MS_MAX} ms", UNREACHABLE) from None
    try:
        yield link
    finally:
        await trio.aclose_forcefully(stream)


class RequestsLink:
    """Frames as HTTP requests, one frame a request; made by :func:`open_requests`.

    A service party cannot call over HTTP. So a new challenge comes out of :meth:`receive` from time to time: whoever
    answers it with a Hello is told how the stream stands.
    """

    def __init__(self, url: str, client: httpx.AsyncClient, poll_ms: int) -> None:
        """Take a client of the service party's root."""
        self._url = url
        self._client = client
        self._poll_ms = poll_ms
        self._told: list[Told] = []
        self._has_told = trio.Event()
        self._challenge_at = trio.current_time()

    async def send(self, messages: list[Said]) -> None:
        """See :class:`services.stream.interfaces.Link`; Refused with what the service party answers."""
        for frame in _frames(messages):
            answer = await self._post("/frames", frame, FRAME_MEDIA_TYPE)
            if answer:
                self._told += told_codec.decode_untrusted(answer).messages
                self._has_told.set()

    async def receive(self) -> list[Told]:
        """See :class:`services.stream.interfaces.Link`."""
        if not self._told:
            self._has_told = trio.Event()
            with trio.move_on_at(self._challenge_at):
                await self._has_told.wait()
        if not self._told:
            answer = await self._post("/challenges", b"{}", "application/json")
            self._challenge_at = trio.current_time() + self._poll_ms / 1000
            self._told.append(self._challenge(answer))
        told, self._told = self._told, []
        return told

    def _challenge(self, answer: bytes) -> Challenge:
        try:
            given = msgspec.json.decode(answer, type=ChallengeGiven)
            return msgspec.convert([5, bytes_of_hex(given.nonce)], Challenge)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise PeerError("malformed", f"{self._url} gives no challenge: {error}") from None

    async def _post(self, path: str, body: bytes, kind: str) -> bytes:
        headers = {"content-type": kind, "content-length": str(len(body))}
        request = self._client.build_request("POST", self._url + path, headers=headers)
        request.stream = _Body(body)
        answer = bytearray()
        try:
            with trio.CancelScope() as enough:
                async with aclosing(await self._client.send(request, stream=True)) as response:
                    async for part in response.aiter_bytes():
                        answer += part
                        if len(answer) > FRAME_BYTES_MAX:
                            enough.cancel()  # the generators below end at their next read, which a raise would not do
        except httpx.HTTPError as error:
            raise Unreachable(f"{self._url}: {error or type(error).__name__}", UNREACHABLE) from None
        if enough.cancelled_caught or len(answer) > FRAME_BYTES_MAX:
            raise PeerError("too_large", f"{self._url} answers more than {FRAME_BYTES_MAX} bytes")
        if response.is_success:
            return bytes(answer)
        try:
            problem = msgspec.json.decode(bytes(answer), type=Failed).error
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise Unreachable(f"{self._url} answers with HTTP status {response.status_code}", UNREACHABLE) from None
        if response.is_server_error:
            raise Unreachable(f"{self._url}: {problem.code[:64]}: {problem.message[:1000]}", UNREACHABLE)
        raise Refused(problem.code[:64], problem.message[:1000])


class _Body(httpx.AsyncByteStream):
    """A request's body, once; httpx's own is a generator, which a connection that is lost leaves unfinished."""

    def __init__(self, content: bytes) -> None:
        self._parts = iter((content,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration


@asynccontextmanager
async def open_requests(
    url: str, *, token: str = "", tls: ssl.SSLContext | None = None, poll_ms: int = POLL_MS
) -> AsyncIterator[RequestsLink]:
    """Give a link to a service party at ``http://HOST:PORT`` for the time of the block; nothing is asked yet.

    Raises:
        LocalError: ``bad_url``.
    """
    secure, _, _, netloc = _parsed(url)
    timeout = httpx.Timeout(ANSWER_MS_MAX / 1000, connect=CONNECT_MS_MAX / 1000)
    with single_errors():
        headers = _authorization(token)
        async with httpx.AsyncClient(headers=headers, verify=tls or True, timeout=timeout, trust_env=False) as client:
            yield RequestsLink(f"{'https' if secure else 'http'}://{netloc}", client, poll_ms)


def _authorization(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


def _frames(messages: list[Said]) -> list[bytes]:
    starts = range(0, len(messages), _FRAME_MESSAGES)
    return [said_codec.encode(SaidFrame(messages[start : start + _FRAME_MESSAGES])) for start in starts]


def _parsed(url: str) -> tuple[bool, str, int, str]:
    """Return whether it is TLS, host, port, and both as one text."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    schemes = {"http": False, "ws": False, "https": True, "wss": True}
    if parts.scheme not in schemes or not parts.hostname or parts.path not in ("", "/"):
        raise LocalError("bad_url", f"{url} is no address of a service party, such as http://127.0.0.1:26907")
    secure = schemes[parts.scheme]
    return secure, parts.hostname, port or (443 if secure else 80), parts.netloc
