"""Prepares a running network for agency sale: keys, parties, products, agreement, channels, terms, programs' folders.

Everything is done once: what is there stays, what is missing is made, so that it may be run again after an
interruption, and after the chain was wiped. A channel that was revoked or has expired is not opened again, and terms
that were changed are not touched. Whoever runs it holds the keys of all parties, as in a network on one machine; on
servers of their own each institution does its part by ``hansa channel`` and ``hansa agency``.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError
from consensus.ledger.transaction import Call, make_call
from services.agency import clerk
from services.agency.authority import open_call
from services.agency.config import (
    GATEWAY_SOCKET,
    AuthorityFile,
    GatewayFile,
    IssuerFile,
    SalesFile,
)
from services.agency.credentials import VALIDITY_MS, Conditions, TermsFile, new_agreement, sign_agreement, sign_terms
from services.agency.qualification import date_of
from services.client.client import Client
from services.client.keystore import KeyStore, Signer, read_passphrase
from services.client.owner import OwnerLink
from services.client.tasks import single_errors
from services.local.files import SERVICE_FILE, ServiceFile, existing, write_service

BUSINESS_SUFFIX = "-business"
"""What the name of an institution's business key ends with; it begins with the organisation's."""
AUTHORITY = "authority"
BEGUN_BEFORE_MS = 3_600_000
"""How long before now an agreement begins, since block time may be behind the clock."""
NUMBERS_MAX = 1_000
DOCUMENT = b"cooperation agreement of a network on one machine"

TRADES = ("022", "024", "026", "027", "028", "036")
INITIAL = ("020", "024")


@dataclass(frozen=True, slots=True)
class Institution:
    """A bank or an issuer: its account of the same name, its node, and how that is reached.

    ``owner`` is the node's owner socket, ``interface`` an issuer's interface id, "" for a bank, ``distributor`` a
    bank's code in fund files.
    """

    organisation: str
    node: str
    url: str
    owner: Path
    interface: str = ""
    distributor: str = ""


@dataclass(frozen=True, slots=True)
class Product:
    """A product as it begins: ``nav`` in 1/10,000 of the currency a unit, 0 for none; terms admit ``kinds``."""

    code: str
    issuer: str
    type: str
    risk: int
    nav: int
    kinds: tuple[str, ...] = TRADES
    charge_basis_points: int = 0


PRODUCTS = (
    Product("000198", "issuer-c", "money-market", 1, 10_000),
    Product("C00002", "issuer-c", "equity", 4, 15_230, charge_basis_points=120),
    Product("C00003", "issuer-c", "bond", 2, 10_000, INITIAL, charge_basis_points=60),
    Product("F00001", "issuer-f", "mixed", 3, 12_345, charge_basis_points=80),
)
DISTRIBUTORS = {"bank-a": "996"}
INTERFACES = {"issuer-c": "C-FUNDS", "issuer-f": "F-FUNDS"}
CURRENCY = "156"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is set up, and where.

    Args:
        services: folder that gets a folder for each program.
        keystore: folder of encrypted keys; business keys are made there.
        passphrase_file: opens all of them; the programs read it at their start.
        genesis_file: the genesis document.
        banks: who sells; ``issuers``: whose products.
        permission: the permission desk's account, and ``permission_url`` its node.
        products: what is offered, each by one of the issuers.
    """

    services: Path
    keystore: Path
    passphrase_file: Path
    genesis_file: Path
    banks: tuple[Institution, ...]
    issuers: tuple[Institution, ...]
    permission: str
    permission_url: str
    products: tuple[Product, ...] = PRODUCTS

    @property
    def institutions(self) -> tuple[Institution, ...]:
        """Banks and issuers."""
        return (*self.banks, *self.issuers)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What stands after :func:`set_up`; ``done`` says what this run did, in words."""

    homes: tuple[Path, ...]
    channels: tuple[str, ...]
    products: tuple[str, ...]
    done: tuple[str, ...]


async def set_up(
    client: Client, plan: Plan, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
) -> Prepared:
    """Prepare the network so that the programs can start.

    Raises:
        LocalError: ``wrong_passphrase``, ``unknown_key``, ``bad_config`` and others about files.
        Refused: the chain's; ``unknown_contract`` where its genesis knows nothing of agency sale.
        Unreachable: no node answers, or not on its owner socket.
    """
    made = _Setup(client, plan, now_ms())
    with single_errors():
        async with trio.open_nursery() as nursery:
            for institution in plan.institutions:
                nursery.start_soon(made.register, institution)
    for bank in plan.banks:
        await made.open_channels(bank)
        await made.agree_terms(bank)
    homes = _write(plan, made.done)
    channels = [f"{bank.organisation}/{issuer.organisation}" for bank in plan.banks for issuer in plan.issuers]
    codes = tuple(product.code for product in plan.products)
    return Prepared(tuple(homes), tuple(channels), codes, tuple(made.done))


class _Setup:
    """One run: keys opened once, and what it did."""

    def __init__(self, client: Client, plan: Plan, now_ms: int) -> None:
        self.done: list[str] = []
        self._client = client
        self._plan = plan
        self._now_ms = now_ms
        self._store = KeyStore(plan.keystore)
        self._passphrase = read_passphrase(plan.passphrase_file)
        names = [institution.organisation for institution in plan.institutions]
        self._accounts = {name: self._store.load(name, self._passphrase) for name in (*names, plan.permission)}
        self._business = {name: self._business_key(name) for name in names}

    def _business_key(self, organisation: str) -> Signer:
        name = f"{organisation}{BUSINESS_SUFFIX}"
        try:
            return self._store.load(name, self._passphrase)
        except LocalError as error:
            if error.code != "unknown_key":
                raise
        self.done.append(f"key {name}")
        return self._store.create(name, self._passphrase)

    async def register(self, institution: Institution) -> None:
        """Register a party with its node and keys, an issuer's interface and its products."""
        organisation = institution.organisation
        async with OwnerLink(institution.owner) as owner:
            channel_key = bytes.fromhex((await owner.status()).channel_key[2:])
        business_key = self._business[organisation].key.public.compressed
        calls: list[Call] = []
        done: list[str] = []
        party = await clerk.party(self._client, organisation)
        if party is None or (party.node, party.business_key, party.channel_key) != (
            institution.node,
            business_key,
            channel_key,
        ):
            keys: dict[str, Value] = {
                "node": institution.node,
                "business_key": business_key,
                "channel_key": channel_key,
            }
            calls.append(make_call("cooperation", "register_party", keys))
            done.append(f"party {organisation}")
        if institution.interface:
            await self._offer(institution, calls, done)
        if calls:
            (await self._client.call_many(self._accounts[organisation], calls)).check()
            self.done += done

    async def _offer(self, issuer: Institution, calls: list[Call], done: list[str]) -> None:
        """Add the calls that make an issuer's interface and products."""
        found = await clerk.interface(self._client, issuer.interface)
        if found is None or found.node != issuer.node:
            place: dict[str, Value] = {"interface": issuer.interface, "node": issuer.node}
            calls.append(make_call("cooperation", "set_interface", place))
            done.append(f"interface {issuer.interface}")
        for product in self._plan.products:
            if product.issuer != issuer.organisation:
                continue
            present = await clerk.product(self._client, product.code)
            if present is None:
                calls.append(_product_call(product, issuer.interface))
                done.append(f"product {product.code}")
            if product.nav and (present is None or not present.nav):
                value: dict[str, Value] = {"product": product.code, "date": date_of(self._now_ms), "nav": product.nav}
                calls.append(make_call("cooperation", "set_nav", value))

    async def open_channels(self, bank: Institution) -> None:
        """Agree with all issuers that the bank never had a channel with, apply, and open the channels."""
        name = bank.organisation
        issuers = [issuer.organisation for issuer in self._plan.issuers]
        missing = [issuer for issuer in issuers if await clerk.channel(self._client, name, issuer) is None]
        if not missing:
            return
        application_id = await self._applied(name, missing)
        permission = self._accounts[self._plan.permission]
        (await self._client.call_many(permission, [open_call(application_id)])).check()
        self.done += [f"channel {name}/{issuer}" for issuer in missing]

    async def _applied(self, bank: str, issuers: Sequence[str]) -> bytes:
        """Return the id of an application that waits; an interrupted run's, else a new one."""
        for count in range(1, NUMBERS_MAX):
            number = f"{bank}-{count}"
            before = await clerk.application_of(self._client, bank, number)
            if before is not None and before.status == "PENDING" and before.issuers == sorted(issuers):
                return before.application
            if before is None:
                break
        agreement = new_agreement(
            self._client.chain_id,
            number=number,
            bank=bank,
            issuers=issuers,
            document=hashlib.sha256(DOCUMENT).digest(),
            valid_from_ms=self._now_ms - BEGUN_BEFORE_MS,
            valid_until_ms=self._now_ms + VALIDITY_MS,
        )
        for party in agreement.parties:
            agreement = sign_agreement(agreement, party, self._business[party].key)
        (await self._client.call_many(self._accounts[bank], [agreement.call()])).check()
        self.done.append(f"agreement {number}")
        return agreement.id()

    async def agree_terms(self, bank: Institution) -> None:
        """Let each issuer propose terms for its products that never had any, the bank accept, the desk enact."""
        name = bank.organisation
        proposed = {item.proposal: len(item.signatures) for item in await clerk.proposals(self._client)}
        wanted: list[TermsFile] = []
        for product in self._plan.products:
            terms = TermsFile(
                bank=name,
                issuer=product.issuer,
                subject=f"product:{product.code}",
                terms=Conditions(kinds=list(product.kinds)),
            )
            if not await clerk.newest_version(self._client, name, terms.issuer, terms.subject):
                wanted.append(terms)
        if not wanted:
            return
        chain_id = self._client.chain_id
        with single_errors():
            async with trio.open_nursery() as nursery:
                for issuer in {terms.issuer for terms in wanted}:
                    key = self._business[issuer].key
                    new = [item for item in wanted if item.issuer == issuer and item.id(1) not in proposed]
                    if new:
                        calls = [terms.call(1, key, chain_id) for terms in new]
                        nursery.start_soon(self._call, self._accounts[issuer], calls)
        signed = partial(sign_terms, key=self._business[name].key, chain_id=chain_id)
        accepts = [
            make_call("cooperation", "accept_terms", {"proposal": item.id(1), "signature": signed(item.id(1))})
            for item in wanted
            if proposed.get(item.id(1), 0) < 2
        ]
        if accepts:
            await self._call(self._accounts[name], accepts)
        enacts = [make_call("cooperation", "enact_terms", {"proposal": item.id(1)}) for item in wanted]
        await self._call(self._accounts[self._plan.permission], enacts)
        self.done += [f"terms {name} {item.subject}" for item in wanted]

    async def _call(self, signer: Signer, calls: Sequence[Call]) -> None:
        (await self._client.call_many(signer, calls)).check()


