"""``hansa payee platform`` against a platform in this process: what people type, what they see, what is wrong."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from click.testing import Result
from msgspec.structs import replace
from structlog.testing import capture_logs

from services.client.keystore import KeyStore
from services.local.files import write_service
from services.payee.identity import identity_text
from services.payee.interfaces import Draft, DraftRecord, Pay
from services.payee.link import open_platform as open_link
from services.payee.platform_config import PlatformFile
from services.payee.records import RecordDesk
from services.payee.wording import EMULATED
from tests.cli.support import answer, fault, hansa
from tests.contracts.domain.payees import identity
from tests.payee.platform_house import TOKEN, House, house
from tests.payee.platform_world import ACQUIRING, CONSORTIUM, MARKER

PASSPHRASE = "long enough"
WHO = identity_text(identity(0))
COMMANDS = ("serve", "status", "add", "update", "remove", "rotate", "trust", "register", "records", "payments")


class Terminal:
    """Runs commands beside a platform, with a network folder that holds a merchant."""

    def __init__(self, found: House, folder: Path) -> None:
        self.house = found
        self.folder = folder
        folder.mkdir()
        (folder / "genesis.json").write_bytes(CONSORTIUM.genesis.to_json())
        self.acquiring = folder / "tea.json"
        self.acquiring.write_bytes(msgspec.json.encode(ACQUIRING))
        file = PlatformFile(
            server="wallet-p",
            listen="127.0.0.1:1",
            accounts="http://127.0.0.1:1",
            genesis="",
            nodes=[found.world.node.url],
            keys="",
            account="wallet-p",
            run=str(found.settings.run),
        )
        write_service(folder / "services" / "wallet-p", file)
        KeyStore(folder / "merchants").create("tea", PASSPHRASE.encode(), found.world.merchants[identity(0)])
        (folder / "merchants" / "tea.json").write_text(json.dumps({"identity": WHO}))

    async def run(self, command: str, *arguments: str, group: str = "platform") -> Result:
        """Run ``hansa payee platform …``."""
        place = ("--network", str(self.folder), "--genesis", str(self.folder / "genesis.json"))
        more = ("--platform", "wallet-p") if group == "platform" else ()
        call = partial(hansa, "payee", group, command, *arguments, *more, *place, HANSA_PASSPHRASE=PASSPHRASE)
        return await trio.to_thread.run_sync(call)

    async def ask(self, command: str, *arguments: str, group: str = "platform") -> Any:
        return answer(await self.run(command, *arguments, "--json", group=group))

    async def draw(self, command: str, *arguments: str) -> str:
        """Return what people see; but for what is never broken it fits 80 columns."""
        result = await self.run(command, *arguments)
        assert result.exit_code == 0, result.output
        wide = [line for line in result.stdout.splitlines() if len(line) > 80 and "/" not in line and "0x" not in line]
        assert wide == []
        return result.stdout

    async def add(self, command: str = "add", *more: str) -> Any:
        return await self.ask(command, "--merchant", "tea", "--acquiring", str(self.acquiring), *more)


@asynccontextmanager
async def terminal(folder: Path) -> AsyncIterator[Terminal]:
    # What the programs log in this process would stand among a command's words.
    with capture_logs():
        async with house(folder / "house") as found:
            yield Terminal(found, folder / "net")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    result = hansa("payee", "platform", command, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "Example:" in result.stdout


async def test_a_merchant_is_added_updated_and_removed(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        put = await at.add()
        assert (put["platform"], put["identity"], put["version"], put["epoch"]) == ("wallet-p", WHO, 1, 1)
        assert fault(await at.run("add", "--merchant", "tea", "--acquiring", str(at.acquiring)), 1) == "record_exists"
        toml = at.folder / "tea.toml"
        toml.write_bytes(b'account = "shop"\nname = "Tea"\ncurrency = "CNY"\n')
        assert (await at.ask("update", "--merchant", WHO, "--acquiring", str(toml), "--shareable"))["version"] == 2
        (row,) = (await at.ask("records"))["records"]
        assert (row["version"], row["shareable"], row["acquiring"]["account"]) == (2, True, "shop")
        assert "shop CNY" in await at.draw("records")
        assert (await at.ask("remove", "--merchant", "tea"))["version"] == 3
        assert fault(await at.run("remove", "--merchant", "tea"), 1) == "record_removed"
        assert fault(await at.run("update", "--merchant", "tea", "--acquiring", str(toml)), 1) == "record_removed"
        assert EMULATED in " ".join((await at.draw("add", "--merchant", "tea", "--acquiring", str(toml))).split())


async def test_both_sign_on_machines_of_their_own(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        offer, signed = at.folder / "offer.json", at.folder / "signed.json"
        asked = ("--merchant", WHO, "--acquiring", str(at.acquiring), "--offer", str(offer))
        assert (await at.ask("add", *asked))["version"] == 1
        assert offer.stat().st_mode & 0o077 == 0
        shown = await at.ask("sign", str(offer), "--out", str(signed), group="merchant")
        assert (shown["merchant"], shown["acquiring"]["account"]) == ("tea", "merchant-m")
        assert MARKER.encode() not in signed.read_bytes()
        assert (await at.ask("add", "--signed", str(signed)))["version"] == 1
        # Whoever offers one thing and has another one signed is found out before anything is signed.
        content = json.loads(offer.read_bytes())
        for name, value in (("commitment", "AAAA" * 10 + "AAA="), ("plaintext", "e30=")):
            offer.write_text(json.dumps({**content, name: value}))
            result = await at.run("sign", str(offer), "--out", str(signed), group="merchant")
            assert fault(result, 1) == "bad_draft"
        offer.write_text("{}")
        assert fault(await at.run("sign", str(offer), "--out", str(signed), group="merchant"), 2) == "bad_file"
        assert fault(await at.run("add", "--signed", str(offer)), 2) == "bad_file"


async def test_keys_and_payments(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.add()
        turned = await at.ask("rotate", "issuer-c")
        assert (turned["epoch"], turned["encrypted"], turned["environments"]) == (2, 1, ["issuer-c"])
        status = await at.ask("trust", "bank-a")
        assert (status["environments"], status["epoch"], status["isolation"]) == (["bank-a", "issuer-c"], 2, EMULATED)
        assert (await at.ask("register"))["trouble"] is None
        async with open_link(at.house.url, token=TOKEN) as payers:
            await payers.pay(Pay(at.house.world.order_code("R-1", 1_250), "user-b", "merchant-m"))
        (payment,) = (await at.ask("payments", "--merchant", WHO))["payments"]
        assert (payment["order"], payment["amount"], payment["state"]) == ("R-1", "12.50", "PAID")
        text = await at.draw("payments")
        assert "12.50 CNY" in text
        assert "simulated" in text
        text = " ".join((await at.draw("status")).split())
        assert f"bank-a, issuer-c ({EMULATED})" in text
        assert "1, 0 unfinished (simulated money)" in text
        result = await at.run("rotate", "nobody", "--json")
        assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (1, "unknown_environment")


@pytest.mark.parametrize("lie", [{"account": "thief"}, {"is_shareable": True}, {"server": "wallet-q"}])
async def test_a_platform_that_drafts_something_else_gets_no_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: dict[str, Any]
) -> None:
    honest = RecordDesk.draft_record

    async def lying(desk: RecordDesk, params: DraftRecord) -> Draft:
        acquiring = replace(params.acquiring, account=lie.get("account", params.acquiring.account))
        is_shareable = lie.get("is_shareable", params.is_shareable)
        draft = await honest(desk, replace(params, acquiring=acquiring, is_shareable=is_shareable))
        return replace(draft, server=lie.get("server", draft.server))

    monkeypatch.setattr(RecordDesk, "draft_record", lying)
    async with terminal(tmp_path) as at:
        result = await at.run("add", "--merchant", "tea", "--acquiring", str(at.acquiring))
        assert fault(result, 1) == "bad_draft"
        assert MARKER not in result.output + result.stderr
        assert (await at.ask("records"))["records"] == []


async def test_what_is_wrong_is_said_in_one_line_without_content(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        wrong = at.folder / "wrong.json"
        for content in (
            b"",
            b"{",
            b'{"account": "a", "name": "%s", "currency": "yuan"}' % MARKER.encode(),
            b'{"account": "%s !", "name": "b", "currency": "CNY"}' % MARKER.encode(),
            b'{"account": "a", "name": "%s\\u001b[2J", "currency": "CNY"}' % MARKER.encode(),
            b'{"account": "a", "name": "%s\\npaid", "currency": "CNY"}' % MARKER.encode(),
            b'{"account": "a", "name": "b", "note": "%s\\u202e", "currency": "CNY"}' % MARKER.encode(),
            b"\xff",
        ):
            wrong.write_bytes(content)
            result = await at.run("add", "--merchant", "tea", "--acquiring", str(wrong))
            assert fault(result, 2) == "bad_file"
            assert MARKER not in result.output + result.stderr
        asked = ("--acquiring", str(at.acquiring))
        assert fault(await at.run("add", "--merchant", "nobody", *asked), 2) == "no_merchant"
        assert fault(await at.run("remove", "--merchant", "nobody"), 2) == "no_merchant"
        assert fault(await at.run("update", "--merchant", "tea", *asked), 1) == "unknown_record"
        assert fault(await at.run("rotate", "No Body"), 2) == "bad_name"
        assert fault(await at.run("payments", "--merchant", "x"), 2) == "bad_identity"
        assert (await at.run("add")).exit_code == 2
        assert (await at.run("add", "--signed", "x", "--merchant", "tea")).exit_code == 2


def test_a_platform_that_is_not_there(tmp_path: Path) -> None:
    network = ("--network", str(tmp_path))
    assert fault(hansa("payee", "platform", "status", "--platform", "wallet-x", *network), 2) == "unknown_platform"
    assert fault(hansa("payee", "platform", "status", "--home", str(tmp_path)), 2) == "no_home"
    assert hansa("payee", "platform", "status", *network).exit_code == 2
    home = tmp_path / "services" / "wallet-p"
    file = PlatformFile(
        server="wallet-p",
        listen="127.0.0.1:1",
        accounts="http://127.0.0.1:1",
        genesis="",
        nodes=["http://127.0.0.1:1"],
        keys="",
        account="wallet-p",
    )
    write_service(home, file)
    result = hansa("payee", "platform", "status", "--platform", "wallet-p", *network)
    assert fault(result, 1) == "program_unreachable"
    assert "hansa network up --with payee" in result.stderr
    assert fault(hansa("payee", "platform", "serve", "wallet-p", *network), 2) == "bad_config"
