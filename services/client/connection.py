"""One WebSocket to one node: JSON-RPC 2.0 requests pipelined by id, notifications, binary frames.

A reader and a writer task own the socket, so that a caller who is cancelled never leaves half a frame
behind. Requests in flight, bytes of a message and notifications waiting are bounded. When the socket
ends, every waiting request fails with :class:`Unreachable`, since its outcome is unknown.
"""

import math
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec
import trio
import wsproto
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import RemoteProtocolError

from consensus.ledger.errors import LocalError, PeerError
from services.client.errors import Refused, Unreachable
from services.client.tasks import single_errors

CONNECT_TIMEOUT_MS = 3_000
REQUEST_TIMEOUT_MS = 5_000
"""How long one node is waited for; with several nodes, how long a frozen one holds a client up."""
SUBMIT_TIMEOUT_MS = 15_000
REQUESTS_IN_FLIGHT_MAX = 4_096
NODE_FAILED = "node_failed"
"""A node's code for: its disk or state has failed, and it stops."""
MESSAGE_BYTES_MAX = 32 * 1024 * 1024
NOTIFICATIONS_WAITING_MAX = 4_096
_READ_BYTES_MAX = 256 * 1024

T = TypeVar("T")
Parameters = dict[str, object]


class _ErrorData(msgspec.Struct):
    code: str = ""


class _ErrorObject(msgspec.Struct):
    code: int
    message: str = ""
    data: _ErrorData | None = None


class _Incoming(msgspec.Struct):
    """A response (with ``id``) or a notification (with ``method``)."""

    id: int | None = None
    method: str = ""
    params: msgspec.Raw = msgspec.Raw(b"null")
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: _ErrorObject | None = None


class FrameAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What a node says to one transaction of a binary frame.

    ``code`` is empty when it is accepted or final; ``height`` is 0 while it is not final.
    """

    transaction_id: bytes
    code: str
    height: int
    failed_count: int


class _FrameAnswers(msgspec.Struct, frozen=True, array_like=True):
    """The answers to one frame; a binary message holds a list of these."""

    id: int
    answers: list[FrameAnswer]


_frame_decoder = msgspec.msgpack.Decoder(list[_FrameAnswers])
_incoming_decoder = msgspec.json.Decoder(_Incoming)
_encoder = msgspec.json.Encoder()


class Transport(Protocol):
    """Whatever carries a JSON-RPC request to a node."""

    async def request(
        self, method: str, params: Parameters, kind: type[T], *, timeout_ms: int = REQUEST_TIMEOUT_MS
    ) -> T:
        """Return the result of one request, decoded into ``kind``."""
        ...


class _Slot:
    """Where a waiting request finds its answer; it stays None when time is up (``is_late``) or the socket ends."""

    __slots__ = ("answer", "deadline_s", "is_late", "ready")

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.ready = trio.Event()
        self.answer: _Incoming | list[FrameAnswer] | None = None
        self.is_late = False


class Connection:
    """A live connection; made by :func:`open_connection`."""

    def __init__(self, url: str, stream: trio.abc.Stream) -> None:
        self.url = url
        self.closed = trio.Event()
        self._stream = stream
        self._protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._slots: dict[int, _Slot] = {}
        self._looks_s = math.inf
        """When it is seen next whose time is up."""
        self._has_sooner = trio.Event()
        self._next_id = 1
        self._has_room = trio.Event()
        self._unsent = bytearray()
        self._has_unsent = trio.Event()
        self._listeners: list[trio.MemorySendChannel[tuple[str, bytes]]] = []
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._reason = "the connection was closed"

    async def request(
        self, method: str, params: Parameters, kind: type[T], *, timeout_ms: int = REQUEST_TIMEOUT_MS
    ) -> T:
        """Send one request and return its result, decoded into ``kind``.

        Raises:
            Refused: the node answered with an error.
            Unreachable: the connection ended, or no answer came in time: the outcome is unknown.
            PeerError: ``bad_answer`` when the answer has not the shape of ``kind``.
        """
        request_id = self._take_id()
        message = _encoder.encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        answer = await self._exchange(request_id, TextMessage(message.decode()), method, timeout_ms)
        if not isinstance(answer, _Incoming):
            raise PeerError("bad_answer", f"{self.url} answers {method} with a binary frame")
        return _result(answer, kind, f"{self.url} {method}")

    async def submit_frame(
        self, transactions: Sequence[bytes], *, wait_ms: int = 0, timeout_ms: int = SUBMIT_TIMEOUT_MS
    ) -> list[FrameAnswer]:
        """Send transactions as one binary frame ``[id, [raw, …], wait_ms]`` and return the answers in order.

        With ``wait_ms`` (up to 60,000) the node answers when all that it accepts are final, or time is up.

        Raises:
            Refused, Unreachable, PeerError: as for :meth:`request`.
        """
        request_id = self._take_id()
        frame = BytesMessage(msgspec.msgpack.encode([request_id, transactions, wait_ms]))
        answer = await self._exchange(request_id, frame, "a frame", wait_ms + timeout_ms)
        if isinstance(answer, _Incoming):
            if answer.error is not None:
                raise _refusal(answer.error)
            raise PeerError("bad_answer", f"{self.url} answers a binary frame with text")
        if len(answer) != len(transactions):
            raise PeerError("bad_answer", f"{self.url} answers {len(transactions)} transactions with {len(answer)}")
        return answer

    @asynccontextmanager
    async def notifications(self) -> AsyncIterator[trio.MemoryReceiveChannel[tuple[str, bytes]]]:
        """Give a channel of ``(method, params as JSON)``; it ends when the socket ends or the reader is too slow."""
        send, receive = trio.open_memory_channel[tuple[str, bytes]](NOTIFICATIONS_WAITING_MAX)
        self._listeners.append(send)
        try:
            yield receive
        finally:
            # First out of the list: what comes while the channel closes would be taken for a broken socket.
            if send in self._listeners:
                self._listeners.remove(send)
            send.close()
            receive.close()

    async def handshake(self) -> None:
        """Upgrade the HTTP connection.

        Raises:
            Unreachable: the other side refuses or speaks no WebSocket.
        """
        parts = urlsplit(self.url)
        await self._stream.send_all(self._protocol.send(Request(host=parts.netloc, target=parts.path or "/ws")))
        while True:
            self._protocol.receive_data(bytes(await self._stream.receive_some(_READ_BYTES_MAX)) or None)
            for event in self._protocol.events():
                if isinstance(event, AcceptConnection):
                    return
                if isinstance(event, RejectConnection):
                    raise Unreachable(f"{self.url} refuses the WebSocket with HTTP status {event.status_code}")
                raise Unreachable(f"{self.url} closed during the handshake")

    async def write_forever(self) -> None:
        """Send what callers left, many messages in one go; ends with the socket."""
        try:
            while True:
                await self._has_unsent.wait()
                self._has_unsent = trio.Event()
                data, self._unsent = self._unsent, bytearray()
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._end()

    async def read_forever(self) -> None:
        """Hand every message to whom it belongs; ends with the socket."""
        try:
            while not self.closed.is_set():
                data = await self._stream.receive_some(_READ_BYTES_MAX)
                self._protocol.receive_data(bytes(data) or None)
                for event in self._protocol.events():
                    self._on_event(event)
                if not data:
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError, RemoteProtocolError, PeerError) as error:
            self._reason = str(error) or "the connection broke"
        finally:
            self._end()

    async def expire_forever(self) -> None:
        """Give up the requests whose time is up: one clock for all, since one for each costs more than its answer."""
        while True:
            now_s = trio.current_time()
            for slot in self._slots.values():
                if slot.deadline_s <= now_s and not slot.ready.is_set():
                    slot.is_late = True
                    slot.ready.set()
            self._looks_s = min(
                (slot.deadline_s for slot in self._slots.values() if not slot.is_late), default=math.inf
            )
            self._has_sooner = trio.Event()
            with trio.move_on_at(self._looks_s):
                await self._has_sooner.wait()

    async def aclose(self) -> None:
        """Close the socket without further words; requests in flight fail."""
        self._end()
        await trio.aclose_forcefully(self._stream)

    def _take_id(self) -> int:
        request_id, self._next_id = self._next_id, self._next_id + 1
        return request_id

    async def _exchange(
        self, request_id: int, message: TextMessage | BytesMessage, what: str, timeout_ms: int
    ) -> _Incoming | list[FrameAnswer]:
        while len(self._slots) >= REQUESTS_IN_FLIGHT_MAX:
            if self._has_room.is_set():
                self._has_room = trio.Event()
            await self._has_room.wait()
        if self.closed.is_set():
            raise Unreachable(f"{self.url}: {self._reason}")
        slot = self._slots[request_id] = _Slot(trio.current_time() + timeout_ms / 1000)
        if slot.deadline_s < self._looks_s:
            self._has_sooner.set()
        try:
            self._enqueue(self._protocol.send(message))
            await slot.ready.wait()
        finally:
            self._slots.pop(request_id, None)
            self._has_room.set()
        if slot.answer is not None:
            return slot.answer
        if not slot.is_late:
            raise Unreachable(f"{self.url} did not answer {what}: {self._reason}")
        raise Unreachable(f"{self.url} did not answer {what} within {timeout_ms} ms", code="node_timeout")

    def _enqueue(self, data: bytes) -> None:
        self._unsent += data
        self._has_unsent.set()

    def _on_event(self, event: wsproto.events.Event) -> None:
        if isinstance(event, TextMessage | BytesMessage):
            part = event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
            self._parts_bytes += len(part)
            if self._parts_bytes > MESSAGE_BYTES_MAX:
                raise PeerError("too_large", f"{self.url} sends a message above {MESSAGE_BYTES_MAX} bytes")
            self._parts.append(part)
            if event.message_finished:
                message, self._parts, self._parts_bytes = b"".join(self._parts), [], 0
                self._on_message(message, is_binary=isinstance(event, BytesMessage))
        elif isinstance(event, Ping):
            self._enqueue(self._protocol.send(event.response()))
        elif isinstance(event, CloseConnection):
            self._end()

    def _on_message(self, message: bytes, *, is_binary: bool) -> None:
        if is_binary:
            for item in _decode_answers_untrusted(message, self.url):
                self._answer(item.id, item.answers)
            return
        try:
            incoming = _incoming_decoder.decode(message)
        except msgspec.MsgspecError as error:
            raise PeerError("bad_answer", f"{self.url} sends no JSON-RPC: {error}") from None
        if incoming.id is not None:
            self._answer(incoming.id, incoming)
        elif incoming.method:
            self._notify(incoming.method, bytes(incoming.params))
        elif incoming.error is not None and len(self._slots) == 1:
            # The node could not even read the id, and only one request can be meant.
            self._answer(next(iter(self._slots)), incoming)

    def _answer(self, request_id: int, answer: _Incoming | list[FrameAnswer]) -> None:
        slot = self._slots.get(request_id)
        if slot is not None:  # else it came after its deadline
            slot.answer = answer
            slot.ready.set()

    def _notify(self, method: str, params: bytes) -> None:
        for listener in list(self._listeners):
            try:
                listener.send_nowait((method, params))
            except trio.WouldBlock:
                listener.close()  # the receiver sees the end and resumes by its cursor
                self._listeners.remove(listener)

    def _end(self) -> None:
        self.closed.set()
        for slot in self._slots.values():
            slot.ready.set()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()


@asynccontextmanager
async def open_connection(url: str, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Connection]:
    """Connect to ``ws://HOST:PORT/ws`` (or ``wss://``, ``http://``, ``https://``) for the time of the block.

    Raises:
        Unreachable: nobody listens, or the handshake fails or takes longer than 3 s.
        LocalError: ``bad_url``.
    """
    address = websocket_url(url)
    parts = urlsplit(address)
    with single_errors():
        try:
            with trio.fail_after(CONNECT_TIMEOUT_MS / 1000):
                connection = await _dial(address, str(parts.hostname), parts.port, tls)
        # A name that no host can have is a UnicodeError of the resolver.
        except (OSError, UnicodeError, trio.BrokenResourceError, RemoteProtocolError) as error:
            raise Unreachable(f"{url} cannot be reached: {error}") from None
        except trio.TooSlowError:
            raise Unreachable(f"{url} did not open within {CONNECT_TIMEOUT_MS} ms", code="node_timeout") from None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.read_forever)
                nursery.start_soon(connection.write_forever)
                nursery.start_soon(connection.expire_forever)
                yield connection
                nursery.cancel_scope.cancel()
        finally:
            await connection.aclose()


async def _dial(url: str, host: str, port: int | None, tls: ssl.SSLContext | None) -> Connection:
    stream: trio.abc.Stream
    if urlsplit(url).scheme == "wss":
        stream = await trio.open_ssl_over_tcp_stream(host, port or 443, ssl_context=tls)
    else:
        stream = await trio.open_tcp_stream(host, port or 80)
    connection = Connection(url, stream)
    try:
        await connection.handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return connection


def websocket_url(url: str) -> str:
    """Return the WebSocket address of a node given by any of its URLs.

    Raises:
        LocalError: ``bad_url``.
    """
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise LocalError("bad_url", f"{url} is no address of a node, such as http://127.0.0.1:26700")
    return f"{scheme}://{parts.netloc}/ws"


def decode_answer_untrusted(message: bytes, kind: type[T], what: str) -> T:
    """Return the result of a whole JSON-RPC response as ``kind``.

    Raises:
        Refused: the answer is an error object; ``code`` is its ``data.code``.
        PeerError: ``bad_answer``.
    """
    try:
        incoming = _incoming_decoder.decode(message)
    except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
        raise PeerError("bad_answer", f"{what}: {problem}") from None
    return _result(incoming, kind, what)


def _result(incoming: _Incoming, kind: type[T], what: str) -> T:
    if incoming.error is not None:
        raise _refusal(incoming.error)
    try:
        return msgspec.json.decode(incoming.result, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
        raise PeerError("bad_answer", f"{what}: {problem}") from None


def _refusal(error: _ErrorObject) -> Refused | Unreachable:
    """Return what an error answer means; that of a node which is about to stop says nothing about the request."""
    code = error.data.code if error.data is not None and error.data.code else "node_error"
    return Unreachable(error.message, code) if code == NODE_FAILED else Refused(code, error.message)


def _decode_answers_untrusted(message: bytes, url: str) -> list[_FrameAnswers]:
    try:
        return _frame_decoder.decode(message)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError("bad_answer", f"{url} sends a broken binary message: {error}") from None
