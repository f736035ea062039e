"""``hansa agency``: what a bank does with orders: register, send, follow, look at records."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli.agency_place import (
    GATEWAY,
    SALES,
    Json,
    ask_program,
    bank_of,
    bank_option,
    money,
    socket_of,
    socket_option,
)
from cli.options import Number, json_option, network_option
from cli.output import EXIT_REFUSED, Output, leave, panel, table
from cli.place import Place, network_folder
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from rich.console import Console

    from services.agency.interfaces import PackageState
    from services.agency.orders import Confirmation, Investor
    from services.agency.sales_interface import OrderRecord, Progress, Total
    from services.agency.sending import Batch, Report
    from services.local.link import LocalLink

STATES = ("NEW", "DROPPED", "PENDING", "CONFIRMED", "REJECTED", "ALLOTTED")
LIST_MAX = 50
"""How many orders are listed, unless told otherwise."""
SEED = 1
PACKAGES_SHOWN_MAX = 3

_wait = click.option("--wait/--no-wait", "waits", default=True, help="Wait until all is answered and anchored.")
_outcomes = click.option(
    "--outcomes",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what came of each order as CSV.",
)
_out = click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the confirmation file goes; else here, under its standard name.",
)


# -- sending ---------------------------------------------------------------------------------------------


@click.command("send")
@bank_option
@click.option(
    "--file",
    "file",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A fund file of type 03, as it is.",
)
@_out
@_outcomes
@_wait
@socket_option
@network_option
@json_option
def send(
    bank: str | None,
    file: Path,
    out: Path | None,
    outcomes: Path | None,
    waits: bool,
    socket: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Send the orders of a fund file, follow them until they are anchored, and write the confirmation file.

    The same file again sends nothing and says how it stands; after an interruption, too. Orders that are rejected are
    outcomes: the exit code is 0.

    Example: hansa agency send --bank bank-a --file OFD_996_H0_20170427_03.txt
    """
    from services.agency.clerk import products
    from services.agency.sending import trades_of

    begin = time.monotonic()
    bank = bank_of(place, bank)
    interfaces = {item.product: item.interface for item in place.ask(products)}
    batch = trades_of(file, interfaces)
    output.progress(f"{file.name}: {len(batch.applications):,} orders")
    _bring(batch, file, out, outcomes, socket_of(place, bank, SALES, socket), output, waits=waits, begin=begin)


