"""What the reward-rights demo does and what must come of it. Pure: a seed decides, no clock, no randomness.

:func:`plan_events` turns an order book into a schedule in business time: every order creates rights of one
unit a penny, a matched cancellation takes its amount back, what is left completes after a delay drawn
from the seed, and some users redeem a part of what they have; a few events come twice. A cancellation
that comes after completion claws back, and where the user has spent the rights, leaves a debt.

:func:`expected_figures` says what must come of it, by sums that know no order of events: of a user, with
granted G, taken back after granting R and redeemed W, available = max(0, G − W − R), debt = max(0, R + W − G)
and clawed back = R − debt.

:func:`pack` puts the schedule into transactions. All events of one user are in one lane, so they run in
the order of the schedule; lanes run side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from heapq import heapify, heappop, heappush
from typing import assert_never

from consensus.ledger.codec import Value
from services.demo.orders import Order, OrderBook

DELAY_S_MIN = 5 * 60
"""The least time between creation and completion, and between completion and redemption."""
DELAY_PARTS = 5
"""The most time is this part of the time that the orders span."""
REDEEM_PERCENT = 45
"""How many of a hundred completed orders make their user redeem."""
REPEAT_PERCENT = 3
"""How many of a hundred events are delivered a second time."""


class Kind(StrEnum):
    """An event's type; the values are the contract's methods."""

    CREATE = "create"
    CANCEL = "cancel"
    COMPLETE = "complete"
    REDEEM = "redeem"


@dataclass(frozen=True, slots=True)
class RightsEvent:
    """One event. ``reference`` is an order, or a redemption's name; ``amount`` is in units, 0 for all there is."""

    kind: Kind
    user: str
    reference: str
    event: str
    amount: int
    time_s: int
    is_repeat: bool = False

    def arguments(self, run: str) -> dict[str, Value]:
        """Return the arguments of the contract's method; ``run`` keeps one performance's names from another's."""
        name = f"{run}-{self.reference}"
        match self.kind:
            case Kind.CREATE:
                order: dict[str, Value] = {"campaign": campaign_of(run), "order": name, "user": self.user}
                return {**order, "amount": self.amount, "event": self.event}
            case Kind.CANCEL:
                return {"order": name, "amount": self.amount, "event": self.event}
            case Kind.COMPLETE:
                return {"order": name, "event": self.event}
            case Kind.REDEEM:
                return {"user": self.user, "amount": self.amount, "redemption": name, "event": self.event}
            case _:
                assert_never(self.kind)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The events in order of business time, and the quota that is exactly enough for them."""

    events: tuple[RightsEvent, ...]
    quota: int

    def count(self, kind: Kind) -> int:
        """Return how many events of a kind there are, repeats left out."""
        return sum(1 for event in self.events if event.kind is kind and not event.is_repeat)

    @property
    def repeat_count(self) -> int:
        """How many events come a second time."""
        return sum(1 for event in self.events if event.is_repeat)


@dataclass(slots=True)
class Figures:
    """A balance, in units; the names are the contract's."""

    created: int = 0
    reserved: int = 0
    available: int = 0
    redeemed: int = 0
    revoked: int = 0
    clawedBack: int = 0
    debt: int = 0

    def add(self, other: "Figures") -> None:
        """Add another balance to this one."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_map(self) -> dict[str, int]:
        """Return the figures by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    @property
    def is_conserved(self) -> bool:
        """Whether every unit ever created is in exactly one place and nothing is negative."""
        kept = self.reserved + self.available + self.redeemed + self.revoked + self.clawedBack
        return self.created == kept and min(self.as_map().values()) >= 0


@dataclass(frozen=True, slots=True)
class Batch:
    """The events of one transaction, in a numbered lane."""

    lane: int
    events: tuple[RightsEvent, ...]


def plan_events(book: OrderBook, *, seed: int, salt: bytes) -> Schedule:
    """Return the schedule of an order book; ``salt`` keeps customers' numbers off the chain."""
    planner = _Planner(book, seed=seed, salt=salt)
    while planner.waiting:
        planner.step()
    events = _with_repeats(planner.events, seed)
    return Schedule(tuple(events), sum(order.amount_pence for order in book.orders))


def expected_figures(book: OrderBook, schedule: Schedule, *, salt: bytes) -> dict[str, Figures]:
    """Return each user's balance after the whole schedule.

    Which cancellations came before completion, and what was redeemed, is read off the schedule; all
    amounts but redemptions come from the order book.
    """
    place = {
        (event.kind, event.reference, event.event): number
        for number, event in reversed(list(enumerate(schedule.events)))
    }
    completed = {reference: number for (kind, reference, _), number in place.items() if kind is Kind.COMPLETE}
    revoked: dict[str, int] = {}
    refunded: dict[str, int] = {}
    for cancellation in book.cancellations:
        order = cancellation.order
        at = place[Kind.CANCEL, order, cancellation.number]
        side = revoked if at < completed.get(order, len(schedule.events)) else refunded
        side[order] = side.get(order, 0) + cancellation.amount_pence
    redeemed: dict[str, int] = {}
    for event in schedule.events:
        if event.kind is Kind.REDEEM and not event.is_repeat:
            redeemed[event.user] = redeemed.get(event.user, 0) + event.amount
    orders: dict[str, list[Order]] = {}
    for item in book.orders:
        orders.setdefault(pseudonym(item.customer, salt), []).append(item)
    return {user: _user_figures(own, revoked, refunded, redeemed.get(user, 0)) for user, own in orders.items()}


def total_figures(users: Mapping[str, Figures]) -> Figures:
    """Return the sums over all users."""
    total = Figures()
    for figures in users.values():
        total.add(figures)
    return total


