"""Commands against a node that decides alone: calls, queries, proofs, verification."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import trio
from click.testing import Result

from node.clock import SystemClock
from services.client.keystore import KeyStore
from tests.cli.support import answer, fault, hansa
from tests.client.support import CONSORTIUM, SoloNode, running


@dataclass(frozen=True)
class Desk:
    """A shell in a folder with keys and the genesis file, and a node to talk to."""

    folder: Path
    node: SoloNode

    async def run(self, *arguments: str, keys: bool = False) -> Result:
        options = ["--node", self.node.url, "--genesis", str(self.folder / "genesis.json")]
        options += ["--keys", str(self.folder / "keys")] if keys else []
        return await trio.to_thread.run_sync(partial(hansa, *arguments, *options, HANSA_PASSPHRASE="p"))

    async def call(self, *arguments: str) -> Result:
        return await self.run("tx", "call", *arguments, keys=True)


@asynccontextmanager
async def open_desk(folder: Path) -> AsyncIterator[Desk]:
    clock = SystemClock()
    genesis = msgspec.structs.replace(CONSORTIUM.genesis, time_ms=clock.wall_ms())
    (folder / "genesis.json").write_bytes(genesis.to_json())
    store = KeyStore(folder / "keys")
    for name, key in CONSORTIUM.account_keys.items():
        store.create(name, b"p", key)
    node = SoloNode(folder / "data", replace(CONSORTIUM, genesis=genesis), clock)
    async with running(node):
        yield Desk(folder, node)


async def fill(desk: Desk) -> None:
    define = ("tokens", "define", "unit=point", "decimals=0", "description=points", "--as", "bank-a")
    assert (await desk.call(*define)).exit_code == 0
    issue = ("tokens", "issue", "unit=point", "to=user-b", "amount=1000", "--as", "bank-a")
    assert (await desk.call(*issue)).exit_code == 0


async def test_a_call_prints_receipt_block_and_signers(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await fill(desk)
        result = await desk.call("tokens", "transfer", "unit=point", "to=shop", "amount=250", "--as", "user-b")
        assert result.exit_code == 0, result.output
        assert "node-0, node-1, node-2" in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80
        data = answer(
            await desk.call("tokens", "transfer", "unit=point", "to=shop", "amount=1", "--as", "user-b", "--json")
        )
        assert data["ok"] is True
        assert data["signers"] == ["node-0", "node-1", "node-2"]
        assert data["calls"][0]["arguments"]["amount"] == "1"
        shown = answer(await desk.run("tx", "show", data["id"], "--json"))
        assert shown == data
        balance = answer(await desk.run("query", "tokens", "balance", "unit=point", "account=shop", "--json"))
        assert balance["value"]["available"] == "251"


async def test_refusals_exit_1_and_wrong_input_2(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await fill(desk)
        transfer = ("tokens", "transfer", "unit=point", "to=shop")
        failed = await desk.call(*transfer, "amount=5000", "--as", "user-b", "--json")
        assert failed.exit_code == 1
        assert json.loads(failed.stdout)["receipts"][0]["code"] == "insufficient_funds"
        assert "insufficient_funds" in (await desk.call(*transfer, "amount=5000", "--as", "user-b")).stdout
        cases = [
            (("tokens", "transfer", "unit=point", "--as", "user-b"), 2, "bad_arguments"),
            ((*transfer, "amount=many", "--as", "user-b"), 2, "bad_arguments"),
            ((*transfer, "amount=1", "x=1", "--as", "user-b"), 2, "bad_arguments"),
            (("tokens", "nothing", "--as", "user-b"), 2, "unknown_method"),
            (("tokens", "balance", "unit=point", "account=shop", "--as", "user-b"), 2, "unknown_method"),
            (("nothing", "x", "--as", "user-b"), 2, "unknown_contract"),
            ((*transfer, "amount=1", "--as", "user-b", "--lane", "x" * 17), 2, "bad_lane"),
        ]
        for arguments, exit_code, code in cases:
            assert fault(await desk.call(*arguments), exit_code) == code, arguments
        assert fault(await desk.run("tx", "show", "0x" + "00" * 32), 1) == "not_found"
        assert fault(await desk.run("query", "tokens", "balance", "unit=other", "account=shop"), 1) == "unknown_unit"


async def test_a_call_once_takes_effect_once(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await fill(desk)
        pay = (
            "tokens",
            "transfer",
            "unit=point",
            "to=shop",
            "amount=5",
            "--as",
            "user-b",
            "--once",
            "order-1",
            "--json",
        )
        first, again = answer(await desk.call(*pay)), answer(await desk.call(*pay))
        assert first == again


async def test_reading_commands_print_tables_and_json(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await fill(desk)
        desk.node.decide()
        for command in (
            ("chain", "status"),
            ("chain", "blocks"),
            ("chain", "blocks", "--from", "1", "--limit", "1"),
            ("chain", "block", "1"),
            ("chain", "block", "0"),
            ("contract", "list"),
            ("contract", "describe", "tokens"),
            ("state", "get", "membership/validators"),
            ("state", "get", "membership/none"),
        ):
            drawn = await desk.run(*command)
            assert drawn.exit_code == 0, drawn.output
            if command[1] != "describe":
                assert max(map(len, drawn.stdout.splitlines())) <= 80
            answer(await desk.run(*command, "--json"))
        assert fault(await desk.run("contract", "describe", "none"), 1) == "unknown_contract"
        assert fault(await desk.run("chain", "block", "99"), 1) == "not_found"


async def test_proofs_hold_offline_and_no_changed_one_does(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await fill(desk)
        desk.node.decide()
        paid = answer(
            await desk.call("tokens", "transfer", "unit=point", "to=shop", "amount=5", "--as", "user-b", "--json")
        )
        genesis = str(tmp_path / "genesis.json")
        for kind, what in (
            ("block", "1"),
            ("transaction", paid["id"]),
            ("receipt", paid["id"]),
            ("state", "membership/validators"),
            ("state", "membership/none"),
        ):
            file = tmp_path / f"{kind}.proof"
            got = await desk.run("proof", "get", kind, what, "--out", str(file), "--json")
            assert answer(got)["kind"] == kind
            verified = await trio.to_thread.run_sync(partial(hansa, "proof", "verify", str(file), "--genesis", genesis))
            assert verified.exit_code == 0, verified.output
            assert "The proof holds" in verified.stdout
            document = json.loads(file.read_text())
            document["header"] = document["header"][:-2] + ("00" if document["header"][-2:] != "00" else "01")
            file.write_text(json.dumps(document))
            refused = await trio.to_thread.run_sync(partial(hansa, "proof", "verify", str(file), "--genesis", genesis))
            assert fault(refused, 1) in ("bad_certificate", "bad_proof")
        printed = await desk.run("proof", "get", "block", "1")
        assert json.loads(printed.stdout)["format"] == "hansa-proof-1"
        assert fault(await desk.run("proof", "get", "block", "0"), 2) == "bad_height"


async def test_the_whole_chain_is_verified_over_rpc(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await fill(desk)
        result = answer(await desk.run("chain", "verify", "--json"))
        assert (result["height"], result["certificates"], result["transactions"]) == (2, 2, 2)
        drawn = await desk.run("chain", "verify")
        assert "The chain holds" in drawn.stdout
