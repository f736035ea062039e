"""Prepares a running network for payee codes: environments beside nodes, platforms, an account system of their own.

Two halves, since keys are made by the programs themselves and never leave them. :func:`set_up` allows the measurement
of the installed code and makes the programs' folders; once they run, :func:`finish` registers each environment by what
its quote says, opens accounts of simulated money, and has each platform begin its first epoch.

Everything is done once: what is there stays, what is missing is made, so that it may be run again after an
interruption, and after the chain was wiped. Whoever runs it holds the keys of all parties, as in a network on one
machine. Paths and addresses come from whoever calls: a network folder is nothing that services know.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError
from consensus.ledger.payees import CONTRACT, HEAD_AGE_MS_MAX, Quote, platform_key
from services.accounts import opening
from services.accounts.config import AccountsFile
from services.client.client import Client
from services.client.errors import Refused
from services.client.keystore import KeyStore, Signer, read_passphrase
from services.client.tasks import single_errors
from services.local.files import SERVICE_FILE, ServiceFile, existing, make_token, replace_file, write_service
from services.local.link import LocalLink
from services.payee.enclave_config import EnclaveFile, keys_measurement, put_keys_aside
from services.payee.enclave_link import ask_quote
from services.payee.interfaces import NoParams, PlatformStatus, Rotate, Rotated, Trust
from services.payee.measurement import measure
from services.payee.platform_config import PLATFORM_SOCKET, PlatformFile

ACCOUNTS = "payee-accounts"
"""The folder of the account system; the platforms share it."""
PLATFORMS = ("wallet-p", "wallet-q")
"""Platforms by their organisations, whose accounts of the same name have the role ``wallet``."""
ORGANISATIONS = ("bank-a", "issuer-c")
"""Who has an environment beside its node; its account of the same name is its admin."""
PERMISSION = "permission"
"""The account that says which measurements are allowed."""
ENVIRONMENT_FILE = "environment.toml"
"""In a node's home: which environment it asks."""
TOKEN_FILE = "token"
NOTE = "code of the network on this machine, emulated"
ACTIVE = "ACTIVE"
OTHER_KEY = "other_key"
PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Host:
    """A node that gets an environment beside it.

    Args:
        organisation: the node's, and the environment's name.
        node_home: gets ``environment.toml``.
        user: number of the user that the environment runs as, None for the one that starts it.
    """

    organisation: str
    node_home: Path
    user: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is set up, and where.

    Args:
        services: folder that gets a folder for each program.
        keystore: folder of encrypted keys, those of all accounts named here among them.
        passphrase_file: opens all of them; platforms read it at their start.
        genesis_file: the genesis document.
        nodes: RPC roots of the nodes.
        accounts_port: where the account system listens on this machine.
        platform_ports: where each platform listens for payers.
        hosts: nodes that get an environment.
        database: of the account system, ``embedded`` or a PostgreSQL URL.
    """

    services: Path
    keystore: Path
    passphrase_file: Path
    genesis_file: Path
    nodes: tuple[str, ...]
    accounts_port: int
    platform_ports: Mapping[str, int]
    hosts: tuple[Host, ...]
    database: str = "embedded"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What stands after :func:`set_up`; ``done`` says what that run did, in words.

    ``environments`` and ``platforms`` are sockets by name, ``payers_urls`` where each platform takes payments;
    ``people`` are those who get an account of money.
    """

    plan: Plan
    homes: tuple[Path, ...]
    environments: Mapping[str, Path]
    platforms: Mapping[str, Path]
    payers_urls: Mapping[str, str]
    accounts_url: str
    accounts_token: Path
    measurement: bytes
    people: tuple[str, ...]
    done: tuple[str, ...]


class _Listed(msgspec.Struct, frozen=True):
    measurement: bytes


class _Wrapped(msgspec.Struct, frozen=True):
    environment: str


class _Environment(msgspec.Struct, frozen=True, rename="camel"):
    exchange_key: bytes
    signing_key: bytes
    measurement: bytes
    status: str


async def set_up(client: Client, plan: Plan) -> Prepared:
    """Prepare the network so that the programs can start.

    Raises:
        LocalError: ``bad_port``, ``no_environment``, ``wrong_passphrase``, ``bad_config`` and others about files.
        Refused: the chain's; ``unknown_contract`` where its genesis knows nothing of payees.
        Unreachable: no node answers.
    """
    if not all(0 < port <= PORT_MAX for port in (plan.accounts_port, *plan.platform_ports.values())):
        raise LocalError("bad_port", "the ports of account system and platforms are not all below 65536")
    if not plan.hosts:
        raise LocalError("no_environment", f"none of {', '.join(ORGANISATIONS)} has a node here to put one beside")
    done: list[str] = []
    permission = _signers(plan, [PERMISSION])[PERMISSION]
    measurement = measure()
    await _allow(client, permission, measurement, done)
    accounts, environments, platforms = _files(plan)
    for home, environment in environments.items():
        if _gives_way(home, environment, measurement):
            done.append(f"{home.name}: keys that other code has sealed put aside")
    _write(plan, accounts, [*environments.items(), *platforms.items()], done)
    home, file = accounts
    return Prepared(
        plan=plan,
        homes=(home, *environments, *platforms),
        environments={item.name: home / item.socket for home, item in environments.items()},
        platforms={item.server: home / item.run / PLATFORM_SOCKET for home, item in platforms.items()},
        payers_urls={item.server: f"http://{item.listen}" for item in platforms.values()},
        accounts_url=f"http://{file.listen}",
        accounts_token=home / file.token,
        measurement=measurement,
        people=tuple(account.name for account in client.genesis.accounts),
        done=tuple(done),
    )


