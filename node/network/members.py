"""How a node joins, changes its key and is approved of: the steps, each of which may be done again.

Every step looks first at what the chain says, so a command that was interrupted goes on where it was when it
is run again. They serve single homes, each on a machine of its own; :mod:`node.network.joining` does all of it
on a local network. The chain is reached through the port :class:`MembershipChain`, which programs implement
by the client.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import msgspec
import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import HansaError, LocalError
from consensus.ledger.genesis import HexKey
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PUBLIC_KEY_BYTES, PrivateKey, Purpose
from consensus.ledger.validators import NodeNameText, seat_payload
from contracts.runtime.accounts import ACTIVE
from node.config import NodeConfig
from node.members import REMOVED, VALIDATOR, MemberNode
from node.network import local
from node.network.keys import load_vote_key, next_vote_key
from p2p.tls import Trust

STEP_MS_MAX = 60_000
"""How long a node may take to catch up, and to vote once it has its seat, unless somebody says otherwise."""
POLL_S = 0.1
IDLE_S = 2.0
"""After how long without a block nobody can be expected to vote; twice the time until the quiet block."""
REQUEST_BYTES_MAX = 64 * 1024
PROPOSALS_PAGE = 20

HEX_KEY = re.compile(rf"[0-9a-f]{{{2 * PUBLIC_KEY_BYTES}}}")
HexHash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]

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


class JoinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What the members are asked to approve: a node, and its organisation where that is new.

    Keys are compressed, in hex; ``address`` is HOST:PORT or empty, ``root_certificate`` PEM, and the fields of the
    organisation are empty where it is known.
    """

    chain_id: HexHash
    node: NodeNameText
    organisation: NodeNameText
    vote_key: HexKey
    address: str
    roles: list[str] = []
    root_certificate: str = ""
    admin_key: str = ""

    def node_arguments(self) -> dict[str, Value]:
        """Return what ``admit_node`` takes."""
        return {
            "node": self.node,
            "organisation": self.organisation,
            "vote_key": bytes.fromhex(self.vote_key),
            "address": self.address,
        }

    def organisation_arguments(self) -> dict[str, Value]:
        """Return what ``admit_organisation`` takes.

        Raises:
            LocalError: ``bad_request`` when the request says nothing of the organisation.
        """
        if not (self.root_certificate and HEX_KEY.fullmatch(self.admin_key)):
            message = f"the chain does not know {self.organisation}: the request needs its root and its admin's key"
            message += " (hansa member request --root FILE --admin NAME)"
            raise LocalError("bad_request", message)
        return {
            "organisation": self.organisation,
            "roles": [*self.roles],
            "root_certificate": self.root_certificate,
            "admin_key": bytes.fromhex(self.admin_key),
        }


