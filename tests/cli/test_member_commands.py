"""``hansa member`` on real processes: in, another key and certificate, out; interrupted anywhere; between machines."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from cli.membership import ClientChain, open_local_chain
from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError
from node.config import load_config
from node.network import joining, local
from node.network.homes import RPC_PORT_STEP, LocalNetwork, NodeHome, load_network
from node.network.keys import load_vote_key
from node.network.members import ChainStatus
from node.network.trial import free_port_base
from tests.cli.support import answer, fault, hansa

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    folder = str(tmp_path / "net")
    answer(hansa("network", "init", folder, "--port-base", str(free_port_base(4)), "--json"))
    yield folder
    answer(hansa("network", "down", folder, "--json"))


CALLS_MAX = 10


class Interrupted(Exception):
    """Stands for Ctrl-C."""


class OneCall:
    """A chain that lets one call through, and interrupts whoever made it as soon as it is final."""

    def __init__(self, chain: ClientChain) -> None:
        self.chain_id = chain.chain_id
        self.chain = chain

    async def call(self, admin: str, method: str, arguments: dict[str, Value]) -> Any:
        await self.chain.call(admin, method, arguments)
        raise Interrupted(f"{admin} {method}")

    async def query(self, method: str, arguments: dict[str, Value]) -> Any:
        return await self.chain.query(method, arguments)

    async def status(self) -> ChainStatus:
        return await self.chain.status()


async def add_interrupted_after_each_call(folder: str, name: str) -> list[str]:
    """Add a node by one call a run; return the calls that were made in all."""
    made: list[str] = []
    while True:
        network = load_network(Path(folder))
        async with open_local_chain(network, without=name) as chain:
            try:
                await joining.add(OneCall(chain), network, name, organisation=name)
            except Interrupted as error:
                made.append(str(error))
                assert len(made) <= CALLS_MAX, made
            except LocalError as error:
                if error.code != "node_exists":
                    raise
                return made  # it has its seat since the last call
            else:
                return made


def members(folder: str) -> dict[str, Any]:
    return {item["node"]: item for item in answer(hansa("member", "list", "--network", folder, "--json"))["nodes"]}


def running(folder: str) -> list[str]:
    network = load_network(Path(folder))
    return [home.name for home in network.nodes if local.node_process(home).pid() is not None]


def vote_key(network: LocalNetwork, name: str) -> str:
    return "0x" + load_vote_key(network.folder / "nodes" / name / "keys").public.compressed.hex()


def test_a_member_joins_changes_its_key_and_leaves(folder: str, tmp_path: Path) -> None:
    at = ("--network", folder)
    assert fault(hansa("member", "add", "bank-e", *at), 1) == "node_unreachable"
    answer(hansa("network", "up", folder, "--json"))
    assert fault(hansa("member", "remove", "nobody", *at), 2) == "unknown_node"
    assert fault(hansa("member", "replace-key", "nobody", *at), 2) == "unknown_node"
    assert fault(hansa("member", "add", "Bank E", *at), 2) == "bad_name"
    assert fault(hansa("member", "add", "issuer-c", *at), 2) == "node_exists"
    assert fault(hansa("member", "add", "issuer-c", "--organisation", "bank-a", *at), 2) == "node_exists"

    calls = trio.run(add_interrupted_after_each_call, folder, "bank-e")
    assert [call.split()[1] for call in calls] == ["admit_organisation"] * 3 + ["admit_node"] * 3 + ["seat_node"]
    assert members(folder)["bank-e"]["status"] == "validator"
    assert fault(hansa("member", "add", "bank-e", *at), 2) == "node_exists"
    assert running(folder)[-1] == "bank-e"

    network = load_network(Path(folder))
    old = vote_key(network, "bank-e")
    new = answer(hansa("member", "replace-key", "bank-e", *at, "--json"))["voteKey"]
    assert new == vote_key(network, "bank-e") == members(folder)["bank-e"]["voteKey"] != old
    revoked = answer(hansa("member", "revoke-certificate", "bank-e", *at, "--json"))["revoked"]
    assert members(folder)["bank-e"]["revoked"] == revoked
    assert len(revoked) == 1

    between_machines(folder, tmp_path)

    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in ("issuer-c", "issuer-f", "permission"):
        shutil.move(network.keystore / f"{name}.pem", hidden)
    assert fault(hansa("member", "remove", "bank-e", *at), 1) == "not_enough_admins"
    for path in hidden.iterdir():
        shutil.move(path, network.keystore)
    answer(hansa("member", "remove", "bank-e", *at, "--json"))
    answer(hansa("member", "remove", "bank-e", *at, "--json"))
    assert members(folder)["bank-e"]["status"] == "removed"
    answer(hansa("network", "down", folder, "--json"))
    card = answer(hansa("network", "up", folder, "--json"))
    assert [node["name"] for node in card["nodes"] if node["votes"]] == running(folder)
    assert "bank-e" not in running(folder)
    assert answer(hansa("chain", "verify", "--json", *at))["height"] > 10


def between_machines(folder: str, tmp_path: Path) -> None:
    """``prepare`` and ``request`` at the new member, ``approve`` at the others, ``seat`` at the new one."""
    at = ("--network", folder)
    base = free_port_base(1)
    home, keys, roots = (str(tmp_path / name) for name in ("home", "keys", "roots"))
    passphrase = ("--passphrase-file", str(tmp_path / "passphrase"))
    (tmp_path / "passphrase").write_text("long enough")
    answer(hansa("key", "new", "bank-f", "--keys", keys, *passphrase, "--json"))
    ports = ("--listen", f"127.0.0.1:{base}", "--rpc", f"127.0.0.1:{base + RPC_PORT_STEP}")
    making = ("member", "prepare", "bank-f", "--home", home, "--genesis", f"{folder}/genesis.json", "--ca", roots)
    answer(hansa(*making, *ports, "--json"))
    assert fault(hansa(*making, *ports), 2) == "folder_not_empty"
    node = ("--node", load_network(Path(folder)).nodes[0].rpc_url)
    seat = ("member", "seat", "--home", home, "--as", "bank-f", "--keys", keys, *passphrase, *node)
    assert fault(hansa(*seat), 2) == "unknown_node"

    file = tmp_path / "request.json"
    file.write_text(hansa("member", "request", "--home", home).stdout)
    assert fault(hansa("member", "approve", str(file), "--as", "bank-a", *at), 2) == "bad_request"
    of_organisation = ("--root", f"{roots}/bank-f.crt", "--admin", "bank-f", "--keys", keys)
    file.write_text(hansa("member", "request", "--home", home, *of_organisation, "--json").stdout)
    admins = ["bank-a", "issuer-c", "issuer-f", "permission"]
    rounds = [
        answer(hansa("member", "approve", str(file), "--as", admin, *at, "--json")) for admin in [*admins, *admins]
    ]
    assert [item["admitted"] for item in rounds] == [False] * 6 + [True] * 2
    assert [item["method"] for item in rounds[3]["approvals"]] == ["admit_organisation", "admit_node"]
    assert rounds[7]["approvals"] == []
    down = hansa(*seat, "--timeout", "1", "--json")
    assert (down.exit_code, json.loads(down.stdout)["error"]["code"]) == (1, "not_caught_up")

    with process_of(home):
        answer(hansa(*seat, "--json"))
        assert members(folder)["bank-f"]["status"] == "validator"
        new = "0x" + json.loads(hansa("member", "request", "--home", home, "--replace-key").stdout)["voteKey"]
        waits = hansa(*seat, "--timeout", "2", "--json")
        assert (waits.exit_code, json.loads(waits.stdout)["error"]["code"]) == (1, "not_voting"), waits.output
    with process_of(home):
        answer(hansa(*seat, "--json"))
        assert members(folder)["bank-f"]["voteKey"] == new
        answer(hansa("member", "remove", "bank-f", *at, "--json"))
    assert members(folder)["bank-f"]["status"] == "removed"


@contextmanager
def process_of(home: str) -> Iterator[None]:
    """Run a node that stands in no network folder, as a server's supervisor would."""
    config = load_config(Path(home))
    process = local.node_process(NodeHome(config.name, config.organisation, Path(home), config.p2p, config.rpc))
    process.start({**os.environ, "PYTHONPATH": str(Path(local.__file__).parents[2])})
    try:
        yield
    finally:
        trio.run(partial(process.stop, timeout_ms=local.STOP_MS_MAX))


def test_r02_a_network_of_one_changes_its_key_and_grows(tmp_path: Path) -> None:
    """No step may take the only vote away: the old key votes until the chain names the new one."""
    folder = str(tmp_path / "one")
    at = ("--network", folder)
    base = ("--port-base", str(free_port_base(1)))
    answer(hansa("network", "up", folder, "--validators", "1", *base, "--json"))
    try:
        answer(hansa("member", "replace-key", "bank-a", *at, "--json"))
        answer(hansa("member", "add", "issuer-c", *at, "--json"))
        answer(hansa("member", "replace-key", "bank-a", *at, "--json"))
        assert [item["status"] for item in members(folder).values()] == ["validator"] * 2
        answer(hansa("member", "remove", "issuer-c", *at, "--json"))
        assert fault(hansa("member", "remove", "bank-a", *at), 1) == "last_validator"
    finally:
        answer(hansa("network", "down", folder, "--json"))
