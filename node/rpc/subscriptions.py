"""Subscriptions: each follows the chain by its own cursor at its reader's pace.

A subscription pulls blocks and waits while the session's outbox is full, so it holds no queue of its
own. One that follows the head and falls more than ``LAG_BLOCKS_MAX`` behind is told so: a message with
``gap`` names the cursor after which items were left out and the one up to which, and it goes on from
there. Nothing is ever left out silently (R75). One that was opened with a cursor reads from the store
at its own pace until it has reached the head, without gaps; that is how a gap is filled.

Cursors are ``height:index`` of the last item delivered; reading goes on behind it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from consensus.ledger.errors import PeerError
from node.rpc.context import Context, Selection
from node.rpc.feed import CommittedView
from node.rpc.methods_consensus import status_json
from node.rpc.protocol import Json, notification_bytes
from node.rpc.render import cursor_text

TOPICS = ("blocks", "transactions", "events", "consensus")
LAG_BLOCKS_MAX = 256
ITEMS_PER_MESSAGE_MAX = 200
BLOCK_END = 2**31
"""An index above that of any item in a block."""

Send = Callable[[bytes], Awaitable[None]]


@dataclass(slots=True)
class Subscription:
    """One topic, sent to one session. ``place`` is the cursor of what was delivered last."""

    id: int
    topic: str
    selection: Selection
    place: tuple[int, int]
    is_replay: bool
    lag_blocks_max: int = LAG_BLOCKS_MAX

    async def run(self, context: Context, send: Send) -> None:
        """Send items until cancelled."""
        if self.topic == "consensus":
            await self._follow_consensus(context, send)
        else:
            await self._follow_blocks(context, send)

    async def _follow_blocks(self, context: Context, send: Send) -> None:
        feed = context.feed
        while True:
            await feed.wait_above(self.place[0] - (self.place[1] < BLOCK_END))
            if self.place[0] + 1 >= feed.height:
                self.is_replay = False
            if not self.is_replay and feed.height - self.place[0] > self.lag_blocks_max:
                await self._skip_to(feed.height - 1, send)
            height = self.place[0] + (self.place[1] == BLOCK_END)
            view = feed.view(height)
            if view is None:
                await self._skip_to(height, send)  # pruned
                continue
            await self._send_block(view, send)

    async def _send_block(self, view: CommittedView, send: Send) -> None:
        items = self._items(view)
        if self.place[0] == view.height:
            items = [item for item in items if _index(item) > self.place[1]]
        for start in range(0, len(items), ITEMS_PER_MESSAGE_MAX):
            chunk = items[start : start + ITEMS_PER_MESSAGE_MAX]
            self.place = (view.height, _index(chunk[-1]))
            await send(self._message({"items": [*chunk]}))
        self.place = (view.height, BLOCK_END)

    async def _skip_to(self, height: int, send: Send) -> None:
        after = self.place
        self.place = (height, BLOCK_END)
        await send(self._message({"gap": {"after": cursor_text(*after), "until": cursor_text(*self.place)}}))

    def _items(self, view: CommittedView) -> list[dict[str, Json]]:
        match self.topic:
            case "blocks":
                return [{**view.block, "index": 0}]
            case "transactions":
                wanted = self.selection
                return [item for item in view.transaction_items if wanted.sender in ("", item["sender"])]
            case _:
                return [item for item in view.event_items if self.selection.takes_event(item)]

    async def _follow_consensus(self, context: Context, send: Send) -> None:
        """Send the engine's state at each change; a slow reader gets the newest and the number of changes."""
        seen = 0
        while True:
            changes = await context.backend.wait_consensus(seen)
            status = status_json(context.backend.facts())
            await send(self._message({"status": status, "changes": changes - seen}))
            seen = changes

    def _message(self, content: dict[str, Json]) -> bytes:
        head: dict[str, Json] = {"subscription": self.id, "topic": self.topic}
        if self.topic != "consensus":
            head["cursor"] = cursor_text(*self.place)
        return notification_bytes("subscription", head | content)


def check_topic_untrusted(topic: str) -> str:
    """Return a topic that exists.

    Raises:
        PeerError: ``unknown_topic``.
    """
    if topic not in TOPICS:
        raise PeerError("unknown_topic", f"topics are {', '.join(TOPICS)}")
    return topic


def _index(item: dict[str, Json]) -> int:
    index = item["index"]
    return index if isinstance(index, int) else 0


def first_place(cursor: tuple[int, int] | None, head: int) -> tuple[int, int]:
    """Return where a new subscription begins: behind its cursor, or behind the head."""
    return (head, BLOCK_END) if cursor is None else cursor
