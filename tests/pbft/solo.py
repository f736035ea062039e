"""One engine under test among validators that the test plays itself, with real signatures."""

from typing import TypeVar

from consensus.ledger.block import Block
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import Purpose
from consensus.ledger.validators import Certificate, Signature, vote_payload
from consensus.pbft.engine import Engine
from consensus.pbft.events import Advanced, Effect, Event, Head, Persist, Received, Send, Tick, Validate, Validated
from consensus.pbft.messages import (
    Claim,
    Commit,
    Message,
    NewView,
    Prepare,
    PreparedCertificate,
    PrePrepare,
    ViewChange,
    ViewChangeVote,
    new_view_payload,
    view_change_payload,
)
from tests.pbft.cluster import CHAIN, default_config, genesis_head, key_of, make_block, node_names, validator_set

E = TypeVar("E")


def sign(name: str, purpose: Purpose, payload: bytes) -> bytes:
    return key_of(name).sign(purpose, CHAIN, payload)


class Solo:
    """Engine ``name`` of ``count`` validators a, b, c …; at height 1 the primary of view 0 is b."""

    def __init__(
        self,
        name: str = "a",
        count: int = 4,
        *,
        head: Head | None = None,
        records: dict[bytes, bytes] | None = None,
        **config: int,
    ) -> None:
        self.name = NodeName(name)
        self.names = node_names(count)
        self.validators = validator_set(self.names)
        self.head = head or genesis_head(self.validators)
        self.records = dict(records or {})
        self.engine = Engine.restore(default_config(self.name, **config), self.head, self.records)
        self.now_ms = 0
        self.effects: list[Effect] = []

    @property
    def height(self) -> int:
        return self.head.header.height + 1

    def step(self, event: Event) -> list[Effect]:
        """Step, keep what is persisted, and return the effects."""
        self.effects = self.engine.step(event)
        for effect in self.effects:
            if isinstance(effect, Persist):
                self.records |= {key: value for key, value in effect.records if value is not None}
        return self.effects

    def tick(self, after_ms: int = 0) -> list[Effect]:
        self.now_ms += after_ms
        return self.step(Tick(self.now_ms))

    def receive(self, message: Message, sender: str | None = None) -> list[Effect]:
        """Receive from the signer, or from ``sender``."""
        return self.step(Received(NodeName(sender or self._author(message)), message))

    def accept(self, block: Block, view: int = 0) -> list[Effect]:
        """Receive the primary's proposal and find it valid."""
        self.receive(self.propose(block, view))
        effects = list(self.effects)
        if self.every(Validate):
            effects += self.step(Validated(block.hash, True))
        self.effects = effects
        return effects

    def advance(self, block: Block) -> list[Effect]:
        certificate = self.certificate(block)
        self.head = Head(block.header, block.hash, certificate, self.validators, block.is_quiet)
        return self.step(Advanced(self.head))

    def restarted(self) -> "Solo":
        """Return the same node after a crash."""
        return Solo(self.name, len(self.names), head=self.head, records=self.records)

    def every(self, kind: type[E]) -> list[E]:
        """Return the last step's effects, or sent messages, of this type."""
        found = [effect for effect in self.effects if isinstance(effect, kind)]
        sent = [getattr(effect, "message", None) for effect in self.effects]
        return found + [message for message in sent if isinstance(message, kind)]

    def to(self, name: str, kind: type[E]) -> list[E]:
        """Return the last step's messages of this type sent to one node alone."""
        sends = [effect.message for effect in self.effects if isinstance(effect, Send) and effect.to == name]
        return [message for message in sends if isinstance(message, kind)]

    # What the others say

    def block(self, *transactions: bytes, proposer: str = "b", **changes: object) -> Block:
        return make_block(self.head, proposer, list(transactions), **changes)

    def propose(self, block: Block, view: int = 0, by: str | None = None) -> PrePrepare:
        signer = by or self.validators.primary(block.height, view)
        signature = sign(signer, Purpose.PROPOSAL, vote_payload(block.height, view, block.hash))
        return PrePrepare(view, block.record(), signature)

    def prepare(self, signer: str, block: Block, view: int = 0) -> Prepare:
        signature = sign(signer, Purpose.PREPARE, vote_payload(block.height, view, block.hash))
        return Prepare(block.height, view, block.hash, signer, signature)

    def commit(self, signer: str, block: Block, view: int = 0) -> Commit:
        signature = sign(signer, Purpose.COMMIT, vote_payload(block.height, view, block.hash))
        return Commit(block.height, view, block.hash, signer, signature)

    def certificate(self, block: Block, signers: str = "bcd", view: int = 0) -> Certificate:
        votes = [Signature(name, self.commit(name, block, view).signature) for name in signers]
        return Certificate(block.height, view, block.hash, votes)

    def prepared(self, block: Block, view: int = 0, backups: str | None = None) -> PreparedCertificate:
        primary = self.validators.primary(block.height, view)
        others = [name for name in self.names if name != primary][: self.validators.quorum - 1]
        votes = [Signature(name, self.prepare(name, block, view).signature) for name in backups or others]
        signature = self.propose(block, view).signature
        return PreparedCertificate(block.height, view, block.hash, signature, votes)

    def view_change(self, signer: str, view: int, prepared: PreparedCertificate | None = None) -> ViewChange:
        claim = None if prepared is None else Claim(prepared.view, prepared.block_hash)
        signature = sign(signer, Purpose.VIEW_CHANGE, view_change_payload(self.height, view, claim))
        return ViewChange(ViewChangeVote(self.height, view, claim, signer, signature), prepared)

    def new_view(
        self,
        view: int,
        messages: list[ViewChange],
        certificate: PreparedCertificate | None = None,
        by: str | None = None,
    ) -> NewView:
        votes = [message.vote for message in messages]
        payload = new_view_payload(self.height, view, votes, certificate)
        signature = sign(by or self.validators.primary(self.height, view), Purpose.NEW_VIEW, payload)
        return NewView(self.height, view, votes, certificate, signature)

    def _author(self, message: Message) -> str:
        match message:
            case Prepare() | Commit():
                return message.signer
            case ViewChange():
                return message.vote.signer
            case PrePrepare() | NewView():
                return self.validators.primary(message.height, message.view)
            case _:
                raise AssertionError("say who sends this")
