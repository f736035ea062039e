"""The HTTP side: hosts and origins, sizes, batches, pages, metrics, stopping, fatal errors."""

import json
from pathlib import Path

import pytest
import trio
import trio.testing

from consensus.ledger.errors import LocalError, StorageError
from node.rpc import listener
from node.rpc.methods import methods
from node.rpc.protocol import BATCH_MAX, BODY_BYTES_MAX
from node.rpc.server import RpcConfig, serve_rpc
from node.storage import layout
from tests.node.rpc.support import Server, TestNode, serving, websocket

STATUS = {"jsonrpc": "2.0", "id": 1, "method": "chain_status"}


async def raw_exchange(server: Server, request: bytes) -> bytes:
    """Send bytes over a new connection and return all that comes until the server closes it."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(request)
        answer = b""
        async for chunk in stream:
            answer += chunk
        return answer


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]:1", ""])
async def test_r74_unknown_host_names_are_turned_away(server: Server, host: str) -> None:
    assert (await server.post(json.dumps(STATUS), host=host)).status_code == 403
    async with websocket(server, host=host or "unknown") as client:
        assert client.status in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1", "[::1]:26700"])
async def test_r74_known_host_names_are_served(server: Server, host: str) -> None:
    assert (await server.post(json.dumps(STATUS), host=host)).status_code == 200


async def test_pages_of_other_sites_are_turned_away(server: Server) -> None:
    assert (await server.post(json.dumps(STATUS), origin="https://evil.example")).status_code == 403
    assert (await server.post(json.dumps(STATUS), origin="null")).status_code == 403
    same = await server.post(json.dumps(STATUS), origin=server.url)
    assert same.status_code == 200
    assert "access-control-allow-origin" not in same.headers
    async with websocket(server, headers=[(b"origin", b"https://evil.example")]) as client:
        assert client.status == 403
    async with websocket(server, headers=[(b"origin", server.url.encode())]) as client:
        assert client.status == 101


async def test_a_form_of_another_site_is_no_request(server: Server) -> None:
    assert (await server.post(json.dumps(STATUS), **{"content-type": "text/plain"})).status_code == 415


async def test_configured_host_names_are_served(node: TestNode) -> None:
    async with serving(node, RpcConfig(host_names=frozenset({"Node.Bank-A.example"}))) as server:
        assert (await server.post(json.dumps(STATUS), host="node.bank-a.example:443")).status_code == 200


async def test_beyond_loopback_must_be_allowed(node: TestNode) -> None:
    with pytest.raises(LocalError) as caught:
        await serve_rpc(node.backend, RpcConfig(host="0.0.0.0"), stopping=trio.Event())
    assert caught.value.code == "rpc_not_loopback"


async def test_a_port_in_use_is_said_so(node: TestNode, server: Server) -> None:
    with pytest.raises(LocalError) as caught:
        await serve_rpc(node.backend, RpcConfig(port=server.port), stopping=trio.Event())
    assert caught.value.code == "port_in_use"


async def test_errors_follow_the_specification(server: Server) -> None:
    for body, number, code in [
        (b"{", -32700, "parse_error"),
        (b"[]", -32600, "invalid_request"),
        (b"{}", -32600, "invalid_request"),
        (json.dumps({**STATUS, "method": "x"}).encode(), -32601, "method_not_found"),
        (json.dumps({**STATUS, "params": {"x": 1}}).encode(), -32602, "invalid_params"),
        (json.dumps({**STATUS, "method": "chain_getBlock", "params": [99]}).encode(), -32000, "not_found"),
        (json.dumps({**STATUS, "method": "subscribe", "params": ["blocks"]}).encode(), -32000, "no_subscriptions_here"),
    ]:
        answer = await server.post(body)
        assert answer.status_code == 200
        error = answer.json()["error"]
        assert (error["code"], error["data"]["code"]) == (number, code)


async def test_a_batch_is_answered_in_order_without_its_notifications(server: Server) -> None:
    notification = {"jsonrpc": "2.0", "method": "chain_status"}
    batch = [{**STATUS, "id": 7}, notification, 5, {**STATUS, "id": "a", "method": "x"}]
    answers = (await server.post(json.dumps(batch))).json()
    assert [answer["id"] for answer in answers] == [7, None, "a"]
    assert (await server.post(json.dumps(notification))).status_code == 204
    assert (await server.post(json.dumps([notification]))).status_code == 204
    too_many = (await server.post(json.dumps([STATUS] * (BATCH_MAX + 1)))).json()
    assert too_many["error"]["code"] == -32600


async def test_r73_answers_of_a_batch_have_a_cap(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.rpc.dispatch.ANSWER_BYTES_MAX", 3_000)
    answers = (await server.post(json.dumps([STATUS] * 20))).json()
    codes = [answer.get("error", {}).get("data", {}).get("code") for answer in answers]
    assert set(codes) == {None, "answer_too_large"}


async def test_r73_an_oversized_body_is_refused_before_it_is_buffered(server: Server) -> None:
    head = (
        f"POST /rpc HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {1 << 40}\r\n\r\n"
    )
    answer = await raw_exchange(server, head.encode() + b" " * (BODY_BYTES_MAX + 1))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"too_large" in answer


async def test_a_body_that_does_not_come_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.rpc.server.BODY_MS_MAX", 50)
    head = b"POST /rpc HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    assert (await raw_exchange(server, head)).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"POST /rpc HTTP/1.1\r\nhost: localhost\r\nhost: evil\r\ncontent-length: 0\r\n\r\n",
        b"POST /rpc HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    ],
)
async def test_garbage_is_answered_or_closed_and_the_server_lives(server: Server, request_bytes: bytes) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(request_bytes)
        await stream.send_eof()
        answer = await stream.receive_some()
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4",))
    assert (await server.get("/healthz")).status_code == 200


async def test_health_metrics_and_page(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    await server.result("chain_status")
    await server.code("no_such_method_" + "x" * 20)
    health = await server.get("/healthz")
    assert (health.status_code, health.json()["height"]) == (200, 1)
    node.is_ready = False
    assert (await server.get("/healthz")).status_code == 503
    metrics = (await server.get("/metrics")).text
    assert "hansa_height 1.0" in metrics
    assert 'hansa_stage_seconds_total{stage="execute"}' in metrics
    assert 'hansa_rpc_requests_total{method="chain_status",outcome="ok"} 1.0' in metrics
    assert 'hansa_rpc_requests_total{method="unknown",outcome="method_not_found"} 1.0' in metrics
    for path, kind in {"/": "text/html", "/style.css": "text/css", "/app.js": "text/javascript"}.items():
        page = await server.get(path)
        assert page.headers["content-type"].startswith(kind)
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert (await server.get("/static/../server.py")).status_code == 404
    assert (await server.get("/rpc")).headers["x-content-type-options"] == "nosniff"


async def test_r76_concurrent_calls_while_blocks_are_made(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    heights: list[int] = []

    async def read() -> None:
        for _ in range(10):
            status = await server.result("chain_status")
            block = await server.result("chain_getBlock", height=status["height"])
            assert block["hash"] == status["head"]["hash"]
            heights.append(status["height"])

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(read)
        for _ in range(20):
            node.commit([])
            await trio.lowlevel.checkpoint()
    assert len(heights) == 50


async def test_a_full_house_makes_new_callers_wait_not_old_ones(node: TestNode) -> None:
    request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    answers: list[bytes] = []

    async def ask(server: Server) -> None:
        answers.append(await raw_exchange(server, request))

    async with serving(node, RpcConfig(connections_max=2)) as server, websocket(server) as first:
        async with trio.open_nursery() as nursery, websocket(server) as second:
            nursery.start_soon(ask, server)
            assert (await second.call("chain_status"))["id"] == 1
            assert (await first.call("chain_status"))["id"] == 1
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert answers == []
        assert answers[0].startswith(b"HTTP/1.1 200")  # the second has left


async def test_stopping_closes_websockets_and_outwaits_nobody(
    node: TestNode, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a waiting call, nor a mute connection, nor a peer that reads nothing holds up the stop."""
    monkeypatch.setattr(listener, "STOP_MS_MAX", 200)
    node.commit([node.money()])
    mute = await trio.open_tcp_stream("127.0.0.1", server.port)
    async with mute, websocket(server) as reader, websocket(server, receive_bytes=4_096) as sleeper:
        for number in range(600):
            await sleeper.send("rpc.discover", number)
        await reader.send("tx_wait", ids=["0x" + "00" * 32], timeoutMs=60_000)
        await trio.testing.wait_all_tasks_blocked(0.05)
        server.stopping.set()
        assert await reader.next() is None
        assert reader.close_code == 1001
        assert await mute.receive_some() == b""
        with trio.fail_after(5):
            await server.stopped.wait()  # while the sleeper's socket is still open


