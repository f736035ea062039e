"""One order disclosed: checked offline against genesis alone; whatever is altered in the file is told by a code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from consensus.ledger.errors import PeerError
from services.agency.disclosure import (
    Disclosure,
    Verdict,
    decode_disclosure_untrusted,
    encode_disclosure,
    load_untrusted,
    save,
    verify_disclosure,
)
from services.agency.interfaces import Disclosed, DiscloseQuery, PackageState, RootQuery
from services.client.errors import Refused
from services.local.link import LocalLink
from tests.agency.test_anchoring import anchor_by_hand, is_posted
from tests.agency.test_gateway import until
from tests.agency.world import (
    BANK,
    CONSORTIUM,
    ISSUER,
    World,
    answer_next,
    application,
    investor,
    outcomes,
    submit,
    world,
)
from tests.node.support import make_consortium

ORDERS = [*(application(number) for number in range(12)), application(12, code="001", product="", investor=investor(1))]


async def disclosed(gateway: LocalLink, root: bytes, serial: str) -> Disclosure:
    answer = await gateway.call("disclose", DiscloseQuery(root, serial), Disclosed)
    return decode_disclosure_untrusted(msgspec.json.encode(answer.document))


def seal(found: World) -> None:
    """Have the newest state proven: a block without transactions."""
    found.node.decide()


async def test_either_side_discloses_one_order_and_anybody_checks_it(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        root = (await submit(bank, *ORDERS)).packages[0].root
        seal(found)
        with pytest.raises(Refused) as early:
            await disclosed(bank, root, ORDERS[0].serial)
        assert early.value.code == "not_anchored"
        _, answer = await answer_next(issuer)
        _, anchored = await outcomes(bank, 2)
        seal(found)
        for gateway in (bank, issuer):
            for place in (0, 7, 12):
                file = await disclosed(gateway, root, ORDERS[place].serial)
                save(file, tmp_path / "disclosure.json")
                verdict = verify_disclosure(load_untrusted(tmp_path / "disclosure.json"), CONSORTIUM.genesis)
                assert verdict.application == ORDERS[place]
                assert verdict.confirmation == answer.confirmations[place]
                assert (verdict.status, verdict.claimed_by, verdict.is_contradicted) == ("MUTUAL", "", False)
                assert (verdict.root, verdict.anchored_height) == (root, anchored.height)
                text = (tmp_path / "disclosure.json").read_text()
                others = [item.serial for item in ORDERS if item is not ORDERS[place]]
                assert not [serial for serial in others if f'"{serial}"' in text]
        with pytest.raises(PeerError) as elsewhere:
            verify_disclosure(file, make_consortium().genesis)
        assert elsewhere.value.code == "wrong_chain"
        with pytest.raises(Refused) as unknown:
            await disclosed(bank, root, "NOBODY")
        assert unknown.value.code == "unknown_order"
        check_every_alteration(file, verify_disclosure(file, CONSORTIUM.genesis))


def check_every_alteration(file: Disclosure, proven: Verdict) -> None:
    """Alter each value in the file by a little; none of them proves anything else."""
    document = json.loads(encode_disclosure(file))
    codes: dict[str, int] = {}
    places = [*leaves(document)]
    assert len(places) > 50
    for place in places:
        altered = json.loads(json.dumps(document))
        alter(altered, place)
        try:
            verdict = verify_disclosure(decode_disclosure_untrusted(json.dumps(altered).encode()), CONSORTIUM.genesis)
        except PeerError as error:
            codes[error.code] = codes.get(error.code, 0) + 1
        else:
            # Parts of the proof may be there in another order of its own; what is proven is the same.
            assert place[0] == "proof", place
            assert verdict.application == proven.application
            assert verdict.confirmation == proven.confirmation
    assert {"malformed", "bad_path", "bad_proof"} <= {*codes}


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the places of all plain values."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from leaves(inner, (*place, key))
        case list():
            for index, inner in enumerate(value):
                yield from leaves(inner, (*place, index))
        case _:
            yield place


def alter(document: Any, place: tuple[Any, ...]) -> None:
    """Change the value at a place into another of its type."""
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    match inner[place[-1]]:
        case bool() as old:
            inner[place[-1]] = not old
        case int() as old:
            inner[place[-1]] = old + 1
        case str() as old if old[:2] == "0x" and len(old) > 2:
            inner[place[-1]] = old[:-1] + ("0" if old[-1] != "0" else "1")
        case str() as old:
            inner[place[-1]] = old[:-1] + ("0" if not old.endswith("0") else "1")
        case _:
            inner[place[-1]] = "x"


@pytest.mark.parametrize("claimant", [BANK, ISSUER])
async def test_a_claim_is_told_from_what_both_signed(tmp_path: Path, claimant: str) -> None:
    async with world(tmp_path) as found, found.gateway(ISSUER) as issuer:
        async with found.gateway(BANK) as bank:
            root = (await submit(bank, *ORDERS)).packages[0].root
            if claimant == BANK:
                await bank.call("claim", RootQuery(root), PackageState)
                seal(found)
                file = await disclosed(bank, root, ORDERS[3].serial)
            else:
                await until(lambda: is_posted(found))
        if claimant == ISSUER:
            _, answer = await answer_next(issuer)
            await issuer.call("claim", RootQuery(root), PackageState)
            seal(found)
            file = await disclosed(issuer, root, ORDERS[3].serial)
        verdict = verify_disclosure(file, CONSORTIUM.genesis)
        assert (verdict.status, verdict.application) == ("CLAIMED", ORDERS[3])
        assert verdict.anchored_ms <= verdict.time_ms
        assert verdict.anchored_height <= verdict.height
        if claimant == BANK:
            assert (verdict.claimed_by, verdict.confirmation) == ("bank", None)
        else:
            assert (verdict.claimed_by, verdict.confirmation) == ("issuer", answer.confirmations[3])


async def test_a_claim_is_one_as_of_its_proof_alone(tmp_path: Path) -> None:
    """A file from before the answer was anchored goes on saying what was so then, and when that was."""
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        root = (await submit(bank, *ORDERS)).packages[0].root
        await bank.call("claim", RootQuery(root), PackageState)
        seal(found)
        early = await disclosed(bank, root, ORDERS[3].serial)
        await answer_next(issuer)
        await outcomes(bank, 2)
        seal(found)
        late = verify_disclosure(await disclosed(bank, root, ORDERS[3].serial), CONSORTIUM.genesis)
        before = verify_disclosure(early, CONSORTIUM.genesis)
        assert (before.status, late.status) == ("CLAIMED", "MUTUAL")
        assert before.time_ms < late.time_ms
        assert before.height < late.anchored_height <= late.height


@pytest.mark.parametrize("liar", [BANK, ISSUER])
async def test_what_one_side_signs_beside_the_truth_keeps_no_order_from_being_proven(tmp_path: Path, liar: str) -> None:
    """A bank that signs a wrong number of orders, an issuer that names another answer before: it anchors first."""
    async with world(tmp_path) as found, found.gateway(ISSUER) as issuer:
        async with found.gateway(BANK) as bank:
            root = (await submit(bank, *ORDERS)).packages[0].root
            await until(lambda: is_posted(found))
        _, answer = await answer_next(issuer)
        lie = {"count": 7} if liar == BANK else {"previous": b"p" * 32}
        await anchor_by_hand(found, liar, answer, **lie)  # type: ignore[arg-type]
        async with found.gateway(BANK) as bank:
            assert [item.kind for item in await outcomes(bank, 2)] == ["answered", "anchored"]
            seal(found)
            for gateway in (bank, issuer):
                verdict = verify_disclosure(await disclosed(gateway, root, ORDERS[7].serial), CONSORTIUM.genesis)
                assert (verdict.status, verdict.application) == ("MUTUAL", ORDERS[7])
                assert verdict.confirmation == answer.confirmations[7]
