"""Lies about views: huge and mixed ones, claims kept back, new views that do not follow from their votes, storms."""

from dataclasses import replace
from random import Random

import msgspec

from consensus.ledger.block import BlockRecord
from consensus.ledger.ids import NodeName
from consensus.pbft.certificates import highest_claim
from consensus.pbft.messages import (
    VIEW_MAX,
    Message,
    NewView,
    PreparedCertificate,
    PrePrepare,
    ViewChange,
    ViewChangeVote,
)
from tests.sim.byzantine.base import NOISE_PERMILLE, Liar, Parcel, Strategy, signed_view_change

STORM_MESSAGES = 20
"""Copies of a view change that a storm sends each peer at a time."""


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
        return [*parcels, Parcel(random.choice(self.peers), self.new_view(self.height, view, votes, None))]


class MixedViews(Strategy):
    """Asks each peer for another view, a few above the highest it heard of, over and over (R20, R24)."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.heard: tuple[int, int] = (0, 0)

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        if isinstance(message, ViewChange | NewView):
            view = message.vote.view if isinstance(message, ViewChange) else message.view
            if view < VIEW_MAX // 2:
                self.heard = max(self.heard, (message.height, view))
        return []

    def tick(self) -> list[Parcel]:
        if not self.chance(NOISE_PERMILLE):
            return []
        height, heard = self.heard
        view = heard if height == self.height else 0
        return [
            Parcel(peer, self.view_change(self.height, view + 1 + (index + self.random.randint(0, 1))))
            for index, peer in enumerate(self.peers)
        ]


class Stormer(Strategy):
    """Sends its newest view change, and others', many times over (R13)."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.newest: list[ViewChange] = []

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        if isinstance(parcel.message, ViewChange):
            self.newest = [parcel.message, *self.newest[:2]]
        return [parcel]

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        if isinstance(message, ViewChange):
            self.newest = [message, *self.newest[:2]]
        return []

    def tick(self) -> list[Parcel]:
        if not self.chance(NOISE_PERMILLE):
            return []
        storm = [*self.newest, self.view_change(self.height, 1)]
        return [Parcel(peer, storm[index % len(storm)]) for peer in self.victims for index in range(STORM_MESSAGES)]


class ClaimHider(Strategy):
    """Leaves views with the oldest certificate it held at the height, or with none, instead of the newest."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.oldest: PreparedCertificate | None = None

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        match parcel.message:
            case ViewChange(vote=vote, certificate=certificate) if vote.signer == self.liar.name:
                if self.oldest is None or self.oldest.height != vote.height:
                    self.oldest = certificate
                stale = self.oldest if self.oldest is not None and self.chance(500) else None
                return [replace(parcel, message=self.view_change(vote.height, vote.view, stale))]
            case _:
                return [parcel]


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
        return self.new_view(message.height, message.view, votes, certificate)


class BadNewView(Strategy):
    """Opens its views with votes missing, doubled, foreign or stale, or with another block than the claims require."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.votes: list[ViewChangeVote] = []
        self.certificates: list[PreparedCertificate] = []
        self.bad: dict[tuple[int, int], NewView] = {}

    def incoming(self, sender: NodeName, message: Message) -> list[Parcel]:
        if isinstance(message, ViewChange):
            self.votes = [*self.votes[-20:], message.vote]
            if message.certificate is not None:
                self.certificates = [*self.certificates[-5:], message.certificate]
        return []

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        match parcel.message:
            case NewView() as message if self.liar.validators.primary(message.height, message.view) == self.liar.name:
                where = (message.height, message.view)
                if where not in self.bad:
                    self.bad = {where: self._spoil(message)}
                return [replace(parcel, message=self.bad[where])]
            case PrePrepare(view=view, block=block) if view > 0 and (other := self.other_block(block)) is not None:
                return [replace(parcel, message=self.proposal(view, other))]
            case _:
                return [parcel]

    def _spoil(self, message: NewView) -> NewView:
        votes, certificate = list(message.votes), message.certificate
        quorum, random = self.liar.validators.quorum, self.random
        index = random.randrange(len(votes))
        victim = votes[index]
        foreign = self.liar.foreign[NodeName(victim.signer)]
        old = [vote for vote in self.votes if (vote.height, vote.view) != (message.height, message.view)]
        stale = [item for item in self.certificates if item != certificate]
        match random.randrange(7):
            case 0:
                votes = votes[: quorum - 1]
            case 1:
                votes[index] = votes[index - 1]
            case 2:
                bare = signed_view_change(foreign, NodeName(victim.signer), message.height, message.view, None)
                votes[index] = bare.vote
            case 3:
                votes[index] = random.choice(old) if old else msgspec.structs.replace(victim, signer="stranger")
            case 4:
                votes = [msgspec.structs.replace(vote, claim=None) for vote in votes]
                certificate = None
            case 5:
                certificate = random.choice(stale) if stale else None
            case _:
                claim = highest_claim(votes)
                votes = [vote for vote in votes if vote.claim is None or vote.claim != claim] or votes[:1]
                certificate = None
        return self.new_view(message.height, message.view, votes, certificate)


class DoubleOpener(Strategy):
    """Opens one view twice: as its votes require, and with its own vote signed anew without a claim, free."""

    def __init__(self, liar: Liar, random: Random) -> None:
        super().__init__(liar, random)
        self.opened: NewView | None = None
        self.blocks: dict[tuple[int, int], BlockRecord | None] = {}

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        message, opened = parcel.message, self.opened
        if isinstance(message, NewView):
            self.opened = message
        if parcel.to not in self.victims or opened is None or not isinstance(message, PrePrepare):
            return [parcel]
        where = (message.height, message.view)
        if where != (opened.height, opened.view):
            return [parcel]
        if where not in self.blocks:
            self.blocks = {where: self.other_block(message.block)}
        block = self.blocks[where]
        if block is None:
            return [parcel]
        second = [replace(parcel, message=item) for item in (self._again(opened), self.proposal(message.view, block))]
        return [parcel, *second] if self.chance(700) else second

    def _again(self, opened: NewView) -> NewView:
        own = self.view_change(opened.height, opened.view).vote
        votes = sorted([own, *(vote for vote in opened.votes if vote.signer != own.signer)], key=_signer)
        certificate = opened.certificate if highest_claim(votes) is not None else None
        return self.new_view(opened.height, opened.view, votes, certificate)


class DoubleLeaver(Strategy):
    """Votes for two views at once, and for one view with its claim and without it, a part of them to each peer."""

    def outgoing(self, parcel: Parcel) -> list[Parcel]:
        match parcel.message:
            case ViewChange(vote=vote, certificate=certificate) if vote.signer == self.liar.name:
                made = [
                    self.view_change(vote.height, vote.view),
                    self.view_change(vote.height, min(vote.view + 1, VIEW_MAX), certificate),
                    parcel.message,
                ]
                return [replace(parcel, message=item) for item in self.random.sample(made, self.random.randint(1, 3))]
            case _:
                return [parcel]


def _signer(vote: ViewChangeVote) -> str:
    return vote.signer
