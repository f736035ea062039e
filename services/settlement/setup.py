"""Prepares a running network for settlement: the agent's key and account, a unit to trade, the programs' folders.

Everything is done once: what is there stays, what is missing is made, so that it may be run again after an
interruption, and after the chain was wiped. Accounts of simulated money are opened once the account system runs.
Paths and addresses come from whoever calls: a network folder is nothing that services know.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.transaction import ATOMIC, make_call
from services.accounts import opening
from services.accounts.config import AccountsFile
from services.client.client import Client
from services.client.errors import Refused
from services.client.keystore import KeyStore, Signer, read_passphrase
from services.local.files import SERVICE_FILE, ServiceFile, changed, existing, make_token, write_service
from services.local.urls import EMBEDDED, without_password
from services.messages.config import CenterFile
from services.settlement.config import DATABASE, EVENTS_SOCKET, EventsFile, PayerFile

ACCOUNTS, CENTER, EVENTS, PAYER = "settle-accounts", "settle-center", "settle-events", "settle-payer"
"""The folders of the programs."""
AGENT = "settlement-agent"
"""The name of the event system's account and key: it lifts liens and gives units back."""
BANK = "bank-a"
"""An admin of its organisation, which the agent belongs to, and a ``unit-issuer``."""
UNIT, UNITS = "BOND-1", 1_000_000
"""A unit to trade, without decimals, and how many each seller begins with."""
SELLERS = (BANK, "issuer-c", "issuer-f", "shop")
ADMIN_ROLE, ISSUER_ROLE = "admin", "unit-issuer"
RATE_PER_S = 100_000.0
"""Of the message centre; the payer's own pace is what counts."""
TOKEN_FILE = "token"
PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Plan:
    """What is set up, and where.

    Args:
        services: folder that gets a folder for each program.
        keystore: folder of encrypted keys; the agent's is made there.
        passphrase_file: opens all of them; the event system reads it at its start.
        genesis_file: the genesis document.
        nodes: RPC roots of the nodes.
        accounts_port, center_port: where account system and message centre listen on this machine.
        database: ``embedded`` or a PostgreSQL URL; None leaves what is there, else ``embedded``.
        allow_faults: the account system takes orders to misbehave; None leaves what is there, else not.
        changes: fields of the event system's file that get other values.
        may_leave_events: take another database though events are in the present one, where nobody sees them then.
    """

    services: Path
    keystore: Path
    passphrase_file: Path
    genesis_file: Path
    nodes: tuple[str, ...]
    accounts_port: int
    center_port: int
    database: str | None = None
    allow_faults: bool | None = None
    changes: tuple[tuple[str, object], ...] = ()
    may_leave_events: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """What stands after :func:`set_up`; ``done`` says what this run did, in words.

    ``events`` is the event system's socket; ``accounts_url`` the account system's root, and ``accounts_token`` the
    file of what it asks for. ``people`` are those who get an account of money.
    """

    agent: Signer
    homes: tuple[Path, ...]
    events: Path
    accounts_url: str
    accounts_token: Path
    database: str
    people: tuple[str, ...]
    done: tuple[str, ...]


class _Files(NamedTuple):
    """What is to stand in each program's folder."""

    accounts: tuple[Path, AccountsFile]
    center: tuple[Path, CenterFile]
    events: tuple[Path, EventsFile]
    payer: tuple[Path, PayerFile]


class _Account(msgspec.Struct, frozen=True):
    roles: list[str]


async def set_up(client: Client, bank: Signer, plan: Plan) -> Prepared:
    """Prepare the network so that the programs can start.

    Args:
        client: of the running network.
        bank: admin of the organisation that the agent is to belong to, with the role ``unit-issuer``.
        plan: where everything goes.

    Raises:
        LocalError: ``bad_port``, ``wrong_passphrase``, ``bad_config``, ``store_not_empty`` and others before the chain
            is touched.
        Refused: the chain's; ``unknown_method`` where its genesis knows nothing of liens.
        Unreachable: no node answers.
    """
    if not 0 < max(plan.accounts_port, plan.center_port) <= PORT_MAX:
        raise LocalError("bad_port", f"ports {plan.accounts_port} and {plan.center_port} are not all below 65536")
    files = _wanted(plan)
    await _check_roles(client, bank)
    done: list[str] = []
    agent = _key(plan, done)
    await _register(client, bank, agent, done)
    await _issue(client, bank, done)
    _write(files, done)
    home, accounts = files.accounts
    return Prepared(
        agent=agent,
        homes=tuple(home for home, _ in files),
        events=plan.services / EVENTS / files.events[1].run / EVENTS_SOCKET,
        accounts_url=f"http://{accounts.listen}",
        accounts_token=home / accounts.token,
        database=without_password(files.events[1].database),
        people=tuple(account.name for account in client.genesis.accounts),
        done=tuple(done),
    )


async def _check_roles(client: Client, bank: Signer) -> None:
    """Refuse before anything is made what the chain would refuse afterwards."""
    answer = await client.query("membership", "account", {"account": bytes(bank.address)})
    try:
        roles = msgspec.convert(answer, _Account).roles
    except msgspec.ValidationError as error:
        raise PeerError("bad_answer", f"membership.account: {error}") from None
    if missing := [role for role in (ADMIN_ROLE, ISSUER_ROLE) if role not in roles]:
        raise Refused("not_allowed", f"{bank.name} cannot set settlement up: it has not the role {missing[0]}")


