"""What a bank's people do with orders over the sales end's socket: bring a file, follow it, write what came of it.

A file is known by its SHA-256, so that the same file again changes nothing and says how it stands. Larger ones than the
sales end takes at once go in parts, each a source of its own.
"""

import csv
import datetime
import hashlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from consensus.ledger.errors import LocalError
from services.agency.interfaces import WAIT_MS_MAX
from services.agency.iso20022 import messages_of
from services.agency.ofd.files import FundFile, file_name, parse_name
from services.agency.ofd.layout import FileType
from services.agency.ofd.mapping import applications_of, confirmation_file
from services.agency.ofd.reader import read
from services.agency.ofd.synthetic import registrations
from services.agency.ofd.writer import write
from services.agency.orders import ACCOUNT_CODES, Account, Application, Code, Investor
from services.agency.sales_interface import (
    SALES_PAGE_MAX,
    TAKE_MAX,
    ApplicationsTake,
    OrderRecord,
    Orders,
    OrdersQuery,
    Progress,
    ProgressQuery,
    State,
    Taken,
    Total,
)
from services.client.errors import Refused
from services.local.files import replace_file
from services.local.link import LocalLink

FILE_BYTES_MAX = 256 * 1024 * 1024
PROFILES_BYTES_MAX = 64 * 1024 * 1024
TAKE_TIMEOUT_MS = 120_000
NAMES_MAX = 1_000
"""Confirmation files of one type and day in one folder: without a batch number, and 001 to 999."""
ATTEMPTS_MAX = 99
"""How often registrations that were dropped are brought anew."""
PROFILE_COLUMNS = (
    "ta_account",
    "transaction_account",
    "name",
    "certificate_type",
    "certificate_number",
    "birth_date",
    "risk_class",
    "is_institution",
    "is_professional",
)
"""Of a CSV of profiles; the last two may be missing. Dates are YYYYMMDD, classes C0 to C5, truth is 1 or 0."""
OUTCOME_COLUMNS = (
    *("line", "serial", "code", "ta_account", "product", "amount", "volume", "state", "reason", "issuer"),
    *("confirmed_amount", "confirmed_volume", "nav", "charge", "ta_serial", "root", "height"),
)

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Applications that belong together: where they come from, and the fund file that they stood in, if any."""

    source: str
    applications: list[Application]
    creator: str = ""
    file: FundFile | None = None

    @property
    def parts(self) -> list[tuple[str, list[Application]]]:
        """What is brought at a time, each with its own source."""
        count = len(self.applications)
        if count <= TAKE_MAX:
            return [(self.source, self.applications)]
        starts = range(0, count, TAKE_MAX)
        return [(f"{self.source}.{n}", self.applications[start : start + TAKE_MAX]) for n, start in enumerate(starts)]


@dataclass(frozen=True, slots=True)
class Report:
    """How a batch stands: totals by state and reason, and what is still to come."""

    count: int
    totals: tuple[Total, ...]
    waiting: int
    unanchored: int
    is_new: bool

    @property
    def is_done(self) -> bool:
        """Whether every order was answered or dropped, and all answers are anchored."""
        return not (self.waiting or self.unanchored)


def trades_of(path: Path, interfaces: dict[str, str]) -> Batch:
    """Read a fund file of type 03; ``interfaces`` says the interface id of each product.

    Raises:
        LocalError: ``bad_fund_file``, ``bad_file``.
    """
    return _batch(path, FileType.TRADE_APPLICATIONS, interfaces, "")


def accounts_of(path: Path, interface: str) -> Batch:
    """Read a fund file of type 01, for the issuer with this interface id; errors as for :func:`trades_of`."""
    return _batch(path, FileType.ACCOUNT_APPLICATIONS, {}, interface)


def _batch(path: Path, file_type: FileType, interfaces: dict[str, str], account_interface: str) -> Batch:
    data = _content(path, FILE_BYTES_MAX)
    file = read(data, path.name)
    if file.header.file_type is not file_type:
        raise LocalError("bad_fund_file", f"{path.name} is of type {file.header.file_type}, not {file_type}")
    name, header = parse_name(path.name), file.header
    said = None if name is None else (name.creator, name.receiver, name.date, name.file_type)
    if said not in (None, (header.creator, header.receiver, header.date, header.file_type)):
        raise LocalError("bad_fund_file", f"{path.name} is {file_name(header)} by its header")
    if not file.records:
        raise LocalError("bad_fund_file", f"{path.name} holds no records")
    applications = applications_of(file, interfaces, account_interface=account_interface)
    return Batch(source_of(data, account_interface), applications, file.header.creator, file)


def source_of(data: bytes, issuer: str = "") -> str:
    """Return what a file's content is known by; the same profiles for two issuers are two sources."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}" + (f":{issuer}"[:20] if issuer else "")


