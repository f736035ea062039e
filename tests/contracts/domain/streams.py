"""A test chain of payers and service parties, and what they sign for payment streams on it."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from consensus.ledger.codec import Value
from consensus.ledger.ids import Address, Hash
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.receipt import OK, Receipt
from consensus.ledger.streams import (
    Mode,
    StreamRecord,
    Terms,
    close_hash,
    make_iteration,
    read_record,
    stream_id,
    stream_key,
    stream_lane,
    terms_hash,
)
from consensus.ledger.transaction import Call, Transaction, make_call
from contracts.runtime.execution import BlockContext
from contracts.runtime.lanes import LaneRecord, load_lane
from tests.contracts.domain.support import Door, shared_registry
from tests.contracts.support import START_MS, Chain, make_registry

UNIT = "FEN"
FUNDS = 100_000
"""What each party has of the unit when the chain begins."""
PAYER, SERVICE, OTHER = "alice", "shop", "bob"
PARTIES = (PAYER, SERVICE, OTHER, "carol", "shop-2")


@dataclass
class StreamChain(Chain):
    """A chain whose clock a test moves; ``uptime_ms`` may stand still while time passes. Addresses outlive keys."""

    idle_ms: int = field(default=0)
    """How much of the time that passed did not count as uptime."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.addresses = {name: key.public.address for name, key in self.keys.items()}

    def address(self, name: str) -> Address:
        """Return the address of an account by name, whatever its key is by now."""
        return self.addresses[name]

    def block_context(self) -> BlockContext:
        """Return the context of the next block."""
        context = super().block_context()
        return BlockContext(
            context.chain_id, context.height, context.time_ms, context.uptime_ms - self.idle_ms, context.proposer
        )

    def wait(self, time_ms: int, *, is_idle: bool = False) -> None:
        """Let time pass without blocks; ``is_idle``: it does not count as uptime either."""
        self.time_ms += time_ms
        self.idle_ms += time_ms if is_idle else 0

    @property
    def next_time_ms(self) -> int:
        """The time of the next block."""
        return self.block_context().time_ms

    @property
    def next_uptime_ms(self) -> int:
        """The uptime of the next block."""
        return self.block_context().uptime_ms

    def wait_until(self, time_ms: int) -> None:
        """Let the next block have this time."""
        self.wait(time_ms - self.next_time_ms)

    def wait_until_uptime(self, uptime_ms: int) -> None:
        """Let the next block have this uptime."""
        self.wait(uptime_ms - self.next_uptime_ms)