def pack(events: Sequence[RightsEvent], *, lane_count: int, calls_max: int) -> list[Batch]:
    """Return transactions of up to ``calls_max`` events, in the order in which they must be sent."""
    batches: list[Batch] = []
    open_events: list[list[RightsEvent]] = [[] for _ in range(lane_count)]
    for event in events:
        lane = lane_of(event.user, lane_count)
        open_events[lane].append(event)
        if len(open_events[lane]) == calls_max:
            batches.append(Batch(lane, tuple(open_events[lane])))
            open_events[lane] = []
    batches.extend(Batch(lane, tuple(rest)) for lane, rest in enumerate(open_events) if rest)
    return batches


def campaign_of(run: str) -> str:
    """Return the name of a performance's campaign."""
    return f"flash-{run}"


def lane_of(user: str, lane_count: int) -> int:
    """Return the lane of a user's events."""
    return _draw("lane", user) % lane_count


def pseudonym(customer: str, salt: bytes) -> str:
    """Return the name of a customer on the chain: 16 hex digits that only who knows the salt can link."""
    return sha256(b"demo-user\0" + len(salt).to_bytes(1, "big") + salt + customer.encode()).hexdigest()[:16]


class _Planner:
    """Walks business time: what happens at one moment may put something at a later one."""

    def __init__(self, book: OrderBook, *, seed: int, salt: bytes) -> None:
        self.events: list[RightsEvent] = []
        self._seed = seed
        self._user = {order.number: pseudonym(order.customer, salt) for order in book.orders}
        self._reserved = {order.number: order.amount_pence for order in book.orders}
        self._completed: set[str] = set()
        self._spendable: dict[str, int] = {}
        # (time, tie-breaker, kind, order, name of the event, amount)
        self.waiting: list[tuple[int, int, Kind, str, str, int]] = []
        self._numbers = 0
        times = [order.time_s for order in book.orders]
        self._delay_s_max = (max(times, default=0) - min(times, default=0)) // DELAY_PARTS
        for order in book.orders:
            self._put(order.time_s, Kind.CREATE, order.number, "create", order.amount_pence)
            self._put(order.time_s + self._delay("complete", order.number), Kind.COMPLETE, order.number, "complete", 0)
        for item in book.cancellations:
            self._put(item.time_s, Kind.CANCEL, item.order, item.number, item.amount_pence)
        heapify(self.waiting)

    def step(self) -> None:
        """Let the next thing happen."""
        time_s, _, kind, order, name, amount = heappop(self.waiting)
        user = self._user[order]
        match kind:
            case Kind.CREATE:
                self._note(kind, user, order, name, amount, time_s)
            case Kind.CANCEL:
                if order in self._completed:
                    self._spendable[user] -= amount
                else:
                    self._reserved[order] -= amount
                self._note(kind, user, order, name, amount, time_s)
            case Kind.COMPLETE:
                if self._reserved[order]:
                    self._complete(user, order, time_s)
            case Kind.REDEEM:
                spendable = max(0, self._spendable[user])
                percent = min(100, 30 + _draw(self._seed, "part", order) % 101)
                if part := spendable * percent // 100:
                    self._spendable[user] -= part
                    self._note(kind, user, f"R{order}", name, part, time_s)

    def _complete(self, user: str, order: str, time_s: int) -> None:
        self._completed.add(order)
        self._spendable[user] = self._spendable.get(user, 0) + self._reserved[order]
        self._note(Kind.COMPLETE, user, order, "complete", 0, time_s)
        if _draw(self._seed, "redeems", order) % 100 < REDEEM_PERCENT:
            self._put(time_s + self._delay("redeem", order), Kind.REDEEM, order, "redeem", 0)

    def _put(self, time_s: int, kind: Kind, order: str, name: str, amount: int) -> None:
        self._numbers += 1
        heappush(self.waiting, (time_s, self._numbers, kind, order, name, amount))

    def _note(self, kind: Kind, user: str, reference: str, name: str, amount: int, time_s: int) -> None:
        self.events.append(RightsEvent(kind, user, reference, name, amount, time_s))

    def _delay(self, what: str, order: str) -> int:
        return DELAY_S_MIN + _draw(self._seed, what, order) % max(1, self._delay_s_max - DELAY_S_MIN)


def _with_repeats(events: Sequence[RightsEvent], seed: int) -> list[RightsEvent]:
    """Deliver some events a second time, up to 40 events later."""
    later: dict[int, list[RightsEvent]] = {}
    for number, event in enumerate(events):
        if _draw(seed, "repeats", event.kind, event.reference, event.event) % 100 < REPEAT_PERCENT:
            at = min(len(events) - 1, number + _draw(seed, "distance", event.reference) % 40)
            again = RightsEvent(event.kind, event.user, event.reference, event.event, event.amount, event.time_s, True)
            later.setdefault(at, []).append(again)
    found: list[RightsEvent] = []
    for number, event in enumerate(events):
        found.append(event)
        found.extend(later.get(number, []))
    return found


def _user_figures(
    orders: Sequence[Order], revoked: Mapping[str, int], refunded: Mapping[str, int], redeemed: int
) -> Figures:
    created = sum(order.amount_pence for order in orders)
    taken_early = sum(revoked.get(order.number, 0) for order in orders)
    taken_late = sum(refunded.get(order.number, 0) for order in orders)
    balance = created - taken_early - redeemed - taken_late
    debt = max(0, -balance)
    return Figures(
        created=created,
        available=max(0, balance),
        redeemed=redeemed,
        revoked=taken_early,
        clawedBack=taken_late - debt,
        debt=debt,
    )


def _draw(*parts: object) -> int:
    """Return 64 bits that these parts decide."""
    return int.from_bytes(sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")
