"""How nodes and organisations join, change their keys and leave: the steps, each of which may be done again.

Every step looks first at what the chain says, so a command that was interrupted goes on where it was when it
is run again. The steps below :func:`take_seat` serve single homes, each on a machine of its own; those
from :func:`add` on serve a local network, where the keys of all organisations lie in one folder. The
chain is reached through the port :class:`MembershipChain`, which programs implement by the client.
"""

import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import HansaError, LocalError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.validators import quorum_of, seat_payload
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
    next_vote_key,
    renew_certificate,
    renew_vote_key,
)

STEP_MS_MAX = 60_000
"""How long a node may take to catch up, and to vote once it has its seat, unless somebody says otherwise."""
POLL_S = 0.1
NAME_PATTERN = r"[a-z0-9][a-z0-9-]{0,31}"

Tell = Callable[[str], None]
"""Hears one line about what is being done."""


@dataclass(frozen=True, slots=True)
class ChainStatus:
    """What a node other than the subject says: its head's height, and the height each validator voted for last."""

    height: int
    votes: Mapping[str, int]


class MembershipChain(Protocol):
    """The chain, as the steps below use it. All methods raise HansaError, with the node's or contract's code."""

    chain_id: ChainId

    async def call(self, admin: str, method: str, arguments: dict[str, Value]) -> Any:
        """Call a method of ``membership`` in the name of an identity; return its value once it is final."""

    async def query(self, method: str, arguments: dict[str, Value]) -> Any:
        """Return the answer of a query of ``membership``."""

    async def status(self) -> ChainStatus:
        """Return how things stand."""


def quiet(line: str) -> None:
    """Hear a line and say nothing."""


# -- one home, wherever it is ----------------------------------------------------------------------------


async def find_node(chain: MembershipChain, node: str) -> MemberNode | None:
    """Return a node's record, None for one that the chain does not know."""
    try:
        return msgspec.convert(await chain.query("node", {"node": node}), MemberNode)
    except HansaError as error:
        if error.code != "unknown_node":
            raise
        return None


async def take_seat(
    chain: MembershipChain, config: NodeConfig, *, admin: str, tell: Tell = quiet, timeout_ms: int = STEP_MS_MAX
) -> None:
    """Bring a running member node to vote with the key in its home: caught up, ``seat_node`` or ``replace_key``, votes.

    Args:
        chain: reaches the others, not this node.
        config: of the node.
        admin: the identity of its organisation's admin.
        tell: hears what is done.
        timeout_ms: for catching up, and again until it votes.

    Raises:
        LocalError: ``unknown_node`` or ``node_state`` when it is no member (any more), ``not_caught_up``,
            ``not_voting``, or what the chain refuses with.
    """
    record = await find_node(chain, config.name)
    if record is None:
        raise LocalError("unknown_node", f"{config.name} is not admitted yet")
    if record.status == REMOVED:
        raise LocalError("node_state", f"{config.name} was removed; it comes back by a new admission with a new key")
    key = load_vote_key(config.keys)
    public = key.public.compressed
    if record.vote_key != public or record.status != VALIDATOR:
        height = await wait_caught_up(chain, config, tell=tell, timeout_ms=timeout_ms)
        arguments: dict[str, Value] = {
            "node": config.name,
            "height": height,
            "proof": sign_seat(chain.chain_id, config.name, key, height),
        }
        if record.vote_key != public:
            tell(f"{admin}: replace_key {config.name}")
            await chain.call(admin, "replace_key", {**arguments, "vote_key": public})
        if record.status != VALIDATOR:
            tell(f"{admin}: seat_node {config.name}")
            await chain.call(admin, "seat_node", arguments)
    await wait_votes(chain, config, tell=tell, timeout_ms=timeout_ms)


def sign_seat(chain_id: ChainId, node: str, key: PrivateKey, height: int) -> bytes:
    """Return the proof that ``seat_node`` and ``replace_key`` take, 64 bytes."""
    return key.sign(Purpose.SEAT, chain_id, seat_payload(node, key.public.compressed, height))


