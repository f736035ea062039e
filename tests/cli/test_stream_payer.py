"""``hansa stream``: a payer's whole way against a real service party and one node, in this process.

The world runs in a thread of its own, and commands in the main one, where Ctrl-C reaches them.
"""

import json
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog.testing
import trio
from click.testing import Result

import tests.stream.payer_world as worlds
from cli.stream_live import Seen, Table
from cli.stream_pay import NOT_BACK, own_reason
from services.client.keystore import KeyStore
from services.local.files import write_service
from tests.cli.support import answer, fault, hansa
from tests.client.support import CONSORTIUM, NOW_MS, signer
from tests.stream.payer_world import PAYER, PRICE, SERVICE, STEP_MAX, WATCHER, Wall, World

T = TypeVar("T")
ENDED = ("SETTLED", "CLOSED")
"""How a service party has a stream that went well, before it has seen its close and after."""
PASSPHRASE = "of a payer in a test"


class ThreadsWall(Wall):
    """The world's clock, which a command in another thread reads too."""

    def __init__(self) -> None:
        super().__init__()
        self._start_ns = time.monotonic_ns()
        self.passed_ms = 0

    def wall_ms(self) -> int:
        """Return ms UTC."""
        return NOW_MS + self.passed_ms + (time.monotonic_ns() - self._start_ns) // 1_000_000

    def jump(self, ms: int) -> None:
        """Let time pass at once."""
        self.passed_ms += ms


