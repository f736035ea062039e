"""What the reward-rights demo posts and what must come of it. Pure: a seed decides, no clock, no randomness.

:func:`make_plan` turns an order book into three acts of events; one unit of rights is one penny of an order.

1. *The burst*: every order is created and completed after a delay drawn from the seed, some in two parts, some posted
   before their creation; what a matched cancellation took back before that is cancelled. A few events come twice.
2. *Spending*: users redeem a part of what they were granted: amounts, or items with prices.
3. *Returns*: what was cancelled after completion is refunded or cancelled, and some redemptions are reversed.

An act begins when what it needs from the one before has ended, as users do: nobody spends what he does not see. So
the end of each event is known beforehand, whatever order the message centre's lanes and the chain find for them.

:func:`expected_figures` says what must come of all, by sums that know no order of events: of a user, with granted G,
taken back after granting R and redeemed W (reversals left out), available = max(0, G − W − R), debt = max(0, R + W − G)
and clawed back = R − debt. Everything but redemptions comes from the order book.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from services.demo.orders import Cancellation, Order, OrderBook
from services.messages.store import State
from services.rights.events import Kind

DELAY_S_MIN = 5 * 60
"""The least time between creation and completion."""
DELAY_PARTS = 5
"""The most time is this part of the time that the orders span."""
REDEEM_PERCENT = 45
"""How many of a hundred users with rights redeem some."""
REVERSE_PERCENT = 20
"""How many of a hundred redemptions are reversed, in part or whole."""
SPLIT_PERCENT = 10
"""How many of a hundred completions come in two parts."""
EARLY_PERCENT = 5
"""How many of a hundred orders complete before their creation has arrived."""
REPEAT_PERCENT = 3
"""How many of a hundred events are posted a second time."""
ITEM_COUNT_MAX = 1_000_000
"""How many of one item a redemption can have."""

PRICES = {"coffee": 250, "umbrella": 1_200}
"""Item → price in units; the contract knows both, the rights server computes with those in ``SERVER_ITEMS``."""
SERVER_ITEMS = ("umbrella",)
"""Items whose write-off the rights server computes (variant B); that of the others the contract does (variant A)."""


@dataclass(frozen=True, slots=True)
class Deed:
    """One event as it is posted, and how it must end: in ``state``, with the typed ``code`` where that is no success.

    ``reference`` is an order or a redemption; ``amount`` is in units, 0 for all there is or where ``items`` say it.
    """

    kind: Kind
    reference: str
    number: str = "1"
    user: str = ""
    campaign: str = ""
    amount: int = 0
    items: tuple[tuple[str, int], ...] = ()
    state: State = State.DONE
    code: str = ""

    @property
    def key(self) -> str:
        """What makes it this event at its server."""
        return f"{self.kind}/{self.reference}/{self.number}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is posted, act by act; ``repeats`` are of the burst, and posted some events after their originals.

    ``quotas`` is exactly enough for each campaign's orders; the rights server computes the shares of ``shared``, if
    any order is in that.
    """

    burst: tuple[Deed, ...]
    repeats: frozenset[str]
    spending: tuple[Deed, ...]
    returns: tuple[Deed, ...]
    quotas: Mapping[str, int]
    shared: str

    @property
    def deeds(self) -> tuple[Deed, ...]:
        """All events, each once."""
        return self.burst + self.spending + self.returns

    def count(self, kind: Kind) -> int:
        """Return how many events of a kind there are."""
        return sum(1 for deed in self.deeds if deed.kind is kind)


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


def make_plan(book: OrderBook, *, seed: int, run: str, salt: bytes) -> Plan:
    """Return what is posted of an order book.

    Args:
        book: the orders.
        seed: decides delays, redemptions, reversals, repeats.
        run: keeps the names of one performance from another's.
        salt: keeps customers' numbers off the chain.
    """
    planner = _Planner(book, seed=seed, run=run, salt=salt)
    burst = planner.burst()
    spending = planner.spending()
    repeats = frozenset(
        deed.key
        for deed in burst
        if _percent(seed, "repeats", deed.kind, _bare(deed.reference), deed.number) < REPEAT_PERCENT
    )
    return Plan(
        burst=tuple(burst),
        repeats=repeats or frozenset([burst[0].key]),
        spending=tuple(spending),
        returns=tuple(planner.returns(spending)),
        quotas=planner.quotas,
        shared=campaign_of(run, "b"),
    )


