"""The owner's socket: who reaches it, what it offers, long polls, sizes, a second program on it, its end."""

import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from consensus.ledger.errors import LocalError
from consensus.ledger.ids import NodeName
from node.owner import BODY_BYTES_MAX, PAGE_BYTES_MAX, OwnerDesk
from node.rpc.listener import STOP_MS_MAX
from node.rpc.server import RpcConfig, serve_rpc
from p2p.private.port import PAYLOAD_BYTES_MAX, ChannelFacts, ChannelName, ChannelStatus, Delivery, Phase
from services.client.sockets import address_of
from tests.node.rpc.support import TIMEOUT_S, TestNode

NAME = ChannelName("bank-a", "issuer-c")
KEY = b"\2" + bytes(32)


class Loop:
    """Private channels that bring back what is sent: everything between the methods and a real network is left out."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.kept: list[Delivery] = []
        self.came = trio.Event()
        self.waiting = 0

    async def send(self, channel: ChannelName, message_id: str, payload: bytes) -> tuple[int, int]:
        if channel != NAME:
            raise LocalError("unknown_channel", f"there is no channel {channel}")
        if message_id not in self.ids:
            number = self.ids[message_id] = len(self.ids) + 1
            self.kept.append(Delivery(number, channel, 1, number, payload, "", ""))
            self.came.set()
            self.came = trio.Event()
        return 1, self.ids[message_id]

    def receive(self, after: int, *, limit: int, bytes_max: int) -> list[Delivery]:
        found: list[Delivery] = []
        for item in self.kept:
            if item.position > after:
                bytes_max -= len(item.payload)
                if found and (bytes_max < 0 or len(found) == limit):
                    break
                found.append(item)
        return found

    async def wait(self, after: int) -> None:
        self.waiting += 1
        while not self.receive(after, limit=1, bytes_max=1):
            await self.came.wait()

    async def done(self, position: int) -> None:
        self.kept = [item for item in self.kept if item.position > position]

    def status(self) -> Sequence[ChannelStatus]:
        facts = ChannelFacts(NAME, 1, Phase.OPEN, True, NodeName("issuer-c"), KEY)
        return [ChannelStatus(facts, True, 2, 20, 3, 1, 4, "unreachable")]


@dataclass
class Owner:
    """A node with its owner's socket, and a program at it."""

    loop: Loop
    path: Path
    port: int
    stopping: trio.Event
    stopped: trio.Event

    async def post(self, content: bytes | str) -> httpx.Response:
        headers = {"content-type": "application/json"}
        with address_of(self.path) as address:
            transport = httpx.AsyncHTTPTransport(uds=address)
            async with httpx.AsyncClient(transport=transport, timeout=TIMEOUT_S) as client:
                return await client.post("http://node/rpc", content=content, headers=headers)

    async def call(self, method: str, **params: object) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return (await self.post(json.dumps(body))).json()

    async def result(self, method: str, **params: object) -> Any:
        answer = await self.call(method, **params)
        assert "result" in answer, answer
        return answer["result"]

    async def code(self, method: str, **params: object) -> str:
        answer = await self.call(method, **params)
        assert "error" in answer, answer
        return str(answer["error"]["data"]["code"])


def desk_at(path: Path) -> OwnerDesk:
    return OwnerDesk(path, "bank-a", KEY, Loop(), trio.Event())


@asynccontextmanager
async def opened(node: TestNode, path: Path) -> AsyncIterator[Owner]:
    """Serve for the time of the block."""
    stopping, stopped = trio.Event(), trio.Event()
    loop = Loop()
    desk = OwnerDesk(path, "bank-a", KEY, loop, stopping)
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[int]) -> None:
                await serve_rpc(node.backend, RpcConfig(), stopping=stopping, desk=desk, task_status=task_status)
                stopped.set()

            port = await nursery.start(serve)
            yield Owner(loop, path, port, stopping, stopped)
            stopping.set()


@pytest.fixture
async def owner(node: TestNode, tmp_path: Path) -> AsyncIterator[Owner]:
    async with opened(node, tmp_path / "owner.sock") as running:
        yield running


async def test_only_the_owner_may_open_the_socket(owner: Owner) -> None:
    assert owner.path.stat().st_mode & 0o777 == 0o600


async def test_it_says_who_it_is_and_how_its_channels_stand(owner: Owner) -> None:
    status = await owner.result("owner_status")
    assert status == {
        "node": "node-0",
        "organisation": "bank-a",
        "channelKey": "0x" + KEY.hex(),
        "chainId": status["chainId"],
        "height": 0,
    }
    assert await owner.result("owner_channels") == [
        {
            "channel": "bank-a/issuer-c",
            "bank": "bank-a",
            "issuer": "issuer-c",
            "epoch": 1,
            "phase": "open",
            "isBank": True,
            "peer": "issuer-c",
            "connected": True,
            "waiting": 2,
            "waitingBytes": 20,
            "sent": 3,
            "delivered": 1,
            "received": 4,
            "lastError": "unreachable",
        }
    ]


async def test_public_methods_are_there_too_and_owners_methods_nowhere_else(owner: Owner) -> None:
    assert (await owner.result("chain_status"))["height"] == 0
    assert await owner.result("channel_list") == []
    listed = await owner.result("rpc.discover")
    assert {"owner_send", "chain_status"} <= {method["name"] for method in listed["methods"]}
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        url = f"http://127.0.0.1:{owner.port}/rpc"
        for method in ("owner_status", "owner_channels", "owner_receive", "owner_send", "owner_done"):
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {}}
            assert (await client.post(url, json=body)).json()["error"]["data"]["code"] == "method_not_found"
        assert not [name for name in (await client.get(url)).json()["methods"] if name.startswith("owner")]
        body = {"jsonrpc": "2.0", "id": 1, "method": "rpc.discover"}
        public = (await client.post(url, json=body)).json()["result"]["methods"]
    assert not [method["name"] for method in public if method["name"].startswith("owner")]


