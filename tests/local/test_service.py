"""Typed methods on a unix socket, asked over real ones."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import httpx
import msgspec
import pytest
import trio

from consensus.ledger.errors import HansaError, LocalError, StorageError
from services.client.errors import Refused, Unreachable
from services.client.sockets import address_of
from services.client.tasks import single_errors
from services.local import service as service_module
from services.local.link import LocalLink
from services.local.service import LocalService, serve


class Echo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    data: bytes
    times_max: Annotated[int, msgspec.Meta(ge=0, le=9)] = 1


class Echoed(msgspec.Struct, frozen=True, rename="camel"):
    data: bytes


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


async def echo(params: Echo) -> Echoed:
    return Echoed(params.data * params.times_max)


async def refuse(_: Nothing) -> Echoed:
    raise LocalError("unknown_order", "there is none")


async def fail(_: Nothing) -> Echoed:
    raise StorageError("disk_full", "no room")


async def break_(_: Nothing) -> Echoed:
    raise ZeroDivisionError


async def wait(_: Nothing) -> Echoed:
    await trio.sleep_forever()
    return Echoed(b"never")


def make_service() -> LocalService:
    service = LocalService()
    service.add("echo", Echo, echo)
    service.add("refuse", Nothing, refuse)
    service.add("fail", Nothing, fail)
    service.add("break", Nothing, break_)
    service.add("wait", Nothing, wait, waits=True)
    return service


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[trio.Event]:
    stopping = trio.Event()
    with single_errors():
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, path, make_service(), stopping)
            yield stopping
            stopping.set()


async def code_of(link: LocalLink, method: str, params: object) -> str:
    with pytest.raises(HansaError) as caught:
        await link.call(method, params, Echoed)
    return caught.value.code


async def test_bytes_there_and_back(tmp_path: Path) -> None:
    async with running(tmp_path / "run" / "a.sock"), LocalLink(tmp_path / "run" / "a.sock") as link:
        large = os.urandom(5_000_000)
        assert (await link.call("echo", Echo(large), Echoed)).data == large
        assert (await link.call("echo", {"data": "aGk=", "timesMax": 2}, Echoed)).data == b"hihi"
        assert stat.S_IMODE((tmp_path / "run" / "a.sock").stat().st_mode) == 0o600
    assert not (tmp_path / "run" / "a.sock").exists()


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("nothing", {}, "method_not_found"),
        ("echo", {"data": "aGk=", "more": 1}, "invalid_params"),
        ("echo", {"data": "aGk=", "timesMax": 10}, "invalid_params"),
        ("echo", {"data": "?"}, "invalid_params"),
        ("echo", [], "invalid_params"),
        ("refuse", {}, "unknown_order"),
        ("break", {}, "internal"),
    ],
)
async def test_refusals_are_typed(tmp_path: Path, method: str, params: object, code: str) -> None:
    async with running(tmp_path / "a.sock"), LocalLink(tmp_path / "a.sock") as link:
        assert await code_of(link, method, params) == code
        assert (await link.call("echo", Echo(b"on"), Echoed)).data == b"on"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "parse_error"),
        (b"[]", "invalid_request"),
        (b'{"jsonrpc":"1.0","method":"echo"}', "invalid_request"),
        (b'{"jsonrpc":"2.0","method":"echo","params":{},"more":1}', "invalid_request"),
        (b'{"jsonrpc":"2.0","method":"' + b"x" * 999 + b'"}', "method_not_found"),
        (b"\xff", "parse_error"),
    ],
)
async def test_broken_requests(body: bytes, code: str) -> None:
    answer = msgspec.json.decode(await make_service().answer(body))
    assert answer["error"]["data"]["code"] == code
    assert "result" not in answer


async def test_too_large_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "BODY_BYTES_MAX", 1_000)
    async with running(tmp_path / "a.sock"), LocalLink(tmp_path / "a.sock") as link:
        assert await code_of(link, "echo", Echo(bytes(1_000))) == "too_large"
        assert await code_of(link, "echo", Echo(bytes(600), 9)) == "answer_too_large"


async def test_too_many_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "REQUESTS_MAX", 1)
    async with running(tmp_path / "a.sock") as stopping, LocalLink(tmp_path / "a.sock") as link:
        codes: list[str] = []

        async def poll() -> None:
            codes.append(await code_of(link, "wait", {}))
            stopping.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll)
            nursery.start_soon(poll)
    assert sorted(codes) == ["busy", "program_unreachable"]


async def test_a_stop_ends_what_waits(tmp_path: Path) -> None:
    async with running(tmp_path / "a.sock") as stopping, LocalLink(tmp_path / "a.sock") as link:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                await link.call("echo", Echo(b"there"), Echoed)
                stopping.set()

            nursery.start_soon(stop)
            with trio.fail_after(service_module.STOP_MS_MAX / 2000):
                assert await code_of(link, "wait", {}) == "program_unreachable"
        with trio.fail_after(2):
            assert await code_of(link, "echo", Echo(b"")) == "program_unreachable"


async def test_a_failed_disk_is_answered_and_ends_the_program(tmp_path: Path) -> None:
    async def fail_and_wait() -> None:
        async with LocalLink(tmp_path / "a.sock") as link, running(tmp_path / "a.sock"):
            assert await code_of(link, "fail", {}) == "disk_full"
            await trio.sleep_forever()  # the program ends by itself

    with pytest.raises(StorageError, match="no room"), trio.fail_after(5):
        await fail_and_wait()


async def test_nobody_there(tmp_path: Path) -> None:
    async with LocalLink(tmp_path / "no" / "a.sock") as link, LocalLink(tmp_path / ("n" * 120) / "a.sock") as far:
        assert await code_of(link, "echo", Echo(b"")) == "program_unreachable"
        assert await code_of(far, "echo", Echo(b"")) == "program_unreachable"


async def test_too_slow(tmp_path: Path) -> None:
    async with running(tmp_path / "a.sock"), LocalLink(tmp_path / "a.sock") as link:
        with pytest.raises(Unreachable) as caught:
            await link.call("wait", {}, Echoed, timeout_ms=10)
        assert caught.value.code == "program_timeout"


async def test_a_path_beyond_what_a_socket_takes(tmp_path: Path) -> None:
    path = tmp_path / ("deep" * 20) / ("deeper" * 10) / "a.sock"
    async with running(path), LocalLink(path) as link:
        assert (await link.call("echo", Echo(b"down here"), Echoed)).data == b"down here"


async def test_a_living_program_is_left_alone_and_a_dead_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with running(path):
        with pytest.raises(LocalError) as caught, trio.fail_after(5):
            await serve(path, make_service(), trio.Event())
        assert caught.value.code == "already_running"
    with socket.socket(socket.AF_UNIX) as left, address_of(path) as address:
        left.bind(address)
    async with running(path), LocalLink(path) as link:
        assert (await link.call("echo", Echo(b"new"), Echoed)).data == b"new"
    path.write_text("mine")
    with pytest.raises(LocalError) as caught:
        await serve(path, make_service(), trio.Event())
    assert caught.value.code == "bad_address"
    assert path.read_text() == "mine"


async def test_a_link_outlives_its_program(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with LocalLink(path) as link:
        for _ in range(3):
            async with running(path):
                assert (await link.call("echo", Echo(b"again"), Echoed)).data == b"again"
            with pytest.raises(Unreachable):
                await link.call("echo", Echo(b""), Echoed)


async def test_an_answer_that_is_none(tmp_path: Path) -> None:
    async with running(tmp_path / "a.sock"), LocalLink(tmp_path / "a.sock") as link:
        with pytest.raises(HansaError) as caught:
            await link.call("echo", Echo(b""), list[int])
        assert caught.value.code == "bad_answer"
        with address_of(tmp_path / "a.sock") as address:
            async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=address)) as client:
                assert (await client.get("http://localhost/rpc")).status_code == 405


def test_refused_is_not_unreachable() -> None:
    assert not issubclass(Refused, Unreachable)


def test_killed_while_it_answers(tmp_path: Path) -> None:
    """What a killed program leaves behind stops nobody from taking its place."""
    program = (
        "import trio; from pathlib import Path; from tests.local.test_service import make_service, serve\n"
        f"async def main():\n    async with trio.open_nursery() as nursery:\n"
        f"        await nursery.start(serve, Path({str(tmp_path / 'a.sock')!r}), make_service(), trio.Event())\n"
        f"        print('ready', flush=True)\n"
        "trio.run(main)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        if process.stdout is None:
            pytest.fail("no pipe")
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "a.sock").exists()

    async def again() -> None:
        async with running(tmp_path / "a.sock"), LocalLink(tmp_path / "a.sock") as link:
            assert (await link.call("echo", Echo(b"back"), Echoed)).data == b"back"

    trio.run(again)
