"""The reconciliation of a day: every delivery on the chain, every posting of the accounts, every event of the store.

An event belongs to a day when the chain or the account system moved something for it on that day (UTC), or when it was
registered on it. What moved is read out of all certified blocks of the day and all postings of the day; how the three
sides stand is asked now, so that an event whose other half lies on a neighbouring day is seen whole. What was read is
sorted on disk: a report needs the memory of one batch, however long the day was.
"""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import msgspec
import trio

from consensus.ledger.codec import decode_untrusted
from consensus.ledger.errors import InvariantError, LocalError, PeerError
from consensus.ledger.proof import StateClaim, encode_proof
from consensus.ledger.receipt import OK
from services.accounts.port import ENTRIES_MAX, AccountSystem, Operation
from services.client.connection import Parameters
from services.client.errors import Refused
from services.client.reader import Reader
from services.client.tasks import single_errors
from services.local.link import LocalLink
from services.settlement.day import Blocks, DayBlock, find_span
from services.settlement.interfaces import (
    LIST_MAX,
    EventAnswer,
    EventQuery,
    EventsPage,
    EventsQuery,
    EventsStatus,
    StatusQuery,
)
from services.settlement.reconciling import GIVEN_BACK, HELD, LIFTED, Case, Lien, Verdict, judge
from services.settlement.report import AssetTotal, Fault, Line, MoneyTotal, Report
from services.settlement.sorting import Found, Moved, Posting, Sorted
from services.settlement.states import Event, Kind
from services.settlement.trades import CONTRACT

LISTED_MAX = 1_000
"""How many lines that are not matched a report holds; all go to ``on_line``."""
LOOKUPS_MAX = 16
"""How many liens are asked for at once."""
TOLERANCE_MS = 300_000
DELIVERED = "delivered"
CLOSED = {"lifted": LIFTED, "given_back": GIVEN_BACK}
"""How a lien stands after an event of ``tokens``."""
EVENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
"""What can be the id of an event; a delivery that names our agent can have anything."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Where the three sides are asked: the chain, the account system, and the event system's socket."""

    client: Reader
    accounts: AccountSystem
    events: LocalLink


OnLine = Callable[[Line], None]


class _Delivered(msgspec.Struct, frozen=True):
    unit: str
    seller: bytes
    to: bytes
    amount: int
    event: str
    agent: bytes = b""


class _LienRecord(msgspec.Struct, frozen=True):
    unit: str
    to: bytes
    amount: int
    agent: bytes
    status: str


def no_line(line: Line) -> None:
    """Do nothing with a line."""


def day_of(text: str) -> date:
    """Return a day YYYY-MM-DD, of 1970 or later.

    Raises:
        LocalError: ``bad_date``.
    """
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise LocalError("bad_date", f"{text!r} is no day YYYY-MM-DD") from None
    if day.timestamp() < 0:
        raise LocalError("bad_date", f"{text!r} is before 1970")
    return day.date()


async def reconcile(
    day: date,
    sides: Sides,
    *,
    tolerance_ms: int = TOLERANCE_MS,
    proofs: Path | None = None,
    on_line: OnLine = no_line,
) -> Report:
    """Reconcile a day (UTC) and return what was found; each event goes to ``on_line``, in the order of their ids.

    Args:
        tolerance_ms: what is younger is open, not broken.
        proofs: a folder that gets a proof file for each movement of units and each lien that was looked up.

    Raises:
        PeerError: a node's proof does not hold.
        Unreachable: one of the three sides.
        LocalError: ``file_error``: the folder cannot be written.
    """
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    from_ms = int(start.timestamp()) * 1_000
    until_ms = from_ms + int(timedelta(days=1).total_seconds()) * 1_000
    if proofs is not None:
        _make_folder(proofs)
    with Sorted.opened() as found:
        return await _Run(sides, found, from_ms, until_ms, tolerance_ms, proofs, on_line).run(day.isoformat())