def _product_call(product: Product, interface: str) -> Call:
    values: dict[str, Value] = {
        "product": product.code,
        "interface": interface,
        "product_type": product.type,
        "risk": product.risk,
        "currency": CURRENCY,
        "charge_basis_points": product.charge_basis_points,
        "is_open": True,
    }
    return make_call("cooperation", "set_product", values)


def _write(plan: Plan, done: list[str]) -> list[Path]:
    """Make the programs' folders; a file that is there stays, however an operator wrote it."""
    homes: list[Path] = []
    for home, file in _files(plan):
        homes.append(home)
        if existing(home, type(file)) is None:
            write_service(home, file)
            done.append(f"{home.name}/{SERVICE_FILE}")
    return homes


def _files(plan: Plan) -> list[tuple[Path, ServiceFile]]:
    """Return what is to stand in the programs' folders, paths relative to each."""
    home = plan.services / AUTHORITY
    shared: dict[str, Any] = {
        "genesis": os.path.relpath(plan.genesis_file, home),
        "keys": os.path.relpath(plan.keystore, home),
        "passphrase": os.path.relpath(plan.passphrase_file, home),
    }
    desk = AuthorityFile(nodes=[plan.permission_url], account=plan.permission, **shared)
    files: list[tuple[Path, ServiceFile]] = [(home, desk)]
    for institution in plan.institutions:
        name = institution.organisation
        gateway = GatewayFile(
            organisation=name,
            owner=os.path.relpath(institution.owner, home),
            nodes=[institution.url],
            account=name,
            business=f"{name}{BUSINESS_SUFFIX}",
            **shared,
        )
        socket = f"../{gateway_name(name)}/run/{GATEWAY_SOCKET}"
        files.append((plan.services / gateway_name(name), gateway))
        if institution.interface:
            end = IssuerFile(organisation=name, gateway=socket, business=gateway.business, **shared)
            files.append((plan.services / issuer_name(name), end))
        else:
            sales = SalesFile(organisation=name, gateway=socket, distributor=institution.distributor)
            files.append((plan.services / sales_name(name), sales))
    return files


def gateway_name(organisation: str) -> str:
    """Return the folder of an institution's gateway."""
    return f"{organisation}-gateway"


def sales_name(bank: str) -> str:
    """Return the folder of a bank's sales end."""
    return f"{bank}-sales"


def issuer_name(issuer: str) -> str:
    """Return the folder of an issuer's end."""
    return f"{issuer}-end"
