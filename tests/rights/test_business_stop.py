"""How a business server starts and ends: in this process, and as a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from consensus.ledger.errors import LocalError
from services.local import web
from services.messages.queue import QueueSettings
from services.rights import business
from tests.rights.business_world import ORDER, RunningCenter, exchange, settings_of, world_in

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"host": "0.0.0.0"}, "token_missing"),
        ({"host": "203.0.113.7", "token": "t"}, "bad_address"),
        ({"port": 70_000}, "bad_address"),
        ({"nodes": ()}, "no_nodes"),
    ],
)
async def test_what_it_cannot_start_with_is_said(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(LocalError) as caught:
        await business.serve(settings_of(tmp_path, **changes), trio.Event())
    assert caught.value.code == code


async def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        with pytest.raises(LocalError) as caught:
            await business.serve(settings_of(tmp_path, port=world.port), trio.Event())
    assert caught.value.code == "port_in_use"


async def test_at_the_end_what_is_under_way_is_answered_and_idle_connections_are_closed(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world, await trio.open_tcp_stream("127.0.0.1", world.port) as idle:
        body = msgspec.json.encode(ORDER)
        head = b"POST /orders HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        async with await trio.open_tcp_stream("127.0.0.1", world.port) as busy:
            await busy.send_all(head + b"content-length: %d\r\n\r\n%b" % (len(body), body[:-1]))
            await world.post("/orders", {**ORDER, "order": "o-2"})  # by now the first one has begun
            world.stopping.set()
            with trio.fail_after(20):
                assert await idle.receive_some() == b""
                await busy.send_all(body[-1:])
                answer = b"".join([part async for part in busy])
        assert answer.startswith(b"HTTP/1.1 202")
        with pytest.raises(OSError, match="attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", world.port)


async def test_a_request_behind_the_last_one_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "STOP_MS_MAX", 600_000)
    async with world_in(tmp_path) as world, await trio.open_tcp_stream("127.0.0.1", world.port) as busy:
        head = b"POST /orders HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        await busy.send_all(head + b"content-length: 1\r\n\r\n")
        await world.post("/orders", ORDER)  # by now it has begun
        world.stopping.set()
        with trio.fail_after(20):
            await busy.send_all(b"?GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await busy.receive_some()).startswith(b"HTTP/1.1 4")
            await world.ended.wait()


async def test_a_peer_that_does_not_go_on_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "STOP_MS_MAX", 50)
    async with world_in(tmp_path) as world, await trio.open_tcp_stream("127.0.0.1", world.port) as slow:
        await slow.send_all(b"POST /orders HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\n")
        await world.post("/orders", ORDER)
        world.stopping.set()
        with trio.fail_after(20):
            while await slow.receive_some():
                pass


async def test_a_peer_that_does_not_read_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "STOP_MS_MAX", 50)
    monkeypatch.setattr(web, "UNREAD_MS_MAX", 600_000)
    async with world_in(tmp_path) as world, await trio.open_tcp_stream("127.0.0.1", world.port) as deaf:
        size = len((await world.http.get("/openapi.json")).content)
        assert size > 5_000
        for _ in range(20_000_000 // size):  # more than the kernel keeps for it
            with trio.move_on_after(1) as scope:
                await deaf.send_all(b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n")
            if scope.cancelled_caught:
                break
        world.stopping.set()
        with trio.fail_after(20):
            await world.ended.wait()


async def test_there_is_room_for_so_many_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "CONNECTIONS_MAX", 2)
    async with world_in(tmp_path) as world:
        async with (
            await trio.open_tcp_stream("127.0.0.1", world.port) as first,
            await trio.open_tcp_stream("127.0.0.1", world.port) as second,
        ):
            request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
            for stream in (first, second):
                await stream.send_all(request)
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
            with trio.move_on_after(0.2) as scope:
                await exchange(world.port, request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            assert scope.cancelled_caught
        await world.get("/healthz")


@dataclass
class Program:
    """A business server as a process."""

    process: trio.Process
    folder: Path
    said: bytes = b""

    async def port(self) -> int:
        """Return its port once it is ready."""
        with trio.fail_after(60):
            while not (ready := [line for line in self._lines() if line["event"] == "ready"]):
                assert await self._read(), "it ended before it was ready"
        assert (self.folder / "run" / "ready").read_text().strip() == str(self.process.pid)
        return int(ready[0]["port"])

    async def last_word(self) -> str:
        """Return the last event that it logs, at its end."""
        while await self._read():
            pass
        return str(self._lines()[-1]["event"])

    async def _read(self) -> bool:
        assert self.process.stderr is not None
        part = await self.process.stderr.receive_some()
        self.said += part
        return bool(part)

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.said.split(b"\n")[:-1]]


@asynccontextmanager
async def program_in(folder: Path, center: str) -> AsyncIterator[Program]:
    command = [sys.executable, "-m", "tests.rights.business_program", str(folder), center]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE, cwd=REPOSITORY, env=environment)
    try:
        yield Program(process, folder)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stderr is not None
            await process.stderr.aclose()


async def ask(stream: trio.SocketStream, body: bytes) -> bytes:
    """Post an order and return the answer, or nothing where the connection ends instead."""
    answer = b""
    with suppress(trio.BrokenResourceError):
        head = b"POST /orders HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        await stream.send_all(head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        while part := await stream.receive_some():
            answer += part
            length = re.search(rb"content-length: (\d+)\r\n", answer)
            if length and len(answer.partition(b"\r\n\r\n")[2]) == int(length[1]):
                return answer
    return b""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_every_order_that_was_answered_is_kept_however_the_program_ends(
    tmp_path: Path, number: signal.Signals
) -> None:
    kept: list[str] = []
    async with trio.open_nursery() as nursery:
        center = RunningCenter(tmp_path / "queue", nursery, QueueSettings())
        await center.start()
        async with program_in(tmp_path, center.address) as program:
            port = await program.port()

            async def post(caller: int) -> None:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    for order in range(10_000):
                        answer = await ask(stream, msgspec.json.encode({**ORDER, "order": f"o-{caller}-{order}"}))
                        if not answer.startswith(b"HTTP/1.1 202"):
                            return
                        kept.append(msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["eventId"])
                        if len(kept) == 100:
                            program.process.send_signal(number)

            async with trio.open_nursery() as callers:
                for caller in range(4):
                    callers.start_soon(post, caller)
            with trio.fail_after(20):
                word = await program.last_word()
                code = await program.process.wait()
        assert len(kept) >= 100
        found = await center.queue.find(kept)
        assert [record.key for record in found if record is not None] == kept
        await center.stop()
        nursery.cancel_scope.cancel()
    is_ready = (tmp_path / "run" / "ready").exists()
    if number == signal.SIGTERM:
        assert (code, word, is_ready) == (0, "stopped", False)
    else:
        assert (code, is_ready) == (-signal.SIGKILL, True)
