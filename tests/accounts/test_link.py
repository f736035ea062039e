"""The link to an account system that does not answer as it should: it is unreachable, whatever it says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from consensus.ledger.errors import LocalError
from services.accounts.link import open_accounts
from services.client.errors import Refused, Unreachable
from services.local import asking
from tests.accounts.support import PAY, RESERVE, order

DONE = {"event": "t-1", "operation": "pay", "code": "", "message": "", "timeMs": 5}


def http(content: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status.encode(), len(content), content)


def answered(*answers: dict[str, object]) -> bytes:
    return http(msgspec.json.encode({"answers": answers}))


@asynccontextmanager
async def saying(answer: bytes) -> AsyncIterator[str]:
    """Say the same to everybody, and hang up; give its URL."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        http(b""),
        http(b"{}"),
        http(b"<html>"),
        http(b"\xff" * 30),
        http(b"[" * 100_000),
        http(b"<html>bad gateway</html>", "502 Bad Gateway"),
        http(b'{"error":{"code":"intake_full","message":"later"}}', "503 Service Unavailable"),
        http(b"<html>not here</html>", "404 Not Found"),
        answered(),
        answered(DONE, DONE),
        answered({**DONE, "event": "t-2"}),
        answered({**DONE, "operation": "reserve"}),
        answered({**DONE, "operation": "steal"}),
        http(b" " * (asking.ANSWER_BYTES_MAX + 1)),
        b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    ],
)
async def test_an_answer_that_is_none(answer: bytes) -> None:
    async with saying(answer) as url, open_accounts(url) as accounts:
        with pytest.raises(Unreachable) as error:
            await accounts.run([order(PAY)])
        assert error.value.code == "accounts_unreachable"
        assert url in error.value.message


@pytest.mark.parametrize(
    "standings",
    [[], [None, None], [{"event": "t-2", "payer": "a", "payee": "b", "amount": 1, "currency": "CNY"}]],
    ids=["none", "two", "another"],
)
async def test_what_stands_for_other_events_than_were_asked_for(standings: list[object]) -> None:
    said = http(msgspec.json.encode({"standings": standings}))
    async with saying(said) as url, open_accounts(url) as accounts:
        with pytest.raises(Unreachable):
            await accounts.look_up(["t-1"])


async def test_an_answer_that_is_one_and_a_refusal() -> None:
    async with saying(answered(DONE)) as url, open_accounts(url) as accounts:
        assert [answer.is_done for answer in await accounts.run([order(PAY)])] == [True]
    refusal = http(b'{"error":{"code":"bad_token","message":"show it"}}', "401 Unauthorized")
    async with saying(refusal) as url, open_accounts(url) as accounts:
        with pytest.raises(Refused) as error:
            await accounts.run([order(RESERVE)])
        assert error.value.code == "bad_token"


async def test_nobody_is_there() -> None:
    async with saying(b"") as url:
        pass
    for nowhere in (url, "http://no.such.host.invalid", "http://" + "a" * 70 + ".example"):
        async with open_accounts(nowhere) as accounts:
            with pytest.raises(Unreachable) as error:
                await accounts.run([order(PAY)])
            assert error.value.code == "accounts_unreachable"


async def test_who_does_not_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ANSWER_MS_MAX", 50)

    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, silent, 0)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with open_accounts(url) as accounts:
            with pytest.raises(Unreachable):
                await accounts.run([order(PAY)])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:1", "ftp://localhost", "http://", "http://[::1", "http://a:b", "http://a/path", "unix:/x"]
)
async def test_what_is_no_address(url: str) -> None:
    with pytest.raises(LocalError) as error:
        async with open_accounts(url):
            pass
    assert error.value.code == "bad_url"
