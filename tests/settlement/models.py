"""Small models of what settlement stands on: a chain of four nodes, and a message centre. Pure.

The chain orders, executes and forgets nothing; its nodes lag, die, lie and lose what waits in their pools. The message
centre loses nothing, and delivers as often as it likes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from consensus.ledger.codec import decode_untrusted
from consensus.ledger.transaction import Call, Transaction
from services.messages.store import NewMessage, Published, Record
from services.messages.store import State as MessageState
from services.settlement.decision import NodeAnswer, Tally, Verdict
from services.settlement.states import Event

NODES = 4
QUORUM = 3
ATTEMPTS_MAX = 3
"""After so many deliveries in vain a message is a dead letter."""


@dataclass
class Lien:
    to: bytes
    amount: int
    status: str = "HELD"


@dataclass
class Block:
    time_ms: int
    outcomes: dict[bytes, tuple[bool, str]] = field(default_factory=dict)


class Node:
    """What one node knows: how far it is, what waits there, and how it behaves."""

    def __init__(self) -> None:
        self.height = 0
        self.pool: dict[bytes, Transaction] = {}
        self.is_up = True
        self.is_lagging = False
        self.lie: Verdict | None = None


class Chain:
    """One final order of transactions, of which nodes know a part."""

    def __init__(self, time_ms: int, units: dict[bytes, int]) -> None:
        self.blocks = [Block(time_ms)]
        self.units = dict(units)
        self.supply = sum(units.values())
        self.liens: dict[tuple[bytes, str], Lien] = {}
        self.lanes: dict[tuple[bytes, bytes], tuple[bytes, int]] = {}
        self.places: dict[bytes, int] = {}
        self.nodes = [Node() for _ in range(NODES)]
        self.is_agent_suspended = False

    @property
    def height(self) -> int:
        return len(self.blocks) - 1

    @property
    def is_deciding(self) -> bool:
        return sum(node.is_up for node in self.nodes) >= QUORUM

    def submit(self, number: int, transaction: Transaction) -> str:
        """Give a transaction to a node that is up; return its code."""
        node = self.nodes[number]
        if transaction.id in self.places and self.places[transaction.id] <= node.height:
            return ""
        if transaction.body.valid_until_ms < self.blocks[node.height].time_ms:
            return "expired"
        if (transaction.body.sender, transaction.body.lane) in self.lanes:
            return "lane_consumed"
        node.pool[transaction.id] = transaction
        return ""

    def seal(self, proposer: int, time_ms: int, *, is_empty: bool = False) -> bool:
        """Decide a block out of the proposer's pool, if a quorum is up."""
        if not self.is_deciding:
            return False
        block = Block(max(time_ms, self.blocks[-1].time_ms + 1))
        self.blocks.append(block)
        node = self.nodes[proposer]
        for transaction in [] if is_empty or not node.is_up else list(node.pool.values()):
            lane = (transaction.body.sender, transaction.body.lane)
            if transaction.body.valid_until_ms >= block.time_ms and lane not in self.lanes:
                self.lanes[lane] = (transaction.id, self.height)
                self.places[transaction.id] = self.height
                code = self.execute(transaction)
                block.outcomes[transaction.id] = (not code, code)
        for node in self.nodes:
            if node.is_up and not node.is_lagging:
                node.height = self.height
            node.pool = {
                name: one
                for name, one in node.pool.items()
                if (one.body.sender, one.body.lane) not in self.lanes and one.body.valid_until_ms >= block.time_ms
            }
        return True

    def gossip(self) -> None:
        """Let all nodes that are up know what any of them holds."""
        up = [node for node in self.nodes if node.is_up]
        everything = {name: one for node in up for name, one in node.pool.items()}
        for node in up:
            node.pool = dict(everything)

    def execute(self, transaction: Transaction) -> str:
        """Do the only call, by the rules of the tokens contract; return why not, or ""."""
        (call,) = transaction.body.calls
        return self.call(transaction.body.sender, call)

    def call(self, sender: bytes, call: Call) -> str:
        arguments = decode_untrusted(call.arguments)
        match call.method:
            case "deliver":
                return self._deliver(sender, arguments["to"], arguments["amount"], arguments["event"])
            case "lift" | "give_back":
                return self._end(call.method, arguments["seller"], arguments["event"])
        return ""

    def _deliver(self, seller: bytes, to: bytes, amount: int, event: str) -> str:
        if (seller, event) in self.liens:
            return "lien_exists"
        if self.units.get(seller, 0) < amount:
            return "insufficient_funds"
        self.units[seller] -= amount
        self.liens[seller, event] = Lien(to, amount)
        return ""

    def _end(self, method: str, seller: bytes, event: str) -> str:
        lien = self.liens.get((seller, event))
        if lien is None:
            return "unknown_lien"
        if self.is_agent_suspended:
            return "not_allowed"
        if lien.status != "HELD":
            return "lien_closed"
        lien.status = "LIFTED" if method == "lift" else "GIVEN_BACK"
        owner = lien.to if method == "lift" else seller
        self.units[owner] = self.units.get(owner, 0) + lien.amount
        return ""

    def tally(self, event: Event) -> Tally:
        """Return what all nodes say about an event's transaction, as the census hears it."""
        answers = tuple(NodeAnswer(f"n{number}", *self._said(node, event)) for number, node in enumerate(self.nodes))
        heard = [self.blocks[node.height].time_ms for node in self.nodes if node.is_up and node.lie is None]
        return Tally(answers, QUORUM, max(heard, default=0))

    def _said(self, node: Node, event: Event) -> tuple[Verdict, str, int]:
        if not node.is_up:
            return Verdict.UNKNOWN, "", 0
        if node.lie is not None:
            return node.lie, "", 0
        place = self.places.get(event.transaction_id)
        if place is not None and place <= node.height:
            is_ok, code = self.blocks[place].outcomes[event.transaction_id]
            return (Verdict.SUCCEEDED if is_ok else Verdict.FAILED), code, place
        if self.blocks[node.height].time_ms > event.valid_until_ms:
            return Verdict.ABSENT, "", node.height
        return (Verdict.UNKNOWN if node.height < self.height else Verdict.HELD), "", 0