class _Run:
    """One reconciliation while it runs."""

    def __init__(
        self,
        sides: Sides,
        found: "Sorted",
        from_ms: int,
        until_ms: int,
        tolerance_ms: int,
        proofs: Path | None,
        on_line: OnLine,
    ) -> None:
        self._sides, self._found = sides, found
        self._from_ms, self._until_ms, self._tolerance_ms = from_ms, until_ms, tolerance_ms
        self._proofs, self._on_line = proofs, on_line
        self._assets: dict[str, AssetTotal] = {}
        self._currencies: dict[str, MoneyTotal] = {}
        self._agent = b""

    async def run(self, name: str) -> Report:
        """Read all three sides, then judge event by event."""
        client = self._sides.client
        self._agent = (await self._sides.events.call("status", StatusQuery(), EventsStatus)).agent
        span = await find_span(client, from_ms=self._from_ms, until_ms=self._until_ms)
        self._report = Report(
            date=name,
            from_ms=self._from_ms,
            until_ms=self._until_ms,
            now_ms=span.head.time_ms,
            is_complete=span.is_complete,
            first_height=span.first if span.last >= span.first else 0,
            last_height=span.last if span.last >= span.first else 0,
            proofs_folder="" if self._proofs is None else str(self._proofs),
        )
        await self._read_events()
        blocks = Blocks(client, span)
        async with aclosing(blocks.read()) as following:
            async for block in following:
                self._read_block(blocks, block)
        await self._read_postings()
        for batch in self._found.batches():
            await self._judge_batch(batch, span.head.height)
        report = self._report
        report.assets = [await self._with_decimals(self._assets[asset]) for asset in sorted(self._assets)]
        report.currencies = [self._currencies[currency] for currency in sorted(self._currencies)]
        report.breaks = dict(sorted(report.breaks.items()))
        return report

    # -- what moved in the day ---------------------------------------------------------------------------

    async def _read_events(self) -> None:
        after = ""
        while True:
            query = EventsQuery(from_ms=self._from_ms, until_ms=self._until_ms, after=after, limit=LIST_MAX)
            page = await self._sides.events.call("events", query, EventsPage)
            self._found.add_records(page.items)
            if not page.next:
                return
            after = page.next

    def _read_block(self, blocks: Blocks, block: DayBlock) -> None:
        for index, receipt in enumerate(block.receipts()):
            if receipt.status != OK:
                continue
            for event in receipt.events:
                if event.contract != CONTRACT or event.name not in (DELIVERED, *CLOSED):
                    continue
                data = msgspec.convert(decode_untrusted(event.data), _Delivered)
                if event.name == DELIVERED and data.agent != self._agent:
                    continue
                file = ""
                if self._proofs is not None:
                    file = self._file(data.event, data.seller, event.name)
                    self._write(file, encode_proof(blocks.proof(block, index)))
                moved = Moved(
                    data.seller,
                    event.name,
                    data.unit,
                    data.to,
                    data.amount,
                    data.agent,
                    block.header.time_ms,
                    block.header.height,
                    receipt.transaction_id,
                    file,
                )
                self._found.add_moved(data.event, moved)

    async def _read_postings(self) -> None:
        after = 0
        while True:
            page = await self._sides.accounts.entries(
                from_ms=self._from_ms, until_ms=self._until_ms, after=after, limit=ENTRIES_MAX
            )
            entries = [entry for entry in page.items if entry.operation in [*Operation]]
            self._found.add_postings(
                [(entry.event, Posting(entry.operation, entry.amount, entry.currency)) for entry in entries]
            )
            for entry in entries:
                self._count_money(entry.operation, entry.amount, entry.currency)
            if not page.next:
                return
            after = page.next

    def _count_money(self, operation: str, amount: int, currency: str) -> None:
        total = self._currencies.setdefault(currency, MoneyTotal(currency))
        match operation:
            case Operation.RESERVE:
                total.reserved += amount
            case Operation.PAY:
                total.paid += amount
                total.payments += 1
            case Operation.RELEASE:
                total.released += amount
            case _:
                total.reversed += amount

    # -- how the sides stand -----------------------------------------------------------------------------

    async def _judge_batch(self, batch: dict[str, Found], height: int) -> None:
        """Ask for what is not known yet, then judge; trades may go on meanwhile."""
        await self._ask_records(batch)
        # Liens first: one that is lifted is paid by then, whereas a payment that is seen may be lifted a moment later.
        await self._ask_liens(batch, height)
        known = [event for event in batch if EVENT_ID.match(event)]
        standings = await self._sides.accounts.look_up(known) if known else []
        for event, standing in zip(known, standings, strict=True):
            batch[event].standing = standing
        for event, found in batch.items():
            self._judge(event, found)

    async def _ask_records(self, batch: dict[str, Found]) -> None:
        """Ask for what was registered on another day."""
        for event, found in batch.items():
            if found.record is None and EVENT_ID.match(event):
                try:
                    found.record = (await self._sides.events.call("event", EventQuery(event), EventAnswer)).event
                except Refused as error:
                    if error.code != "unknown_event":
                        raise

    async def _ask_liens(self, batch: dict[str, Found], height: int) -> None:
        """Look liens up, but for those that were made and closed within the day."""
        limiter = trio.CapacityLimiter(LOOKUPS_MAX)
        with single_errors():
            async with trio.open_nursery() as nursery:
                for event, found in batch.items():
                    for seller in _asked_sellers(found):
                        nursery.start_soon(self._ask_lien, limiter, height, event, found, seller)
                    if found.record is not None and found.record.kind is Kind.REVERSAL:
                        nursery.start_soon(self._ask_trade, limiter, height, found, found.record)

    async def _ask_lien(
        self, limiter: trio.CapacityLimiter, height: int, event: str, found: Found, seller: bytes
    ) -> None:
        """Ask for a seller's lien under an event's id; what is another agent's is forgotten."""
        own = self._file(event, seller, "lien")
        lien = await self._lien(limiter, height, seller, event, own)
        moved = [item for item in found.moved if item.seller == seller]
        if lien is None and moved:
            raise PeerError("bad_proof", f"the lien of {shown_event(event)} is not in the state, and was delivered")
        if lien is not None and lien.agent != self._agent:
            found.moved = [item for item in found.moved if item.seller != seller]
            self._forget([file for file in (*(item.file for item in moved), own) if file])
            return
        if self._proofs is not None:
            found.files.append(own)
        if lien is not None:
            found.liens[seller] = _lien_as(seller, lien, _delivered_ms(moved))

    async def _ask_trade(self, limiter: trio.CapacityLimiter, height: int, found: Found, reversal: Event) -> None:
        """Ask for the lien that a reversal gives back."""
        seller, file = reversal.terms.seller, f"{reversal.event}.trade-lien.proof"
        lien = await self._lien(limiter, height, seller, reversal.original, file)
        if self._proofs is not None:
            found.files.append(file)
        if lien is not None and lien.agent == self._agent:
            found.trade = _lien_as(seller, lien, 0)

    async def _lien(
        self, limiter: trio.CapacityLimiter, height: int, seller: bytes, event: str, file: str
    ) -> _LienRecord | None:
        """Return a lien as it stands at a height or later, its proof written to a file; None where there is none."""
        key = f"{CONTRACT}/lien/{seller.hex()}/{event}"
        params: Parameters = {"key": key, "minHeight": height}
        async with limiter:
            document, verified = await self._sides.client.prove("state_get", params)
        claim = verified.claim
        if not isinstance(claim, StateClaim) or claim.key != key.encode() or verified.header.sealed_height < height:
            raise PeerError("bad_proof", "the proof speaks of another key, or of an older state")
        if self._proofs is not None:
            self._write(file, msgspec.json.encode(document))
        return None if claim.value is None else msgspec.convert(decode_untrusted(claim.value), _LienRecord)

    def _judge(self, event: str, found: Found) -> None:
        for seller in {item.seller for item in found.moved} - found.liens.keys():
            found.liens[seller] = _lien_of([item for item in found.moved if item.seller == seller])
        for item in found.moved:
            self._count_units(item)
        if found.record is None and found.standing is None and not (found.liens or found.postings):
            return  # another agent's lien
        standing = found.standing
        pays = [item.amount for item in found.postings if item.operation == Operation.PAY]
        back = [-item.amount for item in found.postings if item.operation == Operation.REVERSE]
        is_paid_today = standing is not None and (
            self._is_today(standing.paid_ms) and not self._is_today(standing.reversed_ms)
        )
        case = Case(
            event=event,
            record=found.record,
            liens=[found.liens[seller] for seller in sorted(found.liens)],
            standing=standing,
            paid=pays + back,
            is_paid_today=is_paid_today,
            now_ms=self._report.now_ms,
            tolerance_ms=self._tolerance_ms,
            trade=found.trade,
        )
        judgement = judge(case)
        faults = [Fault(item.kind, item.why) for item in judgement.breaks]
        self._note(_line(case, judgement.verdict, faults, found))

    def _is_today(self, time_ms: int) -> bool:
        return self._from_ms <= time_ms < self._until_ms

    def _count_units(self, item: Moved) -> None:
        total = self._assets.setdefault(item.unit, AssetTotal(item.unit))
        match item.name:
            case "delivered":
                total.deliveries += 1
                total.delivered += item.amount
            case "lifted":
                total.lifted += item.amount
            case _:
                total.given_back += item.amount

    def _note(self, line: Line) -> None:
        report = self._report
        report.events += 1
        report.matched += line.verdict is Verdict.MATCHED
        report.open += line.verdict is Verdict.OPEN
        report.broken += line.verdict is Verdict.BROKEN
        for fault in line.breaks:
            report.breaks[fault.kind] = report.breaks.get(fault.kind, 0) + 1
        if line.verdict is not Verdict.MATCHED and len(report.listed) < LISTED_MAX:
            report.listed.append(line)
        self._on_line(line)

    def _forget(self, files: Sequence[str]) -> None:
        """Remove proofs of what turned out to be another agent's."""
        if self._proofs is not None:
            for file in files:
                (self._proofs / file).unlink()
                self._report.proofs -= 1

    async def _with_decimals(self, total: AssetTotal) -> AssetTotal:
        unit = (await self._sides.client.state(f"{CONTRACT}/unit/{total.asset}")).value
        if isinstance(unit, dict) and isinstance(decimals := unit.get("decimals"), int):
            total.decimals = decimals
        return total

    # -- proof files -------------------------------------------------------------------------------------

    def _file(self, event: str, seller: bytes, name: str) -> str:
        """Return the name of a proof file; another seller's of the same event has the seller in it.

        No event's id has a tilde, so nobody can choose an id whose files take the place of another's.
        """
        stem = event if EVENT_ID.match(event) else f"~{sha256(event.encode()).hexdigest()}"
        if self._found.has_other_seller(event, seller):
            stem += f"~{seller.hex()}"
        return f"{stem}.{name}.proof"

    def _write(self, file: str, content: bytes) -> None:
        if self._proofs is None:
            raise InvariantError("a proof is written without a folder")
        try:
            (self._proofs / file).write_bytes(content)
        except OSError as error:
            raise LocalError("file_error", f"{self._proofs / file}: {error.strerror}") from None
        self._report.proofs += 1


