"""Payers of many streams as a load: iterations signed beforehand, over WebSockets or one HTTP request each.

They cost their machine as little as may be, since they share the processors with what they measure, and wait as payers
must: each stream has one iteration on its way, and the next one goes when the last is told to be durable.
"""

import os
import time
from base64 import b64encode
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import trio
from wsproto.frame_protocol import Opcode

from bench.flash_sale_client import HttpConnection
from consensus.ledger.errors import InvariantError, PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.streams import AMOUNT_MAX, Terms, make_iteration, stream_id
from services.client.errors import Unreachable
from services.client.tasks import single_errors
from services.stream.service_interface import ITERATION_MEDIA_TYPE, StoredShown
from services.stream.wire import (
    FRAME_BYTES_MAX,
    Challenge,
    Hello,
    Iterate,
    Refused,
    Said,
    SaidFrame,
    Standing,
    Stored,
    Told,
    hello_payload,
    said_codec,
    told_codec,
)

ANSWER_S_MAX = 60
HEAD_BYTES_MAX = 16 * 1024
FRAMES_PATH, ITERATIONS_PATH = "/frames", "/iterations"
_CHUNK = 256 * 1024
_FIN = 0x80


class LoadStream:
    """A payer's stream: what is due rises by one price with each iteration."""

    def __init__(self, terms: Terms, key: PrivateKey, chain_id: ChainId) -> None:
        self.id = stream_id(terms.payer, terms.service, terms.number)
        self.stored = 0
        """What was told to be durable."""
        self.sent_s = 0.0
        self._terms, self._key, self._chain_id = terms, key, chain_id
        self._signed = 0
        self._ready: deque[Iterate] = deque()

    def sign(self, count: int) -> None:
        """Have so many more iterations ready."""
        for _ in range(count):
            self._ready.append(self._make())

    def next(self) -> Iterate:
        """Return the next iteration, signed now where none is ready; its time counts from here."""
        self.sent_s = time.perf_counter()
        return self._ready.popleft() if self._ready else self._make()

    def hello(self, nonce: bytes) -> Hello:
        """Return what shows that the stream is this payer's."""
        signature = self._key.sign(Purpose.STREAM_HELLO, self._chain_id, hello_payload(self.id, nonce))
        return Hello(self.id, nonce, signature)

    def _make(self) -> Iterate:
        self._signed += self._terms.price
        until_ms = time.time_ns() // 1_000_000 + self._terms.validity_ms
        made = make_iteration(self._key, self._chain_id, self._terms.payer, self.id, self._signed, until_ms)
        return Iterate(self.id, made.raw)


@dataclass(slots=True)
class Stamps:
    """When iterations were told to be durable, within ``begin_s`` to ``end_s``.

    Both are of the performance counter once the first iteration goes, and from then on before. A stream ends at
    ``due_max``, else at the end.
    """

    begin_s: float
    end_s: float
    due_max: int = AMOUNT_MAX
    times_ms: list[float] = field(default_factory=list)

    def note(self, stream: LoadStream, due: int) -> bool:
        """Take note that this total is durable; return whether the stream goes on."""
        now = time.perf_counter()
        stream.stored = due
        if self.begin_s <= now < self.end_s:
            self.times_ms.append(1_000 * (now - stream.sent_s))
        return now < self.end_s and due < self.due_max

    @property
    def per_s(self) -> float:
        """Iterations a second."""
        return len(self.times_ms) / (self.end_s - self.begin_s)