@dataclass
class Message:
    sequence: int
    new: NewMessage
    attempts: int = 0
    state: MessageState = MessageState.WAITING


class Center:
    """The message centre without its wire and its disk."""

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        self.is_up = True

    def publish(self, messages: Sequence[NewMessage]) -> list[Published]:
        published = []
        for new in messages:
            known = self.messages.get(new.key)
            if known is None:
                self.messages[new.key] = known = Message(len(self.messages) + 1, new)
                published.append(Published(known.sequence, is_new=True))
            else:
                published.append(Published(known.sequence, is_new=False, is_conflict=known.new.body != new.body))
        return published

    def waiting(self) -> list[Message]:
        """Return the next message of each lane."""
        heads: dict[str, Message] = {}
        for message in self.messages.values():
            if message.state is MessageState.WAITING:
                heads.setdefault(message.new.lane, message)
        return list(heads.values())

    def failed(self, message: Message) -> None:
        if message.attempts >= ATTEMPTS_MAX:
            message.state = MessageState.DEAD

    def ended(self, state: MessageState) -> list[Record]:
        return [
            Record(one.sequence, one.new.key, one.new.lane, one.new.body, state, one.attempts, "", 1, 1)
            for one in self.messages.values()
            if one.state is state
        ]

    def replay(self, sequences: Sequence[int]) -> int:
        found = [one for one in self.messages.values() if one.sequence in sequences and one.state is MessageState.DEAD]
        for message in found:
            message.state, message.attempts = MessageState.WAITING, 0
        return len(found)
