"""The report of a day: everything that is wrong is found, nothing else is, and each line can be proven offline."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
import trio

from consensus.ledger.block import Block, decode_block_untrusted
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.proof import ReceiptClaim, StateClaim, decode_proof_untrusted, verify_proof_untrusted
from consensus.ledger.transaction import Call, make_call
from services.accounts.ledger import Account, Books
from services.accounts.port import Answer, Entries, Entry, Operation, Order, Standing
from services.client.client import Client
from services.local.link import LocalLink
from services.local.service import LocalService, serve
from services.settlement.interfaces import (
    EventAnswer,
    EventQuery,
    EventsPage,
    EventsQuery,
    EventsStatus,
    StatusQuery,
)
from services.settlement.reconcile import Sides, day_of, reconcile
from services.settlement.reconciling import BreakKind, Case, Lien, Verdict, judge
from services.settlement.report import Line, Report
from services.settlement.states import Event, Kind, Outcome, State, Terms, Wish
from services.settlement.trades import deliver_call, give_back_call, lift_call
from tests.client.support import CONSORTIUM, SoloNode, address, client_of, running
from tests.node.support import extend

AGENT, SELLER, BUYER, OTHER = (address(name) for name in ("shop", "bank-a", "user-b", "user-e"))
TOLERANCE_MS = 60_000
NOON_MS = int(datetime(2023, 11, 15, 12, tzinfo=UTC).timestamp()) * 1_000
DAY_MS = 86_400_000
DAY = day_of("2023-11-15")
TERMS = Terms(
    seller=SELLER, buyer=BUYER, asset="BOND-1", units=5, price=1_250, currency="CNY", payer="user-b", payee="bank-a"
)


def event(name: str, state: State, outcome: Outcome = Outcome.NONE, **fields: object) -> Event:
    known = Event(
        event=name,
        kind=Kind.TRADE,
        original="",
        state=state,
        outcome=outcome,
        terms=TERMS,
        transaction_id=bytes(32),
        raw=b"",
        valid_until_ms=0,
        is_released=True,
        wish=Wish.NONE,
        code="",
        is_flagged=False,
        attempts=0,
        due_ms=0,
        height=0,
        version=1,
        registered_ms=NOON_MS,
        changed_ms=NOON_MS,
    )
    return msgspec.structs.replace(known, **fields)


def paid(name: str = "T", **fields: object) -> Standing:
    known = Standing(name, "user-b", "bank-a", 1_250, "CNY", reserved_ms=NOON_MS, paid_ms=NOON_MS)
    return msgspec.structs.replace(known, **fields)


LIFTED = Lien(SELLER, BUYER, "BOND-1", 5, "LIFTED", NOON_MS)
HELD = Lien(SELLER, BUYER, "BOND-1", 5, "HELD", NOON_MS)
BACK = Lien(SELLER, BUYER, "BOND-1", 5, "GIVEN_BACK", NOON_MS)
DONE = (State.COMPLETED, Outcome.PAID)
REVERSED = (State.COMPLETED, Outcome.REVERSED)
PENDING = (State.ACCOUNT_PENDING, Outcome.NONE)
REGISTERED = (State.REGISTERED, Outcome.NONE)
CANCELLED = (State.CANCELLED, Outcome.NONE)
TOMBSTONE = paid(reserved_ms=0, paid_ms=0, released_ms=NOON_MS, is_tombstone=True)
HOLD = paid(paid_ms=0)
RELEASED = paid(paid_ms=0, released_ms=NOON_MS)
BOOKED_BACK = paid(reversed_ms=NOON_MS)

Row = tuple[tuple[State, Outcome], Lien | None, Standing | None, str]
AGREED: list[Row] = [
    (DONE, LIFTED, paid(), "matched"),
    (DONE, HELD, paid(), "lien_not_lifted"),
    (DONE, LIFTED, RELEASED, "lien_lifted_unpaid"),
    (DONE, HELD, HOLD, "asset_without_payment"),
    (DONE, HELD, BOOKED_BACK, "asset_without_payment"),
    (DONE, None, paid(), "payment_without_asset"),
    (DONE, BACK, paid(), "payment_without_asset"),
    (DONE, None, None, "state_differs"),
    (DONE, BACK, RELEASED, "state_differs"),
    (REVERSED, BACK, RELEASED, "matched"),
    (REVERSED, BACK, TOMBSTONE, "matched"),
    (REVERSED, BACK, HOLD, "hold_left"),
    (REVERSED, BACK, paid(), "payment_without_asset"),
    (REVERSED, LIFTED, paid(), "state_differs"),
    (REVERSED, None, RELEASED, "state_differs"),
    (CANCELLED, None, None, "matched"),
    (CANCELLED, None, TOMBSTONE, "matched"),
    (CANCELLED, None, HOLD, "hold_left"),
    (CANCELLED, BACK, RELEASED, "matched"),
    (CANCELLED, HELD, RELEASED, "asset_without_payment"),
    (CANCELLED, LIFTED, paid(), "state_differs"),
    (CANCELLED, None, paid(), "payment_without_asset"),
    (PENDING, HELD, HOLD, "asset_without_payment"),
    (PENDING, HELD, paid(), "state_differs"),
    (PENDING, BACK, RELEASED, "state_differs"),
    (PENDING, None, None, "state_differs"),
    (REGISTERED, None, HOLD, "open"),
    (REGISTERED, None, None, "open"),
    (REGISTERED, HELD, HOLD, "asset_without_payment"),
    (REGISTERED, LIFTED, paid(), "state_differs"),
    (REGISTERED, None, paid(), "payment_without_asset"),
]


def found(case: Case) -> list[str]:
    judgement = judge(case)
    assert bool(judgement.breaks) == (judgement.verdict is Verdict.BROKEN)
    return [item.kind for item in judgement.breaks] or [judgement.verdict]


def case_of(row: Row, *, age_ms: int = TOLERANCE_MS + 1) -> Case:
    how, lien, standing, _ = row
    return Case(
        event="T",
        record=event("T", *how),
        liens=[] if lien is None else [lien],
        standing=standing,
        paid=[1_250] if standing is not None and standing.paid_ms else [],
        is_paid_today=standing is not None and standing.paid_ms > 0 and not standing.reversed_ms,
        now_ms=NOON_MS + age_ms,
        tolerance_ms=TOLERANCE_MS,
    )


@pytest.mark.parametrize("row", AGREED, ids=lambda row: f"{'-'.join(row[0])}-{row[3]}")
def test_each_combination_has_one_finding(row: Row) -> None:
    assert found(case_of(row)) == [row[3]]


@pytest.mark.parametrize("row", AGREED, ids=lambda row: f"{'-'.join(row[0])}-{row[3]}")
def test_what_is_young_is_open_but_for_units_that_are_free_unpaid(row: Row) -> None:
    firm = {"matched", "open", "lien_lifted_unpaid"}
    assert found(case_of(row, age_ms=TOLERANCE_MS)) == [row[3] if row[3] in firm else "open"]


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({"record": None}, ["unknown_event"]),
        ({"liens": [Lien(SELLER, BUYER, "BOND-1", 6, "LIFTED")]}, ["units_differ"]),
        ({"liens": [Lien(SELLER, BUYER, "BOND-2", 5, "LIFTED")]}, ["units_differ"]),
        ({"liens": [Lien(SELLER, OTHER, "BOND-1", 5, "LIFTED")]}, ["parties_differ"]),
        ({"liens": [LIFTED, Lien(OTHER, BUYER, "BOND-1", 5, "HELD")]}, ["parties_differ"]),
        ({"standing": paid(amount=1_249), "paid": [1_249]}, ["amount_differs"]),
        ({"standing": paid(currency="EUR")}, ["amount_differs"]),
        ({"standing": paid(payee="shop")}, ["parties_differ"]),
        ({"standing": paid(payer="shop")}, ["parties_differ"]),
        ({"paid": [1_250, 1_250]}, ["paid_twice"]),
        ({"paid": [1_249]}, ["amount_differs"]),
        ({"paid": []}, ["amount_differs"]),
        ({"paid": [], "is_paid_today": False}, ["matched"]),
        ({"standing": None, "liens": [], "paid": [1_250]}, ["paid_twice", "state_differs"]),
        ({"standing": None, "liens": [], "paid": [-1_250]}, ["state_differs"]),
    ],
)
def test_what_differs_from_the_terms(fields: dict[str, object], kinds: list[str]) -> None:
    case = case_of((DONE, LIFTED, paid(), ""))
    values = {name: getattr(case, name) for name in Case.__slots__} | fields
    assert found(Case(**values)) == kinds


def test_every_kind_of_break_stands_in_a_table() -> None:
    assert {row[3] for row in AGREED} | {"unknown_event", "units_differ", "amount_differs", "parties_differ"} | {
        "paid_twice"
    } == {*BreakKind} | {"matched", "open"}


@pytest.mark.parametrize(
    ("state", "trade", "fields", "kinds"),
    [
        (DONE, BACK, {}, ["matched"]),
        (DONE, HELD, {}, ["state_differs"]),
        (DONE, None, {}, ["state_differs"]),
        (REGISTERED, HELD, {}, ["open"]),
        (CANCELLED, HELD, {}, ["matched"]),
        (DONE, BACK, {"standing": paid()}, ["amount_differs"]),
        (DONE, BACK, {"liens": [HELD]}, ["parties_differ"]),
    ],
)
def test_a_reversal_is_done_when_its_trades_units_are_back(
    state: tuple[State, Outcome], trade: Lien | None, fields: dict[str, object], kinds: list[str]
) -> None:
    case = case_of((state, None, None, ""))
    record = event("T.reverse", *state, kind=Kind.REVERSAL, original="T")
    values = {name: getattr(case, name) for name in Case.__slots__}
    assert found(Case(**values | {"record": record, "trade": trade} | fields)) == kinds


class Accounts:
    """The port over the real rules, in memory; entries can be forged."""

    def __init__(self) -> None:
        accounts = [Account(id=name, currency="CNY", available=10**6) for name in ("user-b", "bank-a", "shop")]
        self.books = Books(accounts, time_ms=NOON_MS)

    async def run(self, orders: Sequence[Order]) -> list[Answer]:
        return [self.books.run(order) for order in orders]

    async def look_up(self, events: Sequence[str]) -> list[Standing | None]:
        assert events
        return [self.books.standings.get(name) for name in events]

    async def entries(self, *, from_ms: int, until_ms: int, after: int, limit: int) -> Entries:
        items = [entry for entry in self.books.entries if from_ms <= entry.time_ms < until_ms and entry.number > after]
        return Entries(items[:limit], items[limit - 1].number if len(items) > limit else 0)

    def do(self, name: str, *operations: Operation, terms: Terms = TERMS) -> None:
        for operation in operations:
            order = Order(name, operation, terms.payer, terms.payee, terms.price, terms.currency)
            assert self.books.run(order).is_done

    def forge(self, name: str) -> None:
        last = self.books.entries[-1]
        self.books.entries.append(
            Entry(last.number + 1, name, "pay", "user-b/available", "bank-a/available", 1_250, "CNY", last.time_ms)
        )


class World:
    """A chain whose blocks are made by hand, an account system, and what an event store would say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = SoloNode(folder / "node")
        self.accounts = Accounts()
        self.events: dict[str, Event] = {}
        self._sequences: dict[str, int] = {}
        names = ("BOND-1", "BOND-2")
        self.block(
            ("bank-a", [make_call("tokens", "define", {"unit": unit}) for unit in names]),
            (
                "bank-a",
                [make_call("tokens", "issue", {"unit": unit, "to": SELLER, "amount": 10_000}) for unit in names],
            ),
            ("bank-a", [make_call("tokens", "transfer", {"unit": "BOND-1", "to": OTHER, "amount": 100})]),
        )

    def block(self, *signed: tuple[str, list[Call]], time_ms: int = 0) -> None:
        """Make a block of transactions, at a time or a moment after the one before."""
        head_ms = self.node.chain.head.header.time_ms
        transactions = []
        for name, calls in signed:
            sequence = self._sequences.get(name, 0)
            self._sequences[name] = sequence + 1
            valid_until_ms = max(head_ms, time_ms) + 60_000
            transactions.append(CONSORTIUM.sign(name, calls, sequence=sequence, valid_until_ms=valid_until_ms))
        step_ms = time_ms - head_ms if time_ms else 10
        extend(self.node.chain, self.node.store, CONSORTIUM, transactions, step_ms)

    def deliver(self, *names: str, terms: Terms = TERMS, seller: str = "bank-a", agent: bytes = AGENT) -> None:
        for name in names:
            self.block((seller, [deliver_call(name, terms, agent)]))

    def close(self, *names: str, is_back: bool = False) -> None:
        make = give_back_call if is_back else lift_call
        self.block(("shop", [make(name, SELLER) for name in names]))

    def put(self, name: str, how: tuple[State, Outcome] = DONE, **fields: object) -> None:
        self.events[name] = event(name, *how, **fields)

    def trade(self, name: str) -> None:
        """Make a trade as it should be."""
        self.deliver(name)
        self.accounts.do(name, Operation.RESERVE, Operation.PAY)
        self.close(name)
        self.put(name)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Sides]:
        service = LocalService()
        service.add("status", StatusQuery, self._status)
        service.add("events", EventsQuery, self._page)
        service.add("event", EventQuery, self._event)
        stopping, socket = trio.Event(), self.folder / "events.sock"
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, socket, service, stopping)
            async with running(self.node), client_of(self.node) as client, LocalLink(socket) as link:
                yield Sides(client, self.accounts, link)
            stopping.set()

    async def report(self, proofs: Path | None = None) -> tuple[Report, list[Line]]:
        lines: list[Line] = []
        async with self.running() as sides:
            report = await reconcile(DAY, sides, tolerance_ms=TOLERANCE_MS, proofs=proofs, on_line=lines.append)
        return report, lines

    async def _status(self, _: StatusQuery) -> EventsStatus:
        return EventsStatus({}, 0, 0, 0, True, True, 3, AGENT, {})

    async def _page(self, query: EventsQuery) -> EventsPage:
        names = sorted(
            name
            for name, item in self.events.items()
            if name > query.after and query.from_ms <= item.registered_ms < query.until_ms
        )
        page = names[:3]
        return EventsPage([self.events[name] for name in page], page[-1] if len(names) > 3 else "")

    async def _event(self, query: EventQuery) -> EventAnswer:
        if query.event not in self.events:
            raise LocalError("unknown_event", "no such event")
        return EventAnswer(self.events[query.event], [])


