"""What the sales end keeps, in an encrypted map of bytes, and what people and programs read out of it.

    h                     :class:`Head`: positions, counts, totals of all orders
    f BLIND(source)       number of a source (8 bytes, big-endian, as all numbers here)
    q NUMBER              :class:`SourceRow`
    w NUMBER              orders in the window: :class:`WindowRow`
    p NUMBER              a window that was judged and is being sent: :class:`Plan`
    k NUMBER              orders that went together, a *block*: the orders of a package, or those dropped of a window
    t NUMBER              how a block stands: :class:`BlockHead`
    c NUMBER ROUND        a block's confirmations of one round (1 byte): :class:`Round`
    r ROOT                the block of a package
    i BLIND(serial)       block (8 bytes) and place (4 bytes) of an order; a foreign one has another name
    u BLIND(account, issuer)  a profile

A block's orders are written once; what changes is its head and what is added.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from consensus.ledger.errors import LocalError, StorageError
from services.agency.orders import Application, Confirmation, Investor
from services.agency.sales_interface import (
    Anchor,
    OrderRecord,
    Orders,
    OrdersQuery,
    Profile,
    Profiles,
    ProfilesQuery,
    Progress,
    SalesSummary,
    State,
    Total,
)
from services.agency.window import Verdict

BLOCK_ORDERS_MAX = 1_024
"""Orders in one value of the map."""
PLAN_ORDERS_MAX = 4 * BLOCK_ORDERS_MAX
"""Orders that are submitted at once: four full packages."""
WINDOW_MAX = 200_000
"""Orders that may wait in the window."""

Write = tuple[bytes, bytes | None]
Totals = dict[str, tuple[int, int]]
"""``STATE reason`` → number of orders and amount applied for."""
T = TypeVar("T")


class Store(Protocol):
    """What is asked of a vault."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""

    def scan(
        self, prefix: bytes, start: bytes = b"", *, reverse: bool = False, limit: int | None = None
    ) -> Iterable[tuple[bytes, bytes]]:
        """Return up to ``limit`` pairs whose keys begin with ``prefix``, from ``prefix + start`` on, in key order."""

    async def write(self, batch: Iterable[Write]) -> None:
        """Write all or nothing, and return once it is on the disk; None removes a key."""

    def blind(self, *parts: str) -> bytes:
        """Return 16 bytes that stand for a name in keys."""


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """Base of what is kept."""


class Head(_Row, frozen=True):
    """``position`` in the gateway's news; numbers count from 1 and are the last ones given."""

    position: int = 0
    sources: int = 0
    rows: int = 0
    blocks: int = 0
    packages: int = 0
    profiles: int = 0
    totals: Totals = {}


class SourceRow(_Row, frozen=True):
    """A source: its name, how many applications it brought, and the blocks that they are in by now."""

    name: str
    count: int
    blocks: list[int]


class WindowRow(_Row, frozen=True):
    """Orders of one source, the first of them at ``first`` in it."""

    source: int
    first: int
    creator: str
    applications: list[Application]


class Plan(_Row, frozen=True):
    """Verdicts on all orders of these window rows; ``batch`` names what is submitted of them."""

    batch: str
    rows: list[int]
    verdicts: list[Verdict]


class Placed(_Row, frozen=True):
    """An order of a block, and where it comes from; ``reason`` of one that was dropped."""

    source: int
    place: int
    reason: str
    application: Application


class BlockHead(_Row, frozen=True):
    """How a block stands: its orders are all in ``state``, or answered where that is CONFIRMED.

    ``root`` and ``issuer`` of a package, else empty; ``code`` of a package that was refused as a whole. ``sources``
    has the totals of each source in it.
    """

    root: bytes
    issuer: str
    state: str
    code: str
    anchors: list[tuple[int, bytes, int]]
    sources: dict[int, Totals]

    @property
    def is_anchored(self) -> bool:
        """Whether nothing is to be waited for on the chain."""
        return self.state != State.CONFIRMED or any(round_number == 0 for round_number, _, _ in self.anchors)


