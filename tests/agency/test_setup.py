"""Setting up agency sale, on a real chain: done once, continued after an interruption, minding what people changed."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio

from consensus.ledger.transaction import Call, make_call
from services.agency import clerk
from services.agency.config import (
    AuthorityFile,
    GatewayFile,
    IssuerFile,
    SalesFile,
    authority_settings,
    gateway_settings,
    issuer_settings,
    sales_settings,
)
from services.agency.credentials import Conditions, made_terms
from services.agency.setup import PRODUCTS, Institution, Plan, Prepared, set_up
from services.client.client import Client
from services.client.errors import Refused, Unreachable
from services.client.keystore import KeyStore, Signer
from services.client.outcome import Outcome
from services.local.files import read_service, replace_file, write_service
from services.local.service import serve as serve_local
from tests.agency.world import (
    BANK,
    CONSORTIUM,
    ISSUER,
    NODES,
    NOW_MS,
    OTHER,
    SoloNode,
    Wire,
    client_of,
    running,
    signer,
)

PASSPHRASE = b"correct horse"
NAMES = (BANK, ISSUER, OTHER)


class Impatient(Client):
    """A client whose transactions' outcomes are not heard of from the one numbered ``deaf_from`` on."""

    sent = 0
    deaf_from = 10**6

    async def call_many(self, signer: Signer, calls: Sequence[Call], **options: object) -> Outcome:
        outcome = await super().call_many(signer, calls, **options)  # type: ignore[arg-type]
        self.sent += 1
        if self.sent >= self.deaf_from:
            raise Unreachable("as the test wants", code="outcome_unknown")
        return outcome


@asynccontextmanager
async def chain(folder: Path) -> AsyncIterator[Impatient]:
    """Give a client of a new chain, and owner sockets of all nodes beside ``folder``."""
    node = SoloNode(folder / "chain", CONSORTIUM)
    wire, stopping = Wire(), trio.Event()
    async with running(node), trio.open_nursery() as nursery, client_of(node) as client:
        for name in NAMES:
            await nursery.start(serve_local, folder / name / "owner.sock", wire.service(name), stopping)
        client.__class__ = Impatient
        yield client  # type: ignore[misc]
        stopping.set()


def plan_for(folder: Path, owners: Path) -> Plan:
    store = KeyStore(folder / "identities")
    for name in (*NAMES, "keeper"):
        if not (store.folder / f"{name}.pem").exists():
            store.create(name, PASSPHRASE, CONSORTIUM.account_keys[name])
    if not (folder / "passphrase").exists():
        replace_file(folder / "passphrase", PASSPHRASE)
        replace_file(folder / "genesis.json", CONSORTIUM.genesis.to_json())
    interfaces = {BANK: "", ISSUER: "C-FUNDS", OTHER: "F-FUNDS"}
    parties = {
        name: Institution(name, NODES[name], "http://127.0.0.1:1", owners / name / "owner.sock", interfaces[name])
        for name in NAMES
    }
    return Plan(
        services=folder / "services",
        keystore=folder / "identities",
        passphrase_file=folder / "passphrase",
        genesis_file=folder / "genesis.json",
        banks=(replace(parties[BANK], distributor="996"),),
        issuers=(parties[ISSUER], parties[OTHER]),
        permission="keeper",
        permission_url="http://127.0.0.1:1",
    )


async def prepared(client: Client, folder: Path, owners: Path) -> Prepared:
    return await set_up(client, plan_for(folder, owners), now_ms=lambda: NOW_MS)


async def check_whole(client: Client) -> None:
    """All parties, channels, products and terms are there, once."""
    assert [(item.bank, item.issuer, item.epoch) for item in await clerk.channels(client)] == [
        (BANK, ISSUER, 1),
        (BANK, OTHER, 1),
    ]
    assert [item.status for item in await clerk.applications(client)] == ["OPENED"]
    assert await clerk.proposals(client) == []
    products = {item.product: item for item in await clerk.products(client)}
    assert {code: (item.issuer, item.nav, item.risk) for code, item in products.items()} == {
        item.code: (item.issuer, item.nav, item.risk) for item in PRODUCTS
    }
    for code in products:
        terms = await clerk.terms_in_force(client, BANK, code)
        assert terms is not None
        assert terms.version == 1


