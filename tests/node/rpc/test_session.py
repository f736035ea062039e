"""WebSockets: pipelining, frames of transactions, subscriptions with cursors, slow readers."""

import json

import msgpack
import pytest
import trio
import trio.testing

from consensus.ledger.transaction import make_call
from node.rpc import listener, subscriptions
from node.rpc.outbox import OUTBOX_BYTES_MAX, Outbox
from node.rpc.protocol import BODY_BYTES_MAX
from node.rpc.session import BATCHES_MAX, SUBSCRIPTIONS_MAX
from tests.node.rpc.support import CONSORTIUM, Server, TestNode, WebSocketClient, websocket


async def subscribe(client: WebSocketClient, topic: str, **params: object) -> int:
    answer = await client.call("subscribe", topic=topic, **params)
    number: int = answer["result"]["subscription"]
    return number


async def items_until(client: WebSocketClient, height: int) -> list[tuple[int, int]]:
    """Return (height, index) of all items up to and with a block's last one, in the order they came."""
    places: list[tuple[int, int]] = []
    while True:
        params = (await client.next())["params"]
        assert "gap" not in params
        places += [(item["height"], item["index"]) for item in params["items"]]
        if places and places[-1][0] >= height:
            return places


async def test_requests_are_answered_as_they_finish(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    async with websocket(server) as client:
        await client.send("tx_wait", 1, ids="0x" + "00" * 32, timeoutMs=200)
        await client.send("chain_status", 2)
        await client.send_text("[1]")
        answers = [await client.next() for _ in range(3)]
    assert [answer[0]["error"]["code"] if isinstance(answer, list) else answer["id"] for answer in answers] == [
        2,
        -32600,
        1,
    ]


async def test_a_frame_is_answered_by_a_frame(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    good, broken = node.transfer(0), b"\x00"
    async with websocket(server) as client:
        await client.send_bytes(msgpack.packb([7, [good.raw, broken]]))
        assert msgpack.unpackb(await client.next()) == [[7, [[good.id, "", 0, 0], [b"", "malformed", 0, 0]]]]
        poor = node.transfer(1, amount=10**9)
        await client.send_bytes(msgpack.packb([8, [good.raw, poor.raw], 10_000]))
        await trio.testing.wait_all_tasks_blocked(0.02)
        height = node.commit()
        assert msgpack.unpackb(await client.next()) == [[8, [[good.id, "", height, 0], [poor.id, "", height, 1]]]]


async def test_frames_that_end_with_one_block_share_a_message(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    transfers = [node.transfer(number) for number in range(40)]
    async with websocket(server) as client:
        for number, transfer in enumerate(transfers):
            await client.send_bytes(msgpack.packb([number, [transfer.raw], 10_000]))
        await client.send("chain_status", 1_000)
        assert (await client.next())["id"] == 1_000
        height = node.commit()
        assert msgpack.unpackb(await client.next()) == [
            [number, [[transfer.id, "", height, 0]]] for number, transfer in enumerate(transfers)
        ]


async def test_a_frame_is_answered_when_its_time_is_up(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    first, second = node.transfer(0), node.transfer(1)
    async with websocket(server) as client:
        await client.send_bytes(msgpack.packb([1, [first.raw], 60_000]))
        await client.send_bytes(msgpack.packb([2, [second.raw], 1]))
        with trio.fail_after(5):
            assert msgpack.unpackb(await client.next()) == [[2, [[second.id, "", 0, 0]]]]
        height = node.commit()
        assert msgpack.unpackb(await client.next()) == [[1, [[first.id, "", height, 0]]]]


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 5_000, msgpack.packb([1, "x"]), msgpack.packb(["1", []]),
     msgpack.packb([1, [1]]), msgpack.packb([1, [b""], 60_001]), msgpack.packb([1, [b""], -1]),
     msgpack.packb([1, [b""] * 2_001]), msgpack.packb([1, [], 0, 0]), msgpack.packb({"id": 1})],
    ids=range(12),
)  # fmt: skip
async def test_r72_broken_frames_are_answered_and_the_session_lives(server: Server, frame: bytes) -> None:
    async with websocket(server) as client:
        await client.send_bytes(frame)
        assert (await client.next())["error"]["data"]["code"] in ("parse_error", "invalid_params")
        assert (await client.call("chain_status"))["id"] == 1


async def test_r73_an_oversized_message_closes_the_session(server: Server) -> None:
    async with websocket(server) as client:
        await client.send_text(" " * (BODY_BYTES_MAX + 1))
        assert await client.next() is None
        assert client.close_code == 1009
    assert (await server.get("/healthz")).status_code == 200


@pytest.mark.parametrize("topic", ["blocks", "transactions", "events"])
async def test_each_item_comes_once_and_in_order(node: TestNode, server: Server, topic: str) -> None:
    async with websocket(server) as client:
        await subscribe(client, topic)
        node.commit([node.money()])
        node.commit([node.transfer(number) for number in range(3)])
        last = node.commit([node.transfer(3)])
        places = await items_until(client, last)
    expected = {
        "blocks": [(1, 0), (2, 0), (3, 0)],
        "transactions": [(1, 0), (2, 0), (2, 1), (2, 2), (3, 0)],
        "events": [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0)],
    }
    assert places == expected[topic]


async def test_a_cursor_resumes_behind_the_last_item(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    node.commit([node.transfer(number) for number in range(3)])
    async with websocket(server) as client:
        for cursor, first in {"0:0": (1, 0), "1:1": (2, 0), "2:0": (2, 1), "2:2147483648": (3, 0)}.items():
            number = await subscribe(client, "events", cursor=cursor)
            if first == (3, 0):
                node.commit([node.transfer(3)])
            message = (await client.next())["params"]
            assert (message["items"][0]["height"], message["items"][0]["index"]) == first
            await client.send("unsubscribe", 9, subscription=number)
            while (await client.next()).get("id") != 9:
                pass


async def test_filters_select(node: TestNode, server: Server) -> None:
    async with websocket(server) as client:
        await subscribe(client, "events", contract="tokens", name="transferred")
        node.commit([node.money()])
        last = node.commit([node.transfer(0)])
        message = (await client.next())["params"]
        assert [(item["height"], item["name"]) for item in message["items"]] == [(last, "transferred")]
        await subscribe(client, "transactions", sender="0x" + node.address("user-b").hex(), cursor="0:0")
        assert [item["height"] for item in (await client.next())["params"]["items"]] == [last]


async def test_a_block_of_many_items_comes_in_parts(
    node: TestNode, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "ITEMS_PER_MESSAGE_MAX", 2)
    node.commit([node.money()])
    async with websocket(server) as client:
        await subscribe(client, "transactions")
        node.commit([node.transfer(number) for number in range(5)])
        messages = [(await client.next())["params"] for _ in range(3)]
    assert [len(message["items"]) for message in messages] == [2, 2, 1]
    assert [message["cursor"] for message in messages] == ["2:1", "2:3", "2:4"]


async def test_r75_a_slow_reader_gets_a_gap_and_fills_it(
    node: TestNode, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it does not read, the node holds a bounded amount; then it learns what it missed, and can fetch it."""
    monkeypatch.setattr(subscriptions.Subscription.__init__, "__defaults__", (4,))
    monkeypatch.setattr("node.rpc.outbox.OUTBOX_BYTES_MAX", 64 * 1024)
    node.commit([node.money()])
    memo = "m" * 128
    async with websocket(server, receive_bytes=4_096) as slow:
        await subscribe(slow, "events")
        first_height = node.chain.head.header.height + 1
        sequence = 0
        for _ in range(30):
            transfers = []
            for _ in range(100):
                arguments = {"unit": "cny", "to": node.address("user-e"), "amount": 1, "memo": memo}
                call = make_call("tokens", "transfer", arguments)  # type: ignore[arg-type]
                transfers.append(CONSORTIUM.sign("user-b", [call], sequence=sequence))
                sequence += 1
            node.commit(transfers)
            await trio.testing.wait_all_tasks_blocked()
        last_height = node.chain.head.header.height
        received: list[tuple[int, int]] = []
        gaps: list[dict[str, str]] = []
        while not received or received[-1] != (last_height, 99):
            params = (await slow.next())["params"]
            if "gap" in params:
                gaps.append(params["gap"])
                received += await fetch(server, params["gap"])
            else:
                received += [(item["height"], item["index"]) for item in params["items"]]
    assert gaps
    assert received == [(height, index) for height in range(first_height, last_height + 1) for index in range(100)]


async def fetch(server: Server, gap: dict[str, str]) -> list[tuple[int, int]]:
    """Return the places of the events in a gap, as a client reads them."""
    places: list[tuple[int, int]] = []
    cursor, until = gap["after"], int(gap["until"].partition(":")[0])
    while True:
        page = await server.result("events_query", cursor=cursor, toHeight=until)
        places += [(item["height"], item["index"]) for item in page["items"]]
        if page["done"]:
            return places
        cursor = page["cursor"]


@pytest.mark.parametrize("batch", [0, 20])
async def test_r75_calls_of_a_peer_that_does_not_read_wait_before_they_are_worked_on(
    node: TestNode, server: Server, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred bytes may ask for megabytes: of many answers only those exist that there is room for."""
    outbox_bytes = 1 << 20
    monkeypatch.setattr("node.rpc.outbox.OUTBOX_BYTES_MAX", outbox_bytes)
    call = {"jsonrpc": "2.0", "id": 1, "method": "rpc.discover"}
    count = 600
    answer_bytes = len(json.dumps(await server.result("rpc.discover")))
    async with websocket(server, receive_bytes=4_096) as deaf:
        for _ in range(count // batch if batch else count):
            await deaf.send_text(json.dumps([call] * batch if batch else call))
        await trio.testing.wait_all_tasks_blocked(0.1)
        worked_on = await calls_answered(server, "rpc.discover") - 1
        room = outbox_bytes + 2 * listener.SEND_BUFFER_BYTES + BATCHES_MAX * max(batch, 1) * answer_bytes
        assert 0 < worked_on * answer_bytes < 1.5 * room < count * answer_bytes / 2
        heard = 0
        while heard < count:
            message = await deaf.next()
            heard += len(message) if batch else 1
    assert heard == count


async def calls_answered(server: Server, method: str) -> int:
    lines = (await server.get("/metrics")).text.splitlines()
    found = [line.split()[-1] for line in lines if line.startswith(f'hansa_rpc_requests_total{{method="{method}"')]
    return round(sum(map(float, found)))


async def test_the_consensus_topic_tells_the_newest_view(node: TestNode, server: Server) -> None:
    async with websocket(server) as client:
        await subscribe(client, "consensus")
        node.view = 3
        node.backend.on_consensus()
        message = (await client.next())["params"]
        assert (message["status"]["view"], message["status"]["phase"]) == (3, "open")


async def test_subscriptions_end_and_are_bounded(node: TestNode, server: Server) -> None:
    async with websocket(server) as client:
        numbers = [await subscribe(client, "blocks") for _ in range(SUBSCRIPTIONS_MAX)]
        refused = await client.call("subscribe", topic="blocks")
        assert refused["error"]["data"]["code"] == "too_many_subscriptions"
        for number in numbers:
            assert (await client.call("unsubscribe", subscription=number))["result"] is True
        assert (await client.call("unsubscribe", subscription=numbers[0]))["result"] is False
        assert (await client.call("subscribe", topic="weather"))["error"]["data"]["code"] == "unknown_topic"
        node.commit([])
        assert (await client.call("chain_status"))["result"]["height"] == 1


async def test_the_outbox_is_bounded_in_bytes(autojump_clock: trio.testing.MockClock) -> None:
    box = Outbox()
    await box.put(b"x" * OUTBOX_BYTES_MAX)
    with trio.move_on_after(1) as scope:
        await box.put(b"y")
    assert scope.cancelled_caught
    assert len(await box.take()) == OUTBOX_BYTES_MAX
    await box.put(b"y" * (2 * OUTBOX_BYTES_MAX))
    assert len(await box.take()) == 2 * OUTBOX_BYTES_MAX


async def test_requests_under_way_are_bounded_in_bytes(node: TestNode, server: Server) -> None:
    """While as much as is allowed waits, nothing more is read; what was sent is answered in the end."""
    padding = ["0x" + "00" * 32] * 2_000
    async with websocket(server) as client:
        for number in range(63):  # 140 kB each; 59 have room, and the sockets hold the others
            await client.send("tx_wait", number, ids=padding, timeoutMs=400, receipts=False)
        await client.send("chain_status", 1_000)
        answers = [(await client.next())["id"] for _ in range(64)]
    assert set(answers) == {*range(63), 1_000}
    assert answers[0] != 1_000


async def test_many_wait_for_one_block(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    transfers = [node.transfer(number) for number in range(50)]
    async with websocket(server) as client:
        for number, transfer in enumerate(transfers):
            await client.send("tx_wait", number, ids="0x" + transfer.id.hex(), timeoutMs=10_000, receipts=False)
        await trio.testing.wait_all_tasks_blocked(0.05)
        node.commit(transfers)
        with trio.fail_after(5):
            answers = [await client.next() for _ in transfers]
    assert sorted(answer["id"] for answer in answers) == list(range(50))
    assert all(answer["result"]["final"] for answer in answers)


async def test_a_peer_that_vanishes_leaves_nothing_behind(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    async with websocket(server) as client:
        await subscribe(client, "blocks")
        await client.send("tx_wait", ids="0x" + "00" * 32, timeoutMs=60_000)
    text = ""
    while "hansa_rpc_sessions 0.0" not in text:
        text = (await server.get("/metrics")).text
    assert json.loads((await server.get("/healthz")).text)["ready"] is True