@click.command("register")
@bank_option
@click.option("--issuer", metavar="ORG", required=True, help="The issuer that registers them.")
@click.option("--user", metavar="NAME", help="Register one user of this name; the options below say the rest.")
@click.option("--ta-account", metavar="ID", default="", help="The user's TA account; else the issuer gives one.")
@click.option("--transaction-account", metavar="ID", help="The user's account at the bank; else as the name.")
@click.option("--certificate", metavar="NUMBER", help="Of the user's identity document.")
@click.option("--certificate-type", metavar="CODE", default="0", show_default=True, help="As in the standard.")
@click.option("--birth", metavar="YYYY-MM-DD", help="The user's date of birth.")
@click.option("--risk", metavar="C0…C5", help="The investor's class; C0 is the lowest inside C1.")
@click.option("--professional", is_flag=True, help="A professional investor.")
@click.option("--institution", is_flag=True, help="No natural person.")
@click.option(
    "--file",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Register many: a fund file of type 01, or a CSV of profiles.",
)
@click.option(
    "--holders-of",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="For trials: register the holders in a fund file of type 03 with made-up profiles.",
)
@click.option("--seed", metavar="N", type=Number(0, 2**31), default=SEED, help="Of the made-up profiles.")
@click.option("--distributor", metavar="CODE", help="The bank's code; else as its sales end has it.")
@_out
@_outcomes
@_wait
@socket_option
@network_option
@json_option
def register(
    bank: str | None,
    issuer: str,
    user: str | None,
    ta_account: str,
    transaction_account: str | None,
    certificate: str | None,
    certificate_type: str,
    birth: str | None,
    risk: str | None,
    professional: bool,
    institution: bool,
    file: Path | None,
    holders_of: Path | None,
    seed: int,
    distributor: str | None,
    out: Path | None,
    outcomes: Path | None,
    waits: bool,
    socket: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Register users with an issuer through its node, and wait for what it says; exit code 1 if one user is refused.

    A CSV has the columns ta_account, transaction_account, name, certificate_type, certificate_number, birth_date,
    risk_class, and may have is_institution and is_professional.

    Example: hansa agency register --bank bank-a --issuer issuer-c --user user-b --birth 1990-05-17 --risk C3
    --certificate 11010119900517001X
    """
    from services.agency import sending
    from services.agency.qualification import date_of

    if [user is not None, file is not None, holders_of is not None].count(True) != 1:
        raise click.UsageError("give one of --user, --file and --holders-of")
    begin = time.monotonic()
    bank = bank_of(place, bank)
    interface = _interface_of(place, issuer)
    code = distributor or _distributor_of(place, bank)
    today = date_of(time.time_ns() // 1_000_000)
    if user is not None:
        investor = _investor(user, certificate, certificate_type, birth, risk, professional, institution)
        application = sending.registration(
            ta_account=ta_account,
            transaction_account=user if transaction_account is None else transaction_account,
            investor=investor,
            interface=interface,
            distributor=code,
            date=today,
        )
        batch = sending.Batch(f"user:{application.serial}", [application])
    elif holders_of is not None:
        batch = sending.holders_of(holders_of, seed, interface=interface)
    elif file is not None and sending.is_fund_file(file):
        batch = sending.accounts_of(file, interface)
    else:
        batch = sending.profiles_of(file or Path(), interface=interface, distributor=code, date=today)
    name = file or holders_of or Path(user or "")
    path = socket_of(place, bank, SALES, socket)
    _bring(batch, name, out, outcomes, path, output, waits=waits, begin=begin, is_registration=True)


def _interface_of(place: Place, issuer: str) -> str:
    """Return an issuer's interface id: that of its products."""
    from services.agency.clerk import products
    from services.client.errors import Refused

    found = sorted({item.interface for item in place.ask(products) if item.issuer == issuer})
    if not found:
        raise Refused("unknown_interface", f"{issuer} has no product on this chain, so no interface id is known")
    return found[0]


def _distributor_of(place: Place, bank: str) -> str:
    """Return the bank's code in fund files, as its sales end's service.toml has it."""
    from services.agency.config import SalesFile
    from services.local.files import existing

    file = existing(network_folder(place.given) / "services" / f"{bank}-sales", SalesFile)
    if file is None or not file.distributor:
        raise LocalError("no_distributor", f"nothing here says the code of {bank} in fund files: give --distributor")
    return file.distributor


def _investor(
    user: str,
    certificate: str | None,
    certificate_type: str,
    birth: str | None,
    risk: str | None,
    professional: bool,
    institution: bool,
) -> "Investor":
    from services.agency.sending import investor_from, risk_class

    if not (certificate and risk and (birth or institution)):
        raise click.UsageError("--user needs --certificate, --risk and --birth too")
    digits = (birth or "0").replace("-", "")
    if not digits.isdecimal():
        raise click.UsageError(f"--birth {birth}: a date is YYYY-MM-DD")
    values: dict[str, object] = {
        "name": user,
        "certificate_type": certificate_type,
        "certificate_number": certificate,
        "birth_date": int(digits),
        "risk_class": risk_class(risk),
        "is_institution": institution,
        "is_professional": professional,
    }
    return investor_from(values)


def _bring(
    batch: "Batch",
    file: Path,
    out: Path | None,
    outcomes: Path | None,
    path: Path,
    output: Output,
    *,
    waits: bool,
    begin: float,
    is_registration: bool = False,
) -> None:
    """Send a batch, write what came of it, and print the card; exit code 1 where a user was refused."""
    from services.agency.sending import records_of, write_confirmations, write_outcomes
    from services.agency.sending import register as register_batch
    from services.agency.sending import send as send_batch

    async def run(link: "LocalLink") -> "tuple[Report, list[OrderRecord]]":
        if is_registration:
            return await register_batch(link, batch, _teller(output), waits=waits)
        report = await send_batch(link, batch, _teller(output), waits=waits)
        return report, await records_of(link, [source for source, _ in batch.parts])

    report, records = ask_program(path, run)
    if not report.is_new:
        output.progress("taken before: nothing is sent twice")
    written = write_confirmations(batch, records, out)
    if outcomes is not None:
        write_outcomes(records, outcomes)
    roots = sorted({record.root for record in records if record.root})
    heights = sorted({anchor.height for record in records for anchor in record.anchors})
    refused = is_registration and any(total.reason not in ("", "duplicate_serial") for total in report.totals)
    data: Json = {
        "ok": not refused,
        "source": batch.source,
        "new": report.is_new,
        "done": report.is_done,
        "orders": report.count,
        "amount": str(sum(total.amount for total in report.totals)),
        "waiting": report.waiting,
        "unanchored": report.unanchored,
        "totals": [_total_json(total) for total in report.totals],
        "packages": ["0x" + root.hex() for root in roots],
        "heights": heights,
        "confirmations": None if written is None else str(written),
        "outcomes": None if outcomes is None else str(outcomes),
        "seconds": round(time.monotonic() - begin, 3),
    }
    if len(records) == 1:
        data["order"] = _record_json(records[0])
    output.show(data, lambda console: _draw_report(console, file.name, data, records))
    if refused:
        leave(EXIT_REFUSED)


def _teller(output: Output) -> "Callable[[Progress], None]":
    said = ""

    def tell(progress: "Progress") -> None:
        nonlocal said
        answered = progress.count - progress.waiting
        line = f"{answered:,} of {progress.count:,} answered, {answered - progress.unanchored:,} done"
        if line != said:
            output.progress(line)
        said = line

    return tell


def _total_json(total: "Total") -> Json:
    return {
        "state": total.state.value,
        "reason": total.reason,
        "count": total.count,
        "amount": str(total.amount),
    }


def _draw_report(console: "Console", name: str, data: Json, records: "list[OrderRecord]") -> None:
    is_trade = any(record.application.product for record in records)
    shown: dict[str, object] = {"orders" if is_trade else "accounts": f"{data['orders']:,}"}
    if int(data["amount"]):
        shown["amount"] = money(int(data["amount"]))
    packages, heights = data["packages"], data["heights"]
    shown["packages"] = "\n".join(packages) or "none" if len(packages) <= PACKAGES_SHOWN_MAX else len(packages)
    if heights:
        shown["anchored in"] = f"block {heights[0]}" if len(heights) == 1 else f"blocks {heights[0]} to {heights[-1]}"
    if not data["done"]:
        shown["still to come"] = f"{data['waiting']:,} answers, {data['unanchored']:,} anchors"
    if data["confirmations"]:
        shown["confirmations"] = data["confirmations"]
    if data["outcomes"]:
        shown["outcomes"] = data["outcomes"]
    if len(records) == 1 and (confirmation := records[0].confirmation) is not None and confirmation.is_accepted:
        shown["TA account"] = confirmation.ta_account
    shown["took"] = f"{data['seconds']:.1f} s"
    panel(console, name, shown, good=data["ok"] and data["done"])
    rows = [
        (item["state"], item["reason"] or "–", f"{item['count']:,}", money(int(item["amount"])))
        for item in data["totals"]
    ]
    table(console, ["state", "reason", ">orders", ">amount"], rows)


# -- looking ---------------------------------------------------------------------------------------------


_state = click.option("--state", type=click.Choice(STATES), help="Only orders in this state.")
_limit = click.option(
    "--limit", metavar="N", type=Number(1, 1_000_000), default=LIST_MAX, show_default=True, help="How many."
)
_of_file = click.option(
    "--file",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Only orders of this file.",
)


@click.command("orders")
@bank_option
@_state
@_of_file
@_limit
@socket_option
@network_option
@json_option
def orders(
    bank: str | None,
    state: str | None,
    file: Path | None,
    limit: int,
    socket: Path | None,
    place: Place,
    output: Output,
) -> None:
    """List orders in the sequence they were taken in, with states and reasons.

    Example: hansa agency orders --bank bank-a --state REJECTED
    """
    found = _find(place, bank, state, file, limit, socket)
    rows = [
        (
            record.application.serial,
            record.application.product or f"code {record.application.code}",
            _quantity(record.application.amount, record.application.volume),
            f"{record.state.value} {record.reason}".strip(),
        )
        for record in found
    ]
    data: Json = {"orders": [_record_json(record) for record in found]}
    columns = ["order", "product", ">amount", "state"]
    output.show(data, lambda console: table(console, columns, rows))


@click.command("records")
@bank_option
@_state
@_of_file
@_limit
@click.option("--all", "with_accounts", is_flag=True, help="Account openings and changes too.")
@socket_option
@network_option
@json_option
def records(
    bank: str | None,
    state: str | None,
    file: Path | None,
    limit: int,
    with_accounts: bool,
    socket: Path | None,
    place: Place,
    output: Output,
) -> None:
    """List business records of trades: what was confirmed of each, and the block of its anchor; --json has the hashes.

    Example: hansa agency records --bank bank-a --limit 20
    """
    found = _find(place, bank, state, file, limit, socket, only_trades=not with_accounts)
    rows = []
    for record in found:
        confirmed = record.allotment or record.confirmation
        rows.append(
            (
                record.application.serial,
                record.application.product or f"code {record.application.code}",
                record.reason or record.state.value,
                money(confirmed.amount) if confirmed else "–",
                money(confirmed.volume) if confirmed else "–",
                record.anchors[-1].height if record.anchors else None,
            )
        )
    data: Json = {"records": [_record_json(record) for record in found]}
    columns = ["order", "product", "outcome", ">amount", ">units", ">block"]
    output.show(data, lambda console: table(console, columns, rows))


def _find(
    place: Place,
    bank: str | None,
    state: str | None,
    file: Path | None,
    limit: int,
    socket: Path | None,
    *,
    only_trades: bool = False,
) -> "list[OrderRecord]":
    from services.agency.sales_interface import SALES_PAGE_MAX, OrdersQuery, State
    from services.agency.sending import known_parts, source_of_file
    from services.agency.sending import orders as ask_orders

    source = "" if file is None else source_of_file(file)

    async def ask(link: "LocalLink") -> "list[OrderRecord]":
        found: list[OrderRecord] = []
        for part in await known_parts(link, source) if source else [""]:
            query = OrdersQuery(None if state is None else State(state), part, limit=min(limit, SALES_PAGE_MAX))
            left = limit - len(found)
            found += await ask_orders(link, query, records_max=left, only_trades=only_trades)
        return found

    return ask_program(socket_of(place, bank_of(place, bank), SALES, socket), ask)


@click.command("order")
@click.argument("serial", metavar="ORDER")
@bank_option
@click.option(
    "--iso",
    "messages",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the order and what was executed as ISO 20022 messages (setr.010, .012, .004, .006).",
)
@socket_option
@network_option
@json_option
def order(
    serial: str, bank: str | None, messages: Path | None, socket: Path | None, place: Place, output: Output
) -> None:
    """Print one order: what was applied for, what was confirmed, its package's hashes, and the block of its anchor.

    Example: hansa agency order 2017042700001234 --bank bank-a
    """
    from services.agency.sending import write_messages

    bank = bank_of(place, bank)
    record = find_order(place, bank, serial, socket)
    written = [] if messages is None else write_messages(record, messages, time.time_ns() // 1_000_000)
    package = _package(place, bank, record.root) if record.root else None
    data: Json = {"order": _record_json(record)}
    if package is not None:
        data["package"] = _package_json(package)
    if written:
        data["messages"] = [str(path) for path in written]

    def draw(console: "Console") -> None:
        application = record.application
        shown: dict[str, object] = {
            "state": f"{record.state.value}{', ' if record.reason else ''}{record.reason}",
            "applied for": f"{application.code} {application.product}".strip(),
            "amount": _quantity(application.amount, application.volume),
            "TA account": application.ta_account or "–",
            "issuer": record.issuer or "–",
            "terms": f"version {application.terms_version}" if application.terms_version else "–",
        }
        for confirmation in (record.confirmation, record.allotment):
            if confirmation is not None:
                shown[f"confirmed {confirmation.code}"] = _confirmed(confirmation)
        if record.root:
            shown["package"] = "0x" + record.root.hex()
        if package is not None:
            for item in package.rounds:
                shown[f"outcome root {item.round_number}"] = "0x" + item.outcome_root.hex()
                shown[f"anchor {item.round_number}"] = (
                    f"{item.status} in block {item.height}" if item.height else "waits"
                )
        if written:
            shown["messages"] = "\n".join(str(path) for path in written)
        panel(console, f"Order {serial}", shown, good=record.state.value not in ("REJECTED", "DROPPED"))

    output.show(data, draw)


def find_order(place: Place, bank: str, serial: str, socket: Path | None = None) -> "OrderRecord":
    """Return an order by its serial; ``unknown_order``."""
    from services.agency.sales_interface import OrderQuery, OrderRecord

    path = socket_of(place, bank, SALES, socket)
    return ask_program(path, lambda link: link.call("order", OrderQuery(serial), OrderRecord))


def _package(place: Place, bank: str, root: bytes) -> "PackageState | None":
    """Return what the bank's gateway has of a package, None where it does not answer."""
    from services.agency.interfaces import PackageState, RootQuery
    from services.client.errors import Refused, Unreachable

    path = socket_of(place, bank, GATEWAY, None)
    try:
        return ask_program(path, lambda link: link.call("package", RootQuery(root), PackageState))
    except (Unreachable, Refused):
        return None


def _package_json(package: "PackageState") -> Json:
    return {
        "root": "0x" + package.root.hex(),
        "state": package.state,
        "code": package.code,
        "count": package.count,
        "epoch": package.epoch,
        "signature": "0x" + package.signature.hex(),
        "rounds": [
            {
                "round": item.round_number,
                "outcomeRoot": "0x" + item.outcome_root.hex(),
                "previous": "0x" + item.previous.hex(),
                "signature": "0x" + item.signature.hex(),
                "transactionId": "0x" + item.transaction_id.hex(),
                "height": item.height,
                "status": item.status,
            }
            for item in package.rounds
        ],
    }


def _record_json(record: "OrderRecord") -> Json:
    application = record.application
    return {
        "serial": application.serial,
        "source": record.source,
        "place": record.place,
        "state": record.state.value,
        "reason": record.reason,
        "code": application.code,
        "product": application.product,
        "issuer": record.issuer,
        "taAccount": application.ta_account,
        "amount": str(application.amount),
        "volume": str(application.volume),
        "termsVersion": application.terms_version,
        "root": "0x" + record.root.hex() if record.root else None,
        "confirmations": [
            _confirmation_json(item) for item in (record.confirmation, record.allotment) if item is not None
        ],
        "anchors": [
            {"round": item.round_number, "transactionId": "0x" + item.transaction_id.hex(), "height": item.height}
            for item in record.anchors
        ],
    }


def _confirmation_json(confirmation: "Confirmation") -> Json:
    return {
        "code": confirmation.code,
        "taSerial": confirmation.ta_serial,
        "taAccount": confirmation.ta_account,
        "returnCode": confirmation.return_code,
        "reason": confirmation.reason,
        "amount": str(confirmation.amount),
        "volume": str(confirmation.volume),
        "nav": str(confirmation.nav),
        "charge": str(confirmation.charge),
        "date": confirmation.date,
        "final": confirmation.is_final,
    }


def _confirmed(confirmation: "Confirmation") -> str:
    if not confirmation.is_accepted:
        return f"rejected {confirmation.return_code} {confirmation.reason}".strip()
    parts = [f"{money(confirmation.amount)} for {money(confirmation.volume)} units"]
    if confirmation.nav:
        parts.append(f"at {confirmation.nav // 10_000}.{confirmation.nav % 10_000:04d}")
    if confirmation.charge:
        parts.append(f"charge {money(confirmation.charge)}")
    is_empty = not (confirmation.amount or confirmation.volume)
    return "accepted" if is_empty else ", ".join(parts)


def _quantity(amount: int, volume: int) -> str:
    if amount:
        return money(amount)
    return f"{money(volume)} units" if volume else "–"


COMMANDS: Iterable[click.Command] = (register, send, orders, records, order)
