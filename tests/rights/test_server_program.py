"""Rights servers as processes, between a message centre's socket and four real nodes."""

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from node.network import local
from node.network.homes import LocalNetwork
from services.client.client import Client
from services.messages.center import Center, listen
from services.messages.embedded import EmbeddedStore
from services.messages.metrics import CenterMetrics
from services.messages.queue import Queue, QueueSettings, open_queue
from services.rights.events import sign_events
from tests.network.support import client_of, running_network, signer
from tests.rights.server_program import ACCOUNT
from tests.rights.server_world import EVENT_KEY, message, pause
from tests.rights.test_server import FIGURES, draw_day

WAIT_S = 60


class Program:
    """A rights server's process; what it says goes to a file beside the network."""

    def __init__(self, network: LocalNetwork, name: str, center: str) -> None:
        self.folder = network.folder / name
        self.log = network.folder / f"{name}.log"
        self._command = [sys.executable, "-m", "tests.rights.server_program", str(network.folder), name, center]
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        process = self._spawn()
        with trio.fail_after(WAIT_S):
            while not self.is_ready():
                assert process.poll() is None, self.log.read_text()
                await pause()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stderr=log)
        return self._process

    def is_ready(self) -> bool:
        ready = self.folder / "ready"
        return self._process is not None and ready.exists() and ready.read_text() == f"{self._process.pid}\n"

    async def end(self, number: int) -> int:
        """End it with a signal and return its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        with trio.fail_after(WAIT_S):
            while (code := self._process.poll()) is None:
                await pause()
        self._process = None
        return code

    def kill_if_running(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def lines(self) -> list[dict[str, object]]:
        """Return what it logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@asynccontextmanager
async def center_at(folder: Path) -> AsyncIterator[tuple[Queue, str]]:
    """Give a message centre that listens on a socket in the folder."""
    address = f"unix:{folder / 'center'}"
    settings = QueueSettings(
        rate_per_s=100_000, attempts_max=1_000, backoff_first_ms=50, backoff_max_ms=200, lease_ms=5_000
    )
    with listen(address, token="") as listening:
        async with open_queue(EmbeddedStore(folder / "queue"), settings) as queue, trio.open_nursery() as nursery:
            stopping = trio.Event()
            nursery.start_soon(Center(queue, token="", metrics=CenterMetrics()).serve, listening, stopping)
            yield queue, address
            stopping.set()
            nursery.cancel_scope.cancel()


async def prepare(network: LocalNetwork, client: Client) -> None:
    shop = signer(network, "shop")
    await client.call(shop, "rights", "open_campaign", {"campaign": "summer", "quota": 10**9})
    servers = [signer(network, ACCOUNT).address]
    keys = [EVENT_KEY.public.compressed]
    (await client.call(shop, "rights", "appoint", {"event_keys": keys, "rights_servers": servers})).check()  # type: ignore[dict-item]


async def done(queue: Queue, count: int) -> None:
    """Wait until so many events are done."""
    with trio.fail_after(WAIT_S):
        while (await queue.stats()).done < count:
            await pause()


@pytest.mark.network
@pytest.mark.slow
async def test_two_servers_end_every_event_once_though_one_and_a_node_are_killed(tmp_path: Path) -> None:
    events, expected = draw_day(4, orders=300)
    async with (
        running_network(tmp_path / "net") as network,
        client_of(network) as client,
        center_at(tmp_path) as (queue, address),
    ):
        await prepare(network, client)
        shop = signer(network, "shop")
        first, second = (Program(network, name, address) for name in ("server-1", "server-2"))
        try:
            await first.start()
            await second.start()
            for start in range(0, len(events), 100):
                batch = sign_events(EVENT_KEY, client.chain_id, shop.address, events[start : start + 100])
                await queue.publish([message(signed) for signed in batch])
            await done(queue, 50)
            assert await first.end(signal.SIGKILL) == -signal.SIGKILL
            await local.kill(network, network.nodes[-1].name)
            await done(queue, 200)
            await first.start()
            await local.start(network, [network.nodes[-1].name])
            await done(queue, len(events))
            assert await second.end(signal.SIGTERM) == 0
        finally:
            first.kill_if_running()
            second.kill_if_running()
        assert not (second.folder / "ready").exists()
        assert second.lines()[-1]["event"] == "stopped"
        for user, figures in expected.items():
            balance = await client.query("rights", "balance", {"user": user})
            assert isinstance(balance, dict)
            assert {name: balance[name] for name in FIGURES} == {name: figures[name] for name in FIGURES}
