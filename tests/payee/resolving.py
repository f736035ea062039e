"""Nodes and environments to resolve with: the real contract, state tree, certificates and environments, no network.

A node here is a puppet: it answers ``payee_resolve`` in memory, and a test replaces what it wants it to lie about.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import trio
from msgspec.structs import replace

from consensus.ledger.codec import decode
from consensus.ledger.errors import HansaError
from consensus.ledger.keys import Purpose
from consensus.ledger.payees import (
    Answer,
    AnswerContent,
    AskResolve,
    Content,
    Mode,
    Query,
    Told,
    allowed_key,
    answer_codec,
    answer_hash,
    ask_codec,
    commitment,
    content_hash,
    environment_key,
    merchant_key,
    platform_key,
    query_codec,
    query_hash,
    record_hash,
    record_key,
    told_codec,
    wrap_hash,
    wrap_key,
)
from consensus.ledger.state_tree import prove, update
from consensus.ledger.states import StateEntry, StatesProof, states_codec
from services.client.connection import REQUEST_TIMEOUT_MS, Parameters
from services.client.errors import Refused
from services.payee.enclave import Environment, EnvironmentKeys
from services.payee.interfaces import Acquiring
from services.payee.resolver import QuerySigner, Resolver
from services.payee.sealing import EpochKey, ExchangeKey, seal_answer, wrap_epoch_key
from tests.contracts.domain.payees import MEASUREMENT, VOTE_KEYS, Payees, identity, key
from tests.ledger.builders import certify, make_block, make_genesis_block

T = TypeVar("T")

OTHER_MEASUREMENT = bytes(reversed(MEASUREMENT))
SALT = bytes(range(32))
SECRETS = {"wallet-p": b"\1" * 32, "wallet-q": b"\2" * 32}
"""The platforms' keys of their first epoch."""
NUMBERS = {"bank-a": 300, "issuer-c": 302, "user-b": 304}
"""Environments by their organisations, with the number of their keys; user-b's is not registered."""


def environment_keys(name: str) -> EnvironmentKeys:
    """Return the two keys of an environment."""
    number = NUMBERS[name]
    return EnvironmentKeys(ExchangeKey.from_secret((40_000 + number).to_bytes(32, "big")), key(number + 1))


def acquiring(server: str, account: str = "merchant-m") -> Acquiring:
    """Return what a platform keeps of a merchant."""
    return Acquiring(account=account, name=f"Tea at {server}", currency="CNY", terminal="t-1")


class PayeeWorld(Payees):
    """The contract with records that open, and what a node proves of it."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs = dict.fromkeys(SECRETS, 1)
        self._genesis = make_genesis_block(self.chain.chain_id, self.chain.genesis.validator_set()).header
        self.call("permission", "allow_measurement", measurement=MEASUREMENT, note="first")
        for name in ("bank-a", "issuer-c"):
            self.call(name, "register_environment", **self.environment(name, NUMBERS[name]))
        for server, signer in self.platforms.items():
            self.call(server, "register_platform", key=signer.public.compressed)
            self.wrap(server, "bank-a", "issuer-c")
        self.call("merchant-m", "register_merchant", **self.registration())

    @property
    def now_ms(self) -> int:
        """The time of the newest block."""
        return self.chain.time_ms

    def wrap(self, server: str, *environments: str) -> None:
        """Give environments the platform's key of its epoch."""
        epoch = self.epochs[server]
        wraps, signatures = {}, {}
        for number, name in enumerate(environments):
            wraps[name] = wrap_epoch_key(
                EpochKey(SECRETS[server]),
                server=server,
                epoch=epoch,
                environment=name,
                exchange_key=environment_keys(name).exchange.public,
                fresh=ExchangeKey.from_secret((77 + number).to_bytes(32, "big")),
            )
            covered = wrap_hash(server, epoch, name, wraps[name])
            signatures[name] = self.sign(self.platforms[server], Purpose.PAYEE_PLATFORM, covered)
        self.call(server, "put_wraps", epoch=epoch, wraps=wraps, signatures=signatures)

    def add(
        self,
        server: str,
        *,
        version: int = 1,
        merchant: int = 0,
        account: str = "merchant-m",
        is_shareable: bool = False,
        plaintext: bytes | None = None,
    ) -> None:
        """Write a record, signed by platform and merchant."""
        who, epoch = identity(merchant), self.epochs[server]
        content = Content(SALT, plaintext or msgspec.json.encode(acquiring(server, account)))
        sealed = EpochKey(SECRETS[server]).seal_record(
            content, identity=who, server=server, version=version, random_bytes=bytes
        )
        committed = commitment(content.salt, content.plaintext)
        whole = record_hash(who, server, version, version, epoch, committed, sealed, is_shareable)
        signed = content_hash(who, server, version, committed, is_shareable)
        self.call(
            server,
            "add_record",
            identity=who,
            version=version,
            epoch=epoch,
            commitment=committed,
            ciphertext=sealed,
            is_shareable=is_shareable,
            platform_signature=self.sign(self.platforms[server], Purpose.PAYEE_PLATFORM, whole),
            merchant_signature=self.sign(self.merchants[who], Purpose.PAYEE_MERCHANT, signed),
        )

    def states(self, keys: set[str], *, time_ms: int = 0) -> bytes:
        """Return the proof of these keys' present values, under a head of the present height."""
        state = dict(self.chain.state.entries())
        tree = update({}, state)
        nodes = {path: blob for path, blob in tree.nodes.items() if blob is not None}
        validators = self.chain.genesis.validator_set()
        block = make_block(self._genesis, validators, sealed_root=tree.root)
        height = self.chain.height
        header = replace(block.header, height=height, sealed_height=height, time_ms=time_ms or self.chain.time_ms)
        entries = [StateEntry(one, state.get(one.encode()), prove(nodes, one.encode())) for one in sorted(keys)]
        proof = StatesProof(self.chain.chain_id, [], header, certify(header, VOTE_KEYS), entries)
        return states_codec.encode(proof)

    def keys_for(self, query: Query, *environments: str) -> set[str]:
        """Return what a node proves for a query."""
        body = query.body
        who, state = body.identity, self.chain.state.entries()
        merchant: Any = decode(state[merchant_key(who).encode()]) if merchant_key(who).encode() in state else None
        servers = [body.server] if body.mode == Mode.TARGET else merchant["servers"] if merchant else []
        keys = {merchant_key(who), platform_key(body.server)}
        keys |= {allowed_key(MEASUREMENT), allowed_key(OTHER_MEASUREMENT)}
        for name in environments:
            keys.add(environment_key(name))
            keys |= {wrap_key(server, self.epochs[server], name) for server in servers}
        return keys | {record_key(server, who) for server in servers}


