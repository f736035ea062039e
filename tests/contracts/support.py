"""A chain of the real executor over a state in memory: no consensus, no signatures judged, no clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from consensus.ledger.codec import Value, decode
from consensus.ledger.genesis import Account, Activation, Genesis, GenesisValidator, Organisation
from consensus.ledger.ids import Address
from consensus.ledger.keys import PrivateKey
from consensus.ledger.receipt import OK, Receipt
from consensus.ledger.transaction import ATOMIC, Call, Transaction, make_call, sign_transaction
from contracts.runtime.execution import BlockContext, Execution, Executor
from contracts.runtime.lanes import load_lane
from contracts.runtime.registry import DOMAIN_FOLDER, Registry
from contracts.runtime.state import MemoryState

START_MS = 1_700_000_000_000
BLOCK_MS = 1_000

ACCOUNTS = {
    "admin-a": ("bank-a", ["admin"]),
    "admin-b": ("bank-b", ["admin"]),
    "alice": ("bank-a", []),
    "bob": ("bank-a", []),
    "carol": ("bank-b", []),
    "issuer": ("bank-a", ["unit-issuer"]),
    "shop": ("shop", ["business-server"]),
    "shop-2": ("shop", ["business-server"]),
}
"""Name → organisation and roles of the accounts that every test chain begins with."""

KEYS = {name: PrivateKey.from_secret(1_000 + index) for index, name in enumerate(ACCOUNTS)}
VOTE_KEYS = {f"node-{index}": PrivateKey.from_secret(2_000 + index) for index in range(4)}


def shipped_sources() -> list[tuple[str, bytes]]:
    """Return file name and source of every shipped contract."""
    return [(path.name, path.read_bytes()) for path in sorted(DOMAIN_FOLDER.glob("*.py")) if path.name[0] != "_"]


@cache
def make_registry(*extra: str) -> Registry:
    """Return a registry of the shipped contracts and of the given sources; equal ones are shared."""
    return Registry([*shipped_sources(), *((f"extra-{i}.py", text.encode()) for i, text in enumerate(extra))])


def make_genesis(registry: Registry) -> Genesis:
    """Return a genesis document with ``ACCOUNTS``, four validators, and all the registry's contracts active."""
    return Genesis(
        name="test",
        time_ms=START_MS,
        organisations=[
            Organisation("bank-a", ["bank", "unit-issuer"], "PEM A"),
            Organisation("bank-b", ["bank"], "PEM B"),
            Organisation("shop", ["merchant", "business-server"], "PEM S"),
        ],
        validators=[GenesisValidator(name, "bank-a", key.public.compressed.hex()) for name, key in VOTE_KEYS.items()],
        accounts=[
            Account(name, organisation, KEYS[name].public.compressed.hex(), roles)
            for name, (organisation, roles) in ACCOUNTS.items()
        ],
        contracts=[Activation(item.name, item.version, item.code_hash.hex()) for item in registry.newest()],
    )


@dataclass
class Chain:
    """Blocks applied one by one to a state in memory; ``keys`` may be extended with further accounts.

    ``sent`` is every transaction so far, so that another chain of this genesis document can take them over.
    """

    registry: Registry = field(default_factory=make_registry)
    keys: dict[str, PrivateKey] = field(default_factory=lambda: dict(KEYS))
    height: int = 0
    time_ms: int = START_MS
    sent: list[Transaction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.genesis = make_genesis(self.registry)
        self.chain_id = self.genesis.chain_id()
        self.logs: list[tuple[str, str, str]] = []
        self.executor = Executor(self.registry, lambda *line: self.logs.append(line))
        self.state = MemoryState()
        self.state.apply(self.executor.genesis_writes(self.genesis))

    def address(self, name: str) -> Address:
        """Return the address of an account by name."""
        return self.keys[name].public.address

    def block_context(self) -> BlockContext:
        """Return the context of the next block."""
        time_ms = self.time_ms + BLOCK_MS
        return BlockContext(self.chain_id, self.height + 1, time_ms, time_ms - START_MS, "node-0")

    def transaction(
        self, sender: str, *calls: Call, lane: bytes = b"", mode: int = ATOMIC, sequence: int | None = None
    ) -> Transaction:
        """Return a signed transaction, with the lane's next number by default."""
        if sequence is None:
            record = load_lane(self.state, self.address(sender), lane)
            sequence = 0 if record is None else record.next
        valid_until_ms = self.time_ms + 60_000
        return sign_transaction(
            self.keys[sender],
            self.chain_id,
            list(calls),
            sequence=sequence,
            valid_until_ms=valid_until_ms,
            lane=lane,
            mode=mode,
            sender=self.address(sender),
        )

    def block(self, transactions: Sequence[Transaction]) -> Execution:
        """Execute a block and apply its writes."""
        context = self.block_context()
        execution = self.executor.execute(self.state, context, transactions)
        self.state.apply(execution.writes)
        self.sent += transactions
        self.height, self.time_ms = context.height, context.time_ms
        return execution

    def submit(self, sender: str, *calls: Call, lane: bytes = b"", mode: int = ATOMIC) -> list[Receipt]:
        """Execute one transaction in a block of its own and return its receipts."""
        return self.block([self.transaction(sender, *calls, lane=lane, mode=mode)]).receipts

    def call(self, sender: str, contract: str, method: str, /, **arguments: Value) -> Receipt:
        """Execute one call in a block of its own and return its receipt."""
        return self.submit(sender, make_call(contract, method, arguments))[0]

    def ok(self, sender: str, contract: str, method: str, /, **arguments: Value) -> Value:
        """Execute one call that must succeed and return its value."""
        receipt = self.call(sender, contract, method, **arguments)
        if receipt.status != OK:
            raise AssertionError(f"{contract}.{method} failed with {receipt.code}: {self.logs[-1:]}")
        return decode(receipt.values[0])

    def fails(self, sender: str, contract: str, method: str, /, **arguments: Value) -> str:
        """Execute one call that must fail and return its code."""
        receipt = self.call(sender, contract, method, **arguments)
        if receipt.status == OK:
            raise AssertionError(f"{contract}.{method} succeeded")
        return receipt.code

    def query(self, contract: str, method: str, /, **arguments: Value) -> Value:
        """Return the answer of a query."""
        return self.executor.query(self.state, self.block_context(), contract, method, arguments)
