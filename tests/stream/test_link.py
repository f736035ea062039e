"""A payer's ways to a service party that behaves in every way but the right one."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import h11
import pytest
import trio
import wsproto
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage

from consensus.ledger.errors import HansaError, LocalError
from services.client.errors import Unreachable
from services.stream.link import open_frames, open_requests
from services.stream.wire import (
    FRAME_BYTES_MAX,
    Ask,
    Challenge,
    Said,
    Stored,
    Told,
    ToldFrame,
    said_codec,
    told_codec,
)

TIMEOUT_S = 20
STREAM = bytes(32)
Serve = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    """Give the address of a server that treats each connection in this way."""

    async def patiently(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # who has heard enough leaves
            await serve(stream)

    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, patiently, 0, host="127.0.0.1"))
            yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            nursery.cancel_scope.cancel()


class Server:
    """The server's end of a WebSocket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._protocol = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        self._events: list[wsproto.events.Event] = []

    async def event(self) -> wsproto.events.Event:
        """Return what the client does next."""
        while not self._events:
            data = await self._stream.receive_some()
            self._protocol.receive_data(bytes(data) or None)
            self._events += self._protocol.events()
        return self._events.pop(0)

    async def send(self, *events: wsproto.events.Event) -> None:
        """Do something."""
        await self._stream.send_all(b"".join(self._protocol.send(event) for event in events))

    async def accepted(self) -> "Server":
        """Accept the client's WebSocket, which asks for the frames."""
        asked = await self.event()
        assert isinstance(asked, Request)
        assert asked.target == "/frames"
        await self.send(AcceptConnection())
        return self


def after_accepting(*events: wsproto.events.Event) -> Serve:
    """Return a server that accepts, does this, and waits."""

    async def serve(stream: trio.SocketStream) -> None:
        server = await Server(stream).accepted()
        await server.send(*events)
        while await stream.receive_some():
            pass

    return serve


def frame(*told: Told) -> bytes:
    """Return what a service party tells."""
    return told_codec.encode(ToldFrame([*told]))


async def code_of(call: Awaitable[object]) -> str:
    """Return the code with which something ends."""
    try:
        await call
    except HansaError as error:
        return error.code
    return ""


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([TextMessage("{}")], "malformed"),
        ([BytesMessage(b"\xc1")], "malformed"),
        ([BytesMessage(told_codec.encode(ToldFrame([Stored(STREAM, 8)])) + b"\0")], "malformed"),
        ([BytesMessage(bytes(FRAME_BYTES_MAX + 1))], "too_large"),
        ([BytesMessage(bytes(40_000), message_finished=False)] * 2, "too_large"),
        ([CloseConnection(1000)], "service_unreachable"),
    ],
)
def test_what_is_no_frame_ends_the_connection(events: list[wsproto.events.Event], code: str) -> None:
    async def main() -> None:
        async with serving(after_accepting(*events)) as url, open_frames(url) as link:
            assert await code_of(link.receive()) == code

    trio.run(main)


def test_a_server_that_hangs_up_or_speaks_no_websocket_is_unreachable() -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    async def rubbish(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"rubbish\r\n\r\n")

    async def main() -> None:
        for serve in (hang_up, refuse, rubbish):
            async with serving(serve) as url:
                with pytest.raises(Unreachable) as caught:
                    async with open_frames(url):
                        pass
                assert caught.value.code == "service_unreachable"

    trio.run(main)


def test_a_server_that_leaves_in_the_middle_is_unreachable_for_sending_too() -> None:
    async def leave(stream: trio.SocketStream) -> None:
        await Server(stream).accepted()
        await stream.aclose()

    async def main() -> None:
        async with serving(leave) as url, open_frames(url) as link:
            assert await code_of(link.receive()) == "service_unreachable"
            assert await code_of(link.receive()) == "service_unreachable"
            codes = {await code_of(link.send([Ask(STREAM)])) for _ in range(8)}
            assert codes <= {"", "service_unreachable"}
            assert "service_unreachable" in codes

    trio.run(main)


def test_receiving_may_be_given_up_at_any_byte_and_loses_nothing() -> None:
    told = [Stored(STREAM, due) for due in range(1, 30)]

    async def drip(stream: trio.SocketStream) -> None:
        server = await Server(stream).accepted()
        for each in told:
            data = server._protocol.send(BytesMessage(frame(each)))
            for byte in data:
                await stream.send_all(bytes([byte]))
                await trio.lowlevel.checkpoint()
        await stream.receive_some()

    async def main() -> None:
        got: list[Told] = []
        async with serving(drip) as url, open_frames(url) as link:
            while len(got) < len(told):
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:

                        async def give_up(scope: trio.CancelScope = scope) -> None:
                            for _ in range(3):
                                await trio.lowlevel.checkpoint()
                            scope.cancel()

                        nursery.start_soon(give_up)
                        got += await link.receive()
                        nursery.cancel_scope.cancel()
        assert got == told

    trio.run(main)


