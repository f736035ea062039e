"""The connection against a server that misbehaves, and the lanes, the HTTP transport and the blocking facade."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, Request, TextMessage

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.transaction import make_call
from services.client import connection as connection_module
from services.client.client import open_client
from services.client.connection import open_connection
from services.client.errors import Refused, Unreachable
from services.client.http import open_http
from services.client.lanes import Lanes
from services.client.sync import connect
from tests.client.support import CONSORTIUM, SoloNode, client_of, running, signer

Answer = Callable[[WSConnection, dict[str, object]], bytes | None]
"""Bytes to send for a request; None closes the socket."""


def text(protocol: WSConnection, document: object) -> bytes:
    data = document if isinstance(document, str) else json.dumps(document)
    return protocol.send(TextMessage(data))


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Serve one WebSocket after the other, answering each request as told."""

    async def serve(stream: trio.SocketStream) -> None:
        protocol, parts = WSConnection(ConnectionType.SERVER), []
        while data := await stream.receive_some():
            protocol.receive_data(bytes(data))
            for event in protocol.events():
                if isinstance(event, Request):
                    await stream.send_all(protocol.send(AcceptConnection()))
                elif isinstance(event, TextMessage):
                    parts.append(str(event.data))
                    if not event.message_finished:
                        continue
                    reply = answer(protocol, json.loads("".join(parts)))
                    parts.clear()
                    if reply is None:
                        return
                    await stream.send_all(reply)
                elif isinstance(event, CloseConnection):
                    return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_answers_find_their_requests_in_any_order() -> None:
    held: list[int] = []

    def answer(protocol: WSConnection, request: dict[str, object]) -> bytes:
        held.append(int(str(request["id"])))
        if len(held) < 10:
            return b""
        return b"".join(text(protocol, {"jsonrpc": "2.0", "id": number, "result": number}) for number in reversed(held))

    results: dict[int, int] = {}
    async with server(answer) as url, open_connection(url) as connection, trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            results[number] = await connection.request("m", {}, int)

        for number in range(10):
            nursery.start_soon(ask, number)
    assert sorted(results.values()) == list(range(1, 11))


async def test_an_error_answer_keeps_its_code() -> None:
    def answer(protocol: WSConnection, request: dict[str, object]) -> bytes:
        error = {"code": -32000, "message": "no", "data": {"code": "lane_used"}}
        return text(protocol, {"jsonrpc": "2.0", "id": request["id"], "error": error})

    async with server(answer) as url, open_connection(url) as connection:
        with pytest.raises(Refused) as caught:
            await connection.request("m", {}, int)
        assert caught.value.code == "lane_used"


async def test_a_node_that_has_failed_says_nothing_about_the_request() -> None:
    def answer(protocol: WSConnection, request: dict[str, object]) -> bytes:
        error = {"code": -32000, "message": "it stops", "data": {"code": "node_failed"}}
        return text(protocol, {"jsonrpc": "2.0", "id": request["id"], "error": error})

    async with server(answer) as url, open_connection(url) as connection:
        with pytest.raises(Unreachable, match="it stops"):
            await connection.request("m", {}, int)


@pytest.mark.parametrize(
    "garbage",
    ["no json", "[]", '{"id": "x"}', "[" * 100_000, '{"id": 1e400}'],
)
async def test_garbage_ends_the_connection_and_the_request_is_unknown(garbage: str) -> None:
    async with server(lambda protocol, _: text(protocol, garbage)) as url, open_connection(url) as connection:
        with pytest.raises(Unreachable):
            await connection.request("m", {}, int)
        with pytest.raises(Unreachable):
            await connection.request("m", {}, int)


async def test_an_answer_of_another_shape_is_the_nodes_fault() -> None:
    def answer(protocol: WSConnection, request: dict[str, object]) -> bytes:
        return text(protocol, {"jsonrpc": "2.0", "id": request["id"], "result": {"x": []}})

    async with server(answer) as url, open_connection(url) as connection:
        with pytest.raises(PeerError) as caught:
            await connection.request("m", {}, dict[str, int])
        assert caught.value.code == "bad_answer"


