"""``hansa payee resolve`` and ``pay`` against a real node, environment and platform in this process."""

import json
import shlex
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
from click.testing import Result

from cli.output import Output, report_error
from cli.settle_accounts import SIMULATED
from node.payees import PayeeDesk, Resolution
from services.client.errors import Refused
from services.client.keystore import KeyStore
from services.local.files import write_service
from services.payee.codes import make_code
from services.payee.identity import identity_text
from services.payee.images import image_bytes
from services.payee.interfaces import Acquiring
from services.payee.platform_config import PlatformFile
from services.payee.wording import EMULATED
from tests.cli.support import answer, fault, hansa
from tests.contracts.domain.payees import MEASUREMENT, identity
from tests.payee.paying import TOKEN, Street, make_street
from tests.payee.platform_world import ACQUIRING, CONSORTIUM, MARKER, MONEY

WHOM = ("--code", "00020101", "--as", "wallet-p")


class Terminal:
    """Runs commands beside the street, with its clock and its network folder."""

    def __init__(self, street: Street, folder: Path) -> None:
        self.street = street
        self.folder = folder
        folder.mkdir()
        (folder / "genesis.json").write_bytes(CONSORTIUM.genesis.to_json())
        self.place = ("--network", str(folder), "--genesis", str(folder / "genesis.json"))
        self.place += ("--node", street.world.node.url)

    def install(self, server: str, url: str) -> None:
        """Write a platform's folder as the network has it."""
        home = self.folder / "services" / server
        file = PlatformFile(
            server=server,
            listen=url.removeprefix("http://"),
            token="token",
            accounts="http://127.0.0.1:1",
            genesis="",
            nodes=[self.street.world.node.url],
            keys="",
            account=server,
        )
        write_service(home, file)
        (home / "token").write_text(TOKEN)
        (home / "token").chmod(0o600)

    async def run(self, *arguments: str) -> Result:
        """Run ``hansa payee …``."""
        return await trio.to_thread.run_sync(partial(hansa, "payee", *arguments, *self.place))

    async def json(self, *arguments: str) -> Any:
        """Run a command that succeeds, and return its object."""
        return answer(await self.run(*arguments, "--json"))


@pytest.fixture
async def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Terminal]:
    # What the programs log in this process would stand among a command's words.
    with structlog.testing.capture_logs():
        async with make_street(tmp_path / "street") as street:
            monkeypatch.setattr(time, "time_ns", lambda: street.world.clock.ms * 1_000_000)
            made = Terminal(street, tmp_path / "net")
            made.install("wallet-p", street.doors["wallet-p"].url)
            yield made