def _key(plan: Plan, done: list[str]) -> Signer:
    """Open the agent's key, made when it is not there."""
    store, passphrase = KeyStore(plan.keystore), read_passphrase(plan.passphrase_file)
    try:
        return store.load(AGENT, passphrase)
    except LocalError as error:
        if error.code != "unknown_key":
            raise
    done.append(f"key {AGENT}")
    return store.create(AGENT, passphrase)


async def _register(client: Client, bank: Signer, agent: Signer, done: list[str]) -> None:
    """Register the agent's account when the chain does not know it yet."""
    try:
        await client.query("membership", "account", {"account": bytes(agent.address)})
    except Refused as error:
        if error.code != "unknown_account":
            raise
        arguments: dict[str, Value] = {"name": agent.name, "public_key": agent.key.public.compressed, "roles": []}
        (await client.call(bank, "membership", "register_account", arguments)).check()
        done.append(f"account {agent.name}")


async def _issue(client: Client, bank: Signer, done: list[str]) -> None:
    """Define the unit and issue some of it to each seller, all at once or not at all."""
    try:
        await client.query("tokens", "unit", {"unit": UNIT})
    except Refused as error:
        if error.code != "unknown_unit":
            raise
        addresses = {account.name: bytes(account.address) for account in client.genesis.accounts}
        sellers = [name for name in SELLERS if name in addresses]
        definition: dict[str, Value] = {"unit": UNIT, "description": "a bond to try settlement with"}
        issues: list[dict[str, Value]] = [{"unit": UNIT, "to": addresses[name], "amount": UNITS} for name in sellers]
        calls = [make_call("tokens", "define", definition), *(make_call("tokens", "issue", item) for item in issues)]
        (await client.call_many(bank, calls, mode=ATOMIC)).check()
        done.append(f"unit {UNIT}, {UNITS} each for {', '.join(sellers)}")


def _wanted(plan: Plan) -> _Files:
    """Return what is to stand in the four folders: what an operator wrote, but for what the plan names."""
    accounts_home, center_home, events_home, payer_home = (
        plan.services / name for name in (ACCOUNTS, CENTER, EVENTS, PAYER)
    )
    accounts = existing(accounts_home, AccountsFile) or AccountsFile(
        listen=f"127.0.0.1:{plan.accounts_port}", token=TOKEN_FILE
    )
    center = existing(center_home, CenterFile) or CenterFile(
        listen=f"127.0.0.1:{plan.center_port}", token=TOKEN_FILE, rate_per_s=RATE_PER_S
    )
    center_token = _beside(center_home, center.token, events_home)
    events = existing(events_home, EventsFile) or EventsFile(
        genesis=os.path.relpath(plan.genesis_file, events_home),
        nodes=list(plan.nodes),
        keys=os.path.relpath(plan.keystore, events_home),
        passphrase=os.path.relpath(plan.passphrase_file, events_home),
        agent=AGENT,
        center=center.listen,
        center_token=center_token,
    )
    payer = existing(payer_home, PayerFile) or PayerFile(
        events=f"../{EVENTS}/{events.run}/{EVENTS_SOCKET}",
        accounts=f"http://{accounts.listen}",
        accounts_token=_beside(accounts_home, accounts.token, payer_home),
        center=center.listen,
        center_token=center_token,
    )
    if plan.database is not None:
        accounts = changed(accounts_home, accounts, {"database": plan.database})
        before, events = events, changed(events_home, events, {"database": plan.database})
        _check_left(plan, events_home, before)
    if plan.allow_faults is not None:
        accounts = changed(accounts_home, accounts, {"allow_faults": plan.allow_faults})
    events = changed(events_home, events, dict(plan.changes))
    return _Files((accounts_home, accounts), (center_home, center), (events_home, events), (payer_home, payer))


def _check_left(plan: Plan, home: Path, events: EventsFile) -> None:
    """Refuse another database while the present one may hold what nobody would see any more."""
    was_used = events.database != EMBEDDED or (home / events.data / DATABASE).exists()
    if plan.database == events.database or not was_used or plan.may_leave_events:
        return
    held = f"events and accounts are in the present database ({without_password(events.database)}) and would stay there"
    raise LocalError("store_not_empty", f"{held} unseen: --leave-events behind, or hansa network reset first")


def _beside(home: Path, token: str, other: Path) -> str:
    return os.path.relpath(home / token, other) if token else ""


def _write(files: _Files, done: list[str]) -> None:
    """Make the folders; a file that says what is wanted stays, however an operator wrote it."""
    for home, token in ((files.accounts[0], files.accounts[1].token), (files.center[0], files.center[1].token)):
        if token:
            make_token(home / token)
    each: Sequence[tuple[Path, ServiceFile]] = files
    for home, file in each:
        if file != existing(home, type(file)):
            write_service(home, file)
            done.append(f"{home.name}/{SERVICE_FILE}")


async def open_people(prepared: Prepared) -> list[str]:
    """Open an account of simulated money for everybody; as :func:`services.accounts.opening.open_people`."""
    return await opening.open_people(prepared.accounts_url, prepared.accounts_token, prepared.people)
