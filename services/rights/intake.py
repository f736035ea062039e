"""Takes events in: gathers what waits, signs it under few signatures, publishes it, and answers.

Nothing is answered before it is durable at the message centre. There is no timer: what comes while publishes are under
way goes into the next one, so that a lone event goes at once and a burst in large batches.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec
import trio

from consensus.ledger.errors import HansaError
from consensus.ledger.ids import Address, ChainId
from consensus.ledger.keys import PrivateKey
from services.client.errors import Refused, Unreachable
from services.local.pages import Failed, Problem
from services.messages.port import PUBLISH_MESSAGES_MAX, MessageCenter
from services.messages.store import NewMessage, Published, Record, State
from services.rights.answers import Answer, Chain, Followed, taken
from services.rights.events import BATCH_EVENTS_MAX, Event, Kind, sign_events, signed_codec
from services.rights.metrics import BusinessMetrics

WAITING_EVENTS_MAX = 20_000
"""How many events wait to be published; about 1 KiB each."""
PUBLISHES_MAX = 2
"""How many publishes are under way at a time: one is on its way to the disk while the next one is signed."""


@dataclass(eq=False, slots=True)
class _Post:
    """Events that came together and are answered together."""

    events: Sequence[Event]
    done: trio.Event = field(default_factory=trio.Event)
    published: Sequence[Published] = ()
    error: HansaError | None = None


class Intake:
    """Publishes events at a message centre; :meth:`run` must run beside it."""

    def __init__(
        self,
        center: MessageCenter,
        metrics: BusinessMetrics,
        *,
        key: PrivateKey,
        chain_id: ChainId,
        server: Address,
    ) -> None:
        self._center = center
        self._metrics = metrics
        self._key = key
        self._chain_id = chain_id
        self._server = server
        self._posts: deque[_Post] = deque()
        self._waiting_count = 0
        self._workers = trio.lowlevel.ParkingLot()
        metrics.waiting.set_function(lambda: self._waiting_count)

    async def run(self) -> None:
        """Publish what comes, until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(PUBLISHES_MAX):
                nursery.start_soon(self._publish_forever)

    async def take(self, events: Sequence[Event]) -> list[Answer]:
        """Keep events, as :class:`~services.rights.answers.Taker` says."""
        if self._waiting_count + len(events) > WAITING_EVENTS_MAX:
            raise Refused("intake_full", f"{self._waiting_count} events wait to be published")
        post = _Post(events)
        self._posts.append(post)
        self._waiting_count += len(events)
        self._workers.unpark()
        await post.done.wait()
        if post.error is not None:
            # Several callers may share one error, and each raises it with a traceback of its own.
            raise type(post.error)(*_arguments(post.error))
        return [_answer(event, published) for event, published in zip(events, post.published, strict=True)]

    async def find(self, kind: str, reference: str, number: str) -> Followed | None:
        """Return how the message of an event stands."""
        found = await self._center.find([f"{kind}/{reference}/{number}"])
        return None if found[0] is None else followed(found[0])

    async def check(self) -> None:
        """Return if the message centre answers."""
        await self._center.stats()

    async def _publish_forever(self) -> None:
        while True:
            while not self._posts:
                await self._workers.park()
            posts = self._next_posts()
            events = [event for post in posts for event in post.events]
            try:
                published = await self._center.publish(self._messages(events))
            except HansaError as error:
                for post in posts:
                    post.error = error
            else:
                start = 0
                for post in posts:
                    post.published = published[start : start + len(post.events)]
                    start += len(post.events)
            self._waiting_count -= len(events)
            self._metrics.publish_events.observe(len(events))
            for post in posts:
                post.done.set()

    def _next_posts(self) -> list[_Post]:
        """Take whole posts off the queue, the first and what fits into one publish with it."""
        posts: list[_Post] = []
        count = 0
        while self._posts and count + len(self._posts[0].events) <= PUBLISH_MESSAGES_MAX:
            posts.append(self._posts.popleft())
            count += len(posts[-1].events)
        return posts

    def _messages(self, events: Sequence[Event]) -> list[NewMessage]:
        messages: list[NewMessage] = []
        for start in range(0, len(events), BATCH_EVENTS_MAX):
            batch = events[start : start + BATCH_EVENTS_MAX]
            for signed in sign_events(self._key, self._chain_id, self._server, batch):
                event = signed.event
                mark = mark_of(self._server, event)
                messages.append(NewMessage(event.key, lane_of(event), signed_codec.encode(signed), mark))
        return messages


def lane_of(event: Event) -> str:
    """Return the lane of an event's message: that of its order, or of its redemption."""
    is_redemption = event.kind in (Kind.REDEEM, Kind.REVERSE)
    return f"{'redemption' if is_redemption else 'order'}:{event.reference}"


def mark_of(server: bytes, event: Event) -> bytes:
    """Return what a repeat of a server's event has in common with it, whenever it comes: 32 bytes.

    What another server posts at the same centre under the same key is a conflict, and no repeat.
    """
    return sha256(msgspec.msgpack.encode((server, event.user, event.campaign, event.amount, event.items))).digest()


def followed(record: Record) -> Followed:
    """Return how an event stands by the record of its message.

    Its detail is ``[CODE ]HEIGHT TRANSACTION-ID CALL-INDEX[ RESULT]``, or ``CODE[ MESSAGE]`` if not in the chain.
    """
    words = record.detail.split(" ")
    code = "" if record.state is State.DONE or _place(words) else words.pop(0).rstrip(":")
    chain = _place(words)
    rest = " ".join(words[3:] if chain else words)
    is_done = record.state is State.DONE
    return Followed(
        event_id=record.key,
        state=record.state.value,
        attempts=record.attempts,
        taken_ms=record.published_ms,
        ended_ms=record.ended_ms,
        chain=chain,
        result=rest if is_done else "",
        error=Problem(code, rest or code) if code else None,
    )


def _place(words: Sequence[str]) -> Chain | None:
    """Return the place that words begin with: ``HEIGHT TRANSACTION-ID CALL-INDEX``."""
    if len(words) < 3 or not words[0].isdecimal() or not words[2].isdecimal():
        return None
    return Chain(height=int(words[0]), transaction_id=words[1], call_index=int(words[2]))


def _answer(event: Event, published: Published) -> Answer:
    if published.is_conflict:
        return Failed(Problem("event_conflict", f"{event.key} was posted before and said something else"))
    return taken(event, is_new=published.is_new)


def _arguments(error: HansaError) -> tuple[str, str]:
    """Return what an error of this kind is made from."""
    return (error.message, error.code) if isinstance(error, Unreachable) else (error.code, error.message)