class Town:
    """A world in another thread, and commands beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world: World
        self._token: trio.lowlevel.TrioToken
        self._over: trio.Event
        self._is_ready = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Town":
        self._thread.start()
        self._is_ready.wait()
        if self._fault is not None:
            raise self._fault
        keys = KeyStore(self.folder / "keys")
        for name in (PAYER, SERVICE, WATCHER):
            keys.create(name, PASSPHRASE.encode(), signer(name).key)
        (self.folder / "genesis.json").write_bytes(CONSORTIUM.genesis.to_json())
        write_service(self.folder / "service", self.world.service_settings().file)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fault is None:
            trio.from_thread.run_sync(self._over.set, trio_token=self._token)
        self._thread.join()
        if self._fault is not None:
            raise self._fault

    def do(self, use: Callable[[World], Awaitable[T]]) -> T:
        """Do something in the world."""
        return trio.from_thread.run(use, self.world, trio_token=self._token)

    def run(self, *words: str) -> Result:
        """Run ``hansa stream …`` as the payer."""
        keys, node = ("--keys", str(self.folder / "keys")), ("--node", self.world.node.url)
        place = (*node, "--genesis", str(self.folder / "genesis.json"))
        home = ("--home", str(self.folder / "payer"))
        match words[0]:
            case "open" | "offer":
                more = (*keys, *place, *home, "--payer", PAYER, "--service", self.world.url)
            case "claim":
                more = (*keys, *place)
            case "service":
                more = ("--home", str(self.folder / "service"), *place)
            case _:
                more = (*keys, *place, *home)
        return hansa("stream", *words, *more, HANSA_PASSPHRASE=PASSPHRASE)

    def json(self, *words: str) -> Any:
        """Run a command that succeeds, and return its object."""
        return answer(self.run(*words, "--json"))

    def open(self, *words: str) -> str:
        """Open a stream and return its id."""
        stream: str = self.json("open", "--deposit", "10000", *words)["stream"]
        return stream

    def _run(self) -> None:
        try:
            trio.run(self._live)
        except BaseException as fault:  # the border of a thread: the test's own raises it
            self._fault = fault
        finally:
            self._is_ready.set()

    async def _live(self) -> None:
        self._token, self._over = trio.lowlevel.current_trio_token(), trio.Event()
        async with worlds.world(self.folder) as self.world, trio.open_nursery() as nursery:
            await self.world.start_service(nursery)
            self._is_ready.set()
            await self._over.wait()
            await self.world.stop_service()
            nursery.cancel_scope.cancel()


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    # What the programs log in this process would stand among a command's words.
    monkeypatch.setattr(worlds, "Wall", ThreadsWall)
    with structlog.testing.capture_logs(), Town(tmp_path) as made:
        monkeypatch.setattr(time, "time_ns", lambda: made.world.wall.wall_ms() * 1_000_000)
        yield made


def test_opened_and_paid(town: Town) -> None:
    opened = town.run("open", "--deposit", "10000", "--end", "count=20", "--price", str(PRICE))
    assert opened.exit_code == 0, opened.output
    stream = next(line for line in opened.stdout.splitlines() if line.startswith("stream 0x")).split()[1]
    assert f"hansa stream pay {stream[2:10]}" in opened.stdout
    paid = town.run("pay", stream[:12])
    assert paid.exit_code == 0, paid.output
    assert f"Paid {town.json('show', stream)['chain']['paid']:,} SIM-FEN for" in paid.stdout
    assert "CLOSED" in paid.stdout
    assert "10,000 back" in paid.stdout
    assert max(map(len, (opened.stdout + paid.stdout).splitlines())) <= 90
    (listed,) = town.json("list")["streams"]
    assert (listed["stream"], listed["status"]) == (stream, "CLOSED")
    # What was supplied when the agreed end was reached is paid after it.
    assert listed["count"] >= 20
    shown = town.json("show", stream[:8])
    assert shown["chain"]["status"] == "CLOSED"
    assert shown["service"]["status"] in ENDED
    assert shown["own"]["signedDue"] == shown["chain"]["paid"] == shown["service"]["due"]
    assert town.json("service", "list")["streams"][0]["stream"] == stream
    again = town.json("pay", stream)
    assert (again["ok"], again["chain"]["paid"]) == (True, shown["chain"]["paid"])


def test_paid_by_requests_payment_first(town: Town) -> None:
    stream = town.open("--mode", "payment-first", "--end", "amount=200")
    paid = town.json("pay", stream, "--over", "http")
    assert (paid["status"], paid["signedDue"], paid["chain"]["paid"]) == ("CLOSED", 200, 200)


def test_an_offer_opens_later(town: Town) -> None:
    file = town.folder / "offer.json"
    offered = town.json("offer", "--deposit", "9000", "--end", "time=1h", "--out", str(file))
    stream = town.json("open", "--offer", str(file))
    assert (stream["stream"], stream["opened"]) == (offered["stream"], True)
    assert not town.json("open", "--offer", str(file))["opened"]
    assert fault(town.run("open", "--offer", str(file), "--price", str(PRICE - 1)), 1) == "other_terms"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"terms": document["terms"] | {"fine": 1}}))
    assert fault(town.run("open", "--offer", str(file)), 1) == "bad_signature"


def test_what_a_payer_does_not_accept(town: Town) -> None:
    refused = town.run("open", "--deposit", "10000", "--price", str(PRICE - 1))
    assert fault(refused, 1) == "other_terms"
    assert f"price {PRICE}" in refused.stderr
    assert fault(town.run("open", "--deposit", "10000", "--step", str(STEP_MAX - 1)), 1) == "other_terms"
    assert fault(town.run("open", "--deposit", "10000", "--credit", "1"), 1) == "bad_offer"
    assert fault(_last_line(town.run("open", "--deposit", "10000000")), 1) == "insufficient_funds"
    assert town.json("list")["streams"] == []


def _interrupt_opening(town: Town, monkeypatch: pytest.MonkeyPatch) -> str:
    """Press Ctrl-C when a stream's terms are kept and nothing was submitted; return its id."""

    async def open_stream(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    with monkeypatch.context() as patch:
        patch.setattr("services.stream.payer.open_stream", open_stream)
        result = town.run("open", "--deposit", "10000", "--end", "count=3")
    assert result.exit_code == 130, result.output
    stream = result.stderr.splitlines()[0].removeprefix("opening stream ")
    said = f"interrupted; hansa stream show {stream} says where it is, hansa stream pay goes on"
    assert result.stderr.splitlines()[-1] == said
    return stream


def test_an_interrupted_opening_goes_on(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _interrupt_opening(town, monkeypatch)
    (listed,) = town.json("list")["streams"]
    assert (listed["stream"], listed["status"]) == (stream, "OPENING")
    shown = town.run("show", stream).stdout
    assert "OPENING; hansa stream pay goes on with it" in shown
    assert "not there, as of block" in shown
    closed = town.run("close", stream)
    assert fault(closed, 1) == "unknown_stream"
    assert "hansa stream pay goes on with it" in closed.stderr
    paid = town.json("pay", stream)
    assert (paid["status"], paid["chain"]["status"]) == ("CLOSED", "CLOSED")
    assert [one["status"] for one in town.json("list")["streams"]] == ["CLOSED"]


def test_an_interrupted_opening_is_forgotten_once_its_offer_has_expired(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = _interrupt_opening(town, monkeypatch)
    town.world.wall.jump(town.world.service_settings().file.offer_ms + 1)
    assert fault(_last_line(town.run("pay", stream)), 1) == "offer_expired"
    assert town.json("list")["streams"] == []


def test_ctrl_c_ends_a_stream_together(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = town.open()
    see, pressed = Table.see, []

    def seen(table: Table, figures: Seen) -> None:
        see(table, figures)
        if figures.count == 3 and not pressed:
            pressed.append(figures)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Table, "see", seen)
    paid = town.json("pay", stream)
    assert (paid["status"], paid["reason"]) == ("CLOSED", "payer")
    # What is supplied while the close is under way is not paid: a step at the most.
    assert 0 <= PRICE * paid["units"] - paid["chain"]["paid"] <= STEP_MAX
    assert paid["chain"]["paid"] > 0


def test_a_second_ctrl_c_leaves(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = town.open()
    town.do(World.stop_service)
    monkeypatch.setattr(Table, "see", lambda table, figures: signal.raise_signal(signal.SIGINT))
    result = town.run("pay", stream)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith(f"interrupted; hansa stream show {stream} says where it is")


def test_who_does_not_answer(town: Town) -> None:
    stream = town.open()
    town.do(World.stop_service)
    result = town.run("close", stream, "--patience", "1", "--json")
    error = json.loads(result.stdout)
    assert (result.exit_code, error["ok"], error["error"]["code"]) == (1, False, NOT_BACK)
    assert "hansa stream withdraw" in town.run("pay", stream, "--patience", "0").stdout
    assert "service_unreachable" in town.run("show", stream).stdout
    assert fault(_last_line(town.run("open", "--deposit", "1000")), 1) == "service_unreachable"
    assert fault(town.run("service", "status"), 1) == "program_unreachable"


def test_a_node_that_does_not_run_ends_no_stream(town: Town) -> None:
    stream = town.open()
    words = ("pay", stream, "--owner", str(town.folder / "owner.sock"), "--channel", "bank-a/issuer-c")
    assert fault(town.run(*words), 2) == "bad_file"
    assert [one["status"] for one in town.json("list")["streams"]] == ["PAYING"]


def test_why_a_stream_ended_says_nothing_of_the_other_side() -> None:
    # One word each of the machines stands for more than one case.
    assert own_reason("timeout") == "nothing came in time"
    assert own_reason("meter") == "its meter has ended it"
    assert own_reason("owner") == "the service party has ended it"
    assert own_reason("count") == "agreed count"
    assert own_reason("of another version") == "of another version"


def test_a_deposit_comes_back_alone(town: Town) -> None:
    stream = town.open()
    assert town.json("top-up", stream, "--to", "12000")["chain"]["deposit"] == 12_000
    assert town.json("top-up", stream, "--to", "12000")["chain"]["deposit"] == 12_000
    town.do(World.stop_service)
    asked = town.json("withdraw", stream)
    assert (asked["withdrawn"], asked["leftMs"] > 0) == (False, True)
    text = town.run("withdraw", stream).stdout
    assert "the window is open" in text
    assert "the same again" in text

    async def passes(world: World) -> None:
        world.pass_ms(worlds.WINDOW_MS)

    town.do(passes)
    assert town.json("withdraw", stream)["withdrawn"]
    assert "The deposit is back" in town.run("withdraw", stream).stdout
    assert town.do(lambda world: world.available(PAYER)) == worlds.FUNDS


def test_a_burned_number_is_claimed_with_the_fine(town: Town) -> None:
    async def given(world: World) -> str:
        store = world.store()
        agreed = world.agreed()
        await world.payer(store).open(agreed)
        (town.folder / "last.json").write_text(world.file(world.iteration(agreed, 80)))
        await world.burn(bytes(agreed.stream))
        return f"0x{agreed.stream.hex()}"

    stream = town.do(given)
    claimed = town.json("claim", str(town.folder / "last.json"), "--as", WATCHER)
    assert (claimed["stream"], claimed["step"]) == (stream, "CLAIM")
    assert (claimed["amount"], claimed["fine"], claimed["chain"]["fined"]) == (80, worlds.FINE, True)
    again = town.run("claim", str(town.folder / "last.json"), "--as", WATCHER)
    assert "Nothing is left" in again.stdout
    assert "a fine of 500 paid" in town.run("show", stream).stdout


def test_the_service_party_and_its_streams(town: Town) -> None:
    stream = town.open("--end", "count=5")
    assert fault(town.run("service", "show", stream), 1) == "unknown_stream"
    paid = town.json("pay", stream)
    status = town.json("service", "status")
    assert status["account"] == SERVICE
    assert sum(status["counts"].get(name, 0) for name in ENDED) == 1
    assert status["iterations"] >= 5
    assert "SIM-FEN for 0.1 kWh" in town.run("service", "status").stdout
    shown = town.json("service", "show", stream[:10])
    assert shown["due"] == paid["signedDue"]
    assert shown["count"] >= 5
    file = town.folder / "last.json"
    assert town.json("service", "export", stream[:10], "--out", str(file))["due"] == paid["signedDue"]
    exported = town.run("service", "export", stream[:10], "--out", str(file)).stdout
    assert f"{paid['signedDue']:,} SIM-FEN in all" in exported
    checked = answer(
        hansa("stream", "iteration", "verify", str(file), "--genesis", str(town.folder / "genesis.json"), "--json")
    )
    assert (checked["due"], checked["keyFrom"]) == (paid["signedDue"], "proven")
    for words in (("service", "list"), ("service", "show", stream), ("service", "status"), ("list",), ("show", stream)):
        lines = town.run(*words).stdout.splitlines()
        assert all(len(line) <= 80 for line in lines if "0x" not in line), words


def _last_line(result: Result) -> Result:
    """Return a result of which only the last line said on standard error is left: progress comes before an error."""
    lines = result.stderr_bytes.splitlines() if result.stderr_bytes else []
    result.stderr_bytes = b"\n".join(lines[-1:])
    return result
