"""Four replicas of the real executor without processes, behind the ports of the rights demo.

``flaw`` names an invariant; the replicas then really misbehave in a way that breaks it.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256

from consensus.ledger.codec import Value, decode
from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PrivateKey
from consensus.ledger.receipt import OK
from consensus.ledger.transaction import EACH, Call, Transaction, make_call, sign_transaction
from contracts.runtime.lanes import load_lane
from services.client.calls import value_json
from services.client.errors import Unreachable
from services.client.keystore import Signer
from services.client.outcome import Final
from services.demo.chain import BlockView, PrimaryView, ReceiptView, Seal
from services.demo.network import OpenNetwork
from tests.contracts.support import KEYS, VOTE_KEYS
from tests.contracts.support import Chain as ExecutedChain

NAMES = list(VOTE_KEYS)


class Replicas:
    """A consortium and a chain at once: a block for every submission, executed by each replica that runs."""

    def __init__(self, flaw: str = "") -> None:
        self.flaw = flaw
        self.chains = {name: ExecutedChain() for name in NAMES}
        self.receipts: dict[str, dict[bytes, list[ReceiptView]]] = {name: {} for name in NAMES}
        self.heights: dict[bytes, int] = {}
        self.blocks: list[BlockView] = []
        self.log: list[list[Transaction]] = []
        self.down: set[str] = set()
        self.frozen: set[str] = set()
        self.accidents: list[tuple[str, str]] = []
        self._seen: set[bytes] = set()

    # -- the consortium ------------------------------------------------------------------------------------

    @property
    def genesis(self) -> Genesis:
        return self.chains[NAMES[0]].genesis

    @property
    def urls(self) -> dict[str, str]:
        return dict.fromkeys(NAMES, "http://nowhere")

    @property
    def place(self) -> str:
        return "in memory"

    def key(self, identity: str) -> PrivateKey:
        return KEYS[identity]

    async def start(self, name: str) -> None:
        self.accidents.append(("start", name))
        self.down.discard(name)
        self._catch_up(name)

    async def kill(self, name: str) -> None:
        self.accidents.append(("kill", name))
        self.down.add(name)

    def freeze(self, name: str) -> None:
        self.accidents.append(("freeze", name))
        self.frozen.add(name)

    def resume(self, name: str) -> None:
        self.accidents.append(("resume", name))
        self.frozen.discard(name)
        self._catch_up(name)

    # -- the chain -----------------------------------------------------------------------------------------

    def sign(self, signer: Signer, calls: Sequence[Call], *, lane: bytes, sequence: int) -> Transaction:
        chain = self.chains[NAMES[0]]
        factors = {"nothing_failed": (0, 1), "quota_held": (1, 10)}
        if calls[0].method == "open_campaign" and self.flaw in factors:
            arguments = decode(calls[0].arguments)
            factor, more = factors[self.flaw]
            assert isinstance(arguments, dict)
            assert isinstance(arguments["quota"], int)
            calls = [make_call("rights", "open_campaign", {**arguments, "quota": arguments["quota"] * factor + more})]
        valid = chain.time_ms + 60_000
        return sign_transaction(
            signer.key, chain.chain_id, list(calls), sequence=sequence, valid_until_ms=valid, lane=lane, mode=EACH
        )

    async def lane_next(self, signer: Signer, lane: bytes) -> int:
        record = load_lane(self.chains[NAMES[0]].state, signer.address, lane)
        return 0 if record is None else record.next

    async def submit(self, transactions: Sequence[Transaction]) -> list[str]:
        height = len(self.log) + 1
        view = 0
        while (proposer := NAMES[(height + view) % len(NAMES)]) in self.down | self.frozen:
            view += 1
        if self.flaw == "killed_validator_returned" and proposer == NAMES[-1]:
            proposer = NAMES[0]
        if self.flaw == "frozen_primary_replaced":
            view = 0
        self.blocks.append(BlockView(height, proposer, len(transactions), view))
        self.log.append(list(transactions))
        self.heights |= {transaction.id: height for transaction in transactions}
        if self.flaw == "rights_conserved" and height == 6:
            key = self.chains[NAMES[0]].state.scan(b"rights/campaign/", b"", 1)[0][0]
            gift: dict[str, Value] = {"campaign": key.decode().rpartition("/")[2], "user": "nobody"}
            gift |= {"order": "gift", "event": "e", "amount": 1}
            extra = self.sign(
                Signer.of("shop", KEYS["shop"]), [make_call("rights", "create", gift)], lane=b"gift", sequence=0
            )
            self.log[-1].insert(0, extra)
        for name in NAMES:
            if name not in self.down | self.frozen:
                self._catch_up(name)
        return [""] * len(transactions)

    async def wait_final(self, ids: Sequence[bytes], *, timeout_ms: int) -> list[Final]:
        return await self.finals_at(NAMES[0], ids, timeout_ms=timeout_ms)

    async def finals_at(self, node: str, ids: Sequence[bytes], *, timeout_ms: int) -> list[Final]:
        if any(item not in self.receipts[node] for item in ids):
            raise Unreachable("not final", code="outcome_unknown")
        return [Final(item, self.heights[item], 0) for item in ids]

    async def receipts_at(self, node: str, transaction_id: bytes) -> list[ReceiptView]:
        return self.receipts[node].get(transaction_id, [])

    async def query_at(self, node: str, contract: str, method: str, arguments: dict[str, Value]) -> Value:
        return self.chains[node].query(contract, method, **arguments)

    async def seal_at(self, node: str, key: str, *, height_min: int) -> Seal:
        entries = sorted(self.chains[node].state.entries().items())
        return Seal(self.chains[node].height, sha256(repr(entries).encode()).digest())

    async def height_at(self, node: str) -> int:
        return self.chains[node].height

    async def primary_at(self, node: str) -> PrimaryView:
        height = len(self.log) + 1
        return PrimaryView(height, 0, NAMES[height % len(NAMES)])

    async def blocks_at(self, node: str, *, first: int, last: int) -> list[BlockView]:
        return self.blocks[first - 1 : last]

    async def prove(self, transaction_id: bytes) -> int:
        return len(self.receipts[NAMES[0]][transaction_id])

    # -- execution -----------------------------------------------------------------------------------------

    def _catch_up(self, name: str) -> None:
        chain = self.chains[name]
        while chain.height < len(self.log) and not self._is_held_back(name, chain.height + 1):
            transactions = self.log[chain.height]
            execution = chain.block(transactions)
            receipts = iter(execution.receipts)
            for transaction, count in zip(transactions, execution.counts, strict=True):
                shown = [next(receipts) for _ in range(count)]
                views = [
                    ReceiptView(
                        "ok" if receipt.status == OK else "failed",
                        receipt.code,
                        [json.dumps(value_json(decode(value))) for value in receipt.values],
                    )
                    for receipt in shown
                ]
                self.receipts[name][transaction.id] = self._tampered(name, chain.height, transaction, views)
            if self.flaw == "state_roots_agree" and name == NAMES[2] and chain.height == 9:
                chain.state.apply({b"rights/stray": b"\x01"})

    def _is_held_back(self, name: str, height: int) -> bool:
        """The last block never reaches one replica; it holds the order above the quota."""
        calls = self.log[height - 1][-1].body.calls
        is_probe = len(calls) == 1 and b"probe" in calls[0].arguments
        return self.flaw == "heights_agree" and name == NAMES[1] and is_probe

    def _tampered(
        self, name: str, height: int, transaction: Transaction, views: list[ReceiptView]
    ) -> list[ReceiptView]:
        if self.flaw == "receipts_found" and name == NAMES[1] and height == 8:
            return []
        if self.flaw != "repeats_change_nothing" or name != NAMES[3]:
            return views
        found: list[ReceiptView] = []
        for call, view in zip(transaction.body.calls, views, strict=True):
            repeated = call.method.encode() + call.arguments in self._seen
            self._seen.add(call.method.encode() + call.arguments)
            found.append(ReceiptView(view.status, view.code, ["another"]) if repeated else view)
        return found


def network_of(replicas: Replicas) -> OpenNetwork:
    """Return how the demo opens this network."""

    @asynccontextmanager
    async def open_network() -> AsyncIterator[Replicas]:
        yield replicas

    return open_network


@asynccontextmanager
async def open_replicas(
    replicas: Replicas, genesis: Genesis, urls: Mapping[str, str], first: Sequence[str]
) -> AsyncIterator[Replicas]:
    """Connect to the replicas."""
    yield replicas
