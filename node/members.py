"""Who belongs to the consortium, as the newest state says: whose word counts in TLS, who is let in, who is dialled.

The membership contract writes organisations and nodes; here they are read for the network. A record that
is none of the expected shape, or a root that is no certificate, counts as absent: what members have agreed
to write must not end a node.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import msgspec
import structlog
from cryptography import x509

from consensus.ledger.errors import LocalError
from consensus.ledger.ids import NodeName
from contracts.runtime.accounts import ACTIVE
from contracts.runtime.state import StateReader
from node.config import Address
from p2p.tls import Trust

NODE_PREFIX = b"membership/node/"
ORGANISATION_PREFIX = b"membership/organisation/"
SCAN_PAGE = 256

VALIDATOR: Final = "validator"
REMOVED: Final = "removed"

T = TypeVar("T")

log = structlog.get_logger("node")


class MemberNode(msgspec.Struct, frozen=True, rename="camel"):
    """A node's record: who answers for it, what it may do, where it is reached, which certificates it lost."""

    organisation: str
    vote_key: bytes
    status: Literal["observer", "validator", "removed"]
    address: str
    revoked: list[bytes]


class _Organisation(msgspec.Struct, frozen=True, rename="camel"):
    root_certificate: str
    status: str


_node_decoder = msgspec.msgpack.Decoder(MemberNode)
_organisation_decoder = msgspec.msgpack.Decoder(_Organisation)


@dataclass(frozen=True, slots=True)
class Members:
    """All nodes that ever belonged, by name, and the roots of the organisations that are active."""

    nodes: Mapping[NodeName, MemberNode]
    trust: Trust

    @staticmethod
    def read(state: StateReader) -> "Members":
        """Return what the state says."""
        nodes = read_nodes(state)
        roots: dict[str, tuple[x509.Certificate, ...]] = {}
        for name, organisation in _records(state, ORGANISATION_PREFIX, _organisation_decoder):
            if organisation.status == ACTIVE:
                try:
                    roots |= Trust.of([(name, organisation.root_certificate)]).roots
                except LocalError as error:
                    log.warning("root not usable", organisation=name, why=error.message)
        return Members(nodes, Trust(roots))

    @staticmethod
    def touched_by(writes: Mapping[bytes, bytes | None]) -> bool:
        """Tell whether a block with these writes may have changed who belongs."""
        return any(key.startswith((NODE_PREFIX, ORGANISATION_PREFIX)) for key in writes)

    def belongs(self, name: NodeName) -> bool:
        """Tell whether a node takes part now, as observer or as validator."""
        node = self.nodes.get(name)
        return node is not None and node.status != REMOVED and node.organisation in self.trust.roots

    def admits(self, name: NodeName, organisation: str, fingerprint: bytes) -> bool:
        """Tell whether a node with this certificate (SHA-256) may have a session."""
        node = self.nodes.get(name)
        if node is None or not self.belongs(name):
            return False
        return node.organisation == organisation and fingerprint not in node.revoked

    def addresses(self) -> dict[NodeName, Address]:
        """Return where the nodes that belong say they are reached, validators first."""
        found: dict[NodeName, Address] = {}
        for name, node in sorted(self.nodes.items(), key=lambda item: (item[1].status != VALIDATOR, item[0])):
            address = _address(node.address)
            if address is not None and self.belongs(name):
                found[name] = address
        return found

    def to_dial(self, configured: Mapping[NodeName, Address]) -> dict[NodeName, Address]:
        """Return whom to dial where: the operator's word about an address stands above the chain's.

        A configured peer that the state does not know is dialled too: a node that is behind has not read of it
        yet. One that was removed is not.
        """
        known = {**configured, **{name: where for name, where in self.addresses().items() if name not in configured}}
        return {name: where for name, where in known.items() if self.belongs(name) or name not in self.nodes}


def read_nodes(state: StateReader) -> dict[NodeName, MemberNode]:
    """Return all nodes that ever belonged, in order of their names."""
    return {NodeName(name): node for name, node in _records(state, NODE_PREFIX, _node_decoder)}


def _records(state: StateReader, prefix: bytes, decoder: msgspec.msgpack.Decoder[T]) -> Iterator[tuple[str, T]]:
    """Yield all records under a prefix that have the expected shape."""
    start = prefix
    while True:
        page = state.scan(prefix, start, SCAN_PAGE)
        for key, data in page:
            try:
                yield key[len(prefix) :].decode(), decoder.decode(data)
            except (msgspec.MsgspecError, ValueError):
                log.warning("membership record not readable", key=key.decode(errors="replace"))
        if len(page) < SCAN_PAGE:
            return
        start = page[-1][0] + b"\0"


def _address(text: str) -> Address | None:
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65_536):
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)
