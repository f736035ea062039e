"""The payer: consumes notices, asks the account system, and brings its answers to the event system.

Deliveries are taken as many at a time as there are. A delivery is settled once the event system has the answer durably;
whoever dies before asks the same again, which moves nothing twice. While one of the two is away the deliveries are kept
and tried again, and given back to the centre before their leases end.
"""

import gc
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from consensus.ledger.errors import HansaError, PeerError
from services.accounts.link import open_accounts
from services.accounts.port import AccountSystem, Order
from services.client.errors import Refused, Unreachable
from services.client.tasks import single_errors
from services.local.link import LocalLink
from services.messages.link import open_link
from services.messages.logs import configure_logs, ready_file, stop_signals
from services.messages.port import Delivery, MessageCenter, Settlement, Subscription, Verdict
from services.settlement.interfaces import AnswersPut, AnswersTaken, EventsLink
from services.settlement.relay import NOT_UNDERSTOOD, order_untrusted

NAME = "settle-payer"
STILL_HELD = "still_held"
"""What is said of a RELEASE that was refused for a trade that is cancelled: the message waits until it is done."""
BATCH_MAX = 256
"""Orders in one request to the account system."""
WINDOW = 2 * BATCH_MAX
KEEP_S = 20.0
"""How long deliveries are tried before they go back."""
ASK_S = 30.0
"""How long one try may take; with the time before it, below the time of a lease."""
PAUSE_FIRST_MS = 50
PAUSE_MAX_MS = 1_000
STOP_TIMEOUT_S = 5.0

log = structlog.get_logger("payer")


@dataclass(frozen=True, slots=True)
class PayerSettings:
    """What the payer runs with.

    Args:
        run: folder of the file that says ready.
        events: socket of the event system.
        accounts_url: root of the account system, ``accounts_token`` what it asks for.
        center: ``HOST:PORT`` or ``unix:PATH`` of the message centre, ``center_token`` what it asks for.
        log_level: debug, info, warning or error.
    """

    run: Path
    events: Path
    accounts_url: str
    accounts_token: str
    center: str
    center_token: str
    log_level: str = "info"


