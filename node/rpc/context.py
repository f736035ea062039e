"""What a method is called with, and the table that all methods register in."""

from dataclasses import dataclass, field
from typing import Protocol

from consensus.ledger.errors import PeerError
from node.owner import OwnerDesk
from node.rpc.backend import Backend
from node.rpc.feed import CommittedView, Feed
from node.rpc.protocol import Json
from node.rpc.schema import MethodTable

PAGE_ITEMS_MAX = 1_000


class Subscriber(Protocol):
    """The WebSocket session that a method was called on."""

    def subscribe(self, topic: str, selection: "Selection", cursor: tuple[int, int] | None) -> Json:
        """Start a subscription and return what the caller gets to know of it."""
        ...

    def unsubscribe(self, subscription_id: int) -> bool:
        """End a subscription; false when there is none of this number."""
        ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Which items are wanted; an empty field selects all. ``sender`` is an address in 0x-hex."""

    contract: str = ""
    name: str = ""
    sender: str = ""

    def takes_event(self, item: dict[str, Json]) -> bool:
        """Tell whether an event is selected."""
        return self.contract in ("", item["contract"]) and self.name in ("", item["name"])


@dataclass(frozen=True, slots=True)
class Context:
    """One call's surroundings.

    ``subscriber`` is None over plain HTTP, ``owner`` everywhere but on the owner's socket. ``table`` holds the methods
    that may be called there.
    """

    backend: Backend
    feed: Feed
    subscriber: Subscriber | None = None
    owner: OwnerDesk | None = None
    table: "MethodTable[Context]" = field(default_factory=lambda: methods)

    def view(self, height: int) -> CommittedView:
        """Return a committed block.

        Raises:
            PeerError: ``not_found``.
        """
        view = self.feed.view(height)
        if view is None:
            raise PeerError("not_found", f"this node has no block {height}")
        return view


methods: MethodTable[Context] = MethodTable()
"""All public methods; filled when ``node.rpc.methods`` is imported."""
owner_methods: MethodTable[Context] = MethodTable()
"""What the owner's socket offers beside them; filled likewise."""
