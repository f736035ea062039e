"""Which validator votes, as this node hears it. Pure bookkeeping for people; agreement never looks at it.

A connected validator may follow the chain and stay silent: its key has votes elsewhere, or it is frozen.
Blocks go on without it while a quorum is left, so that nothing but a look at its votes shows it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

from consensus.ledger.ids import NodeName
from consensus.pbft.messages import Commit, Message, Prepare, PrePrepare, ViewChange

AHEAD_MAX = 2
"""How far above the newest final block a vote may be to count: a claimed height proves nothing."""


class Standing(Enum):
    """What the chain lets a node do with the vote key that it holds, in the words of its log."""

    VOTING = "its vote key is in the validator set"
    OBSERVING = "it is admitted and follows; its organisation's admin may seat it"
    NO_LOG = "not voting: its data were wiped or are an older copy, so its key could contradict what it signed"
    OTHER_KEY = "not voting: the chain names another vote key for it; this process holds an old one or a new one"
    OUTSIDE = "not voting: it is no member node; its peers let it in no more"


@dataclass(frozen=True, slots=True)
class LastVote:
    """A validator's newest vote: for which height, and when it came, on the monotonic clock."""

    height: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class VoteReport:
    """A snapshot.

    ``missed`` counts for each silent validator the blocks in a row that it did not vote for while connected.
    ``voting_since_ms`` is when the first vote for the height under way came, None while nobody has voted.
    ``unheard`` lists who has not voted for that height.
    """

    last: dict[NodeName, LastVote]
    missed: dict[NodeName, int]
    voting_since_ms: int | None
    unheard: tuple[NodeName, ...]


class VoteBook:
    """Takes note of votes and of final blocks; holds one entry a validator."""

    def __init__(self, own: NodeName, height: int, validators: Collection[NodeName]) -> None:
        self._own = own
        self._final = height
        self._validators = tuple(validators)
        self._last: dict[NodeName, LastVote] = {}
        self._missed: dict[NodeName, int] = {}
        self._voting_since_ms: int | None = None

    def said(self, sender: NodeName, message: Message, *, now_ms: int) -> None:
        """Take note of a message of a peer, or of the node itself; what is no vote of its sender is left alone.

        Signatures are not looked at: the session says who the sender is.
        """
        match message:
            case Prepare() | Commit() if message.signer == sender:
                height = message.height
            case ViewChange() if message.vote.signer == sender:
                height = message.height
            case PrePrepare():
                height = message.height
            case _:
                return
        if sender not in self._validators or not self._height_of(sender) <= height <= self._final + AHEAD_MAX:
            return
        if height > self._height_of(sender):
            self._missed.pop(sender, None)
        self._last[sender] = LastVote(height, now_ms)
        if height > self._final and self._voting_since_ms is None:
            self._voting_since_ms = now_ms

    def final(
        self, height: int, validators: Collection[NodeName], connected: Callable[[], Collection[NodeName]] | None
    ) -> None:
        """Take note of a final block.

        Args:
            height: its height.
            validators: who votes on the next one.
            connected: who is connected; asked only when a vote is missing. None for a block that was caught
                up with, whose votes were never heard here.
        """
        silent = [name for name in self._validators if name != self._own and self._height_of(name) < height - 1]
        if connected is not None and silent:
            present = connected()
            for name in silent:
                if name in present:
                    self._missed[name] = self._missed.get(name, 0) + 1
                else:
                    self._missed.pop(name, None)
        self._final, self._validators = height, tuple(validators)
        self._last = {name: vote for name, vote in self._last.items() if name in self._validators}
        self._missed = {name: count for name, count in self._missed.items() if name in self._validators}
        early = [vote.at_ms for vote in self._last.values() if vote.height > height]
        self._voting_since_ms = min(early, default=None)

    def report(self) -> VoteReport:
        """Return what is known now."""
        unheard = (name for name in self._validators if self._height_of(name) <= self._final)
        return VoteReport(dict(self._last), dict(self._missed), self._voting_since_ms, tuple(unheard))

    def _height_of(self, name: NodeName) -> int:
        last = self._last.get(name)
        return -1 if last is None else last.height
