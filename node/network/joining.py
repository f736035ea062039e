"""Nodes that join and leave a local network, where the keys of all organisations lie in one folder.

Each operation may be interrupted and run again: it looks at the chain and at the folder, and goes on from there.
"""

import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError
from consensus.ledger.validators import quorum_of
from node.config import NodeConfig, load_config
from node.members import REMOVED, VALIDATOR, MemberNode
from node.network import homes, local
from node.network.ca import to_pem
from node.network.genesis import ADMIN
from node.network.homes import LOCAL_HOST, RPC_PORT_STEP, LocalNetwork, NodeHome
from node.network.keys import (
    adopt_next_key,
    drop_next_key,
    fingerprint,
    is_key_adopted,
    load_vote_key,
    renew_certificate,
    renew_vote_key,
)
from node.network.members import (
    STEP_MS_MAX,
    JoinRequest,
    MembershipChain,
    Tell,
    approvals_of,
    approve_once,
    change_key,
    find_node,
    is_admitted,
    is_organisation,
    quiet,
    take_seat,
    wait_votes,
)
from node.network.restore import restore_home

NAME_PATTERN = r"[a-z0-9][a-z0-9-]{0,31}"
NEW_ROLES = ["member"]
"""Roles of an organisation that joins a local network."""


def admin_of(network: LocalNetwork, organisation: str) -> str | None:
    """Return the identity that is an organisation's admin, None when no such key is here."""
    found = [item.name for item in network.identities if item.organisation == organisation and ADMIN in item.roles]
    return found[0] if found else None


def own_admin(network: LocalNetwork, organisation: str) -> str:
    """Return the identity that is an organisation's admin.

    Raises:
        LocalError: ``not_enough_admins``.
    """
    admin = admin_of(network, organisation)
    if admin is None:
        raise LocalError("not_enough_admins", f"the key of {organisation}'s admin is not in {network.keystore}")
    return admin


def check_name(name: str) -> None:
    """Check that an organisation or a node can have this name.

    Raises:
        LocalError: ``bad_name``.
    """
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise LocalError("bad_name", f"{name!r} is no name: 1 to 32 of a-z 0-9 -")


async def add(
    chain: MembershipChain,
    network: LocalNetwork,
    name: str,
    *,
    organisation: str,
    tell: Tell = quiet,
    timeout_ms: int = STEP_MS_MAX,
) -> LocalNetwork:
    """Make a node of a new or known organisation a validator of a running local network; return the network with it.

    Raises:
        LocalError: ``bad_name``; ``node_exists`` for one that votes already, or of another organisation;
            ``not_enough_admins``, ``bad_port``, as :func:`take_seat`, as :func:`node.network.local.start`.
    """
    check_name(name)
    check_name(organisation)
    record = await find_node(chain, name)
    if record is not None and record.organisation != organisation:
        raise LocalError("node_exists", f"{name} is a node of {record.organisation}")
    known = [home.name for home in network.nodes]
    if record is not None and record.status == VALIDATOR and name not in known:
        raise LocalError("node_exists", f"{name} votes already, and its home is not here")
    if not await is_organisation(chain, organisation):
        homes.add_organisation(network, organisation)
        network = homes.load_network(network.folder)
    network = _prepare_home(network, name, organisation, tell)
    await restore_home(network, name, tell)
    home = network.node(name)
    config = load_config(home.folder)
    if record is not None and record.status == VALIDATOR and await _is_voting(config):
        raise LocalError("node_exists", f"{name} is a validator already")
    await _admit(chain, network, home, record, tell)
    tell(f"{name}: starting")
    await local.start(network, [name])
    await take_seat(chain, config, admin=own_admin(network, organisation), tell=tell, timeout_ms=timeout_ms)
    return network


