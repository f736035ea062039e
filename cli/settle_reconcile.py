"""``hansa settle reconcile``: one day of the chain against the account system and the event store."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli.options import Number, json_option, network_option
from cli.output import EXIT_REFUSED, Output, leave, panel, table
from cli.place import Place
from cli.settle_place import Json, decimal_text, explaining, money, socket_option
from cli.settle_trade import Doors, doors_of
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from datetime import date

    from rich.console import Console

    from services.settlement.reconcile import OnLine
    from services.settlement.report import Line, Report

TOLERANCE_S_MAX = 86_400
SHOWN_MAX = 50
COLUMNS = (
    *("event", "verdict", "breaks", "why", "kind", "state", "outcome", "code", "asset", "units", "delivered_units"),
    *("lien", "currency", "price", "paid", "payer", "payee", "registered", "delivered", "closed", "paid_at"),
    *("height", "transaction", "proofs"),
)
"""Of the CSV file. Units in smallest units, times in UTC."""


@click.command("reconcile")
@click.option("--date", "day", metavar="YYYY-MM-DD", required=True, help="The day, in UTC.")
@click.option("--prove", is_flag=True, help="Write a proof file for each movement of units.")
@click.option(
    "--proofs",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --prove: where to; else reconcile-DATE.proofs here.",
)
@click.option(
    "--csv", "csv_file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Write all lines here."
)
@click.option(
    "--tolerance",
    "tolerance_s",
    metavar="SECONDS",
    type=Number(0, TOLERANCE_S_MAX),
    default=300,
    show_default=True,
    help="What is younger is open, not broken.",
)
@socket_option
@click.option("--accounts", metavar="URL", help="The account system; else the one that the network's payer uses.")
@click.option(
    "--accounts-token-file",
    "token_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What it asks for.",
)
@network_option
@json_option
def reconcile(
    day: str,
    prove: bool,
    proofs: Path | None,
    csv_file: Path | None,
    tolerance_s: int,
    socket: Path | None,
    accounts: str | None,
    token_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Compare a day of the chain with the account system and the event store, and list what does not fit.

    All blocks of the day are read and checked against their certificates. Exit code 1 where something is broken. With
    --prove, hansa proof verify FILE --genesis FILE checks each file offline.

    Example: hansa settle reconcile --date 2026-11-22 --prove --csv report.csv
    """
    from services.settlement.reconcile import day_of

    if proofs is not None and not prove:
        raise click.UsageError("--proofs names where --prove writes to")
    date = day_of(day)
    folder = (proofs or Path(f"reconcile-{date}.proofs")) if prove else None
    doors = doors_of(place, socket, accounts, token_file)
    with _csv_lines(csv_file) as on_line:
        report = _run(place, doors, date, 1_000 * tolerance_s, folder, on_line)
    data = {**_builtins(report), "ok": not report.broken, "csv": None if csv_file is None else str(csv_file)}
    output.show(data, lambda console: _draw(console, report, csv_file))
    if report.broken:
        leave(EXIT_REFUSED)


def _run(
    place: Place, doors: Doors, day: "date", tolerance_ms: int, proofs: Path | None, on_line: "OnLine"
) -> "Report":
    import trio

    from services.accounts.link import open_accounts
    from services.local.link import LocalLink
    from services.settlement.reconcile import Sides, reconcile

    async def run() -> "Report":
        async with (
            place.client() as client,
            LocalLink(doors.socket) as link,
            open_accounts(doors.accounts, token=doors.token) as accounts,
        ):
            sides = Sides(client, accounts, link)
            return await reconcile(day, sides, tolerance_ms=tolerance_ms, proofs=proofs, on_line=on_line)

    with place.explaining(), explaining(doors.socket):
        return trio.run(run)


@contextmanager
def _csv_lines(path: Path | None) -> "Iterator[OnLine]":
    """Give what writes lines into a file, which replaces an older one when all are in it.

    Raises:
        LocalError: ``file_error``.
    """
    from services.settlement.reconcile import no_line

    if path is None:
        yield no_line
        return
    draft = path.with_name(f".{path.name}.new")
    try:
        with draft.open("w", encoding="utf-8", newline="") as target:
            writer = csv.writer(target)
            writer.writerow(COLUMNS)
            yield lambda line: writer.writerow(_cells(line))
        draft.replace(path)
    except OSError as error:
        raise LocalError("file_error", f"{path}: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)


def _cells(line: "Line") -> list[object]:
    from services.settlement.reconcile import shown_event

    times = [_time(item) for item in (line.registered_ms, line.delivered_ms, line.closed_ms, line.paid_ms)]
    return [
        *(shown_event(line.event), line.verdict.value, "; ".join(fault.kind for fault in line.breaks)),
        *("; ".join(fault.why for fault in line.breaks), line.kind, line.state, line.outcome, line.code, line.asset),
        *(line.units, line.delivered_units, line.lien, line.currency, decimal_text(line.price)),
        *(decimal_text(line.paid), line.payer, line.payee, *times, line.height or "", line.transaction),
        "; ".join(line.proofs),
    ]


def _time(time_ms: int) -> str:
    from services.client.times import utc_text

    return utc_text(time_ms) if time_ms else ""


def _builtins(report: "Report") -> Json:
    import msgspec

    found: Json = msgspec.to_builtins(report)
    return found


def _draw(console: "Console", report: "Report", csv_file: Path | None) -> None:
    from services.settlement.reconcile import shown_event

    heights = f"{report.first_height} to {report.last_height}" if report.last_height else "none"
    if not report.is_complete:
        read = _time(report.now_ms)
        when = "has not begun" if read < report.date else "goes on"
        heights += f"; the day {when}: read up to {read}"
    shown: dict[str, object] = {
        "blocks": heights,
        "events": report.events,
        "matched": report.matched,
        "open": report.open,
        "broken": report.broken,
        **report.breaks,
    }
    for total in report.assets:
        moved = [decimal_text(item, total.decimals) for item in (total.delivered, total.lifted, total.given_back)]
        shown[total.asset] = f"delivered {moved[0]} in {total.deliveries}, lifted {moved[1]}, given back {moved[2]}"
    for item in report.currencies:
        shown[f"{item.currency} (simulated)"] = (
            f"paid {money(item.paid)} in {item.payments}, held {money(item.reserved)},"
            f" released {money(item.released)}, reversed {money(item.reversed)}"
        )
    if report.proofs_folder:
        shown["proof files"] = f"{report.proofs} in {report.proofs_folder}"
    if csv_file is not None:
        shown["lines"] = str(csv_file)
    panel(console, f"Reconciliation of {report.date}", shown, good=not report.broken)
    rows = [
        (shown_event(line.event), _finding(line), line.asset or None)
        for line in sorted(report.listed, key=lambda line: line.verdict)[:SHOWN_MAX]
    ]
    if rows:
        table(console, ("event", "finding", "asset"), rows)
    if (more := report.open + report.broken - len(rows)) > 0:
        console.print(f"… and {more} more", markup=False, soft_wrap=True)
    if rows and csv_file is None:
        console.print("Why, and all lines: --csv FILE; one event: hansa settle events show EVENT", markup=False)


def _finding(line: "Line") -> str:
    return ", ".join(fault.kind for fault in line.breaks) or f"open: {line.state}"