def _asked_sellers(found: Found) -> list[bytes]:
    """Return the sellers whose liens have to be looked up: those not made and closed within the day."""
    sellers = {item.seller for item in found.moved}
    if found.record is not None and found.record.kind is Kind.TRADE:
        sellers.add(found.record.terms.seller)
    names = {seller: {item.name for item in found.moved if item.seller == seller} for seller in sellers}
    return [seller for seller in sorted(sellers) if not (DELIVERED in names[seller] and names[seller] & {*CLOSED})]


def _lien_as(seller: bytes, lien: _LienRecord, delivered_ms: int) -> Lien:
    return Lien(seller, lien.to, lien.unit, lien.amount, lien.status, delivered_ms)


def _delivered_ms(moved: Sequence[Moved]) -> int:
    return next((item.time_ms for item in moved if item.name == DELIVERED), 0)


def _lien_of(moved: Sequence[Moved]) -> Lien:
    """Return how a lien stands after the movements of the day."""
    first = moved[0]
    status = next((CLOSED[item.name] for item in moved if item.name in CLOSED), HELD)
    return Lien(first.seller, first.to, first.unit, first.amount, status, _delivered_ms(moved))


def _line(case: Case, verdict: Verdict, faults: list[Fault], found: Found) -> Line:
    record, standing = case.record, case.standing
    seller = None if record is None else record.terms.seller
    lien = case.trade or next((item for item in case.liens if seller in (None, item.seller)), None)
    delivery = next((item for item in found.moved if item.name == DELIVERED), None)
    closing = next((item for item in found.moved if item.name in CLOSED), None)
    is_paid = standing is not None and standing.paid_ms > 0 and not standing.reversed_ms
    line = Line(
        event=case.event,
        verdict=verdict,
        breaks=faults,
        asset="" if lien is None else lien.unit,
        delivered_units=0 if lien is None else lien.amount,
        lien="" if lien is None else lien.status,
        paid=standing.amount if standing is not None and is_paid else 0,
        currency="" if standing is None else standing.currency,
        payer="" if standing is None else standing.payer,
        payee="" if standing is None else standing.payee,
        delivered_ms=0 if delivery is None else delivery.time_ms,
        closed_ms=0 if closing is None else closing.time_ms,
        paid_ms=standing.paid_ms if standing is not None and is_paid else 0,
        height=0 if delivery is None else delivery.height,
        transaction="" if delivery is None else f"0x{delivery.transaction_id.hex()}",
        proofs=[*(item.file for item in found.moved if item.file), *found.files],
    )
    if record is None:
        return line
    terms = record.terms
    return msgspec.structs.replace(
        line,
        kind=str(record.kind),
        state=str(record.state),
        outcome=str(record.outcome),
        code=record.code,
        asset=terms.asset,
        units=terms.units,
        price=terms.price,
        currency=terms.currency,
        payer=terms.payer,
        payee=terms.payee,
        registered_ms=record.registered_ms,
        transaction=f"0x{record.transaction_id.hex()}",
        height=line.height or record.height,
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError("file_error", f"{folder}: {error.strerror}") from None


def shown_event(event: str) -> str:
    """Return an id for people and spreadsheets: what could be no event's stands quoted, without control characters."""
    return event if EVENT_ID.match(event) else json.dumps(event)
