"""Prepares a running network for rights: keys, an account, what is appointed on the chain, the programs' folders.

Everything is done once: what is there stays, what is missing is made, so that it may be run again after an
interruption, and after the chain was wiped. Paths and addresses come from whoever calls: a network folder is nothing
that services know.
"""

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError, PeerError
from services.client.client import Client
from services.client.errors import Refused, Unreachable
from services.client.keystore import KeyStore, Signer, read_passphrase
from services.local.files import (
    SERVICE_FILE,
    ServiceFile,
    changed,
    existing,
    replace_file,
    write_service,
)
from services.messages.config import CenterFile, read_token
from services.messages.embedded import DATABASE, EmbeddedStore
from services.messages.link import open_link
from services.messages.logs import READY_FILE
from services.messages.program import EMBEDDED
from services.rights.config import BusinessFile, ServerFile

CENTER, BUSINESS, SERVER = "rights-center", "rights-business", "rights-server"
"""The folders of the three programs."""
RATE_PER_S = 500.0
"""How many events a second the rights server gets, unless somebody says otherwise."""
LANES = 4
"""How many transactions the rights server has under way where orders need not wait for each other."""
TOKEN_BYTES = 32
TOKEN_FILE = "token"
EVENT_KEY_SUFFIX = "-events"
RIGHTS_SERVER = "rights-server"
"""The name of the rights server's account and key."""
ADMIN_ROLE, SERVER_ROLE = "admin", "business-server"
EVENT_KEYS_MAX, RIGHTS_SERVERS_MAX = 4, 16
PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Plan:
    """What is set up, and where.

    Args:
        services: folder that gets a folder for each program.
        keystore: folder of encrypted keys; the event key and the rights server's are made there.
        passphrase_file: opens all of them; the programs read it at their start.
        genesis_file: the genesis document.
        nodes: RPC roots of the nodes.
        business_port: where the business server listens for HTTP on this machine.
        center_port: where the message centre listens on this machine.
        rate_per_s: deliveries per second; None leaves what is there, else :data:`RATE_PER_S`.
        store: ``embedded`` or ``redis://…``; None leaves what is there, else ``embedded``.
        is_strict: one global order instead of lanes; None leaves what is there, else lanes.
        may_leave_messages: take another store though messages are in the present one, where nobody sees them then.
    """

    services: Path
    keystore: Path
    passphrase_file: Path
    genesis_file: Path
    nodes: tuple[str, ...]
    business_port: int
    center_port: int
    rate_per_s: float | None = None
    store: str | None = None
    is_strict: bool | None = None
    may_leave_messages: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """What stands after :func:`set_up`; ``done`` says what this run did, in words."""

    event_key: str
    rights_server: Signer
    homes: tuple[Path, ...]
    business_url: str
    center: str
    done: tuple[str, ...]


class _Files(NamedTuple):
    """What is to stand in each program's folder."""

    center: tuple[Path, CenterFile]
    business: tuple[Path, BusinessFile]
    server: tuple[Path, ServerFile]


class _Account(msgspec.Struct, frozen=True):
    roles: list[str]


class _Appointed(msgspec.Struct, frozen=True, rename="camel"):
    event_keys: list[bytes]
    rights_servers: list[bytes]


async def set_up(client: Client, business: Signer, plan: Plan) -> Prepared:
    """Prepare the network so that the three programs can start.

    Args:
        client: of the running network.
        business: the business server's account; an admin of its organisation, so that it can register the rights
            server's, and with the role ``business-server``.
        plan: where everything goes.

    Raises:
        LocalError: ``bad_port``, ``wrong_passphrase``, ``bad_config``, ``store_not_empty`` and others before the chain
            is touched;
            ``too_many_keys`` where the chain has as many of another hand as there may be.
        Refused: the chain's, ``not_allowed`` where the account may not do this.
        Unreachable: no node answers.
    """
    if not 0 < max(plan.business_port, plan.center_port) <= PORT_MAX:
        raise LocalError("bad_port", f"ports {plan.business_port} and {plan.center_port} are not all below 65536")
    files = _wanted(plan, business)
    if not plan.may_leave_messages:
        await _check_store(*files.center)
    await _check_account(client, business)
    passphrase = read_passphrase(plan.passphrase_file)
    done: list[str] = []
    event_signer = _key(plan.keystore, f"{business.name}{EVENT_KEY_SUFFIX}", passphrase, done)
    rights_server = _key(plan.keystore, RIGHTS_SERVER, passphrase, done)
    await _register(client, business, rights_server, done)
    await _appoint(client, business, event_signer, rights_server, done)
    _write(files, done)
    center, served = files.center[1], files.business[1]
    homes = tuple(home for home, _ in files)
    return Prepared(event_signer.name, rights_server, homes, f"http://{served.listen}", center.listen, tuple(done))


async def _check_store(home: Path, wanted: CenterFile) -> None:
    """Refuse another store while the present one holds what nobody would see any more."""
    present = existing(home, CenterFile)
    if present is None or present.store == wanted.store:
        return
    waiting, dead = await _counts(home, present)
    if waiting or dead:
        held = f"the present store holds what would stay there unseen (waiting: {waiting}, dead letters: {dead})"
        way = "let them be applied, replay or discard the dead letters, or --leave-messages behind"
        raise LocalError("store_not_empty", f"{held}: {way}")


