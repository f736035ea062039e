"""What a WebSocket session does with the connection that it takes over: messages, control frames, ends."""

import json
import socket
from collections.abc import Sequence

import msgpack
import pytest
import trio
import trio.testing
import wsproto
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, Pong, Request, TextMessage

from node.rpc.backend import Submission
from node.rpc.protocol import BODY_BYTES_MAX
from node.rpc.session import STRETCH
from tests.node.rpc.support import Server, TestNode, WebSocketClient, websocket

CALL = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "chain_status", "params": {}})


async def send(client: WebSocketClient, *events: Message | Ping | Pong | CloseConnection) -> None:
    """Send events in one piece."""
    await client.stream.send_all(b"".join(client.protocol.send(event) for event in events))


async def test_a_message_in_parts_is_one_message(server: Server) -> None:
    async with websocket(server) as client:
        parts = [TextMessage(CALL[:10], message_finished=False), TextMessage("", message_finished=False)]
        await send(client, *parts, Ping(b"between"), TextMessage(CALL[10:]))
        assert (await client.next())["result"]["height"] == 0
        frame: bytes = msgpack.packb([5, [b"?"]])
        await send(client, BytesMessage(frame[:1], message_finished=False), BytesMessage(frame[1:]))
        assert msgpack.unpackb(await client.next()) == [[5, [[b"", "malformed", 0, 0]]]]
        await send(client, TextMessage(CALL))  # nothing is left of the messages before
        assert (await client.next())["id"] == 1


async def test_pings_are_answered(server: Server) -> None:
    async with websocket(server) as client:
        await send(client, Ping(b"one"), Pong(b"unasked"), Ping(b"two"))
        pongs: list[bytes] = []
        while len(pongs) < 2:
            client.protocol.receive_data(bytes(await client.stream.receive_some()))
            pongs += [bytes(event.payload) for event in client.protocol.events() if isinstance(event, Pong)]
    assert pongs == [b"one", b"two"]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x88\x82\x00\x00\x00\x00" + (1000).to_bytes(2, "big"), 1000),
        (b"\x88\x82\x00\x00\x00\x00" + (4242).to_bytes(2, "big"), 4242),
        (b"\x88\x80\x00\x00\x00\x00", 1005),  # took its leave without a code and is answered without one
        (b"\x81\x01x", 1002),  # not masked
        (b"\x83\x80\x00\x00\x00\x00", 1002),  # a kind of frame that does not exist
        (b"\xc1\x80\x00\x00\x00\x00", 1002),  # compressed, although nobody agreed on that
        (b"\x80\x80\x00\x00\x00\x00", 1002),  # goes on with nothing
        (b"\x89\xfe\x00\x80\x00\x00\x00\x00", 1002),  # a ping of 128 bytes
        (b"\x82\xfe\x00\x01\x00\x00\x00\x00x", 1002),  # more bytes for the length than it takes
        (b"\x81\x81\x00\x00\x00\x00\xff", 1007),  # no UTF-8
    ],
)
async def test_the_end_is_said_with_a_code(server: Server, sent: bytes, code: int) -> None:
    async with websocket(server) as client:
        await client.stream.send_all(sent)
        assert await client.next() is None
        assert client.close_code == code
    assert (await server.get("/healthz")).status_code == 200


@pytest.mark.parametrize("kind", [TextMessage, BytesMessage])
async def test_r73_a_message_in_parts_is_bounded_too(
    server: Server, kind: type[TextMessage] | type[BytesMessage]
) -> None:
    part = "ä" * 500_000 if kind is TextMessage else b"ab" * 500_000
    async with websocket(server) as client:
        for _ in range(BODY_BYTES_MAX // 1_000_000):
            await send(client, kind(part, message_finished=False))  # type: ignore[arg-type]
        await send(client, kind(part, message_finished=True))  # type: ignore[arg-type]
        assert await client.next() is None
        assert client.close_code == 1009


async def test_many_messages_of_one_read_leave_others_their_turn(
    node: TestNode, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    seen: list[int] = []

    async def submit(transactions: Sequence[bytes]) -> list[Submission]:
        seen.append(turns)
        return [Submission(b"", "malformed", "") for _ in transactions]

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(node.backend, "submit", submit)
    async with websocket(server) as client, trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await send(client, *[BytesMessage(msgpack.packb([number, [b"?"]])) for number in range(10 * STRETCH)])
        while len(seen) < 10 * STRETCH:
            await client.next()
        nursery.cancel_scope.cancel()
    assert max(seen.count(turn) for turn in set(seen)) <= 2 * STRETCH  # whose turn comes first is open


async def test_a_session_may_begin_on_a_kept_connection(server: Server) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        client = WebSocketClient(stream)
        host = f"127.0.0.1:{server.port}"
        await stream.send_all(f"GET /healthz HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"}"):
            answer += await stream.receive_some()
        await client.handshake(host, [])
        assert (await client.call("chain_status"))["id"] == 1


async def test_an_opening_request_may_come_byte_by_byte(server: Server) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = WebSocketClient(stream)
        request = client.protocol.send(Request(host=f"127.0.0.1:{server.port}", target="/ws"))
        for place in range(len(request)):
            await stream.send_all(request[place : place + 1])
            if place > len(request) - 6:  # what matters is how the last bytes are cut
                await trio.testing.wait_all_tasks_blocked(0.001)
        while not client.status:
            await client._receive_some()
        assert (client.status, (await client.call("chain_status"))["id"]) == (101, 1)


async def test_who_speaks_before_the_answer_is_refused(server: Server) -> None:
    """RFC 6455, section 4.1: the client must wait for the answer to its opening request."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        opening = protocol.send(Request(host=f"127.0.0.1:{server.port}", target="/ws"))
        early = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
        await stream.send_all(opening + early.send(TextMessage(CALL)))
        answer = b""
        while data := await stream.receive_some():
            answer += data
    assert answer.startswith(b"HTTP/1.1 403")
    assert (await server.get("/healthz")).status_code == 200


async def test_a_stream_of_http_2_is_no_session(server: Server) -> None:
    host = f"127.0.0.1:{server.port}"
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        connection = H2Connection(H2Configuration(client_side=True))
        connection.initiate_connection()
        names = {":method": "CONNECT", ":protocol": "websocket", ":scheme": "http", ":path": "/ws", ":authority": host}
        headers = [*names.items(), ("host", host), ("sec-websocket-version", "13")]
        connection.send_headers(connection.get_next_available_stream_id(), headers)
        await stream.send_all(connection.data_to_send())
        status = b""
        while not status:
            for event in connection.receive_data(bytes(await stream.receive_some())):
                if isinstance(event, ResponseReceived):
                    status = dict(event.headers)[b":status"]
    assert status == b"403"
