"""How much of the driver's inbox each peer may fill with messages that wait for the engine.

A validator has a share of its own. Observers ask and have no votes: one has an eighth of that, all
together have one validator's share, so that no crowd of them keeps votes waiting. Pure bookkeeping.
"""

from dataclasses import dataclass

from consensus.ledger.ids import NodeName

PEER_BYTES_MAX = 1024 * 1024
"""Size of one validator's messages that wait; a larger one waits alone."""
OBSERVER_BYTES_MAX = PEER_BYTES_MAX // 8
"""The same for one observer."""
MESSAGE_OVERHEAD_BYTES = 1_024
"""What a message counts beside its own size, so that small ones are bounded in number too."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a waiting message counts, and against whom."""

    peer: NodeName
    size: int
    is_observer: bool


class InboxShares:
    """Who holds how much; one entry for each peer that has something waiting."""

    def __init__(self) -> None:
        self._held: dict[NodeName, int] = {}
        self._observers = 0

    def take(self, peer: NodeName, payload_bytes: int, *, is_observer: bool) -> Ticket | None:
        """Return what a message counts, to be given back later; None while the peer's share is too full for it."""
        size = payload_bytes + MESSAGE_OVERHEAD_BYTES
        held = self._held.get(peer, 0)
        if held and held + size > (OBSERVER_BYTES_MAX if is_observer else PEER_BYTES_MAX):
            return None
        if is_observer and self._observers and self._observers + size > PEER_BYTES_MAX:
            return None
        self._held[peer] = held + size
        self._observers += size * is_observer
        return Ticket(peer, size, is_observer)

    def give_back(self, ticket: Ticket) -> None:
        """Free what a message held."""
        left = self._held.pop(ticket.peer) - ticket.size
        if left:
            self._held[ticket.peer] = left
        self._observers -= ticket.size * ticket.is_observer
