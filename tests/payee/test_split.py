"""The split key: what needs a part from the code and one from the platform, and who never sees it in the clear."""

from base64 import b64encode
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from consensus.ledger.errors import HansaError, LocalError, PeerError
from consensus.ledger.payees import Content, Mode, commitment
from services.payee.codes import CodeTerms, key_part_text
from services.payee.identity import identity_text
from services.payee.interfaces import (
    CODE_PART_BYTES,
    Acquiring,
    AskPart,
    Draft,
    NoParams,
    PlatformStatus,
    RecordPut,
    Records,
    RecordsQuery,
    RemoveRecord,
    Rotate,
    Rotated,
    SplitAcquiring,
)
from services.payee.merchants import Merchants
from services.payee.offers import checked, read_offer, write_offer
from services.payee.payer import Payer, read_payload
from services.payee.split import CHECK_BYTES, decode_plaintext, open_split, seal_split
from tests.contracts.domain.payees import identity
from tests.payee.paying import make_street
from tests.payee.platform_world import ACQUIRING, HOUR_MS, MARKER, Owner, PlatformWorld, platform_world
from tests.payee.test_records import code_of, opened_by

PASSPHRASE = b"long enough"
CODE_PART, PART = bytes(range(16)), bytes(range(100, 132))
WHERE: dict[str, Any] = {"identity": identity(0), "server": "wallet-p"}
SEALED = seal_split(ACQUIRING, code_part=CODE_PART, part=PART, **WHERE)


# -- the key ---------------------------------------------------------------------------------------------


def test_both_parts_open_it() -> None:
    assert open_split(SEALED, code_part=CODE_PART, part=PART, **WHERE) == ACQUIRING
    assert MARKER.encode() not in msgspec.json.encode(SEALED) + SEALED.split


@pytest.mark.parametrize(
    "wrong",
    [
        {"code_part": b""},
        {"part": b""},
        {"code_part": bytes(16)},
        {"part": bytes(32)},
        {"code_part": PART, "part": CODE_PART},
        {"code_part": PART[:16], "part": CODE_PART + PART[16:]},
        {"code_part": CODE_PART + PART[:1], "part": PART[1:]},
        {"identity": identity(1)},
        {"server": "wallet-q"},
    ],
)
def test_one_part_alone_or_of_something_else_opens_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as caught:
        open_split(SEALED, **{"code_part": CODE_PART, "part": PART, **WHERE, **wrong})
    assert caught.value.code == "wrong_key_part"
    assert MARKER not in str(caught.value)