@dataclass
class Node:
    """One node's ``payee_resolve``.

    ``error`` is said in place of any answer, ``lie`` makes another answer of it, which ``gate`` holds up.
    """

    world: PayeeWorld
    environment: str = "bank-a"
    error: HansaError | None = None
    gate: trio.Event | None = None
    lie: "Callable[[Node, bytes, Query], tuple[bytes, bytes]] | None" = None
    asked: list[Query] = field(default_factory=list)

    def __post_init__(self) -> None:
        world = self.world
        self.trusted = Environment(
            world.chain.genesis,
            self.environment,
            environment_keys(self.environment),
            measurement=MEASUREMENT,
            clock_ms=lambda: world.now_ms,
        )

    async def request(
        self, method: str, params: Parameters, kind: type[T], *, timeout_ms: int = REQUEST_TIMEOUT_MS
    ) -> T:
        """Answer as the node does."""
        raw = params["query"]
        assert isinstance(raw, bytes), method
        query = query_codec.decode_untrusted(raw)
        self.asked.append(query)
        if self.error is not None:
            raise self.error
        answer, states = self.truth(raw, query) if self.lie is None else self.lie(self, raw, query)
        if self.gate is not None:
            await self.gate.wait()
        said = {"answer": answer, "states": states, "environment": self.environment, "emulated": True}
        return msgspec.json.decode(msgspec.json.encode(said), type=kind)

    def truth(self, raw: bytes, query: Query) -> tuple[bytes, bytes]:
        """Return answer and states; what the environment refuses is the node's refusal."""
        states = self.states(query)
        told: Told = told_codec.decode_untrusted(self.trusted.tell(ask_codec.encode(AskResolve(raw, states))))
        if told.code:
            raise Refused(told.code, told.message)
        return told.body, states

    def states(self, query: Query) -> bytes:
        """Return what is proven."""
        return self.world.states(self.world.keys_for(query, self.environment))

    def forged(self, query: Query, content: AnswerContent, *, height: int | None = None, name: str = "") -> bytes:
        """Return what the environment's keys make of any content."""
        name = name or self.environment
        keys, covered = environment_keys(self.environment), query_hash(query.body)
        height = self.world.chain.height if height is None else height
        fresh = ExchangeKey.generate()
        sealed = seal_answer(
            content,
            query=covered,
            environment=name,
            height=height,
            exchange_key=query.body.exchange_key,
            fresh=fresh,
        )
        signed = answer_hash(covered, name, height, fresh.public, sealed)
        signature = keys.signing.sign(Purpose.PAYEE_ANSWER, self.world.chain.chain_id, signed)
        return answer_codec.encode(Answer(covered, name, height, fresh.public, sealed, signature))


@dataclass
class Nodes:
    """What a resolver needs of a reader."""

    world: PayeeWorld
    nodes: Mapping[str, Node]

    def __post_init__(self) -> None:
        self.genesis = self.world.chain.genesis
        self.chain_id = self.world.chain.chain_id

    def each_node(self) -> Mapping[str, Node]:
        """Return the nodes by their URLs."""
        return self.nodes


def resolver_of(world: PayeeWorld, *nodes: Node, server: str = "wallet-p", clock: Any = None) -> Resolver:
    """Return a resolver over nodes ``http://n0``, ``http://n1`` …, signing with the platform's own key."""
    return Resolver(
        Nodes(world, {f"http://n{number}": node for number, node in enumerate(nodes)}),
        QuerySigner(server, world.platforms[server]),
        now_ms=clock or (lambda: world.now_ms),
        random_bytes=lambda count: bytes(count),
    )
