"""Lies about blocks: late, hidden, bad, censored or doubled ones, and primaries that never propose."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import msgspec

from consensus.ledger.block import BlockRecord, Header, transactions_root
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.transaction import Transaction, decode_transaction_untrusted
from consensus.pbft.messages import (
    BlockBody,
    Commit,
    Decided,
    FetchBlock,
    Message,
    NewView,
    Prepare,
    PrePrepare,
    Status,
    ViewChange,
)
from node.clock import CLOCK_TOLERANCE_MS
from node.sync import SyncResponse
from p2p.frames import FrameKind
from tests.sim.byzantine.base import Liar, Parcel, Strategy

JUST_IN_TIME_MS = 950
"""Just under the time-out of view 0."""
SUSPECT_IN_TIME_MS = 150
"""Just under what a suspect gets."""


class Silent(Strategy):
    """Says some kinds of messages to nobody or not to its victims; withheld bodies and new views are among them."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        kinds: list[type] = [PrePrepare, Prepare, Commit, ViewChange, NewView, Decided, FetchBlock, BlockBody, Status]
        self.kinds = tuple(kinds if random.random() < 0.4 else random.sample(kinds, random.randint(1, 4)))
        self.to = self.peers if random.random() < 0.4 else self.victims

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        return [] if parcel.to in self.to and isinstance(parcel.message, self.kinds) else [parcel]

    def answer(self, response: SyncResponse) -> SyncResponse | None:
        return None


class PingsOnly(Strategy):
    """Answers whoever asks where it stands, and does nothing else: no proposal, no vote, no transaction (R38)."""

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        return [parcel] if isinstance(parcel.message, Status | Decided) else []

    def passes_on(self, to: NodeName, kind: FrameKind) -> bool:
        return kind is not FrameKind.TRANSACTIONS


class Slow(Strategy):
    """As primary just quick enough not to be replaced, or just too slow (R36)."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.delay_ms = random.choice((600, 900, 980, 1_050, 1_900))

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        slow = isinstance(parcel.message, PrePrepare | NewView)
        return [replace(parcel, delay_ms=parcel.delay_ms + self.delay_ms) if slow else parcel]


class Staller(Strategy):
    """A slow primary that learns: just under the time-out, and quicker after it has lost a turn (R36)."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.lost_height = 0

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        if isinstance(message, ViewChange) and self.liar.validators.primary(message.height, 0) == self.liar.name:
            self.lost_height = max(self.lost_height, message.height)
        return []

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        message = parcel.message
        if not isinstance(message, PrePrepare):
            return [parcel]
        suspected = self.lost_height and message.height - self.lost_height <= len(self.liar.validators.names)
        return [replace(parcel, delay_ms=SUSPECT_IN_TIME_MS if suspected else JUST_IN_TIME_MS)]


class Withholder(Strategy):
    """Hides one peer from its proposals for good, and gives another one the header with a body missing (R35)."""

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        message = parcel.message
        if parcel.to == self.peers[0] and isinstance(message, PrePrepare | NewView | BlockBody | Decided):
            return []
        if parcel.to == self.peers[-1] and isinstance(message, PrePrepare) and message.block.transactions:
            header_only = BlockRecord(message.block.header, [])
            return [replace(parcel, message=PrePrepare(message.view, header_only, message.signature))]
        return [parcel]


_BAD_FIELDS: dict[str, Callable[[Header, Random], object]] = {
    "version": lambda header, random: header.version + 1,
    "chain_id": lambda header, random: random.randbytes(32),
    "height": lambda header, random: header.height + random.choice((-1, 1)),
    "parent_hash": lambda header, random: random.randbytes(32),
    "time_ms": lambda header, random: header.time_ms + random.choice((-3_600_000, -1, 9_000, 3_600_000)),
    "uptime_ms": lambda header, random: header.uptime_ms + 1,
    "proposer": lambda header, random: random.choice(("node-0", "node-1", "stranger")),
    "transactions_root": lambda header, random: random.randbytes(32),
    "receipts_root": lambda header, random: random.randbytes(32),
    "writes_root": lambda header, random: random.randbytes(32),
    "validators_hash": lambda header, random: random.randbytes(32),
    "next_validators_hash": lambda header, random: random.randbytes(32),
    "sealed_height": lambda header, random: header.sealed_height + random.choice((-1, 1)),
    "sealed_root": lambda header, random: random.randbytes(32),
}


