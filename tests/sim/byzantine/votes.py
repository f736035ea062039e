"""Lies about votes: two of them, others' ones, old ones, foreign ones, and votes for one pair of ears."""

from dataclasses import replace
from random import Random

import msgspec

from consensus.ledger.block import BlockRecord
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import SIGNATURE_BYTES
from consensus.ledger.validators import Certificate, Signature
from consensus.pbft.messages import Commit, Decided, Message, Prepare, PrePrepare, ViewChange
from tests.sim.byzantine.base import (
    MEMORY_MAX,
    NOISE_PERMILLE,
    Liar,
    Parcel,
    Strategy,
    signed_view_change,
    signed_vote,
)


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


class Relayer(Strategy):
    """Hands on others' true messages in its own session, proposals with another body under them (R03, R09)."""

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        if not self.chance(300):
            return []
        if isinstance(message, PrePrepare):
            body = [] if message.block.transactions else [self.random.randbytes(40)]
            message = PrePrepare(message.view, BlockRecord(message.block.header, body), message.signature)
        return [Parcel(peer, message) for peer in self.victims if peer != sender]


class Replayer(Strategy):
    """Says again what it or others said long ago, of any height and view."""

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


class ForeignVotes(Strategy):
    """Brings votes, view changes and certificates that the same keys signed on another chain (R10)."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.newest: PrePrepare | None = None

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        if not isinstance(message, PrePrepare):
            return []
        self.newest = message
        return [parcel for peer in self.victims for parcel in self._foreign(peer, message)]

    def tick(self) -> list[Parcel]:
        if self.newest is None or not self.chance(NOISE_PERMILLE):
            return []
        return self._foreign(self.random.choice(self.peers), self.newest)

    def _foreign(self, to: NodeName, message: PrePrepare) -> list[Parcel]:
        foreign, height, view = self.liar.foreign, message.height, message.view
        others = [name for name in self.peers if name != to]
        other = self.other_block(message.block)
        block_hash = message.block.header.hash() if other is None else other.header.hash()
        commits = [signed_vote(foreign[name], name, Commit, height, view, block_hash) for name in sorted(foreign)]
        certificate = Certificate(
            height, view, block_hash, [Signature(item.signer, item.signature) for item in commits]
        )
        made: list[Message] = [Decided(certificate)]
        made += [signed_vote(foreign[name], name, Prepare, height, view, block_hash) for name in others]
        made += [vote for vote in commits if vote.signer in others]
        made += [signed_view_change(foreign[name], name, height, view + 1, None) for name in others]
        return [Parcel(to, item) for item in made]


class SelectiveCommitter(Strategy):
    """Sends its commits to one peer alone, a different one at each height, and tells nobody what was decided."""

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        match parcel.message:
            case Commit(height=height) if parcel.to != self.peers[height % len(self.peers)]:
                return []
            case Decided():
                return []
            case _:
                return [parcel]


class Framer(Strategy):
    """Contradicts itself in every kind of statement, and twists others' so that they seem to contradict themselves."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.seen: dict[tuple[str, str], Message] = {}

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        match message:
            case Prepare() | Commit():
                signer = message.signer
            case ViewChange(vote=vote):
                signer = vote.signer
            case _:
                return []
        entry = (type(message).__name__, signer)
        before, self.seen[entry] = self.seen.get(entry, message), message
        if not self.chance(300):
            return []
        return [Parcel(peer, item) for peer in self.victims for item in self._twist(before, message)]

    def _twist(self, before: Message, message: Message) -> list[Message]:
        """Return contradictions of a true statement; those in another's name carry signatures from elsewhere."""
        match message:
            case Prepare() | Commit():
                kind, other_kind = type(message), Commit if isinstance(message, Prepare) else Prepare
                where = (message.height, message.view)
                other_hash = self.random.randbytes(32)
                old = before.signature if isinstance(before, Prepare | Commit) else message.signature
                return [
                    kind(*where, other_hash, message.signer, old),
                    other_kind(*where, other_hash, message.signer, message.signature),
                    kind(*where, other_hash, message.signer, self.vote(kind, *where, other_hash).signature),
                    self.vote(kind, *where, other_hash),
                    self.vote(kind, *where, message.block_hash),
                ]
            case ViewChange(vote=vote, certificate=certificate):
                bare = ViewChange(msgspec.structs.replace(vote, claim=None), None)
                moved = ViewChange(msgspec.structs.replace(vote, view=vote.view + 1), certificate)
                own = [self.view_change(vote.height, vote.view, kept) for kept in (None, certificate)]
                return [bare, moved, *own]
            case _:
                return []