@given(place=st.integers(0, 8 * len(SEALED.split) - 1))
def test_any_bit_that_is_altered_opens_nothing(place: int) -> None:
    data = bytearray(SEALED.split)
    data[place // 8] ^= 1 << place % 8
    for altered in (bytes(data), bytes(data[: place // 8])):
        with pytest.raises(PeerError) as caught:
            open_split(SplitAcquiring(altered), code_part=CODE_PART, part=PART, **WHERE)
        assert caught.value.code == "wrong_key_part"


def test_what_is_sealed_commits_to_its_parts() -> None:
    """AES-GCM alone lets its maker have one ciphertext open under two keys; the bytes before it do not."""
    other = seal_split(ACQUIRING, code_part=CODE_PART, part=bytes(32), **WHERE)
    assert SEALED.split[:CHECK_BYTES] != other.split[:CHECK_BYTES]
    mixed = SplitAcquiring(SEALED.split[:CHECK_BYTES] + other.split[CHECK_BYTES:])
    for part in (PART, bytes(32)):
        with pytest.raises(PeerError):
            open_split(mixed, code_part=CODE_PART, part=part, **WHERE)


def test_a_plaintext_is_of_one_kind() -> None:
    assert decode_plaintext(msgspec.json.encode(SEALED)) == SEALED
    assert decode_plaintext(msgspec.json.encode(ACQUIRING)) == ACQUIRING
    both = msgspec.json.encode({**msgspec.to_builtins(ACQUIRING), "split": b64encode(SEALED.split).decode()})
    for wrong in (both, b"{}", b"", b"\xff", b'{"split": 1}', b'{"split": "*"}', b"[" * 2_000):
        with pytest.raises(PeerError) as caught:
            decode_plaintext(wrong)
        assert caught.value.code == "bad_record"


# -- a platform's record ---------------------------------------------------------------------------------


async def sealed_in(world: PlatformWorld, number: int = 0, server: str = "wallet-p") -> SplitAcquiring:
    """Return what an environment reads of a split record."""
    content = await opened_by(world, "bank-a", server, number)
    assert isinstance(content, Content)
    assert MARKER.encode() not in content.plaintext
    said = decode_plaintext(content.plaintext)
    assert isinstance(said, SplitAcquiring)
    return said


async def part_of(owner: Owner, number: int = 0) -> bytes:
    given = await owner.platform.records.part(AskPart(identity_text(identity(number))))
    return bytes.fromhex(given.part.removeprefix("0x"))


async def test_an_environment_and_the_chain_have_nothing_in_the_clear(tmp_path: Path) -> None:
    async with platform_world(tmp_path, merchants=2) as world, world.platform() as owner:
        await owner.begin()
        assert (await owner.add(code_part=CODE_PART)).version == 1
        sealed, part = await sealed_in(world), await part_of(owner)
        assert open_split(sealed, code_part=CODE_PART, part=part, **WHERE) == ACQUIRING
        found = await owner.link.call("records", RecordsQuery(), Records)
        assert [(row.acquiring, row.is_split) for row in found.items] == [(None, True)]
        assert MARKER not in repr(found)
        assert await code_of(owner.platform.records.acquiring(identity(0))) == "key_part_missing"
        assert await code_of(owner.platform.records.acquiring(identity(0), bytes(16))) == "wrong_key_part"
        assert (await owner.platform.records.acquiring(identity(0), CODE_PART)).value == ACQUIRING
        await owner.add(number=1, code_part=CODE_PART)
        assert await part_of(owner, 1) != part, "each content has a part of its own"
        asked = AskPart(identity_text(identity(5)))
        assert await code_of(owner.platform.records.part(asked)) == "no_platform"


async def test_a_split_record_is_updated_rotated_and_removed(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        await owner.begin()
        draft = await owner.draft(code_part=CODE_PART)
        assert await owner.draft(code_part=CODE_PART) == draft, "the same again is the same draft"
        assert (await owner.draft(code_part=bytes(16))).commitment != draft.commitment
        assert (await owner.draft()).part == b""
        await owner.add(code_part=CODE_PART)
        first = await part_of(owner)
        assert await code_of(owner.draft()) == "record_split"
        other = changed(ACQUIRING, account="shop")
        pending = await owner.draft(other, code_part=CODE_PART)
        assert await part_of(owner) == first, "a draft takes no part away"
        await owner.link.call("put_record", owner.signed(pending), RecordPut)
        second = await part_of(owner)
        assert second == pending.part != first
        assert (await owner.platform.records.acquiring(identity(0), CODE_PART)).value == other
        assert (await owner.link.call("rotate", Rotate(["bank-a"]), Rotated)).encrypted == 1
        assert await part_of(owner) == second, "encrypted anew, the content has the part that it had"
        sealed = await sealed_in(world)
        assert open_split(sealed, code_part=CODE_PART, part=second, **WHERE) == other
        store = owner.platform.records._store
        assert len(list(store._vault.scan(b"part/"))) == 1, "what was replaced opens no more"
        gone = RemoveRecord(identity_text(identity(0)))
        await owner.link.call("remove_record", gone, RecordPut)
        assert list(store._vault.scan(b"part/")) == []
        assert await code_of(part_of(owner)) == "no_platform"
        await owner.add()
        assert await code_of(part_of(owner)) == "no_part"
        await owner.add(code_part=CODE_PART)
        assert (await owner.platform.records.acquiring(identity(0), CODE_PART)).value == ACQUIRING


async def test_without_the_platforms_part_a_record_is_lost(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        await owner.begin()
        await owner.add(code_part=CODE_PART)
        assert (await owner.link.call("status", NoParams(), PlatformStatus)).lost == 0
        store = owner.platform.records._store
        await store._vault.write([(name, None) for name, _ in store._vault.scan(b"part/")])
        assert (await owner.link.call("status", NoParams(), PlatformStatus)).lost == 1
        assert await code_of(part_of(owner)) == "no_part"
        assert await code_of(owner.platform.records.acquiring(identity(0), CODE_PART)) == "no_part"
        await owner.add(code_part=CODE_PART)
        assert (await owner.link.call("status", NoParams(), PlatformStatus)).lost == 0


async def test_the_merchant_sees_what_it_signs(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        await owner.begin()
        draft = await owner.draft(code_part=CODE_PART)
        assert checked(draft, CODE_PART) == ACQUIRING
        write_offer(tmp_path / "offer.json", draft)
        offered = (tmp_path / "offer.json").read_bytes()
        assert MARKER.encode() not in offered
        assert read_offer(tmp_path / "offer.json") == draft
        said = decode_plaintext(draft.plaintext)
        spaced = draft.plaintext.replace(b":", b": ")
        for wrong, code_part, code in (
            (draft, None, "key_part_missing"),
            (draft, bytes(16), "wrong_key_part"),
            (changed(draft, part=bytes(32)), CODE_PART, "wrong_key_part"),
            (changed(draft, part=b""), CODE_PART, "bad_draft"),
            (_lied(draft, msgspec.json.encode(ACQUIRING)), CODE_PART, "bad_draft"),
            (changed(draft, server="wallet-q"), CODE_PART, "wrong_key_part"),
            (_lied(draft, spaced), CODE_PART, "bad_draft"),
            (changed(draft, plaintext=msgspec.json.encode(SEALED)), CODE_PART, "bad_draft"),
        ):
            with pytest.raises(HansaError) as caught:
                checked(wrong, code_part)
            assert caught.value.code == code
        assert isinstance(said, SplitAcquiring)


def _lied(draft: Draft, plaintext: bytes) -> Draft:
    return changed(draft, plaintext=plaintext, commitment=commitment(draft.salt, plaintext))


async def test_what_does_not_fit(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        await owner.begin()
        full = changed(ACQUIRING, name="🍵" * 64, terminal="🍵" * 64, note="🍵" * 256)
        assert (await owner.draft(full)).version == 1
        assert await code_of(owner.draft(full, code_part=CODE_PART)) == "too_large"
        assert await code_of(owner.draft(code_part=b"short")) == "bad_key"


# -- a merchant's files ----------------------------------------------------------------------------------


def test_a_merchant_has_its_part_from_the_beginning_or_never(tmp_path: Path) -> None:
    store = Merchants(tmp_path / "merchants")
    made = store.make("tea", PASSPHRASE, is_split=True)
    assert made.key_part is not None
    assert len(made.key_part) == CODE_PART_BYTES
    assert store.make("tea", PASSPHRASE, is_split=True).key_part == made.key_part
    assert store.make("inn", PASSPHRASE, is_split=True).key_part != made.key_part
    assert store.make("bakery", PASSPHRASE).key_part is None
    for name, is_split in (("tea", False), ("bakery", True)):
        with pytest.raises(LocalError) as caught:
            store.make(name, PASSPHRASE, is_split=is_split)
        assert caught.value.code == "merchant_exists"
    store.note_registered("tea")
    store.next_key("tea", PASSPHRASE)
    store.take_next("tea")
    assert store.open("tea", PASSPHRASE).key_part == store.find("tea").key_part == made.key_part
    assert key_part_text(made.key_part) not in repr(made) + repr(store.find("tea"))
    path = store.folder / "tea.json"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes().replace(key_part_text(made.key_part).encode(), b"short"))
    with pytest.raises(LocalError) as caught:
        store.find("tea")
    assert caught.value.code == "bad_merchant"


# -- a payer's client ------------------------------------------------------------------------------------


async def failed(payer: Payer, code: str) -> str:
    async def asked() -> None:
        payer.terms(await payer.look(read_payload(code)), payer="user-b", amount=1)

    with pytest.raises(HansaError) as caught:
        await asked()
    assert MARKER not in str(caught.value)
    return caught.value.code


async def test_a_split_code_is_resolved_and_paid(tmp_path: Path) -> None:
    async with make_street(tmp_path) as street:
        world, owner = street.world, street.doors["wallet-p"].owner
        await owner.add(number=1, code_part=CODE_PART)
        code = world.code(number=1, key_part=CODE_PART)
        async with street.payer() as payer:
            looked = await payer.look(read_payload(code))
            assert looked.target.acquiring == ACQUIRING
            paid = await payer.pay(looked, payer.terms(looked, payer="user-b", amount=7, order="o-1"))
            assert (paid.state, paid.payee, paid.is_first) == ("PAID", "merchant-m", True)
            whole = world.code(number=1)
            shown = (await payer.look(read_payload(whole))).target
            assert (shown.acquiring, shown.split is not None) == (None, True)
            assert MARKER not in repr(shown)
            assert await failed(payer, whole) == "key_part_missing"
            assert await failed(payer, world.code(number=1, key_part=bytes(16))) == "wrong_key_part"
            expires_ms = world.node.chain.head.header.time_ms + HOUR_MS
            terms = CodeTerms(amount=9, currency="CNY", order="R-1", expires_ms=expires_ms)
            looked = await payer.look(read_payload(world.code(terms, number=1, key_part=CODE_PART)))
            assert (await payer.pay(looked, payer.terms(looked, payer="user-b"))).state == "PAID"
            unsplit = world.code(number=0, key_part=CODE_PART)
            assert (await payer.look(read_payload(unsplit))).target.acquiring == ACQUIRING, (
                "a part too many harms nobody"
            )
        # The platform reads the code itself: a client that got past all that gets no further.
        for payload, word in (
            (whole, "key_part_missing"),
            (world.code(number=1, key_part=bytes(16)), "wrong_key_part"),
        ):
            assert await code_of(owner.pay(payload, amount=7, order="o-2")) == word


async def test_another_platform_has_another_part(tmp_path: Path) -> None:
    async with make_street(tmp_path) as street:
        world, owner = street.world, street.doors["wallet-p"].owner
        second = await street.open("wallet-q")
        await owner.add(number=1, code_part=CODE_PART, is_shareable=True)
        other = Acquiring(account="shop", name="Tea at Q", currency="CNY")
        await second.add(other, number=1, code_part=CODE_PART)
        await world.consent(1)
        code = read_payload(world.code(number=1, key_part=CODE_PART))
        assert await part_of(owner, 1) != await part_of(second, 1)
        async with street.payer("wallet-q") as payer:
            looked = await payer.look(code, mode=Mode.CANDIDATES)
            assert looked.target.acquiring == other
            theirs = looked.resolved.candidates[0]
            assert (theirs.server, theirs.acquiring, theirs.split is not None) == ("wallet-p", None, True)
            assert MARKER not in repr(looked)
            assert theirs.split is not None
            where = {"identity": identity(1), "server": "wallet-p"}
            with pytest.raises(PeerError):
                open_split(theirs.split, code_part=CODE_PART, part=await part_of(second, 1), **where)
        async with street.payer() as payer:
            payer._platform = replace_part(payer, bytes(32))
            assert await failed(payer, world.code(number=1, key_part=CODE_PART)) == "wrong_key_part"


def replace_part(payer: Payer, part: bytes) -> Any:
    """Return a payer's platform that gives this part."""
    link = payer._platform

    async def given(who: bytes) -> bytes:
        return part

    link.part = given  # type: ignore[method-assign]
    return link
