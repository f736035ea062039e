"""An environment's connections: frames in, frames out, whatever the other end does."""

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
import trio
from trio.testing import MockClock, memory_stream_pair

from consensus.ledger.errors import LocalError
from consensus.ledger.payees import FRAME_BYTES_MAX, AskQuote, Told, ask_codec, quote_codec, told_codec
from services.messages.logs import configure_logs
from services.payee.enclave import Environment
from services.payee.enclave_program import (
    CONNECTIONS_MAX,
    FRAME_S_MAX,
    IDLE_S_MAX,
    RECEIVE_BYTES,
    Server,
    _bound,
    _ready_file,
)
from tests.contracts.domain.payees import MEASUREMENT
from tests.payee.resolving import environment_keys
from tests.payee.test_enclave import shared_world

MARKER = "marked-acquiring-4711"


def environment() -> Environment:
    return Environment(
        shared_world().chain.genesis, "bank-a", environment_keys("bank-a"), measurement=MEASUREMENT, clock_ms=lambda: 0
    )


def frame(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


def quote_frame(number: int) -> bytes:
    return frame(ask_codec.encode(AskQuote(number.to_bytes(16, "big"))))


async def receive(stream: trio.abc.Stream) -> Told | None:
    """Return the next message, None where the stream ends."""
    data = bytearray()
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        wanted = 4 - len(data) if len(data) < 4 else 4 + int.from_bytes(data[:4], "big") - len(data)
        if not (part := await stream.receive_some(wanted)):
            assert not data
            return None
        data += part
    return told_codec.decode_untrusted(bytes(data[4:]))


async def nonce_of(stream: trio.abc.Stream) -> int:
    told = await receive(stream)
    assert told is not None
    assert told.code == ""
    return int.from_bytes(quote_codec.decode_untrusted(told.body).nonce, "big")


Connect = Callable[[], trio.abc.Stream]


@pytest.fixture
def connect(nursery: trio.Nursery) -> Connect:
    """Return what connects to one server; with a clock that jumps, what waits for ever has an end."""
    server = Server(environment())

    def connect() -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        nursery.start_soon(server.serve, theirs)
        return ours

    return connect


async def test_asks_in_one_piece_are_told_in_order(connect: Connect, autojump_clock: MockClock) -> None:
    stream = connect()
    await stream.send_all(b"".join(map(quote_frame, range(20))))
    assert [await nonce_of(stream) for _ in range(20)] == [*range(20)]


async def test_an_ask_may_come_in_any_pieces(connect: Connect, autojump_clock: MockClock) -> None:
    stream = connect()
    for number in range(3):
        for byte in quote_frame(number):
            await stream.send_all(bytes([byte]))
        assert await nonce_of(stream) == number


async def test_what_is_no_ask_is_refused_and_the_next_is_told(connect: Connect, autojump_clock: MockClock) -> None:
    stream = connect()
    await stream.send_all(frame(b"") + frame(b"\xff" * 100) + quote_frame(7))
    for _ in range(2):
        told = await receive(stream)
        assert told is not None
        assert told.code == "malformed"
    assert await nonce_of(stream) == 7


async def test_a_message_above_the_bound_ends_the_connection(connect: Connect, autojump_clock: MockClock) -> None:
    stream = connect()
    await stream.send_all((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    told = await receive(stream)
    assert told is not None
    assert told.code == "malformed"
    assert await receive(stream) is None


async def test_a_large_message_within_the_bound_is_taken(connect: Connect, autojump_clock: MockClock) -> None:
    stream = connect()
    await stream.send_all(frame(bytes(20 * RECEIVE_BYTES)) + quote_frame(1))
    told = await receive(stream)
    assert told is not None
    assert told.code == "malformed"
    assert await nonce_of(stream) == 1


@pytest.mark.parametrize("part", [1, 4, 20])
async def test_a_message_that_does_not_go_on_ends_the_connection(
    connect: Connect, autojump_clock: MockClock, part: int
) -> None:
    stream = connect()
    await stream.send_all(quote_frame(1)[:part])
    began = trio.current_time()
    told = await receive(stream)
    assert told is not None
    assert told.code == "malformed"
    assert await receive(stream) is None
    assert trio.current_time() - began == pytest.approx(FRAME_S_MAX)


async def test_an_end_in_the_midst_of_a_message_hurts_nobody(connect: Connect, autojump_clock: MockClock) -> None:
    stream = connect()
    await stream.send_all(quote_frame(1)[:9])
    await stream.aclose()
    other = connect()
    await other.send_all(quote_frame(2))
    assert await nonce_of(other) == 2


async def test_who_is_silent_is_let_go_after_long(connect: Connect, autojump_clock: MockClock) -> None:
    stream = connect()
    await stream.send_all(quote_frame(1))
    await nonce_of(stream)
    began = trio.current_time()
    assert await receive(stream) is None
    assert trio.current_time() - began == pytest.approx(IDLE_S_MAX)


async def test_one_too_many_is_told_busy_and_has_a_place_later(connect: Connect, autojump_clock: MockClock) -> None:
    streams = [connect() for _ in range(CONNECTIONS_MAX)]
    for number, stream in enumerate(streams):
        await stream.send_all(quote_frame(number))
        assert await nonce_of(stream) == number
    late = connect()
    told = await receive(late)
    assert told is not None
    assert told.code == "busy"
    assert await receive(late) is None
    await streams[3].aclose()
    await trio.testing.wait_all_tasks_blocked()
    again = connect()
    await again.send_all(quote_frame(99))
    assert await nonce_of(again) == 99


@pytest.mark.parametrize("kind", ["an ask", "no ask", "one too many"])
async def test_who_takes_no_answer_is_let_go(autojump_clock: MockClock, kind: str) -> None:
    class Deaf(trio.abc.Stream):
        """Sends asks and never takes what it is told."""

        def __init__(self) -> None:
            self.is_closed = False

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            await trio.sleep_forever()

        async def wait_send_all_might_not_block(self) -> None:
            await trio.lowlevel.checkpoint()

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            return quote_frame(1) if kind == "an ask" else b"\xff" * 4

        async def aclose(self) -> None:
            self.is_closed = True
            await trio.lowlevel.checkpoint()

    deaf = Deaf()
    began = trio.current_time()
    server = Server(environment())
    async with trio.open_nursery() as nursery:
        if kind == "one too many":
            for _ in range(CONNECTIONS_MAX):
                nursery.start_soon(server.serve, memory_stream_pair()[0])
            await trio.testing.wait_all_tasks_blocked()
        await server.serve(deaf)
        nursery.cancel_scope.cancel()
    assert deaf.is_closed
    assert trio.current_time() - began == pytest.approx(FRAME_S_MAX)


async def test_a_bug_says_nothing_of_what_it_was_about(
    connect: Connect, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The words of an error may hold a plaintext: neither who asked nor the log gets them."""

    def broken(self: Environment, ask: bytes) -> bytes:
        raise ValueError(f"{MARKER} is no account")

    with monkeypatch.context() as patched:
        patched.setattr(Environment, "tell", broken)
        configure_logs("debug")
        try:
            structlog.configure(cache_logger_on_first_use=False)  # what others log later is theirs
            stream = connect()
            await stream.send_all(quote_frame(1))
            told = await receive(stream)
        finally:
            structlog.reset_defaults()
        assert told == Told("internal", "the environment is broken", b"")
    said = capfd.readouterr()
    assert MARKER not in said.out + said.err
    entry = json.loads(said.err.splitlines()[-1])
    assert (entry["event"], entry["error"]) == ("an ask is broken", "ValueError")
    await stream.send_all(quote_frame(2))
    assert await nonce_of(stream) == 2


# -- its socket's name -----------------------------------------------------------------------------------


def test_its_socket_is_for_its_starter_and_one_group_alone(tmp_path: Path) -> None:
    path = tmp_path / ("deep" * 30) / "run" / "environment.sock"  # longer than the address of a socket may be
    for group, mode in ((None, 0o600), (os.getegid(), 0o660)):
        with _bound(path, group) as bound:
            found = path.stat()
            assert stat.S_ISSOCK(found.st_mode)
            assert found.st_mode & 0o777 == mode
            assert found.st_gid == os.getegid()
            bound.listen()
        assert not path.exists()


def test_what_a_killed_program_left_is_replaced_and_what_is_no_socket_is_not(tmp_path: Path) -> None:
    path = tmp_path / "environment.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with _bound(path, None):
        assert path.exists()
    path.write_text("a letter")
    with pytest.raises(LocalError) as caught, _bound(path, None):
        pass
    assert caught.value.code == "bad_address"
    assert path.read_text() == "a letter"


def test_ready_is_said_in_a_file_that_is_open_before(tmp_path: Path) -> None:
    ready = tmp_path / "run" / "ready"
    ready.parent.mkdir()
    ready.write_text("4711\n")  # an earlier life's
    with _ready_file(ready.parent) as descriptor:
        assert ready.read_bytes() == b""
        os.write(descriptor, b"1\n")
        assert ready.read_bytes() == b"1\n"
    assert not ready.exists()
    ready.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LocalError) as caught, _ready_file(ready.parent):
        pass
    assert caught.value.code == "bad_config"
    assert not (tmp_path / "elsewhere").exists()