async def remove(chain: MembershipChain, network: LocalNetwork, name: str, *, tell: Tell = quiet) -> LocalNetwork:
    """Let a node leave a running local network: approvals, out of the set, process ended, noted in the network file.

    Raises:
        LocalError: ``unknown_node``, ``not_enough_admins``, ``network_busy``.
    """
    record = await find_node(chain, name)
    is_here = name in [home.name for home in network.nodes]
    if record is None and not is_here and name not in [home.name for home in network.removed]:
        raise LocalError("unknown_node", f"{name} is neither on the chain nor among this network's nodes")
    if record is not None and record.status != REMOVED:

        async def is_out() -> bool:
            return not await is_admitted(chain, name)

        await _approve(chain, network, "remove_node", {"node": name}, is_out, tell, last=record.organisation)
    if is_here:
        tell(f"{name}: ending its process")
        await local.stop(network, [name])
        network = homes.mark_removed(network, name, is_removed=True)
    return network


async def replace_key(
    chain: MembershipChain, network: LocalNetwork, name: str, *, tell: Tell = quiet, timeout_ms: int = STEP_MS_MAX
) -> None:
    """Give a node that runs and votes a new vote key.

    It votes with the old one until the chain names the new one, so that this works with any number of nodes; only
    then it is started again. A node that was wiped has to rejoin instead.

    Raises:
        LocalError: ``unknown_node``, ``node_state``, ``not_enough_admins``, ``not_caught_up``, ``not_voting``.
    """
    home = network.node(name)
    config = load_config(home.folder)
    await change_key(chain, config, admin=await _admin_for(chain, network, name), tell=tell, timeout_ms=timeout_ms)
    if not is_key_adopted(config.keys):
        tell(f"{name}: starting again with the new key")
        await local.stop(network, [name])
        adopt_next_key(config.keys)
    await local.start(network, [name])
    await wait_votes(chain, config, tell=tell, timeout_ms=timeout_ms)
    drop_next_key(config.keys)


async def revoke_certificate(
    chain: MembershipChain, network: LocalNetwork, name: str, *, tell: Tell = quiet, timeout_ms: int = STEP_MS_MAX
) -> list[bytes]:
    """Give a node a new TLS key and certificate, and revoke those it had; return the fingerprints that were revoked.

    Raises:
        LocalError: ``unknown_node``, ``unknown_organisation``, ``not_enough_admins``, ``not_voting``.
    """
    home = network.node(name)
    config = load_config(home.folder)
    admin = await _admin_for(chain, network, name)
    record = await find_node(chain, name)
    revoked = [] if record is None else record.revoked
    pending = _replaced_certificates(config.keys, revoked)
    if not pending or fingerprint(config.tls_certificate) in pending:
        tell(f"{name}: starting again with a new certificate")
        await local.stop(network, [name])
        renew_certificate(config.keys, name, homes.load_authority(network, config.organisation))
        pending = _replaced_certificates(config.keys, revoked)
    await local.start(network, [name])
    for old in pending:
        tell(f"{admin}: revoke_certificate {name} {old.hex()[:16]}…")
        await chain.call(admin, "revoke_certificate", {"node": name, "fingerprint": old})
    if record is not None and record.status == VALIDATOR:
        await wait_votes(chain, config, tell=tell, timeout_ms=timeout_ms)
    return pending


async def _admin_for(chain: MembershipChain, network: LocalNetwork, name: str) -> str:
    record = await find_node(chain, name)
    if record is None:
        raise LocalError("unknown_node", f"the chain knows no node {name}")
    return own_admin(network, record.organisation)


async def _is_voting(config: NodeConfig) -> bool:
    """Tell whether a node runs and says that it votes."""
    health = await local.read_health(config.rpc)
    return health is not None and health.get("votes") is True


def _replaced_certificates(keys: Path, revoked: list[bytes]) -> list[bytes]:
    found = [fingerprint(path) for path in sorted(keys.glob("tls.aside-*.crt"))]
    return [item for item in found if item not in revoked]


