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

    async def run(self, *arguments: str, keys: bool = False, columns: str = "80") -> Result:
        options = ["--node", self.node.url, "--genesis", str(self.folder / "genesis.json")]
        options += ["--keys", str(self.folder / "keys")] if keys else []
        return await trio.to_thread.run_sync(
            partial(hansa, *arguments, *options, HANSA_PASSPHRASE="p", COLUMNS=columns)
        )

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
    defined = await desk.call(*define)
    assert defined.exit_code == 0, defined.output
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
            ((*transfer, "amount=0", "--as", "user-b"), 2, "bad_arguments"),
            ((*transfer, "amount=-5", "--as", "user-b"), 2, "bad_arguments"),
            (("tokens", "define", "unit=a b", "--as", "bank-a"), 2, "bad_arguments"),
            (("tokens", "transfer", "unit=point", "to=0x12", "amount=1", "--as", "user-b"), 2, "bad_arguments"),
            ((*transfer, "amount=1", "--as", "user-b", "--lane", "x" * 17), 2, "bad_lane"),
        ]
        for arguments, exit_code, code in cases:
            assert fault(await desk.call(*arguments), exit_code) == code, arguments
        asked = await desk.call("tokens", "balance", "unit=point", "account=shop", "--as", "user-b")
        assert "hansa query tokens balance" in asked.stderr
        told = await desk.run("query", "tokens", "transfer")
        assert "hansa tx call tokens transfer" in told.stderr
        assert fault(await desk.run("query", "tokens", "units", "limit=-1"), 2) == "bad_arguments"
        for key in ("", "x", "/x", "tokens/"):
            assert fault(await desk.run("state", "get", key), 2) == "bad_key"
        assert fault(await desk.run("tx", "explain", "0x12"), 2) == "bad_id"
        missing = await desk.run("tx", "show", "0x" + "00" * 32)
        assert fault(missing, 1) == "not_found"
        assert "hansa tx explain" in missing.stderr
        assert fault(await desk.run("query", "tokens", "balance", "unit=other", "account=shop"), 1) == "unknown_unit"


async def test_ids_stand_unbroken_on_lines_of_their_own(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await fill(desk)
        pay = await desk.call("tokens", "transfer", "unit=point", "to=shop", "amount=5", "--as", "user-b", "--json")
        paid = answer(pay)
        assert not pay.stderr
        for columns in ("80", "40", ""):
            shown = await desk.run("tx", "show", paid["id"], columns=columns)
            words = shown.stdout.split()
            assert paid["id"] in words
            assert paid["blockHash"] in words
        wide = await desk.run("chain", "blocks", columns="40")
        assert "── 1 " in wide.stdout  # too narrow for a table: a block of names and values for each
        assert paid["blockHash"][:10] in wide.stdout


async def test_a_call_whose_outcome_stays_unknown_names_the_transaction(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await fill(desk)
        desk.node.is_deciding = False
        pay = ("tokens", "transfer", "unit=point", "to=shop", "amount=5", "--as", "user-b", "--timeout", "1")
        plain = await desk.call(*pay)
        submitting, error = plain.stderr.splitlines()
        transaction_id = submitting.split()[1].rstrip(",")
        assert plain.exit_code == 1
        assert error.startswith(f"error outcome_unknown: transaction {transaction_id}")
        for hint in ("valid until 20", f"hansa tx explain {transaction_id}", "--once KEY"):
            assert hint in error
        # The lane's number waits already: no other word from the nodes will come.
        second = (await desk.call(*pay)).stderr
        taken = "lane_number_taken: another transaction with number 0 waits"
        for hint in (taken, "hansa tx explain", "hansa consensus doctor"):
            assert hint in second
        failure = json.loads((await desk.call(*pay, "--lane", "a", "--json")).stdout)
        assert (failure["ok"], failure["error"]["code"]) == (False, "outcome_unknown")
        assert failure["error"]["transactionId"] in failure["error"]["message"]


async def test_the_validator_set_is_shown_by_its_members(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await fill(desk)
        desk.node.decide()
        members = answer(await desk.run("state", "get", "membership/validators", "--json"))["value"]
        assert [member["name"] for member in members][:2] == ["node-0", "node-1"]
        assert members[0]["voteKey"] in (await desk.run("state", "get", "membership/validators")).stdout
        absent = await desk.run("state", "get", "membership/none")
        assert "Absent" in absent.stdout


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
            assert answer(await desk.run(*command, "--json"))["ok"] is True
        assert fault(await desk.run("contract", "describe", "none"), 2) == "unknown_contract"
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