class BadBlocks(Strategy):
    """Signs blocks with one field wrong, or a body that is not the header's (R09, R41)."""

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        message = parcel.message
        if not isinstance(message, PrePrepare | BlockBody) or parcel.to not in self.victims or not self.chance(700):
            return [parcel]
        header, transactions = message.block.header, message.block.transactions
        if self.chance(300):
            block = BlockRecord(header, [] if transactions else [self.random.randbytes(40)])
        else:
            field = self.random.choice(sorted(_BAD_FIELDS))
            block = BlockRecord(_with_bad(header, field, self.random), transactions)
        twisted = BlockBody(block) if isinstance(message, BlockBody) else self.proposal(message.view, block)
        return [replace(parcel, message=twisted)]


class HeaderMutator(Strategy):
    """Proposes to everyone a block with one header field wrong, each field in turn (R41)."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.fields = sorted(_BAD_FIELDS)
        self.bad: dict[tuple[int, int], BlockRecord] = {}

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        message = parcel.message
        if not isinstance(message, PrePrepare):
            return [parcel]
        where = (message.height, message.view)
        if where not in self.bad:
            field = self.fields.pop(0)
            self.fields.append(field)
            self.bad = {
                where: BlockRecord(_with_bad(message.block.header, field, self.random), message.block.transactions)
            }
        return [replace(parcel, message=self.proposal(message.view, self.bad[where]))]


def _with_bad(header: Header, field: str, random: Random) -> Header:
    bad = msgspec.structs.replace(header, **{field: _BAD_FIELDS[field](header, random)})
    return header if min(bad.height, bad.sealed_height, bad.time_ms) < 0 else bad


class DoubleSpender(Strategy):
    """Proposes blocks that hold a transaction twice, one that is final already, or a forged one (R40, R42, R45)."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.used: list[bytes] = []

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        if isinstance(message, PrePrepare):
            self.used = [*self.used[-20:], *message.block.transactions[:5]]
        return []

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        message = parcel.message
        if not isinstance(message, PrePrepare):
            return [parcel]
        header, raws = message.block.header, list(message.block.transactions)
        if not (raws or self.used):
            return [parcel]
        index = message.height % 3
        if index == 0 and raws:
            raws.append(raws[0])
        elif index == 1 and self.used:
            raws.append(self.used[message.height % len(self.used)])
        else:
            known = (raws or self.used)[0]
            raws.append(known[:-1] + bytes([known[-1] ^ 1]))
        try:
            root = transactions_root([decode_transaction_untrusted(raw).leaf for raw in raws])
        except PeerError:
            return [parcel]  # another liar's block held what is no transaction
        block = BlockRecord(msgspec.structs.replace(header, transactions_root=root), raws)
        return [replace(parcel, message=self.proposal(message.view, block))]


class Censor(Strategy):
    """Leaves one client out of its blocks, votes for no block that holds something of it, hands nothing on."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.client: bytes | None = None
        self.refused: set[bytes] = set()

    def select(self, transactions: list[Transaction]) -> list[Transaction]:
        if self.client is None and transactions:
            self.client = self.random.choice(sorted({bytes(item.sender) for item in transactions}))
        return [item for item in transactions if item.sender != self.client]

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        client = self.client
        if client is None or not isinstance(message, PrePrepare):
            return []
        if any(client in raw for raw in message.block.transactions):
            self.refused = {message.block.header.hash()}
        return []

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        message = parcel.message
        return [] if isinstance(message, Prepare | Commit) and message.block_hash in self.refused else [parcel]

    def passes_on(self, to: NodeName, kind: FrameKind) -> bool:
        return kind is not FrameKind.TRANSACTIONS


class ClockLiar(Strategy):
    """Sets its clock to the edge of what others tolerate, to either side, and a little beyond (R23)."""

    def tick(self) -> list[Parcel]:
        edge_ms = CLOCK_TOLERANCE_MS + self.random.choice((-500, -20, 20))
        self.liar.skew_ms = edge_ms if self.height % 2 else -edge_ms
        return []
