"""A test chain of several organisations that hold a validator each, with keys that are made from numbers."""

from dataclasses import dataclass
from typing import Any

from consensus.ledger.codec import encode
from consensus.ledger.genesis import Account, Activation, Genesis, GenesisValidator, Organisation
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.validators import ValidatorSet, seat_payload
from contracts.runtime.registry import Registry
from tests.contracts.domain.support import Door, shared_registry
from tests.contracts.support import START_MS, Chain

ROOT = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def root(number: int) -> str:
    """Return a text of a certificate's shape, another one for each number."""
    return ROOT.replace("AAAA", f"A{number:03d}")


def key(number: int) -> PrivateKey:
    """Return the key that a number stands for."""
    return PrivateKey.from_secret(10_000 + number)


def consortium_genesis(registry: Registry, organisations: int) -> Genesis:
    """Return a document of ``org-0`` …, each with the account of its name (admin, ``key(i)``) and ``node-i``."""
    names = [f"org-{index}" for index in range(organisations)]
    return Genesis(
        name="consortium",
        time_ms=START_MS,
        organisations=[Organisation(name, ["member"], root(index)) for index, name in enumerate(names)],
        validators=[
            GenesisValidator(f"node-{index}", name, key(100 + index).public.compressed.hex())
            for index, name in enumerate(names)
        ],
        accounts=[
            Account(name, name, key(index).public.compressed.hex(), ["admin"]) for index, name in enumerate(names)
        ],
        contracts=[Activation(item.name, item.version, item.code_hash.hex()) for item in registry.newest()],
    )


@dataclass
class ConsortiumChain(Chain):
    """A chain that begins with a consortium of this many organisations."""

    organisations: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.genesis = consortium_genesis(self.registry, self.organisations)
        self.chain_id = self.genesis.chain_id()
        for entry in list(self.state.entries()):
            self.state.apply({entry: None})
        self.state.apply(self.executor.genesis_writes(self.genesis))
        self.keys = {f"org-{index}": key(index) for index in range(self.organisations)}


class Consortium(Door):
    """The membership contract of such a chain."""

    def __init__(self, organisations: int = 4) -> None:
        super().__init__("membership", ConsortiumChain(shared_registry(), organisations=organisations))

    def proof(self, node: str, vote_key: PrivateKey, height: int) -> bytes:
        """Return what a node with this key hands in for its seat."""
        payload = seat_payload(node, vote_key.public.compressed, height)
        return vote_key.sign(Purpose.SEAT, self.chain.chain_id, payload)

    def approve(self, names: list[str], method: str, **arguments: Any) -> Any:
        """Let these organisations approve one after the other; return the last answer."""
        answer = None
        for name in names:
            answer = self.call(name, method, **arguments)
        return answer

    def admit(self, node: str, organisation: str, vote_key: PrivateKey, address: str = "") -> None:
        """Let all the organisations that are needed admit a node."""
        fields = {"organisation": organisation, "vote_key": vote_key.public.compressed, "address": address}
        for name in self.seated():
            if self.call(name, "admit_node", node=node, **fields)["done"]:
                return

    def seat(self, node: str, organisation: str, vote_key: PrivateKey) -> None:
        """Let an admitted node's organisation seat it."""
        height = self.chain.height
        self.call(organisation, "seat_node", node=node, height=height, proof=self.proof(node, vote_key, height))

    def seated(self) -> list[str]:
        """Return the organisations that hold a validator, in order."""
        return sorted({item.organisation for item in self.set().validators})

    def set(self) -> ValidatorSet:
        """Return who votes on the next block, as execution hands it to the header."""
        return self.chain.block([]).validators

    def validators(self) -> list[str]:
        """Return the names of those who vote on the next block."""
        return [item["node"] for item in self.query("validators")]


def play_membership() -> bytes:
    """Let organisations and nodes come, change and go on a chain of its own; return its whole state, encoded."""
    consortium = Consortium(7)
    chain = consortium.chain
    admission = {"roles": ["b", "a"], "root_certificate": root(500), "admin_key": key(501).public.compressed}
    consortium.approve(consortium.seated()[:5], "admit_organisation", organisation="org-new", **admission)
    for number, (node, owner) in enumerate({"z": "org-new", "a": "org-0", "m": "org-3"}.items()):
        consortium.admit(node, owner, key(600 + number), f"host:{1 + number}")
    consortium.seat("a", "org-0", key(601))
    proof = consortium.proof("node-2", key(700), chain.height)
    fields = {"vote_key": key(700).public.compressed, "height": chain.height, "proof": proof}
    consortium.call("org-2", "replace_key", node="node-2", **fields)
    consortium.call("org-5", "revoke_certificate", node="node-5", fingerprint=bytes(32))
    for admin in ("org-6", "org-1", "org-4"):
        consortium.call(admin, "remove_node", node="node-6")
    for admin in consortium.seated()[:5]:
        consortium.call(admin, "suspend_organisation", organisation="org-5")
    return encode([[name, value] for name, value in sorted(chain.state.entries().items())])
