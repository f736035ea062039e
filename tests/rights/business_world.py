"""A chain, a message centre and a business server in one process, with real sockets between them, for tests.

The chain is real, but for its consensus: one node decides alone.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import httpx
import trio

from consensus.ledger.codec import Value
from consensus.ledger.keys import PrivateKey
from services.client.client import Client
from services.messages.center import Center, address_of, listen
from services.messages.embedded import EmbeddedStore
from services.messages.metrics import CenterMetrics
from services.messages.queue import Queue, QueueSettings, open_queue
from services.rights import business
from services.rights.business import BusinessSettings
from tests.client.support import CONSORTIUM, SoloNode, client_of, running, signer

EVENT_KEY = PrivateKey.from_secret(77)
SHOP = signer("shop")
CENTER_TOKEN = "between programs"
ORDER = {"order": "o-1", "user": "u-1", "campaign": "summer", "amount": 100}


@dataclass
class World:
    """What the tests hold: ``http`` talks to the business server, ``client`` to the chain beside it."""

    node: SoloNode
    client: Client
    center: "RunningCenter"
    settings: BusinessSettings
    http: httpx.AsyncClient
    port: int
    stopping: trio.Event
    ended: trio.Event

    @property
    def queue(self) -> Queue:
        """The centre's queue."""
        return self.center.queue

    async def post(self, path: str, body: object, status: int = 202) -> Any:
        """Post JSON, see the status, return the answer."""
        answer = await self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def get(self, path: str, status: int = 200) -> Any:
        """Get JSON."""
        answer = await self.http.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def call(self, method: str, **arguments: Value) -> None:
        """Call the contract as the shop."""
        (await self.client.call(SHOP, "rights", method, arguments)).check()


class RunningCenter:
    """A message centre that can end and come back at the same address, with what it has kept."""

    def __init__(self, folder: Path, nursery: trio.Nursery, settings: QueueSettings) -> None:
        self._folder = folder
        self._nursery = nursery
        self._settings = settings
        self._stopping = trio.Event()
        self._ended = trio.Event()
        self.address = "127.0.0.1:0"

    async def start(self) -> None:
        """Serve from now on."""
        self._stopping, self._ended = trio.Event(), trio.Event()
        await self._nursery.start(self._run)

    async def stop(self) -> None:
        """End in order."""
        self._stopping.set()
        await self._ended.wait()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        with listen(self.address, token=CENTER_TOKEN) as listening:
            self.address = address_of(listening)
            async with open_queue(EmbeddedStore(self._folder), self._settings) as self.queue:
                task_status.started()
                center = Center(self.queue, token=CENTER_TOKEN, metrics=CenterMetrics())
                await center.serve(listening, self._stopping)
        self._ended.set()


def settings_of(folder: Path, **changes: Any) -> BusinessSettings:
    """Return a business server's settings; it listens on a free port."""
    settings = BusinessSettings(
        host="127.0.0.1",
        port=0,
        token="",
        run=folder / "run",
        genesis=CONSORTIUM.genesis,
        nodes=("http://127.0.0.1:1",),
        server=SHOP.address,
        event_key=EVENT_KEY,
        center="127.0.0.1:1",
        center_token=CENTER_TOKEN,
    )
    return replaced(settings, **changes)


@asynccontextmanager
async def world_in(folder: Path, *, queue: QueueSettings | None = None, **changes: Any) -> AsyncIterator[World]:
    """Give everything for the time of the block; the shop's campaign ``summer`` is open."""
    node = SoloNode(folder / "node")
    async with running(node), client_of(node) as client, trio.open_nursery() as nursery:
        arguments: dict[str, Value] = {"campaign": "summer", "quota": 1_000_000}
        (await client.call(SHOP, "rights", "open_campaign", arguments)).check()
        center = RunningCenter(folder / "queue", nursery, queue or QueueSettings())
        await center.start()
        settings = settings_of(folder, **{"nodes": (node.url,), "center": center.address, **changes})
        stopping, ended = trio.Event(), trio.Event()

        async def serve(task_status: trio.TaskStatus[int]) -> None:
            await business.serve(settings, stopping, task_status=task_status)
            ended.set()

        port = await nursery.start(serve)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
            yield World(node, client, center, settings, http, port, stopping, ended)
        stopping.set()
        await center.stop()
        nursery.cancel_scope.cancel()


async def exchange(port: int, data: bytes) -> bytes:
    """Send bytes as they are over a connection of their own, and return what comes until its end."""
    answer = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data)
        with trio.fail_after(20):
            async for part in stream:
                answer += part
    return answer