async def finish(client: Client, prepared: Prepared) -> list[str]:
    """Register environments, open accounts and begin epochs, once the programs run; return what was done, in words.

    Raises:
        LocalError: ``wrong_measurement`` where an environment runs other code than is installed here, ``other_key``
            where a platform has lost its vault.
        Refused: the chain's; ``key_used`` where an environment was withdrawn and has no new keys.
        Unreachable: a program or every node is away.
    """
    done = await opening.open_people(prepared.accounts_url, prepared.accounts_token, prepared.people)
    done += await register(client, prepared)
    for server in list(prepared.platforms)[:1]:
        await wake(client, prepared.plan, server, now_ms=time.time_ns() // 1_000_000)
    names = sorted(prepared.environments)
    with single_errors():
        async with trio.open_nursery() as nursery:
            for server, socket in prepared.platforms.items():
                nursery.start_soon(begin, client, server, socket, names, done)
    return done


async def register(client: Client, prepared: Prepared) -> list[str]:
    """Register the environments, which run; return what was done, in words. Errors as :func:`finish`."""
    done: list[str] = []
    signers = _signers(prepared.plan, list(prepared.environments))
    with single_errors():
        async with trio.open_nursery() as nursery:
            for name, socket in prepared.environments.items():
                nursery.start_soon(_register, client, signers[name], name, socket, prepared.measurement, done)
    return done


async def wake(client: Client, plan: Plan, server: str, *, now_ms: int) -> None:
    """Have a chain that stood still make a block, so that nobody has to wait for its heartbeat.

    States of an old head are taken for the present by nobody. A platform names the key again that it has, which
    changes nothing.

    Args:
        client: of the running network.
        plan: where the platform's account has its key.
        server: the platform.
        now_ms: the clock, UTC.
    """
    found = await client.state(platform_key(server))
    is_new = now_ms - found.verified.header.time_ms < HEAD_AGE_MS_MAX // 2
    if is_new or not isinstance(found.value, dict):
        return
    signer = _signers(plan, [server])[server]
    outcome = (await client.call(signer, CONTRACT, "register_platform", {"key": found.value["key"]})).check()
    await client.state(platform_key(server), height_min=outcome.height)


# -- the chain -------------------------------------------------------------------------------------------


def _signers(plan: Plan, names: Sequence[str]) -> dict[str, Signer]:
    store, passphrase = KeyStore(plan.keystore), read_passphrase(plan.passphrase_file)
    return {name: store.load(name, passphrase) for name in names}


async def _allow(client: Client, permission: Signer, measurement: bytes, done: list[str]) -> None:
    """Put the measurement on the allow-list, unless it was ever there: what was disallowed stays so."""
    try:
        found = await client.query(CONTRACT, "allowed", {"start": measurement.hex(), "limit": 1})
    except Refused as error:
        if error.code != "unknown_contract":
            raise
        raise Refused(error.code, f"this chain began without the contract {CONTRACT}: begin another one") from None
    if [item.measurement for item in msgspec.convert(found, list[_Listed])] == [measurement]:
        return
    arguments: dict[str, Value] = {"measurement": measurement, "note": NOTE}
    (await client.call(permission, CONTRACT, "allow_measurement", arguments)).check()
    done.append(f"measurement {measurement.hex()[:16]}… allowed")


async def _register(
    client: Client, admin: Signer, name: str, socket: Path, measurement: bytes, done: list[str]
) -> None:
    """Register an environment as its quote says, unless it is; one of other code or keys gives way to it."""
    quote = (await ask_quote(socket, client.chain_id)).quote
    if quote.measurement != measurement:
        why = f"environment {name} runs other code than is installed"
        raise LocalError("wrong_measurement", f"{why}: end its program, and set up again")
    found = await _environment(client, name)
    if found is not None and found.status == ACTIVE:
        if (found.exchange_key, found.signing_key, found.measurement) == _keys(quote):
            return
        (await client.call(admin, CONTRACT, "withdraw_environment", {"name": name})).check()
        done.append(f"environment {name}, whose code or keys are others now, withdrawn")
    arguments: dict[str, Value] = {
        "name": name,
        "exchange_key": quote.exchange_key,
        "signing_key": quote.signing_key,
        "measurement": quote.measurement,
    }
    (await client.call(admin, CONTRACT, "register_environment", arguments)).check()
    done.append(f"environment {name} registered")


def _gives_way(home: Path, file: EnclaveFile, measurement: bytes) -> bool:
    """Put an environment's keys aside where other code has sealed them, unless that code still runs."""
    try:
        return keys_measurement(home, file) not in (None, measurement) and put_keys_aside(home, file)
    except LocalError as error:
        if error.code != "already_running":
            raise
        return False


def _keys(quote: Quote) -> tuple[bytes, bytes, bytes]:
    return quote.exchange_key, quote.signing_key, quote.measurement


async def _environment(client: Client, name: str) -> _Environment | None:
    try:
        found = await client.query(CONTRACT, "environment", {"name": name})
    except Refused as error:
        if error.code != "unknown_environment":
            raise
        return None
    return msgspec.convert(found, _Environment)


async def begin(client: Client, server: str, socket: Path, environments: list[str], done: list[str]) -> None:
    """Have a platform begin its first epoch, or give the epoch's key to environments that have new keys since.

    Whom a platform has left out of its epoch it does not trust, which is not for set-up to change.
    """
    async with LocalLink(socket) as link:
        status = await link.call("status", NoParams(), PlatformStatus)
        if status.trouble == OTHER_KEY:
            way = f"hansa payee platform register --replace --platform {server}, and set up again"
            raise LocalError(OTHER_KEY, f"the chain has another key of {server} than its vault, which is new: {way}")
        if not status.epoch:
            await link.call("rotate", Rotate(environments), Rotated)
            done.append(f"platform {server}: epoch 1 for {', '.join(environments)}")
            return
        found = await client.query(CONTRACT, "wraps", {"server": server, "epoch": status.epoch})
        given = [wrapped.environment for wrapped in msgspec.convert(found, list[_Wrapped])]
        missing = [name for name in environments if name in given and name not in status.environments]
        if missing:
            await link.call("trust", Trust(missing), PlatformStatus)
            done.append(f"platform {server}: epoch {status.epoch} for {', '.join(missing)} too")


# -- folders ---------------------------------------------------------------------------------------------


def _files(plan: Plan) -> tuple[tuple[Path, AccountsFile], dict[Path, EnclaveFile], dict[Path, PlatformFile]]:
    """Return what is to stand in each program's folder: what an operator wrote, else what the plan says."""
    home = plan.services / ACCOUNTS
    accounts = existing(home, AccountsFile) or AccountsFile(
        listen=f"127.0.0.1:{plan.accounts_port}", token=TOKEN_FILE, database=plan.database
    )
    environments: dict[Path, EnclaveFile] = {}
    for host in plan.hosts:
        place = plan.services / f"{host.organisation}-enclave"
        environments[place] = existing(place, EnclaveFile) or EnclaveFile(
            name=host.organisation,
            genesis=os.path.relpath(plan.genesis_file, place),
            user="" if host.user is None else str(host.user),
        )
    platforms: dict[Path, PlatformFile] = {}
    for server, port in plan.platform_ports.items():
        place = plan.services / server
        platforms[place] = existing(place, PlatformFile) or PlatformFile(
            server=server,
            listen=f"127.0.0.1:{port}",
            token=TOKEN_FILE,
            accounts=f"http://{accounts.listen}",
            accounts_token=os.path.relpath(home / accounts.token, place) if accounts.token else "",
            genesis=os.path.relpath(plan.genesis_file, place),
            nodes=list(plan.nodes),
            keys=os.path.relpath(plan.keystore, place),
            passphrase=os.path.relpath(plan.passphrase_file, place),
            account=server,
        )
    return (home, accounts), environments, platforms


def _write(
    plan: Plan,
    accounts: tuple[Path, AccountsFile],
    programs: Sequence[tuple[Path, EnclaveFile | PlatformFile]],
    done: list[str],
) -> None:
    """Make the folders, and tell each node which environment it asks; a file that is there stays."""
    each: list[tuple[Path, ServiceFile]] = [accounts, *programs]
    for home, file in each:
        if existing(home, type(file)) is None:
            write_service(home, file)
            done.append(f"{home.name}/{SERVICE_FILE}")
        if isinstance(file, AccountsFile | PlatformFile) and file.token:
            make_token(home / file.token)
    environments = {file.name: (home, file) for home, file in programs if isinstance(file, EnclaveFile)}
    for host in plan.hosts:
        path = host.node_home / ENVIRONMENT_FILE
        if not path.exists():
            replace_file(path, _environment_text(host.node_home, *environments[host.organisation]).encode())
            done.append(f"{host.node_home.name}/{ENVIRONMENT_FILE}")


def _environment_text(node_home: Path, home: Path, file: EnclaveFile) -> str:
    """Return what a node is told of its environment; paths are taken from the node's home."""
    lines = [
        f"name = {json.dumps(file.name)}",
        f"socket = {json.dumps(os.path.relpath(home / file.socket, node_home))}",
    ]
    if file.user:
        lines.append(f"user = {file.user}")
    return "\n".join(lines) + "\n"
