"""Several engines in one process, wired by a queue: every message is encoded, delivered in order, decoded.

The driver of each replica is the smallest that keeps the contract of ``events``: records survive a
crash, blocks are valid when their transactions are not ``b"bad"`` and fit the header.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from consensus.ledger.block import Block, Header, genesis_block, uptime_after
from consensus.ledger.ids import ZERO_HASH, ChainId, NodeName, tagged_hash
from consensus.ledger.keys import PrivateKey
from consensus.ledger.merkle import list_root
from consensus.ledger.validators import Certificate, Validator, ValidatorSet, check_certificate_untrusted
from consensus.pbft.config import Config
from consensus.pbft.engine import Engine
from consensus.pbft.events import (
    Advanced,
    Broadcast,
    CatchUp,
    Decide,
    Effect,
    Event,
    Evidence,
    Head,
    Penalise,
    Persist,
    Phase,
    Propose,
    Proposed,
    Received,
    Send,
    Tick,
    Validate,
    Validated,
    ViewEntered,
    Work,
)
from consensus.pbft.messages import Message, decode_message_untrusted, encode_message
from consensus.pbft.signing import KeySigner, KeyVerifier

CHAIN = ChainId(tagged_hash("test-chain"))
TICK_MS = 20
STEPS_MAX = 200_000


def node_names(count: int) -> list[NodeName]:
    """Return a, b, c … (n00, n01 … above 26)."""
    if count <= 26:
        return [NodeName(chr(ord("a") + index)) for index in range(count)]
    return [NodeName(f"n{index:02}") for index in range(count)]


def key_of(name: str, generation: int = 0) -> PrivateKey:
    """Return the vote key of a test node."""
    secret = int.from_bytes(tagged_hash("test-key", f"{name}/{generation}".encode())[:31], "big")
    return PrivateKey.from_secret(secret)


def validator_set(names: list[NodeName]) -> ValidatorSet:
    """Return the set of these nodes."""
    return ValidatorSet.of([Validator(name, "org", key_of(name).public.compressed) for name in names])


def genesis_head(validators: ValidatorSet) -> Head:
    """Return the head of an empty chain."""
    block = genesis_block(
        CHAIN,
        time_ms=1_000_000,
        proposer=validators.names[0],
        validators_hash=validators.hash(),
        writes={},
        sealed_root=ZERO_HASH,
    )
    return Head(block.header, block.hash, None, validators, quiet=True)


def make_block(head: Head, proposer: str, transactions: list[bytes], **changes: object) -> Block:
    """Return a block above ``head``; ``changes`` replace header fields."""
    time_ms = head.header.time_ms + 10
    fields: dict[str, object] = {
        "version": 1,
        "chain_id": head.header.chain_id,
        "height": head.header.height + 1,
        "parent_hash": head.hash,
        "time_ms": time_ms,
        "uptime_ms": uptime_after(head.header, time_ms),
        "proposer": proposer,
        "transactions_root": list_root(transactions),
        "receipts_root": ZERO_HASH,
        "writes_root": ZERO_HASH,
        "validators_hash": head.validators.hash(),
        "next_validators_hash": head.validators.hash(),
        "sealed_height": 0,
        "sealed_root": ZERO_HASH,
    }
    return Block.of(Header(**(fields | changes)), transactions)  # type: ignore[arg-type]


def default_config(name: NodeName, **changes: int) -> Config:
    """Return a config with this node's real key."""
    return Config(name, KeySigner(key_of(name), CHAIN), KeyVerifier(CHAIN), **changes)


@dataclass
class Replica:
    """One node: its engine and what its disk holds."""

    name: NodeName
    engine: Engine
    records: dict[bytes, bytes]
    chain: list[tuple[Block, Certificate | None, Head]]
    alive: bool = True
    evidence: list[Evidence] = field(default_factory=list)
    penalties: list[Penalise] = field(default_factory=list)
    views: list[ViewEntered] = field(default_factory=list)

    @property
    def head(self) -> Head:
        return self.chain[-1][2]

    @property
    def height(self) -> int:
        return len(self.chain) - 1


