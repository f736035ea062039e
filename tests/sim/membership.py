"""The membership changes while a schedule runs: nodes are admitted, seated, removed, and get new vote keys.

One change after the other, as operators do it; each goes on through faults until it is final. An operator
takes care of one thing: no change leaves more liars and broken disks than the new set bears.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import msgspec

from consensus.ledger.codec import decode
from consensus.ledger.genesis import Account, Organisation
from consensus.ledger.ids import NodeName, tagged_hash
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.transaction import Transaction, make_call
from consensus.ledger.validators import ValidatorSet, seat_payload
from node.chain import Chain
from tests.node.support import Consortium, make_consortium
from tests.sim.host import Host
from tests.sim.plan import Plan

JOINERS = (NodeName("a-node"), NodeName("z-node"), NodeName("m-node"), NodeName("o-node"))
"""Nodes that may join; some stand before the first validators in order of names, some after them."""
ADMIN = "admin-"
WEIGHTED = ("admit", "admit", "remove", "replace", "renew", "renew", "renew")
POLL_MS = 100
AGAIN_MS = 4_000
LAG_BLOCKS_MAX = 50
"""How far behind the others a node may be when it signs that it has caught up."""


def make_sim_consortium(validators: int) -> Consortium:
    """Return a consortium where each node's organisation, and those of nodes to come, have an admin."""
    consortium = make_consortium(validators)
    names = [*consortium.vote_keys, *JOINERS]
    keys = {ADMIN + name: PrivateKey.from_secret(3_000 + number) for number, name in enumerate(names)}
    genesis = msgspec.structs.replace(
        consortium.genesis,
        organisations=[*consortium.genesis.organisations, *(Organisation(name, ["bank"], "") for name in JOINERS)],
        accounts=[
            *consortium.genesis.accounts,
            *(Account(ADMIN + name, name, keys[ADMIN + name].public.compressed.hex(), ["admin"]) for name in names),
        ],
    )
    return Consortium(genesis, consortium.vote_keys, {**consortium.account_keys, **keys})


class World(Protocol):
    """What the operators see and can do."""

    plan: Plan
    consortium: Consortium
    hosts: dict[NodeName, list[Host]]

    def newest_chain(self) -> Chain | None:
        """Return the chain of the correct node that is furthest, None while all are down."""

    def submit(self, transaction: Transaction) -> None:
        """Give a transaction to somebody, again and again until it is final."""

    def use_key(self, name: NodeName, key: PrivateKey) -> None:
        """Let a node start with a vote key, for the first time or in place of another."""

    def repeat(self, every_ms: int, action: Callable[[], None]) -> None:
        """Do something at intervals from now on."""