@pytest.mark.parametrize("host", ["node..example", f"{64 * 'a'}.example"])
async def test_a_name_that_no_host_can_have_is_unreachable(host: str) -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        async with open_connection(f"http://{host}:1"):
            pass


async def test_a_closed_socket_a_late_answer_and_silence_are_unreachable() -> None:
    async with server(lambda protocol, request: None) as url, open_connection(url) as connection:
        with pytest.raises(Unreachable):
            await connection.request("m", {}, int)
        assert connection.closed.is_set()
    asked: list[int] = []

    def late(protocol: WSConnection, request: dict[str, object]) -> bytes:
        asked.append(int(str(request["id"])))
        return b"".join(text(protocol, {"jsonrpc": "2.0", "id": n, "result": n}) for n in asked if len(asked) > 1)

    async with server(late) as url, open_connection(url) as connection:
        with pytest.raises(Unreachable) as caught:
            await connection.request("m", {}, int, timeout_ms=50)
        assert caught.value.code == "node_timeout"
        assert await connection.request("m", {}, int) == 2  # the first one's late answer harms nobody


async def test_a_message_above_the_bound_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MESSAGE_BYTES_MAX", 1_000)

    def answer(protocol: WSConnection, request: dict[str, object]) -> bytes:
        part = protocol.send(TextMessage("x" * 600, message_finished=False))
        return part + protocol.send(TextMessage("x" * 600, message_finished=False))

    async with server(answer) as url, open_connection(url) as connection:
        with pytest.raises(Unreachable, match="above 1000 bytes"):
            await connection.request("m", {}, int)


async def test_pings_are_answered_and_messages_in_parts_joined() -> None:
    def answer(protocol: WSConnection, request: dict[str, object]) -> bytes:
        document = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": "ä" * 10})
        first = protocol.send(TextMessage(document[:20], message_finished=False))
        return protocol.send(Ping(b"p")) + first + protocol.send(TextMessage(document[20:]))

    async with server(answer) as url, open_connection(url) as connection:
        assert await connection.request("m", {}, str) == "ä" * 10


async def test_a_slow_reader_of_notifications_sees_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "NOTIFICATIONS_WAITING_MAX", 2)

    def answer(protocol: WSConnection, request: dict[str, object]) -> bytes:
        news = b"".join(text(protocol, {"jsonrpc": "2.0", "method": "n", "params": number}) for number in range(3))
        return news + text(protocol, {"jsonrpc": "2.0", "id": request["id"], "result": 1})

    async with server(answer) as url, open_connection(url) as connection, connection.notifications() as heard:
        assert await connection.request("m", {}, int) == 1
        assert [item async for item in heard] == [("n", b"0"), ("n", b"1")]


async def test_a_cancelled_request_leaves_the_connection_whole() -> None:
    def answer(protocol: WSConnection, request: dict[str, object]) -> bytes:
        return b"" if request["method"] == "never" else text(protocol, {"id": request["id"], "result": 1})

    async with server(answer) as url, open_connection(url) as connection:
        with trio.move_on_after(0.02):
            await connection.request("never", {"x": "y" * 100_000}, int)
        assert await connection.request("m", {}, int) == 1


async def test_each_request_is_given_up_at_its_own_time() -> None:
    given_up: list[str] = []

    async with server(lambda protocol, request: b"") as url, open_connection(url) as connection:

        async def ask(method: str, timeout_ms: int) -> None:
            with pytest.raises(Unreachable, match="did not answer") as caught:
                await connection.request(method, {}, int, timeout_ms=timeout_ms)
            assert caught.value.code == "node_timeout"
            given_up.append(method)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for method, timeout_ms in (("last", 300), ("first", 100), ("second", 200)):
                    nursery.start_soon(ask, method, timeout_ms)
                    await trio.testing.wait_all_tasks_blocked()
    assert given_up == ["first", "second", "last"]