class Round(_Row, frozen=True):
    """Confirmations of the orders at ``places``, of all where that is empty."""

    places: list[int]
    confirmations: list[Confirmation]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Orders of a window: row number, row."""

    number: int
    row: WindowRow


def outcome_of(
    block: BlockHead, order: Placed, first: Confirmation | None, second: Confirmation | None
) -> tuple[State, str]:
    """Return how an order of a block stands, and its reason word."""
    newest = second or first
    if block.state != State.CONFIRMED or newest is None:
        return State(block.state), order.reason or block.code
    if not newest.is_accepted:
        return State.REJECTED, newest.reason
    return (State.ALLOTTED if second else State.CONFIRMED), ""


class Records:
    """Reads what the sales end keeps; :class:`services.agency.sales_store.SalesStore` writes it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.head = self._load(b"h", Head) or Head()

    def known_source(self, source: str) -> SourceRow | None:
        """Return a source that was taken."""
        number = self._store.get(b"f" + self._store.blind("source", source))
        return None if number is None else self._must(b"q" + number, SourceRow)

    def window_count(self) -> int:
        """Return how many orders are NEW."""
        return self.head.totals.get(key_of(State.NEW, ""), (0, 0))[0]

    def is_known(self, serial: str) -> bool:
        """Tell whether an order of our own with this serial is in a block."""
        return self._store.get(order_key(self._store, serial)) is not None

    def is_package(self, root: bytes) -> bool:
        """Tell whether a package is known here."""
        return self._store.get(b"r" + root) is not None

    def progress(self, source: str, version: int) -> Progress:
        """Return how a source stands.

        Raises:
            LocalError: ``unknown_source``.
        """
        row = self.known_source(source)
        number = self._store.get(b"f" + self._store.blind("source", source))
        if row is None or number is None:
            raise LocalError("unknown_source", f"nothing was taken under the name {source}")
        totals: Totals = {}
        unanchored = settled = 0
        for block_number in row.blocks:
            block = self._must(b"t" + numbered(block_number), BlockHead)
            own = block.sources[int.from_bytes(number, "big")]
            totals = added(totals, own)
            count = sum(count for count, _ in own.values())
            settled += count
            unanchored += 0 if block.is_anchored else count
        new = row.count - settled
        if new:
            totals = added(totals, {key_of(State.NEW, ""): (new, 0)})
        shown = _shown(totals)
        waiting = sum(item.count for item in shown if item.state in (State.NEW, State.PENDING))
        return Progress(source, version, row.count, shown, waiting, unanchored)

    def order(self, serial: str) -> OrderRecord:
        """Return one order.

        Raises:
            LocalError: ``unknown_order``.
        """
        store = self._store
        place = store.get(order_key(store, serial)) or store.get(order_key(store, serial, is_foreign=True))
        if place is not None:
            records = self._records(int.from_bytes(place[:8], "big"))
            return records[int.from_bytes(place[8:], "big")]
        for _, value in self._store.scan(b"w"):
            for record in self._new_records(decode_row(value, WindowRow)):
                if record.application.serial == serial:
                    return record
        raise LocalError("unknown_order", "no order has this serial")

    def orders(self, query: OrdersQuery) -> Orders:
        """Return a page of orders: those in blocks, then those in the window."""
        kind, number, place = _cursor(query.after)
        found: list[OrderRecord] = []
        is_wanted = _filter(query)
        for prefix, at in self._places(query, kind, number):
            skipped = place if (prefix, at) == (kind, number) else 0
            records = self._wanted_records(prefix, at, query)
            for index in range(skipped, len(records)):
                if is_wanted(records[index]):
                    if len(found) == query.limit:
                        return Orders(found, f"{prefix}-{at}-{index}")
                    found.append(records[index])
        return Orders(found, "")

    def summary(self, organisation: str) -> SalesSummary:
        """Return totals of everything."""
        head = self.head
        totals = _shown(head.totals)
        return SalesSummary(organisation, totals, head.sources, head.packages, head.profiles, head.position)

    def profile(self, ta_account: str, issuer: str) -> Investor | None:
        """Return the profile of an issuer's user."""
        value = self._store.get(self._profile_key(ta_account, issuer))
        return None if value is None else decode_row(value, Profile).investor

    def profiles(self, query: ProfilesQuery) -> Profiles:
        """Return a page of profiles."""
        items: list[Profile] = []
        for key, value in self._store.scan(b"u", bytes.fromhex(query.after)):
            if len(items) == query.limit:
                return Profiles(items, key[1:].hex())
            profile = msgspec.msgpack.decode(value, type=Profile)
            if query.ta_account in ("", profile.ta_account):
                items.append(profile)
        return Profiles(items, "")

    def _profile_key(self, ta_account: str, issuer: str) -> bytes:
        return b"u" + self._store.blind("profile", issuer, ta_account)

    def _with_totals(
        self, block: BlockHead, orders: Sequence[Placed], first: Round | None, second: Round | None
    ) -> BlockHead:
        sources: dict[int, dict[str, tuple[int, int]]] = {}
        for order, (one, two) in zip(orders, confirmations_of(len(orders), first, second), strict=True):
            key = key_of(*outcome_of(block, order, one, two))
            own = sources.setdefault(order.source, {})
            count, amount = own.get(key, (0, 0))
            own[key] = (count + 1, amount + order.application.amount)
        return msgspec.structs.replace(block, sources=sources)

    def _records(self, number: int) -> list[OrderRecord]:
        block = self._must(b"t" + numbered(number), BlockHead)
        orders = self._must(b"k" + numbered(number), list[Placed])
        names = {source: self._must(b"q" + numbered(source), SourceRow).name for source in block.sources}
        anchors = [Anchor(round_number, identity, height) for round_number, identity, height in block.anchors]
        confirmed = confirmations_of(len(orders), self._round(number, 0), self._round(number, 1))
        records = []
        for order, (first, second) in zip(orders, confirmed, strict=True):
            state, reason = outcome_of(block, order, first, second)
            where = (names[order.source], order.place, state, reason, block.issuer, block.root)
            records.append(OrderRecord(*where, order.application, first, second, anchors))
        return records

    def _places(self, query: OrdersQuery, kind: str, number: int) -> Iterator[tuple[str, int]]:
        """Yield blocks (``k``) and window rows (``w``) that may hold what is asked for, from a place on."""
        source = self.known_source(query.source) if query.source else None
        if query.source and source is None:
            return
        if kind == "k":
            if source is not None:
                yield from (("k", block) for block in source.blocks if block >= number)
            else:
                yield from (
                    ("k", int.from_bytes(key[1:], "big")) for key, _ in self._store.scan(b"t", numbered(number))
                )
        start = numbered(number) if kind == "w" else b""
        yield from (("w", int.from_bytes(key[1:], "big")) for key, _ in self._store.scan(b"w", start))

    def _wanted_records(self, prefix: str, number: int, query: OrdersQuery) -> list[OrderRecord]:
        """Return a block's or row's records, none where its head says that no one is wanted."""
        if prefix == "w":
            value = self._store.get(b"w" + numbered(number))
            return [] if value is None else self._new_records(decode_row(value, WindowRow))
        block = self._must(b"t" + numbered(number), BlockHead)
        states = {_state(key) for own in block.sources.values() for key in own}
        return self._records(number) if query.state is None or query.state in states else []

    def _new_records(self, row: WindowRow) -> list[OrderRecord]:
        name = self._must(b"q" + numbered(row.source), SourceRow).name
        return [
            OrderRecord(name, row.first + place, State.NEW, "", "", b"", application, None, None, [])
            for place, application in enumerate(row.applications)
        ]

    def _round(self, number: int, round_number: int) -> Round | None:
        return self._load(b"c" + numbered(number) + bytes([round_number]), Round)

    def _load(self, key: bytes, kind: type[T]) -> T | None:
        value = self._store.get(key)
        return None if value is None else decode_row(value, kind)

    def _must(self, key: bytes, kind: type[T]) -> T:
        found = self._load(key, kind)
        if found is None:
            raise StorageError("corrupted", f"the record {key[:1]!r} of the sales end is missing")
        return found