async def test_each_break_of_a_day_is_found_and_nothing_else(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.trade("before")  # all of it on the day before, but for the store's row
    world.accounts.books.entries.clear()
    world.put("before", registered_ms=NOON_MS - DAY_MS, changed_ms=NOON_MS - DAY_MS)
    world.deliver("night")
    world.deliver("foreign-night", seller="user-e", agent=address("bank-a"))
    world.block(time_ms=NOON_MS)
    world.block(("bank-a", [lift_call("foreign-night", OTHER)]))  # another agent's: none of our business
    for name in ("t1", "t2", "t3"):
        world.trade(name)
    world.close("night")  # delivered the day before, lifted and paid on this one
    world.accounts.do("night", Operation.RESERVE, Operation.PAY)
    world.put("night", registered_ms=NOON_MS - DAY_MS)
    world.trade("twice")
    world.accounts.forge("twice")
    world.deliver("unpaid")
    world.put("unpaid")
    world.accounts.do("no-asset", Operation.RESERVE, Operation.PAY)
    world.put("no-asset")
    world.deliver("nobody")
    world.accounts.do("by-hand", Operation.RESERVE)
    world.deliver("=1+1\n/..")
    world.deliver("lifted-unpaid")
    world.close("lifted-unpaid")
    world.put("lifted-unpaid", PENDING)
    world.deliver("not-lifted")
    world.accounts.do("not-lifted", Operation.RESERVE, Operation.PAY)
    world.put("not-lifted")
    cheap = msgspec.structs.replace(TERMS, price=1)
    world.deliver("amount")
    world.accounts.do("amount", Operation.RESERVE, Operation.PAY, terms=cheap)
    world.close("amount")
    world.put("amount")
    world.deliver("units", terms=msgspec.structs.replace(TERMS, units=6))
    world.accounts.do("units", Operation.RESERVE, Operation.PAY)
    world.close("units")
    world.put("units")
    world.trade("state")
    world.put("state", CANCELLED)
    world.accounts.do("hold", Operation.RESERVE)
    world.put("hold", CANCELLED)
    world.deliver("reversed")
    world.close("reversed", is_back=True)
    world.accounts.do("reversed", Operation.RESERVE, Operation.RELEASE)
    world.put("reversed", REVERSED)
    world.put("reversed.reverse", kind=Kind.REVERSAL, original="reversed")
    world.trade("parties")
    world.deliver("parties", seller="user-e")
    world.deliver("foreign", seller="user-e", agent=address("bank-a"))
    world.block(("bank-a", [lift_call("foreign", OTHER)]))
    world.put("cancelled", CANCELLED)
    world.put("forged")
    world.block(time_ms=NOON_MS + DAY_MS)
    world.deliver("tomorrow")
    world.block()
    proofs = tmp_path / "proofs"
    report, lines = await world.report(proofs)
    by_id = {line.event: [fault.kind for fault in line.breaks] for line in lines if line.breaks}
    assert by_id == {
        "twice": ["paid_twice"],
        "unpaid": ["asset_without_payment"],
        "no-asset": ["payment_without_asset"],
        "nobody": ["unknown_event"],
        "by-hand": ["unknown_event"],
        "=1+1\n/..": ["unknown_event"],
        "lifted-unpaid": ["lien_lifted_unpaid"],
        "not-lifted": ["lien_not_lifted"],
        "amount": ["amount_differs"],
        "units": ["units_differ"],
        "state": ["state_differs"],
        "forged": ["state_differs"],
        "hold": ["hold_left"],
        "parties": ["parties_differ"],
    }
    matched = ["cancelled", "night", "reversed", "reversed.reverse", "t1", "t2", "t3"]
    assert [line.event for line in lines if line.verdict is Verdict.MATCHED] == matched
    assert [line.event for line in lines] == sorted(line.event for line in lines)
    assert (report.events, report.matched, report.open, report.broken) == (len(lines), len(matched), 0, len(by_id))
    assert (report.is_complete, sum(report.breaks.values())) == (True, len(by_id))
    (asset,) = report.assets
    assert (asset.deliveries, asset.delivered, asset.lifted, asset.given_back) == (15, 76, 51, 5)
    (money,) = report.currencies
    assert (money.payments, money.paid) == (12, 11 * 1_250 + 1)
    check_proofs(proofs, lines, report)
    names = {path.name for path in proofs.iterdir()}
    assert {"parties.delivered.proof", f"parties~{OTHER.hex()}.delivered.proof"} <= names


def check_proofs(folder: Path, lines: list[Line], report: Report) -> None:
    """Every movement on the chain has a file that proves it with nothing but genesis."""
    names = {path.name for path in folder.iterdir()}
    assert names == {name for line in lines for name in line.proofs}
    assert report.proofs == len(names)
    for line in lines:
        assert line.proofs or line.event == "by-hand"
        for name in line.proofs:
            verified = verify_proof_untrusted(decode_proof_untrusted((folder / name).read_bytes()), CONSORTIUM.genesis)
            if name.endswith("lien.proof"):
                assert isinstance(verified.claim, StateClaim)
            else:
                assert isinstance(verified.claim, ReceiptClaim)
                assert name.split(".")[-2] in [item.name for item in verified.claim.receipt.events]


async def test_a_day_that_has_not_ended_says_so_and_what_is_under_way_is_open(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.block(time_ms=NOON_MS)
    world.deliver("pending")
    world.accounts.do("pending", Operation.RESERVE)
    world.put("pending", PENDING)
    world.put("registered", REGISTERED)
    world.block()
    report, lines = await world.report()
    assert [(line.event, line.verdict) for line in lines] == [("pending", "open"), ("registered", "open")]
    assert (report.is_complete, report.open, report.broken, report.proofs) == (False, 2, 0, 0)
    assert [line.event for line in report.listed] == ["pending", "registered"]


async def test_a_delivery_under_what_is_no_events_id_is_a_break_by_itself(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.block(time_ms=NOON_MS)
    names = sorted(["/", "\0", "a\0b", "\U0001f600" * 64, "\ue000", " ", "..", "a\r\n"])
    world.deliver(*names)
    world.block()
    report, lines = await world.report(tmp_path / "proofs")
    assert ([line.event for line in lines], report.breaks) == (names, {"unknown_event": len(names)})
    check_proofs(tmp_path / "proofs", lines, report)


async def test_each_proof_has_a_file_of_its_own_whatever_ids_are_chosen(tmp_path: Path) -> None:
    """Also the lien of a trade that was delivered on another day, for its own line and for its reversal's."""
    world = World(tmp_path)
    world.deliver("back")
    world.block(time_ms=NOON_MS)
    world.close("back", is_back=True)
    world.put("back", REVERSED, registered_ms=NOON_MS - DAY_MS)
    world.put("back.reverse", kind=Kind.REVERSAL, original="back")
    world.deliver("/", "parties", f"parties-{OTHER.hex()}", sha256(b"/").hexdigest())
    world.deliver("parties", seller="user-e")
    world.block()
    report, lines = await world.report(tmp_path / "proofs")
    assert len(lines) == 6
    check_proofs(tmp_path / "proofs", lines, report)


async def test_who_delivers_under_a_reversals_id_breaks_its_line_and_not_the_report(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.block(time_ms=NOON_MS)
    world.deliver("back", "back.reverse")
    world.deliver("back.reverse", seller="user-e")
    world.deliver("back.reverse2", seller="user-e", agent=address("bank-a"))
    world.block(("bank-a", [lift_call("back.reverse2", OTHER)]))  # another agent's
    world.close("back", is_back=True)
    world.put("back", REVERSED)
    for name in ("back.reverse", "back.reverse2"):
        world.put(name, kind=Kind.REVERSAL, original="back")
    world.block()
    report, lines = await world.report(tmp_path / "proofs")
    assert {line.event: [fault.kind for fault in line.breaks] for line in lines} == {
        "back": [],
        "back.reverse": ["parties_differ"],
        "back.reverse2": [],
    }
    check_proofs(tmp_path / "proofs", lines, report)


async def test_a_trade_that_goes_on_while_the_report_is_made_is_not_broken(tmp_path: Path) -> None:
    """It is paid, and its lien lifted, between any two questions; the store's record was read an hour ago."""
    world = World(tmp_path)
    world.deliver("t")
    world.block(time_ms=NOON_MS)
    world.put("t", PENDING, registered_ms=NOON_MS, changed_ms=NOON_MS - 3_600_000)
    world.accounts.do("t", Operation.RESERVE)
    world.block()
    look_up = world.accounts.look_up

    async def looked_up(events: Sequence[str]) -> list[Standing | None]:
        standings = await look_up(events)
        go_on()
        return standings

    def go_on() -> None:
        if "t" in going:
            world.accounts.do("t", Operation.PAY)
            world.close("t")
            world.block()
            going.clear()

    world.accounts.look_up = looked_up  # type: ignore[method-assign]
    async with world.running() as sides:
        prove = sides.client.prove

        async def proven(method: str, params: dict[str, object]) -> object:
            answer = await prove(method, params)
            if method == "state_get":
                go_on()
            return answer

        sides.client.prove = proven  # type: ignore[method-assign, assignment]
        going = {"t"}
        report = await reconcile(DAY, sides, tolerance_ms=TOLERANCE_MS)
    assert (report.breaks, report.open) == ({}, 1)
    assert not going


async def test_an_empty_day(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.block(time_ms=NOON_MS + 3 * DAY_MS)
    report, lines = await world.report()
    assert (lines, report.is_complete, report.first_height, report.last_height) == ([], True, 0, 0)


async def test_a_node_that_leaves_something_out_is_found_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.block(time_ms=NOON_MS)
    for name in ("t1", "t2"):
        world.trade(name)
    world.block()
    async with world.running() as sides:
        for lie in (_without_receipts, _without_block, _with_other_last, _with_other_middle):
            sides.client.request = _lying(sides.client, lie)  # type: ignore[method-assign]
            with pytest.raises(PeerError, match="block"):
                await reconcile(DAY, sides, tolerance_ms=TOLERANCE_MS)
            del sides.client.request  # type: ignore[method-assign]
        assert (await reconcile(DAY, sides, tolerance_ms=TOLERANCE_MS)).events == 2


def _lying(client: object, lie: object) -> object:
    honest = Client.request

    async def request(method: str, params: dict[str, object], kind: type, **options: object) -> object:
        answer = await honest(client, method, params, kind, **options)  # type: ignore[arg-type]
        if method == "chain_getBlocks":
            blocks = list(answer.blocks)  # type: ignore[attr-defined]
            return msgspec.structs.replace(answer, blocks=lie(blocks))  # type: ignore[operator, type-var]
        return answer

    return request


def _without_receipts(blocks: list[msgspec.Struct]) -> list[msgspec.Struct]:
    empty = next(block for block in blocks if len(block.receipts_raw) < 10)  # type: ignore[attr-defined]
    return [msgspec.structs.replace(block, receipts_raw=empty.receipts_raw) for block in blocks]  # type: ignore[attr-defined]


def _without_block(blocks: list[msgspec.Struct]) -> list[msgspec.Struct]:
    return blocks[1:]


def _with_other_last(blocks: list[msgspec.Struct]) -> list[msgspec.Struct]:
    return [*blocks[:-1], _forged(blocks[-1])]


def _with_other_middle(blocks: list[msgspec.Struct]) -> list[msgspec.Struct]:
    return [blocks[0], _forged(blocks[1]), *blocks[2:]]


def _forged(raw: msgspec.Struct) -> msgspec.Struct:
    """Return a block with the same receipts and another header, which nobody certified."""
    block = decode_block_untrusted(bytes.fromhex(raw.raw[2:]))  # type: ignore[attr-defined]
    header = msgspec.structs.replace(block.header, time_ms=block.header.time_ms + 1)
    return msgspec.structs.replace(raw, raw=f"0x{Block.of(header, block.transactions).encode().hex()}")


def test_days() -> None:
    assert day_of("2026-02-28").isoformat() == "2026-02-28"
    for text in ("2026-02-30", "yesterday", "", "2026-1-1T00", "1969-12-31"):
        with pytest.raises(LocalError) as refusal:
            day_of(text)
        assert refusal.value.code == "bad_date"