async def test_all_is_made_once_and_the_programs_can_read_it(tmp_path: Path) -> None:
    async with chain(tmp_path) as client:
        first = await prepared(client, tmp_path, tmp_path)
        await check_whole(client)
        assert (await prepared(client, tmp_path, tmp_path)).done == ()
    homes = {home.name: home for home in first.homes}
    assert list(homes) == [
        *("authority", "bank-a-gateway", "bank-a-sales"),
        *("issuer-c-gateway", "issuer-c-end", "issuer-f-gateway", "issuer-f-end"),
    ]
    gateway = gateway_settings(homes["bank-a-gateway"], read_service(homes["bank-a-gateway"], GatewayFile))
    assert (gateway.organisation, gateway.owner) == (BANK, (tmp_path / BANK / "owner.sock").resolve())
    sales = sales_settings(homes["bank-a-sales"], read_service(homes["bank-a-sales"], SalesFile))
    assert (sales.gateway, sales.distributor) == (gateway.socket, "996")
    end = issuer_settings(homes["issuer-c-end"], read_service(homes["issuer-c-end"], IssuerFile))
    assert end.business.name == "issuer-c-business"
    desk = authority_settings(homes["authority"], read_service(homes["authority"], AuthorityFile))
    assert (desk.account.name, desk.is_manual) == ("keeper", False)


@pytest.mark.parametrize("count", [1, 4, 5, 6, 8, 9])
async def test_it_goes_on_where_it_was_interrupted(tmp_path: Path, count: int) -> None:
    async with chain(tmp_path) as client:
        client.deaf_from = count
        with pytest.raises(Unreachable):
            await prepared(client, tmp_path, tmp_path)
        client.deaf_from = 10**6
        await prepared(client, tmp_path, tmp_path)
        await check_whole(client)
        assert (await prepared(client, tmp_path, tmp_path)).done == ()


async def test_a_wiped_chain_gets_all_again_and_files_stay(tmp_path: Path) -> None:
    async with chain(tmp_path / "one") as client:
        await prepared(client, tmp_path, tmp_path / "one")
    home = tmp_path / "services" / "issuer-c-gateway"
    file = msgspec.structs.replace(read_service(home, GatewayFile), anchor_after_ms=1)
    write_service(home, file)
    async with chain(tmp_path / "two") as client:
        done = (await prepared(client, tmp_path, tmp_path / "two")).done
        await check_whole(client)
    assert not any(line.startswith("key ") or line.endswith("service.toml") for line in done)
    assert read_service(home, GatewayFile) == file


async def test_what_people_changed_is_respected(tmp_path: Path) -> None:
    async with chain(tmp_path) as client:
        await prepared(client, tmp_path, tmp_path)
        revoke = make_call("cooperation", "revoke_channel", {"bank": BANK, "issuer": OTHER, "reason": ""})
        (await client.call_many(signer(BANK), [revoke])).check()
        close = {"product": "000198", "interface": "C-FUNDS", "product_type": "bond", "risk": 2, "currency": "156"}
        call = make_call("cooperation", "set_product", {**close, "charge_basis_points": 1, "is_open": False})
        (await client.call_many(signer(ISSUER), [call])).check()
        assert (await prepared(client, tmp_path, tmp_path)).done == ()
        channel, product = await clerk.channel(client, BANK, OTHER), await clerk.product(client, "000198")
        assert channel is not None
        assert product is not None
        assert (channel.status, product.is_open) == ("REVOKED", False)


async def test_terms_are_signed_for_what_they_say_alone(tmp_path: Path) -> None:
    """Who accepts signs the hash of the terms that he was shown, whatever a node calls them."""
    async with chain(tmp_path) as client:
        await prepared(client, tmp_path, tmp_path)
        store = KeyStore(tmp_path / "identities")
        key = store.load("issuer-c-business", PASSPHRASE).key
        terms = made_terms(bank=BANK, issuer=ISSUER, subject="product:000198", terms=Conditions(kinds=["022"]))
        version = await clerk.newest_version(client, BANK, ISSUER, terms.subject) + 1
        (await client.call_many(signer(ISSUER), [terms.call(version, key, client.chain_id)])).check()
        found = await clerk.proposal(client, terms.id(version))
        own = store.load("bank-a-business", PASSPHRASE).key
        told = msgspec.structs.replace(found, terms=found.terms | {"ageMin": 0})
        with pytest.raises(Exception, match="other terms") as caught:
            clerk.accept_call(told, own, client.chain_id)
        assert getattr(caught.value, "code", "") == "bad_answer"
        (await client.call_many(signer(BANK), [clerk.accept_call(found, own, client.chain_id)])).check()
        with pytest.raises(Refused) as missing:
            await clerk.proposal(client, bytes(32))
        assert missing.value.code == "unknown_proposal"
