"""The relay: what the outbox has for the account system goes to the message centre, in order, and leaves the outbox.

A row is dropped once the centre has it durably. Whoever dies between the two publishes the same again under the same
key, which is no second message. While the centre is away everything stays where it is.
"""

import math

import msgspec
import structlog
import trio

from consensus.ledger.errors import InvariantError
from services.accounts.port import Operation, Order
from services.client.errors import Refused, Unreachable
from services.messages.port import PUBLISH_MESSAGES_MAX, MessageCenter
from services.messages.store import NewMessage
from services.messages.store import State as MessageState
from services.settlement.states import MESSAGES, Event, Notice, Topic
from services.settlement.store import EventStore
from services.settlement.trades import order_of

PAUSE_FIRST_MS = 50
PAUSE_MAX_MS = 1_000
REVIVE_MS = 60_000
"""How often the centre is asked for dead letters."""
NOT_UNDERSTOOD = "not_understood"
"""What the payer says of a message that is no order: the one dead letter that is not made to wait again."""

_OPERATIONS = {Topic.PAY: Operation.PAY, Topic.RELEASE: Operation.RELEASE}

log = structlog.get_logger("relay")


class Relay:
    """Brings the outbox to the centre; :meth:`drain` at any time, or :meth:`run` for ever."""

    def __init__(self, store: EventStore, center: MessageCenter) -> None:
        self._store = store
        self._center = center
        self._lock = trio.Lock()
        self._bell = trio.Event()
        self._trouble = ""
        self._revive_at = -math.inf

    @property
    def trouble(self) -> str:
        """Why nothing gets to the centre at present, as a code; "" while it does."""
        return self._trouble

    def wake(self) -> None:
        """Say that there are rows."""
        self._bell.set()

    async def run(self) -> None:
        """Drain whenever there are rows, and now and then; while the centre is away, with growing pauses."""
        pause_ms = PAUSE_FIRST_MS
        while True:
            self._bell = trio.Event()
            if await self.drain():
                pause_ms = PAUSE_FIRST_MS
                with trio.move_on_at(self._revive_at):
                    await self._bell.wait()
            else:
                await trio.sleep(pause_ms / 1000)
                pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)

    async def drain(self) -> bool:
        """Publish all rows there are, oldest first, and see to dead letters; False when the centre is away.

        Raises:
            Unreachable: ``database_unreachable``.
            StorageError: the disk failed.
        """
        async with self._lock:
            while notices := await self._store.notices(MESSAGES, 0, PUBLISH_MESSAGES_MAX):
                messages = await self._messages(notices)
                try:
                    conflicts = await self._publish(messages)
                except (Unreachable, Refused) as error:
                    self._on_trouble(error)
                    return False
                self._on_progress()
                for key in conflicts:
                    # Of an event system that began anew on an old centre. The scan notifies under another version.
                    log.error("the message centre has another message under this key", key=key)
                await self._store.drop_notices([notice.number for notice in notices])
            if trio.current_time() >= self._revive_at:
                self._revive_at = trio.current_time() + REVIVE_MS / 1000
                await self.revive()
            return True

    async def revive(self) -> int:
        """Make the centre's dead letters wait again, and return how many; none while it is away.

        A message that cost its consumers too often must not be given up: what it asks for has to be done.
        """
        try:
            dead = await self._center.ended(MessageState.DEAD, 0, PUBLISH_MESSAGES_MAX)
            wanted = [record.sequence for record in dead if record.detail != NOT_UNDERSTOOD]
            if not wanted:
                return 0
            count = await self._center.replay(wanted)
        except (Unreachable, Refused):
            return 0  # the next drain says so
        log.warning("dead letters wait again", count=count)
        return count

    async def _publish(self, messages: list[NewMessage]) -> list[str]:
        """Return the keys under which the centre has something else."""
        if not messages:
            return []
        published = await self._center.publish(messages)
        return [message.key for message, kept in zip(messages, published, strict=True) if kept.is_conflict]

    async def _messages(self, notices: list[Notice]) -> list[NewMessage]:
        ids = list(dict.fromkeys(notice.event for notice in notices))
        events = {event.event: event for event in await self._find(ids)}
        return [
            message_of(events[notice.event], notice)
            for notice in notices
            if notice.topic is not Topic.PAY or not events[notice.event].is_finished
        ]

    async def _find(self, ids: list[str]) -> list[Event]:
        found = [event for event in await self._store.find(ids) if event is not None]
        if len(found) != len(ids):
            raise InvariantError("the outbox names an event that is not kept")
        return found

    def _on_trouble(self, error: Unreachable | Refused) -> None:
        if error.code != self._trouble:
            log.warning("message centre in trouble", code=error.code, why=error.message)
        self._trouble = error.code

    def _on_progress(self) -> None:
        if self._trouble:
            log.info("message centre answers again", after=self._trouble)
        self._trouble = ""


def message_of(event: Event, notice: Notice) -> NewMessage:
    """Return a notice as a message: the event is its lane, the version that it came with part of its key."""
    operation = _OPERATIONS.get(notice.topic)
    if operation is None:
        raise InvariantError(f"a notice of {notice.topic} is no message")
    key = f"{notice.event}/{notice.topic}/{notice.version}"
    return NewMessage(key, notice.event, msgspec.json.encode(order_of(event.event, operation, event.terms)))


def order_untrusted(body: bytes) -> Order | None:
    """Return the order that a message asks for, None when it is none."""
    try:
        return msgspec.json.decode(body, type=Order)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
