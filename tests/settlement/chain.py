"""Settlement on a node that decides alone: accounts with units, events with signed deliveries, a store in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from consensus.ledger.ids import NodeName
from consensus.ledger.keys import Purpose
from consensus.ledger.transaction import Transaction, decode_transaction_untrusted, make_call
from consensus.ledger.validators import Certificate, Signature, ValidatorSet, vote_payload
from contracts.runtime.execution import Executor
from node.chain import Candidate
from node.driver import Commit
from services.client.client import Client
from services.settlement.decision import opened
from services.settlement.states import Event, Terms, changed
from services.settlement.trades import deliver_call, lane_of
from tests.client.support import CONSORTIUM, NOW_MS, LyingBackend, SoloNode, address, signer
from tests.contracts.domain.consortium import consortium_genesis, key
from tests.contracts.domain.support import shared_registry
from tests.node.support import Consortium, extend
from tests.settlement.memory import MemoryStore

UNIT = "BOND-1"
SELLER, BUYER, AGENT = "shop", "user-b", "user-e"
TIMEOUT_S = 20
VALIDITY_MS = 300_000


def terms_of(units: int = 10) -> Terms:
    """Return terms of a trade: ten units for 1,000.00."""
    return Terms(
        seller=address(SELLER),
        buyer=address(BUYER),
        asset=UNIT,
        units=units,
        price=100_000,
        currency="CNY",
        payer=BUYER,
        payee=SELLER,
    )


def event_of(name: str, *, units: int = 10, valid_until_ms: int = NOW_MS + VALIDITY_MS) -> Event:
    """Return a released trade with its signed delivery."""
    terms = terms_of(units)
    transaction = CONSORTIUM.sign(
        SELLER, [deliver_call(name, terms, address(AGENT))], lane=lane_of(name), valid_until_ms=valid_until_ms
    )
    event = opened(
        name,
        terms,
        transaction_id=bytes(transaction.id),
        raw=transaction.raw,
        valid_until_ms=valid_until_ms,
        now_ms=NOW_MS,
    )
    return changed(event, "released", now_ms=NOW_MS, is_released=True).after


def transaction_of(event: Event) -> Transaction:
    """Return an event's transaction."""
    return decode_transaction_untrusted(event.raw)


async def give_units(client: Client, amount: int = 1_000) -> None:
    """Define the unit and give the seller some."""
    calls = [
        make_call("tokens", "define", {"unit": UNIT, "decimals": 0, "description": "a bond"}),
        make_call("tokens", "issue", {"unit": UNIT, "to": address(SELLER), "amount": amount}),
    ]
    (await client.call_many(signer("bank-a"), calls)).check()


async def balance(client: Client, name: str) -> tuple[int, int]:
    """Return what an account has available and reserved."""
    answer = await client.query("tokens", "balance", {"unit": UNIT, "account": address(name)})
    if not isinstance(answer, dict):
        raise TypeError(answer)
    return answer["available"], answer["reserved"]


class PeerBackend(LyingBackend):
    """Claims to be a validator of any name; ``denies`` every transaction when told to."""

    claimed = NodeName("node-0")

    @property
    def node_name(self) -> NodeName:
        return self.claimed

    def deny(self) -> None:
        """Know no transaction from now on."""
        self.final.locate = lambda transaction_id: None  # type: ignore[method-assign]


class Peer(SoloNode):
    """One of several nodes with the same chain: blocks come by :func:`commit`."""

    backend: PeerBackend
    backend_type = PeerBackend

    def __init__(self, folder: Path, number: int, consortium: Consortium = CONSORTIUM) -> None:
        super().__init__(folder / f"node-{number}", consortium, executor=Executor(shared_registry()))
        self.backend.claimed = NodeName(f"node-{number}")
        self.is_deciding = False


def peers(folder: Path, count: int = 4) -> list[Peer]:
    """Return nodes ``node-0`` … with the same chain, which holds units of the seller's."""
    made = [Peer(folder, number) for number in range(count)]
    calls = [
        make_call("tokens", "define", {"unit": UNIT, "decimals": 0, "description": "a bond"}),
        make_call("tokens", "issue", {"unit": UNIT, "to": address(SELLER), "amount": 1_000}),
    ]
    commit(made, CONSORTIUM.sign("bank-a", calls))
    return made


def commit(nodes: Sequence[SoloNode], *transactions: Transaction, time_ms: int = 0) -> None:
    """Commit the same block at these nodes, 10 ms after the one before unless a block time is given."""
    for node in nodes:
        step_ms = time_ms - node.chain.head.header.time_ms if time_ms else 10
        candidate = extend(node.chain, node.store, node.consortium, list(transactions), step_ms)
        node.mempool.committed(candidate.transactions)
        node.backend.on_commit(Commit(candidate, node.consortium.certify(candidate)))


class Seats(Consortium):
    """A consortium of four whose last validator may leave: blocks are certified by whoever has the seats."""

    def certify(self, candidate: Candidate, view: int = 0) -> Certificate:
        block, chain_id = candidate.block, self.genesis.chain_id()
        everyone = self.genesis.validator_set()
        seated = next(
            validators
            for validators in (everyone, ValidatorSet(everyone.validators[:3]))
            if validators.hash() == block.header.validators_hash
        )
        payload = vote_payload(block.height, view, block.hash)
        votes = [
            Signature(name, self.vote_keys[name].sign(Purpose.COMMIT, chain_id, payload))
            for name in seated.names[: seated.quorum]
        ]
        return Certificate(block.height, view, block.hash, votes)


def seated(folder: Path) -> tuple[list[Peer], list[Transaction]]:
    """Return the nodes of a consortium of four, and the transactions after which ``node-3`` has no seat."""
    genesis = consortium_genesis(shared_registry(), 4)
    keys = {f"org-{number}": key(number) for number in range(4)}
    seats = Seats(genesis, {f"node-{number}": key(100 + number) for number in range(4)}, keys)
    ends_ms = genesis.time_ms + VALIDITY_MS
    leave = [
        seats.sign(name, [make_call("membership", "remove_node", {"node": "node-3"})], valid_until_ms=ends_ms)
        for name in [*keys][:3]
    ]
    return [Peer(folder, number, seats) for number in range(4)], leave


class BellStore(MemoryStore):
    """A store that tells whoever waits for it that something has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.bell = trio.Event()

    async def apply(self, changes: object, **options: object) -> list[bool]:
        taken = await super().apply(changes, **options)  # type: ignore[arg-type]
        self.ring()
        return taken

    async def drop_notices(self, numbers: object) -> None:
        await super().drop_notices(numbers)  # type: ignore[arg-type]
        self.ring()

    def ring(self) -> None:
        """Let everyone who waits look again."""
        self.bell.set()
        self.bell = trio.Event()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        with trio.fail_after(TIMEOUT_S):
            while not is_so():
                await self.bell.wait()