class Cluster:
    """n replicas with one clock. ``drop(sender, to, message)`` true loses a message."""

    def __init__(self, count: int, **config: int) -> None:
        self.names = node_names(count)
        self.validators = validator_set(self.names)
        self.config = config
        self.now_ms = 0
        self.pool: list[bytes] = []
        self.drop: Callable[[NodeName, NodeName, Message], bool] = lambda sender, to, message: False
        self.trace: list[tuple[NodeName, Effect]] = []
        self.queue: deque[tuple[NodeName, Event]] = deque()
        head = genesis_head(self.validators)
        genesis = Block.of(head.header, [])
        self.replicas: dict[NodeName, Replica] = {}
        for name in self.names:
            engine = Engine.restore(default_config(name, **config), head, {})
            self.replicas[name] = Replica(name, engine, {}, [(genesis, None, head)])

    def __getitem__(self, name: str) -> Replica:
        return self.replicas[NodeName(name)]

    @property
    def alive(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.alive]

    def submit(self, *transactions: bytes) -> None:
        """Put transactions into everybody's mempool."""
        self.pool.extend(transactions)
        for replica in self.alive:
            self.feed(replica.name, Work(waiting=True))
        self.drain()

    def feed(self, name: str, event: Event) -> None:
        """Queue an event for a replica."""
        self.queue.append((NodeName(name), event))

    def run(self, duration_ms: int) -> None:
        """Let time pass."""
        for _ in range(duration_ms // TICK_MS):
            self.now_ms += TICK_MS
            for replica in self.alive:
                self.feed(replica.name, Tick(self.now_ms))
            self.drain()

    def run_until_height(self, height: int, limit_ms: int) -> None:
        """Let time pass until every living replica has this height."""
        end_ms = self.now_ms + limit_ms
        while any(replica.height < height for replica in self.alive):
            if self.now_ms >= end_ms:
                heights = {name: replica.height for name, replica in self.replicas.items()}
                raise AssertionError(f"after {limit_ms} ms heights are {heights}")
            self.run(TICK_MS)

    def drain(self) -> None:
        """Work off everything that is queued."""
        steps = 0
        while self.queue:
            name, event = self.queue.popleft()
            replica = self.replicas[name]
            if replica.alive:
                for effect in replica.engine.step(event):
                    if replica.alive:
                        self.trace.append((name, effect))
                        self.perform(replica, effect)
            steps += 1
            if steps > STEPS_MAX:
                raise AssertionError("the replicas never stop talking")

    def crash(self, *names: str) -> None:
        for name in names:
            self[name].alive = False

    def restart(self, *names: str) -> None:
        """Start replicas again from their records and chain."""
        for name in names:
            replica = self[name]
            config = default_config(replica.name, **self.config)
            replica.engine = Engine.restore(config, replica.head, dict(replica.records))
            replica.alive = True
            self.feed(name, Work(waiting=bool(self.waiting(replica))))
            self.feed(name, Tick(self.now_ms))
        self.drain()

    def waiting(self, replica: Replica) -> list[bytes]:
        done = {transaction for block, _, _ in replica.chain for transaction in block.transactions}
        return [transaction for transaction in self.pool if transaction not in done]

    def agree(self) -> None:
        """Check that nobody's chain contradicts another's."""
        longest = max(self.replicas.values(), key=lambda replica: replica.height).chain
        for replica in self.replicas.values():
            for (block, _, _), (other, _, _) in zip(replica.chain, longest, strict=False):
                assert block.hash == other.hash

    def perform(self, replica: Replica, effect: Effect) -> None:
        match effect:
            case Persist():
                for key, value in effect.records:
                    if value is None:
                        replica.records.pop(key, None)
                    else:
                        replica.records[key] = value
            case Send():
                self.deliver(replica.name, effect.to, effect.message)
            case Broadcast():
                for name in self.names:
                    if name != replica.name:
                        self.deliver(replica.name, name, effect.message)
            case Propose():
                block = make_block(replica.head, replica.name, self.waiting(replica))
                self.feed(replica.name, Proposed(effect.height, effect.view, block))
            case Validate():
                block = effect.block
                fits = block.header.transactions_root == list_root(block.transactions)
                valid = fits and b"bad" not in block.transactions
                self.feed(replica.name, Validated(block.hash, valid, "" if valid else "bad_block"))
            case Decide():
                self.commit(replica, effect.block, effect.certificate)
            case CatchUp():
                source = self.replicas[effect.source].chain
                if len(source) <= effect.certificate.height:
                    source = max((other.chain for other in self.alive), key=len)
                for block, certificate, _ in source[replica.height + 1 : effect.certificate.height + 1]:
                    self.commit(replica, block, certificate or effect.certificate)
            case Evidence():
                replica.evidence.append(effect)
            case Penalise():
                replica.penalties.append(effect)
            case ViewEntered():
                replica.views.append(effect)

    def commit(self, replica: Replica, block: Block, certificate: Certificate) -> None:
        if block.height <= replica.height:  # caught up a moment before it was decided here
            assert replica.chain[block.height][0].hash == block.hash
            return
        assert block.height == replica.height + 1
        assert certificate.block_hash == block.hash
        check_certificate_untrusted(certificate, replica.head.validators, CHAIN)
        head = Head(block.header, block.hash, certificate, self.validators, block.is_quiet)
        replica.chain.append((block, certificate, head))
        self.feed(replica.name, Work(waiting=bool(self.waiting(replica))))
        self.feed(replica.name, Advanced(head))

    def deliver(self, sender: NodeName, to: NodeName, message: Message) -> None:
        if not self.drop(sender, to, message):
            self.feed(to, Received(sender, decode_message_untrusted(encode_message(message))))

    def phases(self) -> dict[NodeName, Phase]:
        return {name: replica.engine.status().phase for name, replica in self.replicas.items()}