async def test_a_broken_store_stops_the_node(node: TestNode) -> None:
    node.commit([node.money()])
    node.store.write([(layout.at_height(layout.BLOCK, 0), b"broken")])

    async def ask() -> None:
        async with serving(node) as server:
            assert await server.code("chain_getBlock", height=0) == "node_failed"
            await trio.sleep_forever()

    with trio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        await ask()
    assert caught.group_contains(StorageError, match="block 0 cannot be read")


async def test_a_bug_in_a_method_is_an_internal_error(
    node: TestNode, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("secret path /home")

    monkeypatch.setattr(node.backend, "head", broken)
    answer = await server.call("chain_status")
    assert (answer["error"]["code"], answer["error"]["data"]["code"]) == (-32603, "internal")
    assert "secret" not in json.dumps(answer)
    capsys.readouterr()


def test_r77_no_method_signs_or_touches_a_key() -> None:
    """No room of the RPC knows a private key or a signer, and no method asks for either."""
    for path in Path(listener.__file__).parent.glob("*.py"):
        text = path.read_text()
        for word in ("PrivateKey", "KeySigner", "keystore", "vote_log", ".sign("):
            assert word not in text, f"{path.name} has {word}"
    for name, method in methods.methods.items():
        asked = [name.partition("_")[2], *method.params.__struct_encode_fields__]
        forbidden = ("sign", "unlock", "passphrase", "secret", "privateKey", "account_new", "personal")
        assert not [item for item in asked if any(word in item for word in forbidden)], name


async def test_r74_no_answer_opens_the_node_to_other_sites_pages(server: Server) -> None:
    """Nothing carries a CORS header, asked for or not, so a browser shows no page of another site an answer."""
    preflight = (
        b"OPTIONS /rpc HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost\r\nconnection: close\r\n"
        b"access-control-request-method: POST\r\naccess-control-request-headers: content-type\r\n\r\n"
    )
    assert b"access-control" not in (await raw_exchange(server, preflight)).lower()
    for path in ("/", "/rpc", "/healthz", "/metrics"):
        assert not [name for name in (await server.get(path)).headers if name.startswith("access-control")]