def expected_figures(book: OrderBook, plan: Plan, *, run: str, salt: bytes) -> dict[str, Figures]:
    """Return each user's balance after all acts."""
    late = {(deed.reference, deed.number) for deed in plan.returns if deed.kind is not Kind.REVERSE}
    revoked: dict[str, int] = {}
    refunded: dict[str, int] = {}
    for cancellation in book.cancellations:
        is_late = (f"{run}-{cancellation.order}", cancellation.number) in late
        side = refunded if is_late else revoked
        side[cancellation.order] = side.get(cancellation.order, 0) + cancellation.amount_pence
    redeemed: dict[str, int] = {}
    user_of = {deed.reference: deed.user for deed in plan.spending}
    value_of = {deed.reference: worth(deed) for deed in plan.spending}
    for deed in plan.spending:
        if deed.state is State.DONE:
            redeemed[deed.user] = redeemed.get(deed.user, 0) + worth(deed)
    for deed in plan.returns:
        if deed.kind is Kind.REVERSE and deed.state is State.DONE:
            redeemed[user_of[deed.reference]] -= deed.amount or value_of[deed.reference]
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


def with_repeats(deeds: Sequence[Deed], repeats: frozenset[str]) -> list[Deed]:
    """Return the events with those to be repeated a second time, up to 40 events later."""
    later: dict[int, list[Deed]] = {}
    for number, deed in enumerate(deeds):
        if deed.key in repeats:
            at = min(len(deeds) - 1, number + _draw("distance", _bare(deed.reference)) % 40)
            later.setdefault(at, []).append(deed)
    found: list[Deed] = []
    for number, deed in enumerate(deeds):
        found.append(deed)
        found.extend(later.get(number, []))
    return found


def streams_of(deeds: Iterable[Deed], count: int) -> list[list[Deed]]:
    """Part events among so many posters; all of one order or redemption stay with one, in their order."""
    streams: list[list[Deed]] = [[] for _ in range(count)]
    for deed in deeds:
        streams[_draw("poster", _bare(deed.reference)) % count].append(deed)
    return streams


def worth(deed: Deed) -> int:
    """Return the units that a redemption writes off."""
    return deed.amount or sum(PRICES[item] * count for item, count in deed.items)


def campaign_of(run: str, side: str) -> str:
    """Return the name of one of a performance's campaigns."""
    return f"flash-{run}-{side}"


def pseudonym(customer: str, salt: bytes) -> str:
    """Return the name of a customer on the chain: 16 hex digits that only who knows the salt can link."""
    return sha256(b"demo-user\0" + len(salt).to_bytes(1, "big") + salt + customer.encode()).hexdigest()[:16]