def source_of_file(path: Path) -> str:
    """Return what a fund file of type 03 is known by; ``bad_file``."""
    return source_of(_content(path, FILE_BYTES_MAX))


def holders_of(path: Path, seed: int, *, interface: str) -> Batch:
    """Return applications to open an account for each holder in a fund file of type 03, with made-up profiles.

    Raises:
        LocalError: ``bad_fund_file``, ``bad_file``.
    """
    trades = trades_of(path, {})
    own = [item for item in trades.applications if item.distributor == trades.creator]
    made = registrations(own, seed, interface=interface, distributor=trades.creator)
    return Batch(f"{trades.source}:{seed}:{interface}"[:90], made)


def is_fund_file(path: Path) -> bool:
    """Tell a fund file from a table by how it begins."""
    return _content(path, FILE_BYTES_MAX)[:8] == b"OFDCFDAT"


def profiles_of(path: Path, *, interface: str, distributor: str, date: int) -> Batch:
    """Read a CSV of profiles, see :data:`PROFILE_COLUMNS`, as applications to open accounts.

    Raises:
        LocalError: ``bad_profiles`` with line and column.
    """
    data = _content(path, PROFILES_BYTES_MAX)
    try:
        rows = list(csv.DictReader(data.decode("utf-8-sig").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise LocalError("bad_profiles", f"{path}: {error}") from None
    missing = [name for name in PROFILE_COLUMNS[:-2] if rows and name not in rows[0]]
    if not rows or missing:
        raise LocalError("bad_profiles", f"{path} has no {'lines' if not rows else f'column {missing[0]}'}")
    applications = [
        _registration(row, f"{path}, line {line}", interface, distributor, date) for line, row in enumerate(rows, 2)
    ]
    return Batch(source_of(data, interface), applications)


def registration(
    *, ta_account: str, transaction_account: str, investor: Investor, interface: str, distributor: str, date: int
) -> Application:
    """Return the application that opens an account; its serial follows from what it says, so it is the same again.

    Raises:
        LocalError: ``bad_profiles`` for an account that cannot be one.
    """
    for name, value in (("ta_account", ta_account), ("transaction_account", transaction_account)):
        try:
            msgspec.convert(value, Account)
        except msgspec.ValidationError:
            raise LocalError(
                "bad_profiles", f"{name}: {value[:40]!r} is not up to 20 letters, digits, - and _"
            ) from None
    return Application(
        serial=_serial([ta_account, transaction_account, investor, interface, distributor]),
        code=Code.OPEN_ACCOUNT.value,
        interface=interface,
        product="",
        target_product="",
        ta_account=ta_account,
        transaction_account=transaction_account,
        distributor=distributor,
        target_distributor="",
        amount=0,
        volume=0,
        currency="156",
        date=date,
        time=0,
        terms_version=0,
        is_warned=False,
        investor=investor,
        fields={},
    )


def investor_from(values: dict[str, object]) -> Investor:
    """Return a checked profile.

    Raises:
        LocalError: ``bad_profiles`` naming the field.
    """
    for name in Investor.__struct_fields__:
        try:
            single = {**_SPECIMEN, name: values.get(name, _SPECIMEN[name])}
            msgspec.convert([single[field] for field in Investor.__struct_fields__], Investor)
        except msgspec.ValidationError as error:
            raise LocalError("bad_profiles", f"{name}: {str(error).split(' - at')[0]}") from None
    found = msgspec.convert([values.get(name, _SPECIMEN[name]) for name in Investor.__struct_fields__], Investor)
    if found.birth_date:
        try:
            datetime.date(found.birth_date // 10_000, found.birth_date // 100 % 100, found.birth_date % 100)
        except ValueError:
            raise LocalError("bad_profiles", f"birth_date: there is no day {found.birth_date}") from None
    return found


_SPECIMEN: dict[str, object] = {
    "name": "",
    "certificate_type": "0",
    "certificate_number": "0",
    "birth_date": 0,
    "risk_class": 0,
    "is_institution": False,
    "is_professional": False,
}


def risk_class(text: str) -> int:
    """Return 0…5 of an investor's class C0…C5, as a number or with its letter.

    Raises:
        LocalError: ``bad_profiles``.
    """
    digits = text.strip().upper().removeprefix("C")
    if digits not in {"0", "1", "2", "3", "4", "5"}:
        raise LocalError("bad_profiles", f"risk_class: {text[:20]!r} is none of C0 to C5")
    return int(digits)


async def send(sales: LocalLink, batch: Batch, on_progress: OnProgress, *, waits: bool = True) -> Report:
    """Bring applications to the sales end and follow them until all are answered and anchored.

    Raises:
        Refused, Unreachable: the sales end's; what it has taken goes on by itself.
    """
    is_new = False
    for source, applications in batch.parts:
        take = ApplicationsTake(source, applications, batch.creator)
        is_new |= (await sales.call("applications_take", take, Taken, timeout_ms=TAKE_TIMEOUT_MS)).is_new
    found = [await _follow(sales, source, on_progress, waits=waits) for source, _ in batch.parts]
    return Report(
        sum(item.count for item in found),
        merged(total for item in found for total in item.totals),
        sum(item.waiting for item in found),
        sum(item.unanchored for item in found),
        is_new,
    )


async def register(
    sales: LocalLink, batch: Batch, on_progress: OnProgress, *, waits: bool = True
) -> tuple[Report, list[OrderRecord]]:
    """Bring registrations, and return how they stand with the records of all.

    What was dropped at an earlier time, as by a channel that was revoked then, has never left the bank: it is brought
    anew, under serials of its own. Only those of a fund file keep theirs, since these are the file's.

    Raises:
        Refused, Unreachable: the sales end's.
    """
    reports = [await send(sales, batch, on_progress, waits=waits)]
    records = await records_of(sales, [source for source, _ in batch.parts])
    source = batch.source
    for attempt in range(1, ATTEMPTS_MAX + 1):
        left = {record.application.serial for record in records if _was_dropped(record)}
        if batch.file is not None or reports[-1].is_new or not left:
            break
        batch = _renewed(batch, left, f"{source}-{attempt}")
        reports.append(await send(sales, batch, on_progress, waits=waits))
        records = [record for record in records if record.application.serial not in left]
        records += await records_of(sales, [source for source, _ in batch.parts])
    report = Report(
        len(records),
        merged(Total(record.state, record.reason, 1, record.application.amount) for record in records),
        sum(item.waiting for item in reports),
        sum(item.unanchored for item in reports),
        reports[-1].is_new,
    )
    return report, records


def _was_dropped(record: OrderRecord) -> bool:
    """Whether an order never left the bank, and not because another one with its serial did."""
    return record.state is State.DROPPED and record.reason != "duplicate_serial"


def _renewed(batch: Batch, serials: Container[str], source: str) -> Batch:
    """Return those of a batch's registrations that have these serials, under the new ones that follow from them."""
    chosen = [item for item in batch.applications if item.serial in serials]
    applications = [msgspec.structs.replace(item, serial=_serial([item.serial])) for item in chosen]
    return Batch(source, applications, batch.creator)


def _serial(facts: object) -> str:
    """Return a registration's serial, which follows from what it says."""
    return f"A{hashlib.sha256(msgspec.msgpack.encode(facts)).hexdigest()[:23].upper()}"


async def _follow(sales: LocalLink, source: str, on_progress: OnProgress, *, waits: bool) -> Progress:
    version = 0
    while True:
        wait_ms = WAIT_MS_MAX if version and waits else 0
        query = ProgressQuery(source, version, wait_ms)
        found = await sales.call("progress", query, Progress, timeout_ms=TAKE_TIMEOUT_MS)
        if found.version != version:
            on_progress(found)
        if not waits or not (found.waiting or found.unanchored):
            return found
        version = found.version


def merged(totals: Iterable[Total]) -> tuple[Total, ...]:
    """Return totals with one for each state and reason, in that order."""
    sums: dict[tuple[State, str], tuple[int, int]] = {}
    for total in totals:
        count, amount = sums.get((total.state, total.reason), (0, 0))
        sums[total.state, total.reason] = (count + total.count, amount + total.amount)
    order = list(State)
    found = [Total(state, reason, count, amount) for (state, reason), (count, amount) in sums.items()]
    return tuple(sorted(found, key=lambda item: (order.index(item.state), item.reason)))


async def records_of(sales: LocalLink, sources: Sequence[str]) -> list[OrderRecord]:
    """Return the records of all orders of these sources, in the order in which they were taken."""
    records: list[OrderRecord] = []
    for source in sources:
        records += await orders(sales, OrdersQuery(source=source, limit=SALES_PAGE_MAX))
    return records


async def orders(
    sales: LocalLink, query: OrdersQuery, *, records_max: int | None = None, only_trades: bool = False
) -> list[OrderRecord]:
    """Return the records that a query selects, page by page, up to ``records_max``; ``only_trades``: no accounts."""
    found: list[OrderRecord] = []
    while records_max is None or len(found) < records_max:
        page = await sales.call("orders", query, Orders, timeout_ms=TAKE_TIMEOUT_MS)
        found += [item for item in page.items if not only_trades or item.application.code not in ACCOUNT_CODES]
        if not page.next:
            break
        query = msgspec.structs.replace(query, after=page.next)
    return found[:records_max]


async def known_parts(sales: LocalLink, source: str) -> list[str]:
    """Return the names under which the sales end has what was brought as ``source``: that, or one a part.

    Raises:
        Refused: ``unknown_source``.
    """
    if await _is_known(sales, source):
        return [source]
    parts: list[str] = []
    while await _is_known(sales, part := f"{source}.{len(parts)}"):
        parts.append(part)
    if not parts:
        raise Refused("unknown_source", f"nothing was brought to the sales end as {source}")
    return parts


async def _is_known(sales: LocalLink, source: str) -> bool:
    try:
        await sales.call("progress", ProgressQuery(source), Progress)
    except Refused as error:
        if error.code != "unknown_source":
            raise
        return False
    return True


def write_confirmations(batch: Batch, records: Iterable[OrderRecord], out: Path | None) -> Path | None:
    """Write the fund file that answers a batch's: 04 to a 03, 02 to an 01; None where nothing was confirmed.

    It goes to ``out``, else into the present folder under its standard name, with the first batch number that
    overwrites no other file.

    Raises:
        LocalError: ``bad_fund_file``, ``bad_file``.
    """
    pairs = [
        (record.application, confirmation)
        for record in records
        for confirmation in (record.confirmation, record.allotment)
        if confirmation is not None
    ]
    if batch.file is None or not pairs:
        return None
    date = f"{max(confirmation.date for _, confirmation in pairs):08d}"
    made = confirmation_file(batch.file.header, pairs, date=date)
    data = write(made)
    path = out or _free_path(made, data)
    _write(path, data)
    return path


def _free_path(file: FundFile, data: bytes) -> Path:
    """Return the first name of a file in the present folder that nothing has, or that holds the same bytes."""
    for batch in range(NAMES_MAX):
        path = Path(file_name(file.header, batch))
        if not path.exists() or (path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data):
            return path
    raise LocalError("file_exists", f"{path} and all that come before it exist: give --out")


def write_outcomes(records: Iterable[OrderRecord], path: Path) -> None:
    """Write one line for each order as CSV; amounts in 1/100, units in 1/100.

    Raises:
        LocalError: ``bad_file``.
    """
    lines = [",".join(OUTCOME_COLUMNS)]
    for record in records:
        order, confirmed = record.application, record.allotment or record.confirmation
        values: list[object] = [record.place + 1, order.serial, order.code, order.ta_account, order.product]
        values += [order.amount, order.volume, record.state.value, record.reason, record.issuer]
        if confirmed is None:
            values += [""] * 5
        else:
            values += [confirmed.amount, confirmed.volume, confirmed.nav, confirmed.charge, confirmed.ta_serial]
        values += [record.root.hex(), record.anchors[-1].height if record.anchors else ""]
        lines.append(",".join(str(value) for value in values))
    _write(path, "\n".join([*lines, ""]).encode())


def write_messages(record: OrderRecord, folder: Path, created_ms: int) -> list[Path]:
    """Write an order and what was executed of it as ISO 20022 messages into a folder, and return their files.

    Raises:
        LocalError: ``no_iso_message``, ``bad_file``.
    """
    confirmations = [item for item in (record.confirmation, record.allotment) if item is not None]
    messages = messages_of(record.application, confirmations, created_ms=created_ms)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError("bad_file", f"{folder}: {error.strerror}") from None
    for name, data in messages.items():
        _write(folder / name, data)
    return [folder / name for name in messages]


def write_document(document: Mapping[str, object], path: Path) -> None:
    """Write a JSON object, indented for people; ``bad_file``."""
    _write(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def _registration(row: dict[str, str], place: str, interface: str, distributor: str, date: int) -> Application:
    try:
        values: dict[str, object] = {name: row[name].strip() for name in ("name", "certificate_type")}
        birth_date = row["birth_date"].strip().replace("-", "")
        values |= {
            "certificate_number": row["certificate_number"].strip(),
            "birth_date": int(birth_date) if birth_date.isdecimal() else birth_date,
            "risk_class": risk_class(row["risk_class"]),
            "is_institution": (row.get("is_institution") or "0").strip() == "1",
            "is_professional": (row.get("is_professional") or "0").strip() == "1",
        }
        return registration(
            ta_account=row["ta_account"].strip(),
            transaction_account=row["transaction_account"].strip(),
            investor=investor_from(values),
            interface=interface,
            distributor=distributor,
            date=date,
        )
    except LocalError as error:
        raise LocalError("bad_profiles", f"{place}: {error.message}") from None
    except AttributeError:
        raise LocalError("bad_profiles", f"{place} has fewer columns than the first line") from None


def _content(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None
    if len(data) > bytes_max:
        raise LocalError("bad_file", f"{path} has more than {bytes_max} bytes")
    return data


def _write(path: Path, data: bytes) -> None:
    try:
        replace_file(path, data)
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None
