"""``hansa payee platform add --split`` and what goes with it, against a platform in this process."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from consensus.ledger.ids import ZERO_HASH, ChainId
from services.payee.codes import key_part_text, make_code
from services.payee.interfaces import Draft, DraftRecord
from services.payee.records import RecordDesk
from tests.cli.support import fault
from tests.cli.test_payee_platform import WHO, Terminal, terminal
from tests.contracts.domain.payees import identity
from tests.payee.platform_world import ACQUIRING, MARKER

PART = bytes(range(16))


@asynccontextmanager
async def split_terminal(folder: Path) -> AsyncIterator[Terminal]:
    """Give a terminal whose merchant has a part of a split key."""
    async with terminal(folder) as at:
        content = {"identity": WHO, "part": key_part_text(PART)}
        (at.folder / "merchants" / "tea.json").write_text(json.dumps(content))
        yield at


def code(number: int = 0, part: bytes | None = PART) -> str:
    """Return a code of a merchant."""
    return make_code(identity(number), chain_id=ChainId(ZERO_HASH), key_part=part).text


async def test_a_record_is_split_and_stays_so(tmp_path: Path) -> None:
    async with split_terminal(tmp_path) as at:
        assert (await at.add("add", "--split"))["version"] == 1
        (row,) = (await at.ask("records"))["records"]
        assert (row["split"], row["acquiring"]) == (True, None)
        text = await at.draw("records")
        assert "split key" in text
        assert MARKER not in text
        asked = ("--merchant", "tea", "--acquiring", str(at.acquiring))
        assert fault(await at.run("update", *asked), 1) == "record_split"
        assert (await at.add("update", "--split"))["version"] == 2
        assert (await at.ask("rotate", "bank-a"))["encrypted"] == 1
        assert (await at.ask("remove", "--merchant", "tea"))["version"] == 4
        assert (await at.add())["version"] == 5
        assert [row["split"] for row in (await at.ask("records"))["records"]] == [False]


async def test_both_sign_a_split_record_on_machines_of_their_own(tmp_path: Path) -> None:
    async with split_terminal(tmp_path) as at:
        offer, signed, nobody = at.folder / "offer.json", at.folder / "signed.json", str(at.folder / "nobody")
        asked = ("--merchant", WHO, "--merchants", nobody, "--acquiring", str(at.acquiring), "--offer", str(offer))
        assert fault(await at.run("add", *asked, "--split"), 2) == "no_merchant"
        assert fault(await at.run("add", *asked, "--split", "--code", code(1)), 2) == "wrong_code"
        assert fault(await at.run("add", *asked, "--split", "--code", code(part=None)), 2) == "key_part_missing"
        assert (await at.run("add", *asked, "--code", code())).exit_code == 2
        assert (await at.ask("add", *asked, "--split", "--code", code()))["split"] is True
        assert MARKER.encode() not in offer.read_bytes()
        shown = await at.ask("sign", str(offer), "--out", str(signed), group="merchant")
        assert shown["acquiring"]["name"] == ACQUIRING.name
        assert (await at.ask("add", "--signed", str(signed)))["version"] == 1
        # A code that somebody else has made up is found out where the merchant's own part is.
        forged = ("--split", "--code", code(part=bytes(16)))
        await at.ask("update", *asked, *forged)
        result = await at.run("sign", str(offer), "--out", str(signed), group="merchant")
        assert fault(result, 1) == "wrong_key_part"
        assert MARKER not in result.output + result.stderr


async def test_a_platform_that_splits_nothing_gets_no_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = RecordDesk.draft_record

    async def lying(desk: RecordDesk, params: DraftRecord) -> Draft:
        return replace(await honest(desk, replace(params, code_part=b"")), part=bytes(32))

    monkeypatch.setattr(RecordDesk, "draft_record", lying)
    async with split_terminal(tmp_path) as at:
        result = await at.run("add", "--merchant", "tea", "--acquiring", str(at.acquiring), "--split")
        assert fault(result, 1) == "bad_draft"
        assert (await at.ask("records"))["records"] == []