Script = Generator[None, None, None]


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that an admin makes, for as often as it takes."""

    organisation: str
    method: str
    arguments: dict[str, Any]


class Operators:
    """Plays the changes of a schedule."""

    def __init__(self, world: World, valid_until_ms: int) -> None:
        self._world = world
        self._valid_until_ms = valid_until_ms
        self._random = Random(f"{world.plan.seed}/operators")
        self._changes_left = world.plan.set_changes
        self._wanted = world.plan.changes
        self._script: Script | None = None
        self._calls = 0
        self._keys = 0
        self.is_ending = False
        """Whether no further change is begun."""

    def begin(self) -> None:
        """Work from now on."""
        self._world.repeat(POLL_MS, self._poll)

    @property
    def is_idle(self) -> bool:
        """Whether no change is under way."""
        return self._script is None

    def _poll(self) -> None:
        if self._script is None:
            may_begin = self._changes_left > 0 and not self.is_ending and self._random.random() < 0.05
            self._script = self._draw() if may_begin else None
        elif next(self._script, self) is self:
            self._script = None

    # -- what changes ----------------------------------------------------------------------------------

    def _draw(self) -> Script | None:
        """Begin what is possible now."""
        validators = self._set()
        if validators is None:
            return None
        names = list(validators.names)
        options: dict[str, tuple[Callable[[NodeName], Script], list[NodeName]]] = {
            "admit": (self._admit, [name for name in JOINERS if name not in names]),
            "remove": (self._remove, [one for one in names if self._bears([name for name in names if name != one])]),
            "replace": (self._replace, [name for name in names if self._host(name).is_correct]),
            "renew": (self._renew, [name for name in names if self._is_voteless(name)]),
        }
        wanted = self._wanted[0] if self._wanted else self._random.choice(WEIGHTED)
        begin, names = options[wanted]
        if not names:
            return None
        self._wanted = self._wanted[1:]
        self._changes_left -= 1
        return begin(self._random.choice(names))

    def _bears(self, names: list[NodeName]) -> bool:
        """Tell whether these validators bear the liars among them, and the fragile unless faults are unlimited.

        More than f liars no mode has: nothing would hold.
        """
        hosts = [self._host(name) for name in names]
        doubtful = sum(bool(host.strategies) if self._world.plan.unlimited else not host.is_correct for host in hosts)
        return bool(names) and doubtful <= (len(names) - 1) // 3

    def _admit(self, name: NodeName) -> Script:
        """Let a node join, at first or again, and seat it once it has caught up."""
        key = self._new_key()
        admitted = {"node": name, "organisation": name, "vote_key": key.public.compressed, "address": ""}
        yield from self._until(
            lambda: self._record(name).get("voteKey") == key.public.compressed,
            lambda: self._by_all("admit_node", admitted),
        )
        self._world.use_key(name, key)
        while not self._has_caught_up(name):
            yield
        yield from self._until(
            lambda: self._record(name).get("status") == "validator",
            lambda: [_Call(name, "seat_node", {"node": name, **self._proof(name, key)})],
        )

    def _remove(self, name: NodeName) -> Script:
        """Remove a node; its program goes on and observes."""
        yield from self._until(
            lambda: self._record(name).get("status") == "removed", lambda: self._by_all("remove_node", {"node": name})
        )

    def _replace(self, name: NodeName) -> Script:
        """Give a node that votes a new key: it votes with the old one until the set has the new one."""
        key = self._new_key()
        yield from self._until_key(name, key)
        self._world.use_key(name, key)

    def _renew(self, name: NodeName) -> Script:
        """Give a node whose disk was lost a new key: it starts with it, catches up, and then asks for it."""
        key = self._new_key()
        self._world.use_key(name, key)
        while not self._has_caught_up(name):
            yield
        yield from self._until_key(name, key)

    def _until_key(self, name: NodeName, key: PrivateKey) -> Script:
        public_key = key.public.compressed
        yield from self._until(
            lambda: self._record(name).get("voteKey") == public_key,
            lambda: [
                _Call(name, "replace_key", {"node": name, "vote_key": public_key, **self._proof(name, key)}),
            ],
        )

    # -- tools -----------------------------------------------------------------------------------------

    def _until(self, holds: Callable[[], bool], calls: Callable[[], list[_Call]]) -> Script:
        """Make calls, again after a while, until something holds."""
        waited_ms = AGAIN_MS
        while not holds():
            if waited_ms >= AGAIN_MS:
                waited_ms = 0
                for call in calls():
                    self._make(call)
            waited_ms += POLL_MS
            yield

    def _make(self, call: _Call) -> None:
        self._calls += 1
        transaction = self._world.consortium.sign(
            ADMIN + call.organisation,
            [make_call("membership", call.method, call.arguments)],
            lane=tagged_hash("operators", self._calls.to_bytes(4, "big")),
            valid_until_ms=self._valid_until_ms,
        )
        self._world.submit(transaction)

    def _by_all(self, method: str, arguments: dict[str, Any]) -> list[_Call]:
        validators = self._set()
        organisations = [] if validators is None else sorted({item.organisation for item in validators.validators})
        return [_Call(organisation, method, arguments) for organisation in organisations]

    def _proof(self, name: NodeName, key: PrivateKey) -> dict[str, Any]:
        chain = self._host(name).chain or self._world.newest_chain()
        height = 0 if chain is None else chain.head.header.height
        payload = seat_payload(name, key.public.compressed, height)
        signature = key.sign(Purpose.SEAT, self._world.consortium.genesis.chain_id(), payload)
        return {"height": height, "proof": signature}

    def _new_key(self) -> PrivateKey:
        self._keys += 1
        return PrivateKey.from_secret(10_000 + self._keys)

    def _host(self, name: NodeName) -> Host:
        return self._world.hosts[name][0]

    def _is_voteless(self, name: NodeName) -> bool:
        host = self._host(name)
        return host.is_fragile and host.process is not None and not host.process.may_vote

    def _has_caught_up(self, name: NodeName) -> bool:
        own, newest = self._host(name).chain, self._world.newest_chain()
        if own is None or newest is None:
            return False
        return own.head.header.height + LAG_BLOCKS_MAX >= newest.head.header.height

    def _record(self, name: NodeName) -> dict[str, Any]:
        chain = self._world.newest_chain()
        data = None if chain is None else chain.state.get(f"membership/node/{name}".encode())
        record: Any = {} if data is None else decode(data)
        return record

    def _set(self) -> ValidatorSet | None:
        chain = self._world.newest_chain()
        return None if chain is None else chain.head.validators