async def wait_caught_up(
    chain: MembershipChain, config: NodeConfig, *, tell: Tell = quiet, timeout_ms: int = STEP_MS_MAX
) -> int:
    """Wait until a node is as high as the others were at the call; return that height.

    Raises:
        LocalError: ``not_caught_up``, with where it stands.
    """
    target = (await chain.status()).height
    own: int | None = None
    with trio.move_on_after(timeout_ms / 1000):
        tell(f"{config.name}: catching up to block {target} …")
        while True:
            health = await local.read_health(config.rpc)
            own = None if health is None else _height(health)
            if own is not None and own >= target:
                return target
            await trio.sleep(POLL_S)
    where = (
        f"it stands at block {own}" if own is not None else f"nothing answers at {config.rpc.host}:{config.rpc.port}"
    )
    raise LocalError("not_caught_up", f"{config.name} has not reached block {target} in {timeout_ms} ms: {where}")


async def wait_votes(
    chain: MembershipChain, config: NodeConfig, *, tell: Tell = quiet, timeout_ms: int = STEP_MS_MAX
) -> None:
    """Wait until others hear a node vote on the head at the call, or on a later block.

    Raises:
        LocalError: ``not_voting``.
    """
    # The block that gave the seat, or a later one: no vote on it can be from before.
    seated_at = (await chain.status()).height
    tell(f"{config.name}: waiting for its vote …")
    with trio.move_on_after(timeout_ms / 1000):
        while (await chain.status()).votes.get(config.name, -1) < seated_at:  # noqa: ASYNC110  (it is asked by RPC)
            await trio.sleep(POLL_S)
        return
    raise LocalError("not_voting", f"{config.name} has its seat, and no vote of it came in {timeout_ms} ms")


async def change_key(
    chain: MembershipChain, config: NodeConfig, *, admin: str, tell: Tell = quiet, timeout_ms: int = STEP_MS_MAX
) -> None:
    """Make the key that a healthy node is to vote with next, and let the chain name it; the node runs on meanwhile.

    Then the node has to be started with it: :func:`node.network.keys.adopt_next_key`.

    Raises:
        LocalError: ``unknown_node``, ``node_state``, ``not_caught_up``.
    """
    record = await find_node(chain, config.name)
    if record is None:
        raise LocalError("unknown_node", f"the chain knows no node {config.name}")
    if record.status == REMOVED:
        raise LocalError("node_state", f"{config.name} was removed; it comes back by a new admission with a new key")
    key = next_vote_key(config.keys)
    if record.vote_key == key.public.compressed:
        return
    height = await wait_caught_up(chain, config, tell=tell, timeout_ms=timeout_ms)
    arguments: dict[str, Value] = {
        "node": config.name,
        "vote_key": key.public.compressed,
        "height": height,
        "proof": sign_seat(chain.chain_id, config.name, key, height),
    }
    tell(f"{admin}: replace_key {config.name}")
    await chain.call(admin, "replace_key", arguments)


def _height(health: Mapping[str, object]) -> int | None:
    height = health.get("height")
    return height if isinstance(height, int) else None


# -- a local network -------------------------------------------------------------------------------------


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
    for text in (name, organisation):
        if re.fullmatch(NAME_PATTERN, text) is None:
            raise LocalError("bad_name", f"{text!r} is no name: 1 to 32 of a-z 0-9 -")
    record = await find_node(chain, name)
    if record is not None and record.organisation != organisation:
        raise LocalError("node_exists", f"{name} is a node of {record.organisation}")
    known = [home.name for home in network.nodes]
    if record is not None and record.status == VALIDATOR and name not in known:
        raise LocalError("node_exists", f"{name} votes already, and its home is not here")
    network = await _admit_organisation(chain, network, organisation, tell)
    network = _prepare_home(network, name, organisation, tell)
    home = network.node(name)
    config = load_config(home.folder)
    if record is not None and record.status == VALIDATOR and await _is_voting(chain, config):
        raise LocalError("node_exists", f"{name} is a validator already")
    await _admit_node(chain, network, home, record, tell)
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
            now = await find_node(chain, name)
            return now is not None and now.status == REMOVED

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