class Payer:
    """One subscription's way to the account system and back; :meth:`run` it once."""

    def __init__(self, subscription: Subscription, accounts: AccountSystem, events: EventsLink) -> None:
        self._subscription = subscription
        self._accounts = accounts
        self._events = events
        self._waiting: deque[Delivery] = deque()
        self._arrived = trio.Event()
        self._trouble = ""

    async def run(self, stopping: trio.Event, *, stop_timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Pay until ``stopping`` is set; what is under way then has a time to end.

        Raises:
            Refused: the centre wants another token.
        """
        async with trio.open_nursery() as paying:
            async with trio.open_nursery() as reading:
                reading.start_soon(self._read)
                reading.start_soon(self._pay_forever, paying)
                await stopping.wait()
                reading.cancel_scope.cancel()
            paying.cancel_scope.deadline = trio.current_time() + stop_timeout_s

    async def _read(self) -> None:
        async for delivery in self._subscription:  # bounded by the subscription's window
            self._waiting.append(delivery)
            self._arrived.set()

    async def _pay_forever(self, paying: trio.Nursery) -> None:
        """Start one batch after the other, with what has gathered meanwhile."""
        place = trio.Semaphore(1)
        while True:
            await place.acquire()
            while not self._waiting:
                self._arrived = trio.Event()
                await self._arrived.wait()
            batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
            paying.start_soon(self._pay, batch, place)

    async def _pay(self, batch: Sequence[Delivery], place: trio.Semaphore) -> None:
        try:
            settlements = await self.pay(batch)
        finally:
            place.release()
        try:
            await self._subscription.settle(settlements)
        except (Refused, PeerError) as error:
            log.warning("centre refuses", code=error.code, why=error.message)  # the lease ends, and they come again

    async def pay(self, batch: Sequence[Delivery]) -> list[Settlement]:
        """Do what a batch asks for, and return what is to be said of each delivery."""
        settlements: list[Settlement] = []
        orders: list[tuple[Delivery, Order]] = []
        for delivery in batch:
            order = order_untrusted(delivery.body)
            if order is None:
                log.error("a message is no order", key=delivery.key)
                settlements.append(Settlement(delivery.sequence, delivery.fence, Verdict.DEAD, NOT_UNDERSTOOD))
            else:
                orders.append((delivery, order))
        if orders:
            ends = await self._order([order for _, order in orders])
            settlements += [
                Settlement(delivery.sequence, delivery.fence, *end)
                for (delivery, _), end in zip(orders, ends, strict=True)
            ]
        return settlements

    async def ask(self, orders: Sequence[Order]) -> list[tuple[Verdict, str]]:
        """Bring orders to the account system and its answers to the event system, once; return each one's verdict.

        Raises:
            Unreachable: one of the two; it is not known what was done, and the same again is safe.
            Refused: one of the two takes nothing now.
        """
        answers = await self._accounts.run(orders)
        taken = await self._events.call("answers_put", AnswersPut(answers), AnswersTaken)
        return [(Verdict.RETRY, STILL_HELD) if is_again else (Verdict.DONE, "") for is_again in taken.again]

    async def _order(self, orders: Sequence[Order]) -> list[tuple[Verdict, str]]:
        """Ask with patience, and return what is to be said of each order."""
        pause_ms = PAUSE_FIRST_MS
        until = trio.current_time() + KEEP_S
        while True:
            try:
                verdicts = await self._ask_in_time(orders)
            except (Unreachable, Refused, PeerError) as error:
                self._on_trouble(error)
                if trio.current_time() + pause_ms / 1000 >= until:
                    if isinstance(error, Refused) and len(orders) > 1:
                        return await self._order_one_by_one(orders)
                    return [(Verdict.RETRY, error.code)] * len(orders)
            else:
                self._on_progress()
                return verdicts
            await trio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, PAUSE_MAX_MS)

    async def _order_one_by_one(self, orders: Sequence[Order]) -> list[tuple[Verdict, str]]:
        """Ask once for each order of a batch that was refused, so that no other waits for the one that is meant."""
        ends: list[tuple[Verdict, str]] = []
        for order in orders:
            try:
                ends += await self._ask_in_time([order])
            except Unreachable as error:
                return ends + [(Verdict.RETRY, error.code)] * (len(orders) - len(ends))
            except (Refused, PeerError) as error:
                ends.append((Verdict.RETRY, error.code))
        return ends

    async def _ask_in_time(self, orders: Sequence[Order]) -> list[tuple[Verdict, str]]:
        with trio.move_on_after(ASK_S):
            return await self.ask(orders)
        raise Unreachable(f"no answer within {ASK_S:g} s", "accounts_unreachable")

    def _on_trouble(self, error: HansaError) -> None:
        if error.code != self._trouble:
            log.warning("payments in trouble", code=error.code, why=error.message)
        self._trouble = error.code

    def _on_progress(self) -> None:
        if self._trouble:
            log.info("payments go on", after=self._trouble)
        self._trouble = ""


async def run(settings: PayerSettings) -> None:
    """Pay until SIGTERM or SIGINT.

    Raises:
        LocalError: ``already_running``, ``bad_config``, ``bad_address``.
        Refused: the centre wants another token.
    """
    configure_logs(settings.log_level)
    # What is loaded by now stays for ever: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    with single_errors():
        async with (
            stop_signals() as stopping,
            open_link(settings.center, token=settings.center_token, name=NAME) as center,
            open_accounts(settings.accounts_url, token=settings.accounts_token) as accounts,
            LocalLink(settings.events) as events,
        ):
            await serve(settings, center, accounts, events, stopping)
    log.info("stopped")


async def serve(
    settings: PayerSettings,
    center: MessageCenter,
    accounts: AccountSystem,
    events: EventsLink,
    stopping: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Pay until ``stopping`` is set; errors as :func:`run`."""
    with single_errors(), ready_file(settings.run):
        async with center.consume(NAME, window=WINDOW) as subscription:
            log.info("ready")
            task_status.started()
            await Payer(subscription, accounts, events).run(stopping)