def decode_request(data: bytes, chain_id: ChainId) -> JoinRequest:
    """Return the request in a file: the object alone, or what a command said of it under ``--json``.

    Raises:
        LocalError: ``bad_request``, ``wrong_chain``; ``bad_certificate_file`` for a root that no node would trust.
    """
    if len(data) > REQUEST_BYTES_MAX:
        raise LocalError("bad_request", f"a request has at most {REQUEST_BYTES_MAX} bytes")
    try:
        content = msgspec.json.decode(data)
        inner = content.get("request", content) if isinstance(content, dict) else content
        request = msgspec.convert(inner, JoinRequest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise LocalError("bad_request", str(error)) from None
    if request.chain_id != chain_id.hex():
        raise LocalError("wrong_chain", "the request is for a chain with another genesis")
    if request.root_certificate:
        Trust.of([(request.organisation, request.root_certificate)])
    return request


@dataclass(frozen=True, slots=True)
class Approved:
    """How a proposal stands after an approval."""

    method: str
    approvals: int
    needed: int
    done: bool


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


async def is_admitted(chain: MembershipChain, node: str) -> bool:
    """Tell whether a node belongs, as observer or validator."""
    record = await find_node(chain, node)
    return record is not None and record.status != REMOVED


async def is_organisation(chain: MembershipChain, organisation: str) -> bool:
    """Tell whether an organisation belongs and is not suspended."""
    try:
        record = await chain.query("organisation", {"organisation": organisation})
    except HansaError as error:
        if error.code != "unknown_organisation":
            raise
        return False
    return bool(record["status"] == ACTIVE)


async def approve_request(
    chain: MembershipChain, request: JoinRequest, admin: str, *, tell: Tell = quiet
) -> list[Approved]:
    """Give one admin's approvals of all that a request still needs: the organisation first, then the node.

    Returns how each proposal stands; the node can be approved once its organisation is admitted, so an admin who
    came early is asked once more. Empty when nothing is needed any more.

    Raises:
        LocalError: ``bad_request``, or what the contract refuses with.
    """
    given: list[Approved] = []

    if not await is_organisation(chain, request.organisation):
        arguments = request.organisation_arguments()
        first = await approve_once(
            chain, admin, "admit_organisation", arguments, lambda: is_organisation(chain, request.organisation), tell
        )
        given += [first] if first else []
        if first and not first.done:
            return given
    second = await approve_once(
        chain, admin, "admit_node", request.node_arguments(), lambda: is_admitted(chain, request.node), tell
    )
    return [*given, second] if second else given


async def approvals_of(chain: MembershipChain, method: str, arguments: dict[str, Value]) -> list[str]:
    """Return the organisations that stand behind a proposal; none where it is not open."""
    # The contract's records have camelCase names.
    wanted = {re.sub("_([a-z])", lambda found: found[1].upper(), name): value for name, value in arguments.items()}
    start = ""
    while True:
        page = await chain.query("proposals", {"start": start, "limit": PROPOSALS_PAGE})
        for item in page:
            if (item["method"], item["arguments"]) == (method, wanted):
                return list(item["approvals"])
        if len(page) < PROPOSALS_PAGE:
            return []
        start = page[-1]["proposal"].hex() + "0"


async def approve_once(
    chain: MembershipChain,
    admin: str,
    method: str,
    arguments: dict[str, Value],
    is_done: Callable[[], Awaitable[bool]],
    tell: Tell = quiet,
) -> Approved | None:
    """Approve of a proposal in the name of one admin, unless it has taken effect already: None then."""
    if await is_done():
        return None
    try:
        answer = await chain.call(admin, method, arguments)
    except HansaError:
        # An approval that was under way may have become final in the meantime.
        if await is_done():
            return None
        raise
    approved = Approved(method, answer["approvals"], answer["needed"], answer["done"])
    tell(f"{admin}: {method} ({approved.approvals} of {approved.needed})")
    return approved


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
    message = f"{config.name} has not reached block {target} in {timeout_ms} ms: {where}; the same command goes on"
    raise LocalError("not_caught_up", message)


async def wait_votes(
    chain: MembershipChain, config: NodeConfig, *, tell: Tell = quiet, timeout_ms: int = STEP_MS_MAX
) -> None:
    """Wait until others hear a node vote on a block above the head at the call.

    Where no block comes for a while, as on an idle network, it is enough that the node is at the head, in touch with
    others, and says that its key is in the validator set.

    Raises:
        LocalError: ``not_voting``.
    """
    # The block that names the new key may have the old one's vote.
    seated_at = (await chain.status()).height
    tell(f"{config.name}: waiting for its vote …")
    idle_height, idle_since = -1, trio.current_time()
    with trio.move_on_after(timeout_ms / 1000):
        while True:
            status = await chain.status()
            if status.votes.get(config.name, -1) > seated_at:
                return
            if status.height != idle_height or not await _could_vote(config, status):
                idle_height, idle_since = status.height, trio.current_time()
            elif trio.current_time() - idle_since > IDLE_S:
                return
            await trio.sleep(POLL_S)
    raise LocalError("not_voting", f"{config.name} has its seat, and no vote of it came in {timeout_ms} ms")


async def _could_vote(config: NodeConfig, status: ChainStatus) -> bool:
    health = await local.read_health(config.rpc)
    if health is None or health.get("votes") is not True or (_height(health) or 0) < status.height:
        return False
    return health.get("peers") != 0 or not [name for name in status.votes if name != config.name]


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
