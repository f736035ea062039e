"""Lies to those who catch up and to the pools; and liars without code here, which the host plays."""

from random import Random

from consensus.ledger.codec import Value, encode
from consensus.ledger.ids import NodeName, tagged_hash
from consensus.ledger.keys import SIGNATURE_BYTES
from consensus.ledger.validators import Certificate, Signature, certificate_codec
from consensus.pbft.messages import Commit, Decided, FetchBlock, Message, PrePrepare, Status
from node.sync import FinalBlock, SyncResponse
from p2p.frames import FrameKind
from tests.sim.byzantine.base import NOISE_PERMILLE, Liar, Parcel, Strategy

FLOOD_TRANSACTIONS = 20
"""Transactions in one frame of a flood; one a tick."""


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


class SlowHelper(Strategy):
    """One block an answer, just before the asker gives up; the height it claims goes up and down (R60, R63)."""

    answer_delay_ms = 2_900

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        message = parcel.message
        if isinstance(message, Status) and self.chance(500):
            lower = Status(max(0, message.height - self.random.randint(1, 5)), message.view, message.has_proposal)
            return [Parcel(parcel.to, lower)]
        return [parcel]

    def answer(self, response: SyncResponse) -> SyncResponse | None:
        return SyncResponse(response.number, response.blocks[:1])


class Flooder(Strategy):
    """Hands on transactions with forged signatures, final ones and rubbish, as fast as it can (R37)."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.count = FLOOD_TRANSACTIONS
        self.seen: list[bytes] = []

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        if isinstance(message, PrePrepare):
            self.seen = [*self.seen[-20:], *message.block.transactions[:5]]
        return []

    def tick(self) -> list[Parcel]:
        forged: list[Value] = [self._forge() for _ in range(self.count)]
        for peer in self.victims:
            self.liar.send_frame(peer, FrameKind.TRANSACTIONS, encode(forged))
        return []

    def _forge(self) -> bytes:
        if not self.seen:
            return self.random.randbytes(200)
        raw = self.random.choice(self.seen)
        if self.chance(100):
            return raw
        return raw[:-SIGNATURE_BYTES] + self.random.randbytes(SIGNATURE_BYTES)


class Twins(Strategy):
    """Two nodes with one key, each talking to some of the peers; see the host."""


class Wiped(Strategy):
    """Loses its disk at some moment and follows from then on without a vote; see the host (R49)."""