async def _counts(home: Path, file: CenterFile) -> tuple[int, int]:
    """Return how many messages wait and how many dead letters there are, as the centre says or its own store."""
    if (home / file.run / READY_FILE).exists():
        try:
            async with open_link(file.listen, token=read_token(home, "token", file.token), name="setup") as link:
                stats = await link.stats()
            return stats.waiting, stats.dead
        except Unreachable:
            pass  # it was killed, and left the file
    if file.store != EMBEDDED:
        way = "start the message centre, or --leave-messages behind"
        raise LocalError(
            "store_not_empty", f"what the present store holds is not known while its centre is away: {way}"
        )
    if not (home / file.data / DATABASE).exists():
        return 0, 0
    store = EmbeddedStore((home / file.data).resolve())
    try:
        await store.open()
        counts = await store.counts()
    finally:
        await store.close()
    return counts.waiting, counts.dead


async def _check_account(client: Client, business: Signer) -> None:
    """Refuse before anything is made what the chain would refuse afterwards."""
    answer = await client.query("membership", "account", {"account": bytes(business.address)})
    try:
        roles = msgspec.convert(answer, _Account).roles
    except msgspec.ValidationError as error:
        raise PeerError("bad_answer", f"membership.account: {error}") from None
    if missing := [role for role in (ADMIN_ROLE, SERVER_ROLE) if role not in roles]:
        raise Refused("not_allowed", f"{business.name} is no business server: it has not the role {missing[0]}")


def _key(folder: Path, name: str, passphrase: bytes, done: list[str]) -> Signer:
    """Open a key, made when it is not there."""
    store = KeyStore(folder)
    try:
        return store.load(name, passphrase)
    except LocalError as error:
        if error.code != "unknown_key":
            raise
    done.append(f"key {name}")
    return store.create(name, passphrase)


async def _register(client: Client, admin: Signer, signer: Signer, done: list[str]) -> None:
    """Register an account that the chain does not know yet."""
    try:
        await client.query("membership", "account", {"account": bytes(signer.address)})
    except Refused as error:
        if error.code != "unknown_account":
            raise
        arguments: dict[str, Value] = {"name": signer.name, "public_key": signer.key.public.compressed, "roles": []}
        (await client.call(admin, "membership", "register_account", arguments)).check()
        done.append(f"account {signer.name}")


async def _appoint(client: Client, business: Signer, events: Signer, server: Signer, done: list[str]) -> None:
    """Appoint the event key and the rights server beside those that are appointed."""
    before = await _appointed(client, business)
    keys = _with(before.event_keys, events.key.public.compressed)
    servers = _with(before.rights_servers, bytes(server.address))
    if keys == before.event_keys and servers == before.rights_servers:
        return
    if len(keys) > EVENT_KEYS_MAX or len(servers) > RIGHTS_SERVERS_MAX:
        way = "hansa tx call rights appoint names those that are to stay"
        raise LocalError("too_many_keys", f"{business.name} has appointed as many as there may be: {way}")
    arguments: dict[str, Value] = {"event_keys": [*keys], "rights_servers": [*servers]}
    (await client.call(business, "rights", "appoint", arguments)).check()
    done.append(f"{events.name} and {server.name} are appointed")


async def _appointed(client: Client, business: Signer) -> _Appointed:
    try:
        answer = await client.query("rights", "appointed", {"server": bytes(business.address)})
        return msgspec.convert(answer, _Appointed)
    except Refused as error:
        if error.code != "not_appointed":
            raise
        return _Appointed([], [])
    except msgspec.ValidationError as error:
        raise PeerError("bad_answer", f"rights.appointed: {error}") from None


def _with(items: Sequence[bytes], item: bytes) -> list[bytes]:
    return [*items] if item in items else [*items, item]


def _wanted(plan: Plan, business: Signer) -> _Files:
    """Return what is to stand in the three folders: what an operator wrote, but for what the plan names."""
    center_home, business_home, server_home = (plan.services / name for name in (CENTER, BUSINESS, SERVER))
    center = existing(center_home, CenterFile) or CenterFile(
        listen=f"127.0.0.1:{plan.center_port}", token=TOKEN_FILE, rate_per_s=RATE_PER_S
    )
    was_strict = center.strict
    wishes = {"rate_per_s": plan.rate_per_s, "store": plan.store, "strict": plan.is_strict}
    center = changed(center_home, center, {name: value for name, value in wishes.items() if value is not None})
    shared: dict[str, object] = {
        "center": center.listen,
        "center_token": os.path.relpath(center_home / center.token, business_home) if center.token else "",
        "genesis": os.path.relpath(plan.genesis_file, business_home),
        "nodes": list(plan.nodes),
        "keys": os.path.relpath(plan.keystore, business_home),
        "passphrase": os.path.relpath(plan.passphrase_file, business_home),
    }
    served = {
        "listen": f"127.0.0.1:{plan.business_port}",
        "server": f"0x{business.address.hex()}",
        "event_key": f"{business.name}{EVENT_KEY_SUFFIX}",
    }
    relay = {"name": SERVER, "account": RIGHTS_SERVER}
    server = existing(server_home, ServerFile) or msgspec.convert(shared | relay, ServerFile)
    if center.strict != was_strict:
        # Several transactions under way could overtake each other.
        server = changed(server_home, server, {"lanes": 1 if center.strict else LANES})
    asked = existing(business_home, BusinessFile) or msgspec.convert(shared | served, BusinessFile)
    return _Files((center_home, center), (business_home, asked), (server_home, server))


def _write(files: _Files, done: list[str]) -> None:
    """Make the three folders; a file that says what is wanted stays, however an operator wrote it."""
    home, center = files.center
    if center.token and not (token := home / center.token).exists():
        token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(token, secrets.token_urlsafe(TOKEN_BYTES).encode() + b"\n")
    each: tuple[tuple[Path, ServiceFile], ...] = files
    for home, file in each:
        if file != existing(home, type(file)):
            write_service(home, file)
            done.append(f"{home.name}/{SERVICE_FILE}")
