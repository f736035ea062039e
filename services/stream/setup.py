"""Prepares a running network for payment streams: a unit to pay in, the folders of service party and watcher.

Everything is done once: what is there stays, what is missing is made, so that it may be run again after an
interruption, and after the chain was wiped. Paths and addresses come from whoever calls: a network folder is nothing
that services know.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError
from consensus.ledger.streams import CONTRACT
from consensus.ledger.transaction import ATOMIC, make_call
from services.client.client import Client
from services.client.errors import Refused
from services.client.keystore import Signer
from services.local.files import SERVICE_FILE, ServiceFile, changed, existing, write_service
from services.stream.config import WATCHER_SOCKET, WatcherFile
from services.stream.service_config import StreamServiceFile
from services.stream.service_interface import SERVICE_SOCKET

SERVICE_PROGRAM, WATCHER_PROGRAM = "stream-service", "stream-watcher"
"""The folders of the programs."""
PAYER, SERVICE, WATCHER = "user-b", "merchant-m", "shop"
"""Accounts that pay, supply, and watch for a service party that is offline."""
ISSUER = "bank-a"
"""A ``unit-issuer``, whose unit streams are paid in."""
UNIT, UNITS = "SIM-FEN", 1_000_000
"""Simulated money, 1/100 CNY without decimals, and how much of it each payer begins with."""
PAYERS = (PAYER, "user-e", "wallet-p")
WATCH_MS = 1_000
"""How often the watcher looks at a stream: it has few of them."""
PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Plan:
    """What is set up, and where.

    Args:
        services: folder that gets a folder for each program.
        keystore: folder of encrypted keys, those of service party and watcher among them.
        passphrase_file: opens them; the programs read it at their start.
        genesis_file: the genesis document.
        nodes: RPC roots of the nodes.
        service_port, watcher_port: where the two listen on this machine.
        changes: fields of the service party's file that get other values.
    """

    services: Path
    keystore: Path
    passphrase_file: Path
    genesis_file: Path
    nodes: tuple[str, ...]
    service_port: int
    watcher_port: int
    changes: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """What stands after :func:`set_up`; ``done`` says what that run did, in words.

    ``service`` and ``watcher`` are the owners' sockets, ``service_url`` where payers call, ``watcher_url`` where
    service parties bring their iterations.
    """

    homes: tuple[Path, Path]
    service: Path
    watcher: Path
    service_url: str
    watcher_url: str
    done: tuple[str, ...]


async def set_up(client: Client, issuer: Signer, plan: Plan) -> Prepared:
    """Prepare the network so that the programs can start.

    Args:
        client: of the running network.
        issuer: of role ``unit-issuer``.
        plan: where everything goes.

    Raises:
        LocalError: ``bad_port``, ``bad_config`` and others about files, before the chain is touched.
        Refused: the chain's; ``unknown_contract`` where its genesis knows nothing of streams.
        Unreachable: no node answers.
    """
    if not 0 < max(plan.service_port, plan.watcher_port) <= PORT_MAX:
        raise LocalError("bad_port", f"ports {plan.service_port} and {plan.watcher_port} are not all below 65536")
    service_home, watcher_home = plan.services / SERVICE_PROGRAM, plan.services / WATCHER_PROGRAM
    watcher = _watcher_file(watcher_home, plan)
    service = _service_file(service_home, plan, watcher)
    if all(activation.name != CONTRACT for activation in client.genesis.contracts):
        raise Refused("unknown_contract", f"this chain began without the contract {CONTRACT}: begin another one")
    done: list[str] = []
    await _issue(client, issuer, done)
    _write(service_home, service, done)
    _write(watcher_home, watcher, done)
    return Prepared(
        homes=(service_home, watcher_home),
        service=service_home / service.run / SERVICE_SOCKET,
        watcher=watcher_home / watcher.run / WATCHER_SOCKET,
        service_url=f"http://{service.listen}",
        watcher_url=f"http://{watcher.listen}",
        done=tuple(done),
    )


async def _issue(client: Client, issuer: Signer, done: list[str]) -> None:
    """Define the unit and issue some of it to each payer, all at once or not at all."""
    try:
        await client.query("tokens", "unit", {"unit": UNIT})
    except Refused as error:
        if error.code != "unknown_unit":
            raise
        addresses = {account.name: bytes(account.address) for account in client.genesis.accounts}
        payers = [name for name in PAYERS if name in addresses]
        definition: dict[str, Value] = {"unit": UNIT, "description": "1/100 CNY, simulated, to try streams with"}
        issues: list[dict[str, Value]] = [{"unit": UNIT, "to": addresses[name], "amount": UNITS} for name in payers]
        calls = [make_call("tokens", "define", definition), *(make_call("tokens", "issue", item) for item in issues)]
        (await client.call_many(issuer, calls, mode=ATOMIC)).check()
        done.append(f"unit {UNIT}, {UNITS} each for {', '.join(payers)}")


def _service_file(home: Path, plan: Plan, watcher: WatcherFile) -> StreamServiceFile:
    """Return what an operator wrote, else a service party that charges cars by a demo meter."""
    file = existing(home, StreamServiceFile) or StreamServiceFile(
        listen=f"127.0.0.1:{plan.service_port}",
        genesis=os.path.relpath(plan.genesis_file, home),
        nodes=list(plan.nodes),
        keys=os.path.relpath(plan.keystore, home),
        passphrase=os.path.relpath(plan.passphrase_file, home),
        account=SERVICE,
        unit=UNIT,
        watcher=f"http://{watcher.listen}",
    )
    return changed(home, file, dict(plan.changes))


def _watcher_file(home: Path, plan: Plan) -> WatcherFile:
    return existing(home, WatcherFile) or WatcherFile(
        listen=f"127.0.0.1:{plan.watcher_port}",
        genesis=os.path.relpath(plan.genesis_file, home),
        nodes=list(plan.nodes),
        keys=os.path.relpath(plan.keystore, home),
        passphrase=os.path.relpath(plan.passphrase_file, home),
        account=WATCHER,
        look_ms=WATCH_MS,
    )


def _write(home: Path, file: ServiceFile, done: list[str]) -> None:
    if file != existing(home, type(file)):
        write_service(home, file)
        done.append(f"{home.name}/{SERVICE_FILE}")