class Streams(Door):
    """The contract on such a chain, and what its parties sign. Arguments are whole, for tests to change."""

    def __init__(self, *extra: str) -> None:
        chain = StreamChain(make_registry(*extra) if extra else shared_registry())
        super().__init__("streams", chain)
        self.chain: StreamChain = chain
        chain.ok("issuer", "tokens", "define", unit=UNIT, decimals=2)
        for name in PARTIES:
            chain.ok("issuer", "tokens", "issue", unit=UNIT, to=chain.address(name), amount=FUNDS)

    # -- what is agreed and signed ------------------------------------------------------------------------

    def terms(self, number: int = 0, *, payer: str = PAYER, service: str = SERVICE, **changes: Any) -> Terms:
        """Return terms: a deposit of 1,000 with a fine of 100, price 5, steps up to 10, service first."""
        terms = Terms(
            payer=bytes(self.chain.address(payer)),
            service=bytes(self.chain.address(service)),
            number=number,
            what="0.1 kWh",
            unit=UNIT,
            deposit=1_000,
            fine=100,
            price=5,
            step_max=10,
            credit=0,
            mode=int(Mode.SERVICE_FIRST),
            count_max=0,
            amount_max=0,
            duration_ms_max=0,
            window_ms=150_000,
            validity_ms=60_000,
            margin_ms=10_000,
            step_ms=5_000,
            offer_until_ms=START_MS + 3_600_000,
        )
        return msgspec.structs.replace(terms, **changes)

    def offer(self, terms: Terms, *, by: str = SERVICE) -> dict[str, Any]:
        """Return the arguments of ``open``: the terms, signed by the service party."""
        signature = self.key(by).sign(Purpose.STREAM_TERMS, self.chain.chain_id, terms_hash(terms))
        return {**msgspec.structs.asdict(terms), "signature": signature}

    def key(self, name: str) -> PrivateKey:
        """Return the key that an account's name signs with."""
        return self.chain.keys[name]

    def open(self, terms: Terms | None = None, *, payer: str = PAYER, service: str = SERVICE) -> bytes:
        """Open a stream and return its id."""
        terms = terms or self.terms(payer=payer, service=service)
        stream: bytes = self.call(payer, "open", **self.offer(terms, by=service))
        return stream

    def iteration(
        self, stream: bytes, due: int, *, payer: str = PAYER, valid_ms: int = 60_000, key: PrivateKey | None = None
    ) -> Transaction:
        """Return a signed iteration, valid for so long after the next block."""
        signer = key or self.key(payer)
        until = self.chain.next_time_ms + valid_ms
        return make_iteration(signer, self.chain.chain_id, self.chain.address(payer), stream, due, until)

    def consent(self, stream: bytes, due: int, *, by: str) -> dict[str, Any]:
        """Return the arguments of ``close``, signed by this side."""
        signature = self.key(by).sign(Purpose.STREAM_CLOSE, self.chain.chain_id, close_hash(stream, due))
        return {"stream": stream, "due": due, "signature": signature}

    # -- what happens -------------------------------------------------------------------------------------

    def upload(self, transaction: Transaction) -> Receipt:
        """Put a transaction into a block and return its receipt; raises PeerError where it is not admitted."""
        receipt: Receipt = self.chain.block([transaction]).receipts[0]
        return receipt

    def settle(self, transaction: Transaction) -> None:
        """Upload an iteration that must settle."""
        self.receipt = self.upload(transaction)
        assert self.receipt.status == OK, self.receipt.code

    def burn(self, stream: bytes, *calls: Call, payer: str = PAYER, mode: int = 0) -> Receipt:
        """Use the number of a stream's lane for other calls of the payer, by default one that succeeds."""
        other = calls or (make_call("tokens", "transfer", self.transfer(OTHER, 1)),)
        transaction = self.chain.transaction(payer, *other, lane=stream_lane(stream), mode=mode)
        return self.upload(transaction)

    def transfer(self, to: str, amount: int) -> dict[str, Value]:
        """Return the arguments of a transfer."""
        return {"unit": UNIT, "to": bytes(self.chain.address(to)), "amount": amount, "memo": ""}

    def spend(self, name: str, *, leave: int = 0, to: str = "carol") -> None:
        """Let an account give away what it has available, but for what it shall keep."""
        amount = self.balance(name) - leave
        if amount > 0:
            self.chain.ok(name, "tokens", "transfer", **self.transfer(to, amount))

    def rotate(self, name: str, number: int = 0) -> PrivateKey:
        """Give an account a new key, and return the one it had."""
        old, new = self.key(name), PrivateKey.from_secret(9_000 + number)
        self.chain.ok(name, "membership", "rotate_key", new_public_key=new.public.compressed)
        self.chain.keys[name] = new
        return old

    # -- what there is ------------------------------------------------------------------------------------

    def balance(self, name: str) -> int:
        """Return what an account has available."""
        found = self.chain.query("tokens", "balance", unit=UNIT, account=bytes(self.chain.address(name)))
        assert isinstance(found, dict)
        available = found["available"]
        assert isinstance(available, int)
        return available

    def escrow(self, stream: bytes) -> int:
        """Return what is held for a stream."""
        held = self.chain.query("tokens", "escrowed", unit=UNIT, contract="streams", key=stream.hex())
        assert isinstance(held, int)
        return held

    def record(self, stream: bytes) -> StreamRecord:
        """Return a stream's record, read as programs read it from a proven state."""
        data = self.chain.state.get(stream_key(stream).encode())
        assert data is not None
        return read_record(msgspec.msgpack.decode(data))

    def lane(self, stream: bytes, payer: str = PAYER) -> LaneRecord | None:
        """Return the record of a stream's lane."""
        return load_lane(self.chain.state, self.chain.address(payer), stream_lane(stream))

    def held(self) -> int:
        """Return all of the unit that anybody has, reserved or in escrow included."""
        prefixes = (f"tokens/balance/{UNIT}/".encode(), f"tokens/escrow/{UNIT}/".encode())
        values = [
            msgspec.msgpack.decode(data) for key, data in self.chain.state.entries().items() if key.startswith(prefixes)
        ]
        return sum(value if isinstance(value, int) else sum(value) for value in values)


def id_of(terms: Terms) -> Hash:
    """Return the id of the stream that these terms make."""
    return stream_id(terms.payer, terms.service, terms.number)