# -- words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["resolve", "pay", "proof"])
def test_help(command: str) -> None:
    result = hansa("payee", command, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "Example:" in result.stdout
    assert command == "proof" or ("isolation" if command == "resolve" else "simulated") in result.stdout


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--amount", "1.005"),
        ("--amount", "-1"),
        ("--amount", "1e3"),
        ("--amount", "0"),
        ("--timeout", "0"),
        ("--order", "a/b"),
        ("--order", "x" * 26),
        ("--payer", ""),
        ("--as", "../wallet-p"),
        ("--as", "w" * 33),
    ],
)
def test_wrong_words(option: str, value: str) -> None:
    payload = make_code(identity(0), chain_id=CONSORTIUM.genesis.chain_id()).text
    result = hansa("payee", "pay", "--code", payload, "--as", "wallet-p", option, value, "--json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["code"]) == (2, "usage")
    assert option in error["message"]


def test_a_code_that_is_none(tmp_path: Path) -> None:
    assert fault(hansa("payee", "resolve", *WHOM), 1) == "bad_payload"
    assert fault(hansa("payee", "resolve", "--code", str(tmp_path / "none.png"), "--as", "wallet-p"), 2) == "bad_image"
    (tmp_path / "empty.png").write_bytes(b"")
    assert fault(hansa("payee", "pay", "--code", str(tmp_path / "empty.png"), "--as", "wallet-p"), 2) == "bad_image"
    for text in ("hello", "x" * 5_000, ""):
        neither = hansa("payee", "pay", "--code", text, "--as", "wallet-p")
        assert fault(neither, 2) == "bad_image"
        assert "is no file, and no payload" in neither.stderr
    (tmp_path / "page.png").write_bytes(image_bytes("https://example.com/", "png"))
    other = hansa("payee", "pay", "--code", str(tmp_path / "page.png"), "--as", "wallet-p")
    assert fault(other, 1) == "bad_payload"
    assert "the code in page.png is no payment code: 'https://example.com/'" in other.stderr
    assert fault(hansa("payee", "pay", "--code", "000201" + "1" * 10_000, "--as", "wallet-p"), 1) == "too_large"


# -- resolving -------------------------------------------------------------------------------------------


async def test_resolving_from_an_image(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "code.png").write_bytes(image_bytes(terminal.street.world.code(), "png"))
    image = ("--code", str(tmp_path / "code.png"), "--as", "wallet-p")
    card = (await terminal.run("resolve", *image)).stdout
    assert ACQUIRING.name in card
    assert f"{ACQUIRING.account} (CNY, {SIMULATED})" in card
    assert f"bank-a ({EMULATED})" in card
    assert max(map(len, card.splitlines())) <= 80
    found = await terminal.json("resolve", *image)
    assert found["target"] == found["candidates"][0]
    assert found["target"]["acquiring"]["account"] == ACQUIRING.account
    assert (found["isolation"], found["environment"], found["recordedHeight"]) == (EMULATED, "bank-a", None)
    assert found["code"]["identity"] == identity_text(identity(0))


async def test_resolving_all_platforms_on_record(terminal: Terminal) -> None:
    street = terminal.street
    other = await street.open("wallet-q")
    await other.add(Acquiring(account="shop", name="Tea at Q", currency="CNY"), is_shareable=True)
    code = ("--code", street.world.code(), "--as", "wallet-p", "--mode", "candidates")
    card = (await terminal.run("resolve", *code)).stdout
    assert "the merchant has not consented" in card
    assert "Tea at Q" not in card
    await street.world.consent()
    found = await terminal.json("resolve", *code)
    assert [row["acquiring"]["name"] for row in found["candidates"]] == [ACQUIRING.name, "Tea at Q"]
    assert found["consent"] is True


async def test_a_query_on_record(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("a passphrase\n")
    KeyStore(tmp_path / "keys").create("user-b", b"a passphrase", CONSORTIUM.account_keys["user-b"])
    signing = ("--record", "--keys", str(tmp_path / "keys"), "--passphrase-file", str(tmp_path / "passphrase"))
    code = ("--code", terminal.street.world.code(), "--as", "wallet-p")
    found = await terminal.json("resolve", *code, *signing)
    query = bytes.fromhex(found["query"].removeprefix("0x"))
    kept = await terminal.street.world.client.query("payees", "query_record", {"query": query})
    assert isinstance(kept, dict)
    assert kept["height"] == found["recordedHeight"]


async def test_what_was_shown_is_checked_offline(terminal: Terminal, tmp_path: Path) -> None:
    file, genesis = tmp_path / "shown.json", str(terminal.folder / "genesis.json")
    code = ("--code", terminal.street.world.code(), "--as", "wallet-p")
    found = await terminal.json("resolve", *code, "--proof", str(file))
    assert file.stat().st_mode & 0o077 == 0
    shown = answer(hansa("payee", "proof", str(file), "--genesis", genesis, "--json"))
    assert (shown["target"], shown["query"], shown["delegated"]) == (found["target"], found["query"], True)
    card = hansa("payee", "proof", str(file), "--genesis", genesis).stdout
    assert EMULATED in card
    assert SIMULATED in card
    assert max(map(len, card.splitlines())) <= 80
    file.write_bytes(file.read_bytes().replace(b'"states":"', b'"states":"AAAA'))
    assert fault(hansa("payee", "proof", str(file), "--genesis", genesis), 1) == "malformed"
    assert fault(hansa("payee", "proof", str(tmp_path / "none"), "--genesis", genesis), 2) == "bad_file"
    nowhere = await terminal.run("resolve", *code, "--proof", str(tmp_path / "none" / "shown.json"))
    assert fault(nowhere, 2) == "bad_file"


# -- paying ----------------------------------------------------------------------------------------------


async def test_paying(terminal: Terminal) -> None:
    code = ("--code", terminal.street.world.code(), "--as", "wallet-p", "--amount", "12.50")
    first = await terminal.run("pay", *code)
    assert first.exit_code == 0, first.output
    assert f"12.50 CNY ({SIMULATED})" in first.stdout
    assert EMULATED in first.stdout
    order = first.stderr.split("order ")[1].split(":")[0]
    assert order in first.stdout, "who wants to pay it again finds its name in the card too"
    assert max(map(len, first.stdout.splitlines())) <= 80
    again = await terminal.json("pay", *code, "--order", order)
    assert (again["state"], again["first"], again["amount"], again["simulated"]) == ("PAID", False, "12.50", True)
    assert "nothing was paid again" in (await terminal.run("pay", *code, "--order", order)).stdout
    assert terminal.street.world.bank.parts("merchant-m") == (1_250, 0)


async def test_paying_a_code_for_one_order(terminal: Terminal) -> None:
    code = terminal.street.world.order_code("R-1", 1_250)
    paid = await terminal.json("pay", "--code", code, "--as", "wallet-p", "--payer", "user-e")
    assert (paid["order"], paid["amount"], paid["payer"], paid["first"]) == ("R-1", "12.50", "user-e", True)
    result = await terminal.run("pay", "--code", code, "--as", "wallet-p", "--amount", "12.51")
    assert fault(result, 2) == "wrong_amount"
    card = (await terminal.run("resolve", "--code", code, "--as", "wallet-p")).stdout
    assert "for one order, signed by the merchant" in card
    assert "valid until" in card


async def test_what_was_not_paid(terminal: Terminal) -> None:
    code = ("--code", terminal.street.world.code(), "--as", "wallet-p")
    poor = await terminal.run("pay", *code, "--amount", f"{MONEY}.00", "--json")
    assert poor.exit_code == 1
    said = json.loads(poor.stdout)
    assert (said["ok"], said["state"], said["error"]["code"]) == (False, "REFUSED", "insufficient_funds")
    poor = await terminal.run("pay", *code, "--amount", f"{MONEY}.00")
    assert "has not the money" in poor.stdout
    assert "error insufficient_funds" in poor.stderr
    assert fault(await terminal.run("pay", *code), 2) == "amount_missing"
    unknown = ("--code", terminal.street.world.code(number=9), "--as", "wallet-p", "--amount", "1")
    assert fault(await terminal.run("pay", *unknown), 1) == "unknown_identity"


@asynccontextmanager
async def losing_answers(url: str) -> AsyncIterator[str]:
    """Give a URL that leads to a platform, but what it says of a payment is lost on the way."""
    port = int(url.rpartition(":")[2])

    async def handle(near: trio.SocketStream) -> None:
        is_lost = False
        async with near, await trio.open_tcp_stream("127.0.0.1", port) as far, trio.open_nursery() as nursery:

            async def forth() -> None:
                nonlocal is_lost
                async for data in near:
                    is_lost = is_lost or b"POST /payments" in data
                    await far.send_all(data)
                nursery.cancel_scope.cancel()

            nursery.start_soon(forth)
            async for data in far:
                if is_lost:
                    break
                await near.send_all(data)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_lost_answer_says_the_command_that_is_safe(terminal: Terminal) -> None:
    url = terminal.street.doors["wallet-p"].url
    code = ("--code", terminal.street.world.code(), "--as", "wallet-p", "--amount", "12.50")
    async with losing_answers(url) as losing:
        terminal.install("wallet-p", losing)
        result = await terminal.run("pay", *code, "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "outcome_unknown"
    assert error["again"] in error["message"]
    terminal.install("wallet-p", url)
    words = shlex.split(error["again"])
    assert words[:3] == ["hansa", "payee", "pay"]
    again = answer(await trio.to_thread.run_sync(partial(hansa, *words[1:], "--json")))
    assert (again["state"], again["first"], again["order"]) == ("PAID", False, error["order"])
    assert terminal.street.world.bank.parts("merchant-m") == (1_250, 0)


async def test_a_node_that_answers_falsely(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """It brings what it was told before, in place of what there is now."""
    world, told = terminal.street.world, list[Resolution]()
    truth = PayeeDesk.resolve

    async def replay(desk: PayeeDesk, query: bytes) -> Resolution:
        told.append(await truth(desk, query))
        return told[0]

    monkeypatch.setattr(PayeeDesk, "resolve", replay)
    code = ("--code", world.code(), "--as", "wallet-p")
    assert (await terminal.run("resolve", *code)).exit_code == 0
    for command in (("resolve", *code), ("pay", *code, "--amount", "1")):
        result = await terminal.run(*command)
        assert fault(result, 1) == "bad_answer"
        assert f"{world.node.url} answers falsely" in result.stderr
        assert MARKER not in result.output
    assert world.bank.orders == []


async def test_programs_that_do_not_answer(terminal: Terminal) -> None:
    world = terminal.street.world
    code = ("--code", world.code(), "--as", "wallet-p", "--amount", "1")
    assert fault(await terminal.run("pay", "--code", world.code(), "--as", "wallet-x"), 2) == "unknown_platform"
    await world.call("permission", "disallow_measurement", measurement=MEASUREMENT)
    refused = await terminal.run("pay", *code)
    assert fault(refused, 1) == "environment_refused"
    assert "is not allowed" in refused.stderr
    assert "hansa network up" not in refused.stderr, "it runs already"
    terminal.street.stop_environment()
    down = await terminal.run("pay", *code)
    assert fault(down, 1) == "environment_down"
    assert EMULATED in down.stderr
    terminal.install("wallet-p", "http://127.0.0.1:1")
    away = await terminal.run("pay", *code)
    assert fault(away, 1) == "platform_unreachable"
    assert "hansa network up --with payee" in away.stderr
    assert world.bank.orders == []
    assert MARKER not in down.output + away.output


def test_what_a_program_says_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report_error(Refused("busy\x1b]0;", "gone\x1b[2J\nand\u202e more"))
    Output(as_json=False).progress("to \x1b[31mthief")
    expected = "error busy?]0;: gone?[2J and? more\nto ?[31mthief\n"
    assert capsys.readouterr().err == expected.replace("?", "\N{REPLACEMENT CHARACTER}")