class _Planner:
    """Makes the acts one after the other; what users have been granted is carried along."""

    def __init__(self, book: OrderBook, *, seed: int, run: str, salt: bytes) -> None:
        self._book = book
        self._seed = seed
        self._run = run
        self._user = {order.number: pseudonym(order.customer, salt) for order in book.orders}
        self._first_order: dict[str, str] = {}
        for number, user in self._user.items():
            self._first_order.setdefault(user, number)
        self._granted: dict[str, int] = {}
        times = [order.time_s for order in book.orders]
        self._delay_s_max = (max(times, default=0) - min(times, default=0)) // DELAY_PARTS
        self._late: list[Cancellation] = []
        self._cancellations: dict[str, list[Cancellation]] = {}
        for item in book.cancellations:
            self._cancellations.setdefault(item.order, []).append(item)
        self.quotas: dict[str, int] = {}
        for order in book.orders:
            campaign = self._campaign(order.number)
            self.quotas[campaign] = self.quotas.get(campaign, 0) + order.amount_pence

    def burst(self) -> list[Deed]:
        """Return creations, completions and the cancellations before them, in business time."""
        timed: list[tuple[int, int, Deed]] = []
        for order in self._book.orders:
            for at, deed in self._order(order):
                timed.append((at, len(timed), deed))
        return [deed for _, _, deed in sorted(timed, key=lambda item: item[:2])]

    def _order(self, order: Order) -> list[tuple[int, Deed]]:
        name = self._name(order.number)
        user, campaign = self._user[order.number], self._campaign(order.number)
        create = Deed(Kind.CREATE, name, user=user, campaign=campaign, amount=order.amount_pence)
        done_at = order.time_s + DELAY_S_MIN + self._draw("complete", order.number) % max(1, self._delay_s_max)
        found = [(order.time_s, create)]
        left = order.amount_pence
        for item in self._cancellations.get(order.number, []):
            if item.time_s < done_at:
                left -= item.amount_pence
                found.append((item.time_s, Deed(Kind.CANCEL, name, item.number, amount=item.amount_pence)))
            else:
                self._late.append(item)
        if not left:
            return found
        self._granted[user] = self._granted.get(user, 0) + left
        if left > 1 and self._percent("split", order.number) < SPLIT_PERCENT:
            part = 1 + self._draw("part", order.number) % (left - 1)
            found.append((done_at, Deed(Kind.COMPLETE, name, "part", amount=part)))
        is_early = len(found) == 1 and self._percent("early", order.number) < EARLY_PERCENT
        return [*found, (done_at, Deed(Kind.COMPLETE, name))] if not is_early else self._early(found, name)

    def _early(self, found: list[tuple[int, Deed]], name: str) -> list[tuple[int, Deed]]:
        """Post a completion just before its creation: it waits, parked, until that has come."""
        at, create = found[0]
        return [(at, Deed(Kind.COMPLETE, name)), (at, create)]

    def spending(self) -> list[Deed]:
        """Return redemptions that users can afford whatever order they arrive in."""
        deeds: list[Deed] = []
        for user, granted in self._granted.items():
            first = self._first_order[user]
            if self._percent("redeems", first) >= REDEEM_PERCENT:
                continue
            part = granted * min(100, 30 + self._draw("share", first) % 101) // 100
            item = list(PRICES)[self._draw("item", first) % len(PRICES)]
            count = min(ITEM_COUNT_MAX, part // 2 // PRICES[item])
            if count:
                part -= count * PRICES[item]
                deeds.append(Deed(Kind.REDEEM, f"{self._run}-R{first}-i", user=user, items=((item, count),)))
            if part:
                deeds.append(Deed(Kind.REDEEM, f"{self._run}-R{first}", user=user, amount=part))
        return deeds

    def returns(self, spending: Sequence[Deed]) -> list[Deed]:
        """Return what takes back after granting: refunds and late cancellations, and reversed redemptions."""
        deeds: list[Deed] = []
        for item in self._late:
            kind = Kind.REFUND if self._draw("way", item.number, item.order) % 2 else Kind.CANCEL
            deeds.append(Deed(kind, self._name(item.order), item.number, amount=item.amount_pence))
        for deed in spending:
            if self._percent("reverse", _bare(deed.reference)) < REVERSE_PERCENT:
                part = worth(deed) // 2 if self._draw("half", _bare(deed.reference)) % 2 else 0
                deeds.append(Deed(Kind.REVERSE, deed.reference, amount=part))
        return deeds

    def _name(self, order: str) -> str:
        return f"{self._run}-{order}"

    def _campaign(self, order: str) -> str:
        return campaign_of(self._run, "ab"[self._draw("campaign", order) % 2])

    def _percent(self, *parts: object) -> int:
        return _percent(self._seed, *parts)

    def _draw(self, *parts: object) -> int:
        return _draw(self._seed, *parts)


def misfits(plan: Plan, *, run: str) -> list[Deed]:
    """Return events that must not succeed, each with the end that it must find; posted with the burst or after it."""
    order = next(deed for deed in plan.burst if deed.kind is Kind.CREATE)
    poor = replace(order, kind=Kind.REDEEM, reference=f"{run}-R-poor", campaign="", amount=10**12)
    refused = State.REFUSED
    return [
        replace(order, number="again", state=refused, code="order_state"),
        replace(poor, state=refused, code="insufficient_rights"),
        Deed(Kind.COMPLETE, f"{run}-nothing", state=State.DEAD, code="unknown_order"),
        Deed(Kind.REVERSE, f"{run}-R-nothing", state=State.DEAD, code="unknown_redemption"),
    ]


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


def _bare(reference: str) -> str:
    """Return a name without the performance's: what a seed decides is the same in all of them."""
    return reference.partition("-")[2]


def _percent(*parts: object) -> int:
    return _draw(*parts) % 100


def _draw(*parts: object) -> int:
    """Return 64 bits that these parts decide."""
    return int.from_bytes(sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")