def order_key(store: Store, serial: str, *, is_foreign: bool = False) -> bytes:
    """Return the key of an order's place; ``is_foreign``: it was dropped as another distributor's."""
    return b"i" + store.blind("foreign" if is_foreign else "order", serial)


def confirmations_of(
    count: int, first: Round | None, second: Round | None
) -> list[tuple[Confirmation | None, Confirmation | None]]:
    """Return the confirmations of both rounds for each of ``count`` orders."""
    columns: list[list[Confirmation | None]] = []
    for round_ in (first, second):
        column: list[Confirmation | None] = [None] * count
        if round_ is not None:
            for place, confirmation in zip(round_.places or range(count), round_.confirmations, strict=True):
                column[place] = confirmation
        columns.append(column)
    return [*zip(*columns, strict=True)]


def key_of(state: str, reason: str) -> str:
    """Return the key of :data:`Totals`."""
    return f"{state} {reason}"


def _state(key: str) -> State:
    return State(key.partition(" ")[0])


def added(totals: Totals, more: Totals) -> Totals:
    """Return the sum of totals; what has come to 0 is left out."""
    found = dict(totals)
    for key, (count, amount) in more.items():
        before = found.get(key, (0, 0))
        found[key] = (before[0] + count, before[1] + amount)
    return {key: value for key, value in found.items() if value[0]}


def _shown(totals: Totals) -> list[Total]:
    return [Total(_state(key), key.partition(" ")[2], *totals[key]) for key in sorted(totals)]


def _filter(query: OrdersQuery) -> Callable[[OrderRecord], bool]:
    def is_wanted(record: OrderRecord) -> bool:
        return query.state in (None, record.state) and query.source in ("", record.source)

    return is_wanted


def _cursor(text: str) -> tuple[str, int, int]:
    kind, number, place = (text or "k-0-0").split("-")
    return kind, int(number), int(place)


def numbered(number: int) -> bytes:
    """Return a number as keys hold it."""
    return number.to_bytes(8, "big")


def encode_row(value: object) -> bytes:
    """Return the bytes of a row."""
    return msgspec.msgpack.encode(value)


def decode_row(value: bytes, kind: type[T]) -> T:
    """Return a row; ``corrupted`` where it is none."""
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except msgspec.MsgspecError as error:
        raise StorageError("corrupted", f"a record of the sales end has another shape: {error}") from None