class FrameConnection:
    """One WebSocket to a service party; frames are never masked by more than zeroes, which a proxy alone would mind."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._data = bytearray()

    async def open(self, host: str, port: int) -> None:
        """Upgrade the connection.

        Raises:
            Unreachable: it is refused.
        """
        nonce = b64encode(os.urandom(16)).decode()
        head = [f"GET {FRAMES_PATH} HTTP/1.1", f"host: {host}:{port}", "upgrade: websocket", "connection: upgrade"]
        head += [f"sec-websocket-key: {nonce}", "sec-websocket-version: 13", "", ""]
        await self._stream.send_all("\r\n".join(head).encode())
        while (end := self._data.find(b"\r\n\r\n")) < 0:
            await self._more()
            if len(self._data) > HEAD_BYTES_MAX:
                raise Unreachable("the service party answers no opening of a WebSocket", code="service_unreachable")
        if not self._data.startswith(b"HTTP/1.1 101"):
            said = bytes(self._data[:80]).split(b"\r\n", 1)[0].decode("latin-1")
            raise Unreachable(f"the service party refuses the WebSocket: {said}", code="service_unreachable")
        del self._data[: end + 4]

    async def send(self, messages: list[Said]) -> None:
        """Send one frame."""
        await self._send(Opcode.BINARY, said_codec.encode(SaidFrame(messages)))

    async def receive(self) -> list[Told]:
        """Return the messages of the next frame.

        Raises:
            Unreachable: the connection broke, or a minute went by.
            PeerError: no frame.
        """
        while True:
            opcode, payload = await self._receive()
            if opcode == Opcode.BINARY:
                return told_codec.decode_untrusted(payload).messages
            if opcode == Opcode.PING:
                await self._send(Opcode.PONG, payload)
            elif opcode != Opcode.PONG:
                raise Unreachable("the service party ended the WebSocket", code="service_unreachable")

    async def _send(self, opcode: Opcode, payload: bytes) -> None:
        size = len(payload)
        length = bytes([_FIN | size]) if size < 126 else bytes([_FIN | 126]) + size.to_bytes(2, "big")
        if size > 0xFFFF:
            length = bytes([_FIN | 127]) + size.to_bytes(8, "big")
        await self._stream.send_all(bytes([_FIN | opcode]) + length + bytes(4) + payload)

    async def _receive(self) -> tuple[int, bytes]:
        await self._have(2)
        first, size, at = self._data[0], self._data[1], 2
        if size > 125:
            at += 2 if size == 126 else 8
            await self._have(at)
            size = int.from_bytes(self._data[2:at], "big")
        if not first & _FIN or size > FRAME_BYTES_MAX:
            raise PeerError("bad_answer", "the service party sends a message in parts, or a huge one")
        await self._have(at + size)
        payload = bytes(self._data[at : at + size])
        del self._data[: at + size]
        return first & 0x0F, payload

    async def _have(self, size: int) -> None:
        while len(self._data) < size:
            await self._more()

    async def _more(self) -> None:
        try:
            with trio.fail_after(ANSWER_S_MAX):
                data = await self._stream.receive_some(_CHUNK)
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            raise Unreachable(f"the service party does not answer: {error!r}", code="service_unreachable") from None
        if not data:
            raise Unreachable("the service party closed the connection", code="service_unreachable")
        self._data += data


class Payers:
    """Streams that pay one service party, over as many connections as there are groups of them."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    async def pay(self, groups: Sequence[Sequence[LoadStream]], stamps: Stamps) -> None:
        """Pay over WebSockets, a connection for each group of streams, until the time is over.

        Raises:
            Unreachable, PeerError: what a connection raised first, ``bad_answer`` for a refusal; there are no figures.
        """
        ready = _Gate(len(groups), stamps)
        with single_errors():
            async with trio.open_nursery() as nursery:
                for group in groups:
                    nursery.start_soon(self._pay, group, ready)

    async def post(self, groups: Sequence[Sequence[LoadStream]], stamps: Stamps) -> None:
        """Pay with one HTTP request for each iteration, a kept-alive connection for each group; else as :meth:`pay`."""
        ready = _Gate(len(groups), stamps)
        with single_errors():
            async with trio.open_nursery() as nursery:
                for group in groups:
                    nursery.start_soon(self._post, group, ready)

    async def _pay(self, group: Sequence[LoadStream], gate: "_Gate") -> None:
        socket = await self._dial()
        async with socket:
            connection = FrameConnection(socket)
            await connection.open(self._host, self._port)
            streams = {bytes(stream.id): stream for stream in group}
            await _say_hello(connection, group)
            stamps = await gate.open()
            await connection.send([stream.next() for stream in group])
            going = len(group)
            while going:
                due: dict[LoadStream, int] = {}
                for message in await connection.receive():
                    match message:
                        case Stored(stream=name, due=total):
                            due[streams[name]] = total
                        case Refused(code=code, message=text):
                            raise PeerError("bad_answer", f"an iteration was refused: {code}: {text}")
                        case _:
                            pass
                again = [stream for stream, total in due.items() if stamps.note(stream, total)]
                going -= len(due) - len(again)
                if again:
                    await connection.send([stream.next() for stream in again])

    async def _post(self, group: Sequence[LoadStream], gate: "_Gate") -> None:
        socket = await self._dial()
        async with socket:
            connection = HttpConnection(socket)
            stamps = await gate.open()
            going = deque(group)
            while going:
                stream = going.popleft()
                status, body = await connection.ask(self._request(stream.next().raw))
                if status != 200:
                    raise PeerError("bad_answer", f"an iteration was answered by {status}: {body[:200]!r}")
                if stamps.note(stream, msgspec.json.decode(body, type=StoredShown).due):
                    going.append(stream)

    def _request(self, raw: bytes) -> bytes:
        head = f"POST {ITERATIONS_PATH} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
        head += f"content-type: {ITERATION_MEDIA_TYPE}\r\ncontent-length: {len(raw)}\r\n\r\n"
        return head.encode() + raw

    async def _dial(self) -> trio.SocketStream:
        try:
            return await trio.open_tcp_stream(self._host, self._port)
        except OSError as error:
            at = f"{self._host}:{self._port}"
            raise Unreachable(f"{at} cannot be reached: {error}", code="service_unreachable") from None


class _Gate:
    """Lets all connections begin at once; the time that counts is shifted to then."""

    def __init__(self, count: int, stamps: Stamps) -> None:
        self._missing = count
        self._stamps = stamps
        self._is_open = trio.Event()

    async def open(self) -> Stamps:
        """Wait until everybody is here."""
        self._missing -= 1
        if not self._missing:
            now = time.perf_counter()
            self._stamps.begin_s, self._stamps.end_s = now + self._stamps.begin_s, now + self._stamps.end_s
            self._is_open.set()
        await self._is_open.wait()
        return self._stamps


async def _say_hello(connection: FrameConnection, group: Iterable[LoadStream]) -> None:
    """Show whose the streams are, and see that the service party has what was told to be durable.

    Raises:
        InvariantError: it has lost something: figures would say nothing.
    """
    waiting = {bytes(stream.id): stream for stream in group}
    nonce: Final = _nonce_of(await connection.receive())
    await connection.send([stream.hello(nonce) for stream in waiting.values()])
    while waiting:
        for message in await connection.receive():
            match message:
                case Standing(stream=name, due=due):
                    stream = waiting.pop(name)
                    if due != stream.stored:
                        raise InvariantError(f"{stream.stored} was told to be stored of a stream, {due} is")
                case Refused(code=code, message=text):
                    raise PeerError("bad_answer", f"a stream was refused: {code}: {text}")
                case _:
                    pass


def _nonce_of(messages: Sequence[Told]) -> bytes:
    for message in messages:
        if isinstance(message, Challenge):
            return message.nonce
    raise PeerError("bad_answer", "a connection does not begin with a challenge")