async def _is_voting(chain: MembershipChain, config: NodeConfig) -> bool:
    """Tell whether others have heard a vote of a node for the newest block."""
    status = await chain.status()
    return status.votes.get(config.name, -1) >= status.height


def _replaced_certificates(keys: Path, revoked: list[bytes]) -> list[bytes]:
    found = [fingerprint(path) for path in sorted(keys.glob("tls.aside-*.crt"))]
    return [item for item in found if item not in revoked]


async def _admit_organisation(
    chain: MembershipChain, network: LocalNetwork, organisation: str, tell: Tell
) -> LocalNetwork:
    """Let the others admit an organisation that the chain does not know, with keys made here."""

    async def is_member() -> bool:
        try:
            await chain.query("organisation", {"organisation": organisation})
        except HansaError as error:
            if error.code != "unknown_organisation":
                raise
            return False
        return True

    if await is_member():
        return network
    authority = homes.add_organisation(network, organisation)
    network = homes.load_network(network.folder)
    arguments: dict[str, Value] = {
        "organisation": organisation,
        "roles": ["member"],
        "root_certificate": to_pem(authority.certificate).decode(),
        "admin_key": network.key(organisation).public.compressed,
    }
    await _approve(chain, network, "admit_organisation", arguments, is_member, tell)
    return network


def _prepare_home(network: LocalNetwork, name: str, organisation: str, tell: Tell) -> LocalNetwork:
    """Make a node's home, or take back the one of a node that had left."""
    if name in [home.name for home in network.removed]:
        return homes.mark_removed(network, name, is_removed=False)
    if name not in [home.name for home in network.nodes]:
        tell(f"{name}: making its home in {network.folder / 'nodes' / name}")
        return homes.add_home(network, name, homes.load_authority(network, organisation), _free_index(network))
    return network


async def _admit_node(
    chain: MembershipChain, network: LocalNetwork, home: NodeHome, record: MemberNode | None, tell: Tell
) -> None:
    """Let the others admit a node that is none, with the key in its home; one that was removed needs another."""
    if record is not None and record.status != REMOVED:
        return
    keys = home.folder / "keys"
    if record is not None and record.vote_key == load_vote_key(keys).public.compressed:
        await local.stop(network, [home.name])
        renew_vote_key(keys)

    async def is_admitted() -> bool:
        now = await find_node(chain, home.name)
        return now is not None and now.status != REMOVED

    arguments: dict[str, Value] = {
        "node": home.name,
        "organisation": home.organisation,
        "vote_key": load_vote_key(keys).public.compressed,
        "address": f"{home.p2p.host}:{home.p2p.port}",
    }
    await _approve(chain, network, "admit_node", arguments, is_admitted, tell)


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
    """Let the admins whose keys are here approve one after the other until it is done, ``last``'s at the end."""
    seated = sorted({item["organisation"] for item in await chain.query("validators", {})})
    needed = quorum_of(len(seated))
    admins = {item: admin for item in seated if (admin := admin_of(network, item)) is not None}
    if len(admins) < needed:
        message = (
            f"{needed} of {len(seated)} organisations must approve; here are the keys of {', '.join(admins) or 'none'}"
        )
        raise LocalError("not_enough_admins", message)
    for organisation in sorted(admins, key=lambda item: (item == last, item)):
        if await is_done():
            return
        try:
            answer = await chain.call(admins[organisation], method, arguments)
        except HansaError:
            # An approval of an earlier run may have become final in the meantime.
            if await is_done():
                return
            raise
        tell(f"{admins[organisation]}: {method} ({answer['approvals']} of {answer['needed']})")
        if answer["done"]:
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
