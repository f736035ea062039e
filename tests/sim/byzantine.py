"""How liars lie: each strategy twists what a real engine says, adds to it, or keeps it back.

A liar holds its own signer and no other's, sees only what is sent to it, and runs real software otherwise. The
strategy ``Twins`` has no code here: the host runs two of the node, which share the key and see different peers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from consensus.ledger.block import BlockRecord, Header
from consensus.ledger.ids import NodeName, tagged_hash
from consensus.ledger.keys import SIGNATURE_BYTES, Purpose
from consensus.ledger.validators import Certificate, Signature, ValidatorSet, certificate_codec, vote_payload
from consensus.pbft.certificates import highest_claim
from consensus.pbft.messages import (
    VIEW_MAX,
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
    ViewChangeVote,
    new_view_payload,
    view_change_payload,
)
from consensus.pbft.signing import Signer
from node.chain import Chain
from node.sync import FinalBlock, SyncResponse

MEMORY_MAX = 200
"""Messages that a liar keeps."""
NOISE_PERMILLE = 200
"""How often per tick a noisy strategy speaks up."""
VICTIMS_PERMILLE = 600


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message on its way out."""

    to: NodeName
    message: Message
    delay_ms: int = 0


class Liar(Protocol):
    """What a strategy has to work with."""

    name: NodeName
    signer: Signer
    validators: ValidatorSet

    @property
    def chain(self) -> Chain | None:
        """The liar's own chain, None while it is down."""

    @property
    def now_ms(self) -> int:
        """Simulated time."""


class Strategy:
    """Follows the protocol; the others override what they need."""

    def __init__(self, liar: Liar, random: Random) -> None:
        self.liar = liar
        self.random = random
        self.peers = [name for name in liar.validators.names if name != liar.name]
        self.victims = [name for name in self.peers if random.randrange(1_000) < VICTIMS_PERMILLE] or self.peers[:1]

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        """Return what becomes of a message that the engine sends."""
        return [parcel]

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        """Return what to send because of a message that came in."""
        return []

    def tick(self) -> list[Parcel]:
        """Return what to send because time passes."""
        return []

    def answer(self, response: SyncResponse) -> SyncResponse | None:
        """Return what becomes of an answer to a node that catches up."""
        return response

    # -- tools -----------------------------------------------------------------------------------------

    @property
    def height(self) -> int:
        """The height in progress here."""
        chain = self.liar.chain
        return 1 if chain is None else chain.head.header.height + 1

    def chance(self, permille: int) -> bool:
        """Draw."""
        return self.random.randrange(1_000) < permille

    def vote(self, kind: type[Prepare] | type[Commit], height: int, view: int, block_hash: bytes) -> Prepare | Commit:
        """Sign a vote in the own name."""
        purpose = Purpose.PREPARE if kind is Prepare else Purpose.COMMIT
        signature = self.liar.signer.sign(purpose, vote_payload(height, view, block_hash))
        return kind(height, view, block_hash, self.liar.name, signature)

    def proposal(self, view: int, block: BlockRecord) -> PrePrepare:
        """Sign a proposal."""
        payload = vote_payload(block.header.height, view, block.header.hash())
        return PrePrepare(view, block, self.liar.signer.sign(Purpose.PROPOSAL, payload))

    def other_block(self, block: BlockRecord) -> BlockRecord | None:
        """Return a valid block beside this one, empty and a little later."""
        chain = self.liar.chain
        if chain is None or chain.head.header.height + 1 != block.header.height:
            return None
        candidate, _ = chain.build(self.liar.name, block.header.time_ms + 1, [])
        return candidate.block.record()

    def view_change(self, height: int, view: int) -> ViewChange:
        """Sign a vote to leave, with nothing claimed."""
        signature = self.liar.signer.sign(Purpose.VIEW_CHANGE, view_change_payload(height, view, None))
        return ViewChange(ViewChangeVote(height, view, None, self.liar.name, signature), None)


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