async def test_requests_beyond_the_bound_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "REQUESTS_IN_FLIGHT_MAX", 2)
    asked: list[int] = []

    def answer(protocol: WSConnection, request: dict[str, object]) -> bytes:
        asked.append(int(str(request["id"])))
        if len(asked) != 2:
            return b""
        return b"".join(text(protocol, {"jsonrpc": "2.0", "id": number, "result": number}) for number in asked)

    async with server(answer) as url, open_connection(url) as connection, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(connection.request, "m", {}, int)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(asked) == 4
        nursery.cancel_scope.cancel()


async def test_a_frozen_node_holds_a_client_up_only_for_the_timeout(tmp_path: Path) -> None:
    chain_id = "0x" + CONSORTIUM.genesis.chain_id().hex()

    def frozen(protocol: WSConnection, request: dict[str, object]) -> bytes:
        if request["method"] != "chain_status":
            return b""
        return text(protocol, {"id": request["id"], "result": {"chainId": chain_id, "height": 0}})

    node = SoloNode(tmp_path / "a")
    async with server(frozen) as url, running(node), open_client(CONSORTIUM.genesis, [url, node.url]) as client:
        for _ in range(2):  # the second time the node that answered is asked first
            with trio.fail_after(5):
                assert await client.request("contract_list", {}, list[object], timeout_ms=200)


@pytest.mark.parametrize("url", ["127.0.0.1:26700", "ftp://host", "http://", "net"])
async def test_what_is_no_url_is_said(url: str) -> None:
    with pytest.raises(LocalError) as caught:
        async with open_connection(url):
            pass
    assert caught.value.code == "bad_url"


async def test_lanes_are_leased_one_at_a_time_and_forget_after_errors() -> None:
    asked: list[bytes] = []

    async def read_next(lane: bytes) -> int:
        asked.append(lane)
        return 10

    lanes = Lanes(read_next, count=2, prefix=b"p")
    async with lanes.lease() as one, lanes.lease() as two:
        assert {one.name, two.name} == {b"p", b"p1"}
        assert [await one.take(), await one.take(3), await one.take()] == [10, 11, 14]
        with trio.move_on_after(0.01) as scope:
            async with lanes.lease():
                pass
        assert scope.cancelled_caught
    assert asked == [b"p"]
    with trio.CancelScope() as scope:
        async with lanes.lease() as lane:
            await lane.take()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    async with lanes.lease(), lanes.lease() as again:
        assert again.name == lane.name
        assert await again.take() == 10
    for count, prefix in ((0, b""), (257, b""), (1, b"x" * 17), (100, b"x" * 15)):
        with pytest.raises(LocalError):
            Lanes(read_next, count=count, prefix=prefix)


async def test_plain_http_carries_requests_too(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node):
        async with open_http(node.url) as transport:
            status = await transport.request("chain_status", {}, dict[str, object])
            assert status["height"] == 0
            with pytest.raises(Refused) as caught:
                await transport.request("contract_describe", {"contract": "nothing"}, dict[str, object])
            assert caught.value.code == "unknown_contract"
        node_url = node.url
    async with open_http(node_url) as transport:
        with pytest.raises(Unreachable):
            await transport.request("chain_status", {}, dict[str, object])


async def test_scripts_call_from_their_own_thread(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")

    def script() -> tuple[object, object]:
        with connect(CONSORTIUM.genesis, [node.url]) as client:
            define = {"unit": "point", "decimals": 0, "description": "points"}
            with pytest.raises(Refused):  # the real clock is years ahead of the node's
                client.call(signer("bank-a"), "tokens", "define", define)
            return client.request("chain_status", {}, dict[str, object])["height"], client.query("tokens", "units")

    async with running(node), client_of(node) as client:
        call = make_call("tokens", "define", {"unit": "point", "decimals": 0, "description": "points"})
        (await client.call_many(signer("bank-a"), [call])).check()
        height, units = await trio.to_thread.run_sync(script)
        assert height == 1
        assert units