async def test_what_is_sent_has_a_number_and_the_same_id_the_same_one(owner: Owner) -> None:
    first = {"channel": "bank-a/issuer-c", "id": "a", "payload": "0x01ff"}
    assert await owner.result("owner_send", **first) == {"epoch": 1, "number": 1}
    assert await owner.result("owner_send", **{**first, "id": "b"}) == {"epoch": 1, "number": 2}
    assert await owner.result("owner_send", **{**first, "payload": "0x"}) == {"epoch": 1, "number": 1}
    items = (await owner.result("owner_receive"))["items"]
    assert [(item["position"], item["payload"], item["code"]) for item in items] == [
        (1, "0x01ff", ""),
        (2, "0x01ff", ""),
    ]
    assert items[0]["channel"] == "bank-a/issuer-c"
    assert [item["position"] for item in (await owner.result("owner_receive", after=1))["items"]] == [2]
    assert await owner.result("owner_done", position=1) is None
    assert [item["position"] for item in (await owner.result("owner_receive", limit=1))["items"]] == [2]


WRONG_MESSAGES: list[tuple[dict[str, object], str]] = [
    ({"channel": "bank-a/issuer-f"}, "unknown_channel"),
    ({"channel": "bank-a"}, "invalid_params"),
    ({"channel": "bank-a/issuer-c/x"}, "invalid_params"),
    ({"id": ""}, "invalid_params"),
    ({"id": "x" * 129}, "invalid_params"),
    *[({"payload": text}, "invalid_params") for text in ("", "01", "0x1", "0x0G", "0xAB", "0x 01", "1x01")],
    ({"payload": "0x" + "00" * (PAYLOAD_BYTES_MAX + 1)}, "too_large"),
    ({"more": 1}, "invalid_params"),
]


async def test_wrong_messages_are_refused(owner: Owner) -> None:
    right: dict[str, object] = {"channel": "bank-a/issuer-c", "id": "a", "payload": "0x01"}
    for params, code in WRONG_MESSAGES:
        assert await owner.code("owner_send", **{**right, **params}) == code
    assert owner.loop.kept == []


async def test_the_largest_payload_goes_through_and_a_page_has_a_bound(owner: Owner) -> None:
    payload = "0x" + "5a" * PAYLOAD_BYTES_MAX
    for name in ("a", "b"):
        assert "number" in await owner.result("owner_send", channel="bank-a/issuer-c", id=name, payload=payload)
    assert PAGE_BYTES_MAX <= PAYLOAD_BYTES_MAX
    items = (await owner.result("owner_receive"))["items"]
    assert [item["payload"] == payload for item in items] == [True]
    head = b"POST /rpc HTTP/1.1\r\nhost: node\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    body = b" " * (BODY_BYTES_MAX + 1)
    with address_of(owner.path) as address:
        async with await trio.open_unix_socket(address) as stream:
            await stream.send_all(head % len(body) + body)
            assert b" 413 " in await stream.receive_some()


async def test_a_poll_waits_for_what_comes(owner: Owner) -> None:
    found: list[Any] = []

    async def poll() -> None:
        found.append(await owner.result("owner_receive", waitMs=10_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        while not owner.loop.waiting:
            await trio.lowlevel.checkpoint()
        await owner.result("owner_send", channel="bank-a/issuer-c", id="a", payload="0x01")
    assert [item["number"] for item in found[0]["items"]] == [1]


async def test_a_poll_is_empty_when_nothing_came_in_its_time(owner: Owner) -> None:
    assert await owner.result("owner_receive", waitMs=1) == {"items": []}
    assert await owner.code("owner_receive", waitMs=60_001) == "invalid_params"


async def test_polls_end_when_the_node_stops_and_the_socket_is_gone(owner: Owner) -> None:
    found: list[Any] = []

    async def poll() -> None:
        found.append(await owner.result("owner_receive", waitMs=60_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        while not owner.loop.waiting:
            await trio.lowlevel.checkpoint()
        with trio.fail_after(STOP_MS_MAX / 1_000 + 1):
            owner.stopping.set()
            await owner.stopped.wait()
    assert found == [{"items": []}]
    assert not owner.path.exists()


async def test_a_living_socket_is_left_alone_and_a_dead_one_replaced(owner: Owner, node: TestNode) -> None:
    with pytest.raises(LocalError) as caught:
        await serve_rpc(node.backend, RpcConfig(), stopping=trio.Event(), desk=desk_at(owner.path))
    assert caught.value.code == "socket_in_use"
    assert (await owner.result("owner_status"))["node"] == "node-0"
    dead = owner.path.with_name("dead.sock")
    with socket.socket(socket.AF_UNIX) as left, address_of(dead) as address:
        left.bind(address)
    async with opened(node, dead) as again:
        assert (await again.result("owner_status"))["node"] == "node-0"


async def test_a_file_that_is_no_socket_stays(node: TestNode, tmp_path: Path) -> None:
    path = tmp_path / "owner.sock"
    path.write_text("mine")
    with pytest.raises(LocalError) as caught:
        await serve_rpc(node.backend, RpcConfig(), stopping=trio.Event(), desk=desk_at(path))
    assert caught.value.code == "file_error"
    assert path.read_text() == "mine"


async def test_the_folder_may_lie_deep(node: TestNode, tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    assert len(str(folder)) > 107
    async with opened(node, folder / "owner.sock") as running:
        assert (await running.result("owner_status"))["node"] == "node-0"