class Slow(Strategy):
    """As primary just quick enough not to be replaced, or just too slow (R36)."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.delay_ms = random.choice((600, 900, 980, 1_050, 1_900))

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        slow = isinstance(parcel.message, PrePrepare | NewView)
        return [replace(parcel, delay_ms=parcel.delay_ms + self.delay_ms) if slow else parcel]


class Equivocator(Strategy):
    """Proposes another block to its victims, and votes for whatever anybody shows it, at once and for all sides."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.others: dict[bytes, BlockRecord | None] = {}
        self.voted: set[tuple[NodeName, int, int, bytes]] = set()

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        message = parcel.message
        if not isinstance(message, PrePrepare) or parcel.to not in self.victims:
            return [parcel]
        block_hash = message.block.header.hash()
        if block_hash not in self.others:
            self.others[block_hash] = self.other_block(message.block)
        other = self.others[block_hash]
        if other is None:
            return [parcel]
        twisted = replace(parcel, message=self.proposal(message.view, other))
        return [twisted] if self.random.random() < 0.7 else [parcel, twisted]

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        block_hash: bytes
        match message:
            case PrePrepare():
                block_hash = message.block.header.hash()
            case Prepare() | Commit():
                block_hash = message.block_hash
            case _:
                return []
        entry = (sender, message.height, message.view, block_hash)
        if message.height != self.height or entry in self.voted:
            return []
        self.voted.add(entry)
        votes = [self.vote(kind, message.height, message.view, block_hash) for kind in (Prepare, Commit)]
        return [Parcel(sender, vote) for vote in votes]


class Forger(Strategy):
    """Makes votes out of others': wrong signature, non-member, another height, view, hash or signer (R03, R06)."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.seen: list[Prepare | Commit] = []

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        if not isinstance(message, Prepare | Commit) or not self.chance(300):
            return []
        self.seen = [*self.seen[-MEMORY_MAX:], message]
        return [Parcel(peer, self.forge(message)) for peer in self.victims]

    def tick(self) -> list[Parcel]:
        if not self.seen or not self.chance(NOISE_PERMILLE):
            return []
        vote = self.random.choice(self.seen)
        signatures = [Signature(name, self.random.choice(self.seen).signature) for name in self.liar.validators.names]
        forged = Certificate(self.height, vote.view, vote.block_hash, signatures)
        return [Parcel(self.random.choice(self.peers), self.random.choice((Decided(forged), self.forge(vote))))]

    def forge(self, vote: Prepare | Commit) -> Prepare | Commit:
        """Return a vote that is a lie, or another's true one handed over in our session."""
        random = self.random
        own = self.vote(type(vote), vote.height, vote.view, vote.block_hash)
        made: list[Prepare | Commit] = [
            vote,
            type(vote)(vote.height, vote.view, vote.block_hash, vote.signer, random.randbytes(SIGNATURE_BYTES)),
            type(vote)(vote.height, vote.view, vote.block_hash, random.choice(self.peers), own.signature),
            type(vote)(vote.height, vote.view, vote.block_hash, "stranger", own.signature),
            type(vote)(vote.height + 1, vote.view, vote.block_hash, vote.signer, vote.signature),
            type(vote)(vote.height, vote.view + 1, vote.block_hash, vote.signer, vote.signature),
            type(vote)(vote.height, vote.view, random.randbytes(32), vote.signer, vote.signature),
            (Commit if isinstance(vote, Prepare) else Prepare)(
                vote.height, vote.view, vote.block_hash, vote.signer, vote.signature
            ),
            self.vote(type(vote), vote.height, vote.view + random.randint(0, 3), random.randbytes(32)),
        ]
        return random.choice(made)


class HugeViews(Strategy):
    """Floods with view changes to all sorts of views, and new views nobody voted for (R14, R16, R20)."""

    def tick(self) -> list[Parcel]:
        if not self.chance(NOISE_PERMILLE):
            return []
        random = self.random
        view = random.choice(
            (VIEW_MAX, VIEW_MAX - random.randint(0, 50), random.randint(1, 5), 1 << random.randint(0, 31))
        )
        parcels = [Parcel(peer, self.view_change(self.height, view)) for peer in self.victims]
        names = self.liar.validators.names
        view += (names.index(self.liar.name) - self.height - view) % len(names)
        view -= len(names) if view > VIEW_MAX else 0
        votes = [self.view_change(self.height, view).vote]
        signature = self.liar.signer.sign(Purpose.NEW_VIEW, new_view_payload(self.height, view, votes, None))
        return [*parcels, Parcel(random.choice(self.peers), NewView(self.height, view, votes, None, signature))]


