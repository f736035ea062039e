"""The merchant's side: one identity and one key whatever is interrupted, and nothing is signed or sent twice."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Barrier

import pytest
import trio

from consensus.ledger.errors import HansaError, LocalError
from consensus.ledger.payees import commitment
from consensus.ledger.transaction import Transaction
from contracts.runtime.execution import Executor
from services.client.client import Client, OnSigned, nobody_hears
from services.client.errors import Unreachable
from services.client.keystore import Signer
from services.client.outcome import Outcome
from services.payee import merchants
from services.payee.identity import identity_text
from services.payee.interfaces import Draft, DraftRecord, PutRecord, RecordPut, Rotate, Rotated
from services.payee.merchants import Merchant, Merchants
from tests.client.support import client_of, running
from tests.contracts.domain.support import shared_registry
from tests.payee.platform_world import ACQUIRING, CONSORTIUM, Owner, QuietNode, platform_world

PASSPHRASE = b"long enough"
CHAIN_ID = CONSORTIUM.genesis.chain_id()


class Killed(Exception):
    """The program died here."""


def account(name: str) -> Signer:
    return Signer.of(name, CONSORTIUM.account_keys[name])


CARRIER = account("merchant-m")


@asynccontextmanager
async def chain(folder: Path) -> AsyncIterator[tuple[QuietNode, Client]]:
    node = QuietNode(folder / "node", CONSORTIUM, executor=Executor(shared_registry()))
    async with running(node), client_of(node, genesis=CONSORTIUM.genesis) as client:
        yield node, client


def store_at(folder: Path) -> Merchants:
    return Merchants(folder / "merchants")


async def refusal(what: Awaitable[object]) -> str:
    with pytest.raises(HansaError) as error:
        await what
    return error.value.code


def local_refusal(what: Callable[[], object]) -> str:
    with pytest.raises(LocalError) as error:
        what()
    return error.value.code


# -- on disk ---------------------------------------------------------------------------------------------


def test_a_merchant_is_made_once_and_found_by_name_and_identity(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    assert store.entries() == []
    made = [store.make(name, PASSPHRASE) for name in ("tea-house", "bakery")]
    assert made[0].identity != made[1].identity
    assert store.make("tea-house", PASSPHRASE).identity == made[0].identity
    assert [entry.name for entry in store.entries()] == ["bakery", "tea-house"]
    for text in ("tea-house", identity_text(made[0].identity)):
        entry = store.find(text)
        assert (entry.name, entry.identity, entry.public_key, entry.is_registered) == (
            "tea-house",
            made[0].identity,
            made[0].key.public.compressed,
            False,
        )
    store.note_registered("tea-house")
    assert store.find("tea-house").is_registered
    assert store.open("tea-house", PASSPHRASE).identity == made[0].identity
    assert {path.stat().st_mode & 0o777 for path in store.folder.iterdir()} == {0o600}


def test_what_can_be_no_name_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    for name in ("", "Tea", "a/b", "..", "x" * 33, identity_text(bytes(16))):
        assert local_refusal(lambda name=name: store.make(name, PASSPHRASE)) == "bad_name"
    assert not store.folder.exists()
    assert local_refusal(lambda: store.find("tea-house")) == "no_merchant"
    assert local_refusal(lambda: store.make("tea-house", b"")) == "weak_passphrase"


def test_files_of_another_form_are_said_and_kept(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.make("tea-house", PASSPHRASE)
    path = store.folder / "tea-house.json"
    for content in (b"", b"{}", b'{"identity": "short"}', b'{"identity": "' + b"z" * 26 + b'"}', b"\xff"):
        path.write_bytes(content)
        for use in (lambda: store.find("tea-house"), lambda: store.make("tea-house", PASSPHRASE)):
            assert local_refusal(use) in ("bad_merchant", "bad_identity")
        assert path.read_bytes() == content
    store.make("bakery", b"another one")
    assert local_refusal(lambda: store.open("bakery", PASSPHRASE)) == "wrong_passphrase"
    assert store.open("bakery", b"another one").name == "bakery", "one's damage is not another's"


def test_a_key_without_an_identity_is_one_that_was_interrupted(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    key = store.make("tea-house", PASSPHRASE).key.public.compressed
    (store.folder / "tea-house.json").unlink()
    assert store.entries() == []
    assert store.make("tea-house", PASSPHRASE).key.public.compressed == key
    assert store.find("tea-house").public_key == key


async def test_two_programs_choose_one_identity(tmp_path: Path) -> None:
    for number in range(5):
        store, name = store_at(tmp_path), f"shop-{number}"
        store.make(name, PASSPHRASE)
        (store.folder / f"{name}.json").unlink()
        found: list[bytes] = []
        start = Barrier(2)

        def make(store: Merchants = store, name: str = name, start: Barrier = start) -> None:
            start.wait()
            found.append(store.make(name, PASSPHRASE).identity)  # noqa: B023

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(trio.to_thread.run_sync, make)
        assert found == [store.find(name).identity] * 2


# -- on the chain ----------------------------------------------------------------------------------------


async def test_a_merchant_lives_on_the_chain_by_its_signatures(tmp_path: Path) -> None:
    merchant = store_at(tmp_path).make("tea-house", PASSPHRASE)
    async with chain(tmp_path) as (node, client):
        assert await merchants.merchant_state(client, merchant.identity) is None  # at block 0
        state, height = await merchants.register(client, CARRIER, merchant)
        assert (height, state.key, state.servers, state.consent) == (1, merchant.key.public.compressed, [], False)
        assert await merchants.register(client, CARRIER, merchant) == (state, None)
        for is_given, number in ((True, 1), (False, 2), (True, 3)):
            state, height = await merchants.set_consent(client, CARRIER, merchant, is_given=is_given)
            assert (state.consent, state.consent_number, height is None) == (is_given, number, False)
            assert (await merchants.set_consent(client, CARRIER, merchant, is_given=is_given))[1] is None
        assert len(node.submitted) == 4


async def add(owner: Owner, merchant: Merchant) -> RecordPut:
    """Have a platform write its record of a merchant, which signs what it has looked at."""
    identity = identity_text(merchant.identity)
    draft = await owner.link.call("draft_record", DraftRecord(identity, ACQUIRING, False), Draft)
    assert commitment(draft.salt, draft.plaintext) == draft.commitment
    signature = merchant.sign_content(CHAIN_ID, draft.server, draft.version, draft.commitment, is_shareable=False)
    return await owner.link.call("put_record", PutRecord(identity, draft.commitment, signature), RecordPut)


async def test_a_merchant_works_with_a_platform_and_leaves_it(tmp_path: Path) -> None:
    merchant = store_at(tmp_path).make("tea-house", PASSPHRASE)
    async with platform_world(tmp_path, merchants=0) as world, world.platform() as owner:
        client = world.client
        await owner.begin()
        await merchants.register(client, CARRIER, merchant)
        assert await refusal(merchants.remove_record(client, CARRIER, merchant, "wallet-p")) == "unknown_record"
        assert (await add(owner, merchant)).version == 1
        state = await merchants.merchant_state(client, merchant.identity)
        assert state is not None
        assert state.servers == ["wallet-p"]
        tombstone, height = await merchants.remove_record(client, CARRIER, merchant, "wallet-p")
        assert (tombstone.version, tombstone.status, height is None) == (2, "REMOVED", False)
        assert await merchants.remove_record(client, CARRIER, merchant, "wallet-p") == (tombstone, None)
        assert (await add(owner, merchant)).version == 3
        record = await merchants.record_state(client, "wallet-p", merchant.identity)
        assert record is not None
        assert (record.version, record.status) == (3, "ACTIVE")


async def test_no_platform_outruns_a_removal_by_encrypting_anew(tmp_path: Path) -> None:
    merchant = store_at(tmp_path).make("tea-house", PASSPHRASE)
    async with platform_world(tmp_path, merchants=0) as world, world.platform() as owner:
        client, submit = world.client, world.client.submit_and_wait
        await owner.begin()
        await merchants.register(client, CARRIER, merchant)
        await add(owner, merchant)

        async def outrun(transaction: Transaction, *, timeout_ms: int = 60_000) -> Outcome:
            client.submit_and_wait = submit  # type: ignore[method-assign]
            await owner.link.call("rotate", Rotate(["bank-a"]), Rotated)
            return await submit(transaction, timeout_ms=timeout_ms)

        client.submit_and_wait = outrun  # type: ignore[method-assign]
        tombstone, _ = await merchants.remove_record(client, CARRIER, merchant, "wallet-p")
        assert (tombstone.version, tombstone.status) == (3, "REMOVED")


async def test_what_the_chain_refuses_is_said(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    merchant, other = (store.make(name, PASSPHRASE) for name in ("tea-house", "bakery"))
    async with chain(tmp_path) as (_, client):
        assert await refusal(merchants.register(client, account("user-b"), merchant)) == "not_allowed"
        assert await refusal(merchants.set_consent(client, CARRIER, merchant, is_given=True)) == "unknown_merchant"
        await merchants.register(client, CARRIER, merchant)
        thief = Merchant("thief", merchant.identity, other.key)
        assert await refusal(merchants.register(client, CARRIER, thief)) == "merchant_exists"
        assert await refusal(merchants.set_consent(client, CARRIER, thief, is_given=True)) == "bad_signature"
        second = Merchant("second", other.identity, merchant.key)
        assert await refusal(merchants.register(client, CARRIER, second)) == "key_used"


async def test_a_new_key_takes_the_old_ones_place(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    old = store.make("tea-house", PASSPHRASE)
    async with chain(tmp_path) as (_, client):
        assert await refusal(merchants.replace_key(client, CARRIER, store, "tea-house", PASSPHRASE)) == (
            "unknown_merchant"
        )
        await merchants.register(client, CARRIER, old)
        for number in (1, 2):
            state, _ = await merchants.replace_key(client, CARRIER, store, "tea-house", PASSPHRASE)
            assert (state.key_number, state.key) == (number, store.open("tea-house", PASSPHRASE).key.public.compressed)
            assert store.find("tea-house").public_key == state.key
        assert state.key != old.key.public.compressed
        assert await refusal(merchants.set_consent(client, CARRIER, old, is_given=True)) == "bad_signature"
        new = store.open("tea-house", PASSPHRASE)
        assert (await merchants.set_consent(client, CARRIER, new, is_given=True))[0].consent
        assert await merchants.register(client, CARRIER, new) == (
            await merchants.merchant_state(client, new.identity),
            None,
        )


# -- interrupted -----------------------------------------------------------------------------------------


def dying(client: Client, step: str) -> OnSigned:
    """Let a program die before its transaction is sent, or when the chain has it and nobody has heard."""

    def before(transaction: Transaction) -> None:
        raise Killed

    if step == "before":
        return before
    submit = client.submit_and_wait

    async def after(transaction: Transaction, *, timeout_ms: int = 60_000) -> Outcome:
        client.submit_and_wait = submit  # type: ignore[method-assign]
        await submit(transaction, timeout_ms=timeout_ms)
        raise Unreachable("the program died", code="outcome_unknown")

    client.submit_and_wait = after  # type: ignore[method-assign]
    return nobody_hears


@pytest.mark.parametrize("step", ["before", "after"])
async def test_an_interrupted_registration_goes_on(step: str, tmp_path: Path) -> None:
    store = store_at(tmp_path)
    made = store.make("tea-house", PASSPHRASE)
    async with chain(tmp_path) as (node, client):
        with pytest.raises((Killed, Unreachable)):
            await merchants.register(client, CARRIER, made, on_signed=dying(client, step))
        state, height = await merchants.register(client, CARRIER, store.make("tea-house", PASSPHRASE))
        assert (state.key, height) == (made.key.public.compressed, {"before": 1, "after": None}[step])
        assert state.changes == len(node.submitted) == 1


@pytest.mark.parametrize("step", ["before", "after"])
async def test_an_interrupted_change_of_key_goes_on_and_nothing_is_signed_meanwhile(step: str, tmp_path: Path) -> None:
    store = store_at(tmp_path)
    made = store.make("tea-house", PASSPHRASE)
    async with chain(tmp_path) as (node, client):
        await merchants.register(client, CARRIER, made)
        with pytest.raises((Killed, Unreachable)):
            await merchants.replace_key(client, CARRIER, store, "tea-house", PASSPHRASE, on_signed=dying(client, step))
        assert local_refusal(lambda: store.open("tea-house", PASSPHRASE)) == "key_change_open"
        state, height = await merchants.replace_key(client, CARRIER, store, "tea-house", PASSPHRASE)
        assert (state.key_number, height) == (1, {"before": 3, "after": None}[step])
        assert store.open("tea-house", PASSPHRASE).key.public.compressed == state.key != made.key.public.compressed
        assert len(node.submitted) == 2


def test_signatures_are_for_one_chain_and_one_use() -> None:
    merchant = Merchant("tea-house", bytes(16), account("merchant-m").key)
    made = {
        merchant.sign_registration(CHAIN_ID),
        merchant.sign_consent(CHAIN_ID, 1, is_given=True),
        merchant.sign_consent(CHAIN_ID, 1, is_given=False),
        merchant.sign_consent(CHAIN_ID, 2, is_given=True),
        merchant.sign_removal(CHAIN_ID, "wallet-p", 1),
        merchant.sign_removal(CHAIN_ID, "wallet-q", 1),
        merchant.sign_removal(CHAIN_ID, "wallet-p", 2),
        merchant.sign_content(CHAIN_ID, "wallet-p", 1, bytes(32), is_shareable=False),
        merchant.sign_content(CHAIN_ID, "wallet-p", 1, bytes(32), is_shareable=True),
        merchant.sign_key(CHAIN_ID, 1, merchant.key.public.compressed),
        merchant.sign_registration(type(CHAIN_ID)(bytes(32))),
    }
    assert len(made) == 11
