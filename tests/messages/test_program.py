"""The program of the message centre: it says when it is ready, ends in order, and loses nothing when it is killed."""

import json
import signal
import socket
from pathlib import Path

import httpx
import pytest
import trio

from bench.center_rate import TOKEN, center_process
from consensus.ledger.errors import LocalError
from services.client.errors import Unreachable
from services.messages.link import Link, open_link
from services.messages.port import Settlement, Verdict
from services.messages.program import CenterSettings, serve
from services.messages.queue import QueueSettings
from services.messages.store import State
from tests.messages.centers import messages

PATIENCE_S = 60.0
RATE = 1_000_000.0


def settings(folder: Path, **others: object) -> CenterSettings:
    given: dict[str, object] = {"listen": "127.0.0.1:0", "token": "", "store": "embedded", "rate_per_s": RATE}
    return CenterSettings(**{**given, "data": folder / "data", "run": folder / "run", **others})  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.network
async def test_it_is_ready_ends_in_order_and_leaves_its_words(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE_S):
        async with center_process(tmp_path, RATE) as center:
            assert (tmp_path / "ready").read_text("ascii").strip() == str(center.process.pid)
            async with open_link(center.address, token=TOKEN, name="test") as link:
                await link.publish(messages(10))
                center.process.send_signal(signal.SIGTERM)
                assert await center.process.wait() == 0
        assert not (tmp_path / "ready").exists()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text("utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["ready", "stopping", "stopped"]
    assert lines[0]["address"] == center.address


@pytest.mark.slow
@pytest.mark.network
async def test_kill_9_loses_nothing_that_was_answered_and_doubles_nothing(tmp_path: Path) -> None:
    """Killed twice under a publisher and a consumer that never stop; what it then knows is what they were told."""
    published: set[str] = set()
    ended: set[str] = set()
    with trio.fail_after(PATIENCE_S):
        async with open_link(f"unix:{tmp_path}/socket", token=TOKEN, name="test") as link:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_publish_for_ever, link, published)
                nursery.start_soon(_consume_for_ever, link, ended)
                for _ in range(2):
                    async with center_process(tmp_path, RATE) as center:
                        await _until_more(published, ended)
                        center.process.kill()
                        await center.process.wait()
                nursery.cancel_scope.cancel()
            async with center_process(tmp_path, RATE):
                records = {}
                keys = sorted(published | ended)
                for first in range(0, len(keys), 1_000):
                    for record in await link.find(keys[first : first + 1_000]):
                        assert record is not None, "what was answered is kept"
                        records[record.key] = record
                stats = await link.stats()
    assert {key for key in ended if records[key].state is not State.DONE} == set()
    assert len({record.sequence for record in records.values()}) == len(records)
    assert stats.dead == stats.refused == 0


async def _publish_for_ever(link: Link, published: set[str]) -> None:
    first = 0
    while True:
        batch = messages(50, first=first, lanes=10)
        try:
            await link.publish(batch)
        except Unreachable:
            await trio.lowlevel.checkpoint()  # again the same
        else:
            published.update(message.key for message in batch)
            first += 50


async def _consume_for_ever(link: Link, ended: set[str]) -> None:
    async with link.consume("test", window=64) as subscription:
        async for delivery in subscription:
            verdict = Settlement(delivery.sequence, delivery.fence, Verdict.DONE)
            if (await subscription.settle([verdict]))[0]:
                assert delivery.key not in ended, "nothing ends twice"
                ended.add(delivery.key)


async def _until_more(published: set[str], ended: set[str]) -> None:
    published_before, ended_before = len(published), len(ended)
    while len(published) < published_before + 500 or len(ended) < ended_before + 100:
        await trio.lowlevel.checkpoint()


async def test_what_it_cannot_start_with_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for others, code in (
            ({"listen": address}, "port_in_use"),
            ({"listen": "0.0.0.0:0"}, "token_missing"),
            ({"listen": "nowhere"}, "bad_address"),
            ({"store": "sqlite"}, "bad_config"),
            ({"rate_per_s": 0.0}, "bad_config"),
            ({"queue": QueueSettings(attempts_max=0)}, "bad_config"),
            ({"health_port": taken.getsockname()[1]}, "port_in_use"),
        ):
            with pytest.raises(LocalError) as refusal:
                await serve(settings(tmp_path, **others), trio.Event())
            assert refusal.value.code == code, others
            assert not (tmp_path / "run" / "ready").exists()


async def test_health_and_figures_over_http(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = tmp_path / "run"
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery, httpx.AsyncClient(trust_env=False) as http:
            stopping = trio.Event()
            nursery.start_soon(serve, settings(tmp_path, listen=f"unix:{tmp_path}/socket", health_port=port), stopping)
            while not (folder / "ready").exists():
                await trio.lowlevel.checkpoint()
            async with open_link(f"unix:{tmp_path}/socket", name="test") as link:
                await link.publish(messages(3))
            assert (await http.get(f"http://127.0.0.1:{port}/healthz")).text == "ok\n"
            figures = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
            stopping.set()
    assert 'hansa_center_published_total{what="new"} 3.0' in figures
    assert "hansa_center_waiting 3.0" in figures