def _prepare_home(network: LocalNetwork, name: str, organisation: str, tell: Tell) -> LocalNetwork:
    """Make a node's home, or take back the one of a node that had left."""
    if name in [home.name for home in network.removed]:
        return homes.mark_removed(network, name, is_removed=False)
    if name not in [home.name for home in network.nodes]:
        tell(f"{name}: making its home in {network.folder / 'nodes' / name}")
        return homes.add_home(network, name, homes.load_authority(network, organisation), _free_index(network))
    return network


def request_of(network: LocalNetwork, home: NodeHome) -> JoinRequest:
    """Return what the members are asked to approve of for a home of this network.

    Raises:
        LocalError: ``no_home``, ``unknown_organisation``, ``unknown_identity``.
    """
    return JoinRequest(
        chain_id=network.genesis.chain_id().hex(),
        node=home.name,
        organisation=home.organisation,
        vote_key=load_vote_key(home.folder / "keys").public.compressed.hex(),
        address=f"{home.p2p.host}:{home.p2p.port}",
        roles=NEW_ROLES,
        root_certificate=to_pem(homes.load_authority(network, home.organisation).certificate).decode(),
        admin_key=network.key(own_admin(network, home.organisation)).public.compressed.hex(),
    )


async def _admit(
    chain: MembershipChain, network: LocalNetwork, home: NodeHome, record: MemberNode | None, tell: Tell
) -> None:
    """Let the others admit a node with the key in its home, and its organisation.

    One that was removed comes back with a new key only.
    """
    if record is not None and record.status != REMOVED:
        return
    keys = home.folder / "keys"
    if record is not None and record.vote_key == load_vote_key(keys).public.compressed:
        await local.stop(network, [home.name])
        renew_vote_key(keys)
    request = request_of(network, home)
    if not await is_organisation(chain, home.organisation):
        await _approve(
            chain,
            network,
            "admit_organisation",
            request.organisation_arguments(),
            lambda: is_organisation(chain, home.organisation),
            tell,
        )
    await _approve(chain, network, "admit_node", request.node_arguments(), lambda: is_admitted(chain, home.name), tell)


async def _approve(
    chain: MembershipChain,
    network: LocalNetwork,
    method: str,
    arguments: dict[str, Value],
    is_done: Callable[[], Awaitable[bool]],
    tell: Tell,
    *,
    last: str = "",
) -> None:
    """Let the admins whose keys are here approve one after the other until it is done, ``last``'s at the end.

    Those that have approved come after all others: only if seats have changed since is one of them needed again.

    Raises:
        LocalError: ``not_enough_admins``.
    """
    seated = sorted({item["organisation"] for item in await chain.query("validators", {})})
    needed = quorum_of(len(seated))
    admins = {item: admin for item in seated if (admin := admin_of(network, item)) is not None}
    if len(admins) < needed:
        here = ", ".join(admins) or "none"
        message = f"{needed} of {len(seated)} organisations must approve; their admins' keys here: {here}"
        raise LocalError("not_enough_admins", message)
    given = await approvals_of(chain, method, arguments)
    for organisation in sorted(admins, key=lambda item: (item in given, item == last, item)):
        approved = await approve_once(chain, admins[organisation], method, arguments, is_done, tell)
        if approved is None or approved.done:
            return
    raise LocalError("not_enough_admins", f"all the admins here have approved, and {method} takes more")


def _free_index(network: LocalNetwork) -> int:
    """Return the next index whose ports nobody uses.

    Raises:
        LocalError: ``bad_port``.
    """
    base = homes.port_base(network)
    first = 1 + max(home.p2p.port - base for home in (*network.nodes, *network.removed))
    for index in range(first, RPC_PORT_STEP):
        if base + RPC_PORT_STEP + index <= 65_535 and _is_free(base + index) and _is_free(base + RPC_PORT_STEP + index):
            return index
    raise LocalError("bad_port", f"no free ports are left above {base + first}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCAL_HOST, port))
        except OSError:
            return False
    return True