def test_many_messages_go_over_in_frames_and_in_order_and_pings_are_answered() -> None:
    said: list[Said] = [Ask(number.to_bytes(32, "big")) for number in range(200)]
    heard: list[Said] = []
    ponged, over = trio.Event(), trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        server = await Server(stream).accepted()
        await server.send(Ping(b"there?"), BytesMessage(frame(Challenge(bytes(32)))))
        parts = b""
        while len(heard) < len(said) or not ponged.is_set():
            event = await server.event()
            if isinstance(event, Pong):
                assert event.payload == b"there?"
                ponged.set()
            if isinstance(event, BytesMessage):
                parts += event.data
                if event.message_finished:
                    heard.extend(said_codec.decode_untrusted(bytes(parts)).messages)
                    parts = b""
        over.set()

    async def main() -> None:
        async with serving(serve) as url, open_frames(url) as link:
            assert await link.receive() == [Challenge(bytes(32))]
            await link.send(said)
            await over.wait()

    trio.run(main)
    assert heard == said


def test_what_comes_together_with_the_answer_to_the_handshake_is_received() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        server = Server(stream)
        await server.event()
        await server.send(AcceptConnection(), BytesMessage(frame(Stored(STREAM, 8))), CloseConnection(1000))

    async def main() -> None:
        async with serving(serve) as url, open_frames(url) as link:
            assert await link.receive() == [Stored(STREAM, 8)]
            assert await code_of(link.receive()) == "service_unreachable"

    trio.run(main)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1", "ftp://x", "http://", "http://x/path", "http://x:99999", "http://x:y", "ws://[::1"]
)
def test_addresses_that_are_none(url: str) -> None:
    async def main() -> None:
        for opened in (open_frames, open_requests):
            with pytest.raises(LocalError) as caught:
                async with opened(url):
                    pass
            assert caught.value.code == "bad_url"

    trio.run(main)


def test_where_nobody_listens() -> None:
    async def main() -> None:
        with pytest.raises(Unreachable):
            async with open_frames("http://127.0.0.1:1"):
                pass
        async with open_requests("http://127.0.0.1:1") as link:
            assert await code_of(link.receive()) == "service_unreachable"
            assert await code_of(link.send([Ask(STREAM)])) == "service_unreachable"

    trio.run(main)


# -- HTTP --------------------------------------------------------------------------------------------------


def answering(status: int, body: bytes) -> Serve:
    """Return a server that answers every request so."""

    async def serve(stream: trio.SocketStream) -> None:
        protocol = h11.Connection(h11.SERVER)
        while True:
            event = protocol.next_event()
            if event is h11.NEED_DATA:
                protocol.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.EndOfMessage):
                head = h11.Response(status_code=status, headers=[("content-length", str(len(body)))])
                parts = [protocol.send(head), protocol.send(h11.Data(data=body)), protocol.send(h11.EndOfMessage())]
                await stream.send_all(b"".join(part or b"" for part in parts))
                protocol.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed):
                return

    return serve


def problem(code: str) -> bytes:
    """Return an error as programs say it."""
    return json.dumps({"error": {"code": code, "message": "so it is"}}).encode()


CHALLENGE = json.dumps({"nonce": f"0x{'ab' * 32}", "untilMs": 1}).encode()


@pytest.mark.parametrize(
    ("status", "body", "received", "sent"),
    [
        (200, CHALLENGE, "", "malformed"),
        (200, frame(Stored(STREAM, 8)), "malformed", ""),
        (200, b"", "malformed", ""),
        (200, json.dumps({"nonce": "0xab", "untilMs": 1}).encode(), "malformed", "malformed"),
        (200, bytes(FRAME_BYTES_MAX + 1), "too_large", "too_large"),
        (409, problem("unknown_stream"), "unknown_stream", "unknown_stream"),
        (503, problem("busy"), "service_unreachable", "service_unreachable"),
        (500, b"", "service_unreachable", "service_unreachable"),
        (404, b"<html>", "service_unreachable", "service_unreachable"),
    ],
)
def test_answers_over_http(status: int, body: bytes, received: str, sent: str) -> None:
    async def main() -> None:
        async with serving(answering(status, body)) as url, open_requests(url, poll_ms=1) as link:
            assert await code_of(link.receive()) == received
            assert await code_of(link.send([Ask(STREAM)])) == sent

    trio.run(main)


def test_what_is_answered_is_received_and_challenges_come_meanwhile() -> None:
    async def main() -> None:
        async with serving(answering(200, frame(Stored(STREAM, 8)))) as url, open_requests(url) as link:
            await link.send([Ask(STREAM)])
            await link.send([Ask(STREAM)])
            assert await link.receive() == [Stored(STREAM, 8)] * 2
        async with serving(answering(200, CHALLENGE)) as url, open_requests(url, poll_ms=1) as link:
            for _ in range(3):
                assert await link.receive() == [Challenge(b"\xab" * 32)]

    trio.run(main)