class Replayer(Strategy):
    """Says again what it or others said long ago."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.kept: list[Message] = []

    def _keep(self, message: Message) -> None:
        if len(self.kept) < MEMORY_MAX:
            self.kept.append(message)
        else:
            self.kept[self.random.randrange(MEMORY_MAX)] = message

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        self._keep(parcel.message)
        return [parcel]

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        self._keep(message)
        return []

    def tick(self) -> list[Parcel]:
        count = self.random.randint(0, 3) if self.kept else 0
        return [Parcel(self.random.choice(self.peers), self.random.choice(self.kept)) for _ in range(count)]


class Amnesiac(Strategy):
    """Forgets what it prepared: view changes without a claim, and new views that are free to propose anything."""

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        match parcel.message:
            case ViewChange(vote=vote) if vote.signer == self.liar.name:
                return [replace(parcel, message=self.view_change(vote.height, vote.view))]
            case NewView() as message:
                return [replace(parcel, message=self._free(message))]
            case PrePrepare(view=view) as message if view > 0:
                other = self.other_block(message.block)
                return [parcel if other is None else replace(parcel, message=self.proposal(view, other))]
            case _:
                return [parcel]

    def _free(self, message: NewView) -> NewView:
        quorum = self.liar.validators.quorum
        own = self.view_change(message.height, message.view).vote
        votes = [own, *(vote for vote in message.votes if vote.signer != self.liar.name)]
        votes.sort(key=lambda vote: -1 if vote.claim is None else vote.claim.view)
        votes = sorted(votes[:quorum], key=lambda vote: vote.signer)
        certificate = message.certificate if highest_claim(votes) is not None else None
        signature = self.liar.signer.sign(
            Purpose.NEW_VIEW, new_view_payload(message.height, message.view, votes, certificate)
        )
        return NewView(message.height, message.view, votes, certificate, signature)


_BAD_FIELDS: dict[str, Callable[[Header, Random], object]] = {
    "parent_hash": lambda header, random: random.randbytes(32),
    "time_ms": lambda header, random: header.time_ms + random.choice((-3_600_000, -1, 9_000, 3_600_000)),
    "uptime_ms": lambda header, random: header.uptime_ms + 1,
    "proposer": lambda header, random: random.choice(("node-0", "node-1", "stranger")),
    "transactions_root": lambda header, random: random.randbytes(32),
    "receipts_root": lambda header, random: random.randbytes(32),
    "writes_root": lambda header, random: random.randbytes(32),
    "next_validators_hash": lambda header, random: random.randbytes(32),
    "sealed_root": lambda header, random: random.randbytes(32),
    "height": lambda header, random: header.height + random.choice((-1, 1)),
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
            values = {name: getattr(header, name) for name in Header.__struct_fields__}
            block = BlockRecord(Header(**{**values, field: _BAD_FIELDS[field](header, self.random)}), transactions)
        twisted = BlockBody(block) if isinstance(message, BlockBody) else self.proposal(message.view, block)
        return [replace(parcel, message=twisted)]


class LyingHelper(Strategy):
    """Answers those who catch up with what does not hold, and claims heights it has not (R60–R63)."""

    def tick(self) -> list[Parcel]:
        if not self.chance(NOISE_PERMILLE):
            return []
        random, height = self.random, self.height + self.random.randint(-2, 1_000)
        messages: list[Message] = [
            Status(max(0, height), random.randint(0, 9), False),
            Status(self.height, 0, False),
            FetchBlock(self.height, random.randbytes(32)),
        ]
        block_hash = tagged_hash("lie", self.liar.name.encode())
        own = self.vote(Commit, max(1, height), 0, block_hash)
        messages.append(Decided(Certificate(own.height, 0, block_hash, [Signature(own.signer, own.signature)])))
        return [Parcel(random.choice(self.peers), random.choice(messages))]

    def answer(self, response: SyncResponse) -> SyncResponse | None:
        random = self.random
        if not response.blocks or self.chance(200):
            return None
        index = random.randrange(len(response.blocks))
        blocks = list(response.blocks)
        certificate = certificate_codec.decode_untrusted(blocks[index].certificate)
        signatures = certificate.signatures
        twisted = random.choice((signatures[1:] or signatures * 2, signatures * 2, [signatures[0]] * len(signatures)))
        lie = certificate_codec.encode(
            Certificate(certificate.height, certificate.view, certificate.block_hash, list(twisted))
        )
        other = blocks[random.randrange(len(blocks))]
        blocks[index] = random.choice(
            (
                FinalBlock(blocks[index].block, lie),
                FinalBlock(blocks[index].block[:-1], blocks[index].certificate),
                FinalBlock(other.block, blocks[index].certificate),
                FinalBlock(blocks[index].block, other.certificate),
            )
        )
        if self.chance(200):
            blocks = []
        return SyncResponse(response.number, blocks)


class Twins(Strategy):
    """Two nodes with one key, each talking to some of the peers; see the host."""


class Wiped(Strategy):
    """Loses its disk at some moment and follows from then on without a vote; see the host (R49)."""


STRATEGIES: dict[str, type[Strategy]] = {
    kind.__name__.lower(): kind
    for kind in (Silent, Slow, Equivocator, Forger, HugeViews, Replayer, Amnesiac, BadBlocks, LyingHelper, Twins, Wiped)
}
