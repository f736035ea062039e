"""``hansa agency``: evidence and operation: disclose, dispute, claim, status, allotment."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli.agency_orders import find_order
from cli.agency_place import (
    GATEWAY,
    ISSUER,
    SALES,
    HexParameter,
    Json,
    ask_program,
    bank_of,
    bank_option,
    money,
    socket_of,
    socket_option,
    time_text,
)
from cli.options import Number, json_option, network_option
from cli.output import EXIT_REFUSED, Output, leave, panel, table
from cli.place import Place, read_genesis

if TYPE_CHECKING:
    from rich.console import Console

    from services.agency.disclosure import Verdict
    from services.agency.interfaces import Status
    from services.agency.issuer_interface import IssuerSummary
    from services.agency.sales_interface import SalesSummary

CALL_TIMEOUT_MS = 60_000

_organisation = click.option(
    "--as", "organisation", metavar="ORG", required=True, help="The institution that is asked."
)
_file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


# -- evidence --------------------------------------------------------------------------------------------


@click.command("disclose")
@click.argument("serial", metavar="ORDER")
@bank_option
@click.option(
    "--to",
    "file",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The disclosure: one order, its confirmation, its salt, and what proves them.",
)
@click.option("--round", "round_number", type=Number(0, 1), default=0, help="1 for the allotment.")
@click.option("--socket", "socket", metavar="FILE", type=click.Path(path_type=Path), help="The sales end's socket.")
@click.option("--gateway", metavar="FILE", type=click.Path(path_type=Path), help="The gateway's socket.")
@network_option
@json_option
def disclose(
    serial: str,
    bank: str | None,
    file: Path,
    round_number: int,
    socket: Path | None,
    gateway: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Write one order with its confirmation and the proof that they are what the chain has the anchor of.

    Whoever has the file sees this order and no other one, and checks it offline: hansa agency dispute verify.

    Example: hansa agency disclose 2017042700001234 --bank bank-a --to order.json
    """
    from services.agency.interfaces import Disclosed, DiscloseQuery
    from services.agency.sending import write_document
    from services.client.errors import Refused

    bank = bank_of(place, bank)
    record = find_order(place, bank, serial, socket)
    if not record.root:
        raise Refused("not_sent", f"order {serial} was not sent ({record.reason or record.state.value})")
    query = DiscloseQuery(record.root, serial, round_number)
    path = socket_of(place, bank, GATEWAY, gateway)
    found = ask_program(path, lambda link: link.call("disclose", query, Disclosed, timeout_ms=CALL_TIMEOUT_MS))
    write_document(found.document, file)
    data: Json = {"order": serial, "root": "0x" + record.root.hex(), "file": str(file), "bytes": file.stat().st_size}
    shown = {**data, "next": f"hansa agency dispute verify {file} --genesis GENESIS"}
    output.show(data, lambda console: panel(console, f"Order {serial} is disclosed", shown))


@click.group("dispute")
def dispute() -> None:
    """What anyone can check of an order, without bank, issuer, node or network."""


@dispute.command("verify")
@_file
@click.option(
    "--genesis",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The genesis document that is trusted.",
)
@json_option
def verify(file: Path, genesis: Path, output: Output) -> None:
    """Check a disclosure offline: the chain's certificate, the anchor, the order's path and both signatures.

    Exit code 1, with the code of what does not hold.

    Example: hansa agency dispute verify order.json --genesis net/genesis.json
    """
    from services.agency.disclosure import load_untrusted, verify_disclosure

    document = read_genesis(genesis)
    try:
        disclosure = load_untrusted(file)
    except OSError as error:
        from consensus.ledger.errors import LocalError

        raise LocalError("bad_file", f"{file}: {error.strerror}") from None
    verdict = verify_disclosure(disclosure, document)
    data = _verdict_json(verdict)
    good = verdict.status == "MUTUAL" and not verdict.is_contradicted
    output.show(data, lambda console: panel(console, _verdict_title(verdict), _verdict_shown(verdict), good=good))


def _verdict_title(verdict: "Verdict") -> str:
    if verdict.is_contradicted:
        return "Genuine, and the issuer signed another outcome too"
    if verdict.status == "MUTUAL":
        return "Genuine: bank and issuer have both signed it"
    return f"Genuine claim: only the {verdict.claimed_by} has signed it"


def _verdict_json(verdict: "Verdict") -> Json:
    import msgspec

    application, confirmation = verdict.application, verdict.confirmation
    return {
        "status": verdict.status,
        "claimedBy": verdict.claimed_by,
        "contradicted": verdict.is_contradicted,
        "bank": verdict.bank,
        "issuer": verdict.issuer,
        "application": _named(application),
        "confirmation": None if confirmation is None else _named(confirmation),
        "anchoredHeight": verdict.anchored_height,
        "anchoredMs": verdict.anchored_ms,
        "height": verdict.height,
        "timeMs": verdict.time_ms,
        "signers": list(msgspec.to_builtins(verdict.signers)),
    }


def _named(record: object) -> Json:
    """Return a record's fields by their names."""
    import msgspec

    names: tuple[str, ...] = record.__struct_fields__  # type: ignore[attr-defined]
    return {name: msgspec.to_builtins(getattr(record, name)) for name in names}


def _verdict_shown(verdict: "Verdict") -> Json:
    application, confirmation = verdict.application, verdict.confirmation
    quantity = money(application.amount) if application.amount else f"{money(application.volume)} units"
    shown: Json = {
        "order": application.serial,
        "bank": verdict.bank,
        "issuer": verdict.issuer,
        "applied for": f"{application.code} {application.product} {quantity}",
        "TA account": application.ta_account or "–",
    }
    if confirmation is None:
        shown["confirmed"] = "nothing yet: a claim"
    elif confirmation.is_accepted:
        shown["confirmed"] = f"{confirmation.code} {money(confirmation.amount)}, {money(confirmation.volume)} units"
    else:
        shown["rejected"] = f"{confirmation.return_code} {confirmation.reason}"
    shown["anchored (UTC)"] = f"{time_text(verdict.anchored_ms)}, block {verdict.anchored_height}"
    shown["certified by"] = f"{', '.join(verdict.signers)} in block {verdict.height}"
    shown["as of (UTC)"] = f"{time_text(verdict.time_ms)}: nothing is said of what was anchored later"
    return shown


@click.command("claim")
@click.argument("root", metavar="PACKAGE", type=HexParameter())
@_organisation
@socket_option
@network_option
@json_option
def claim(root: bytes, organisation: str, socket: Path | None, place: Place, output: Output) -> None:
    """Anchor a package with the institution's own signature alone, where the other one is withheld: CLAIMED.

    A later anchor with both signatures takes its place.

    Example: hansa agency claim 0x4b… --as bank-a
    """
    from services.agency.interfaces import PackageState, RootQuery

    path = socket_of(place, organisation, GATEWAY, socket)
    found = ask_program(
        path, lambda link: link.call("claim", RootQuery(root), PackageState, timeout_ms=CALL_TIMEOUT_MS)
    )
    rounds = [
        {
            "round": item.round_number,
            "status": item.status,
            "height": item.height,
            "transactionId": "0x" + item.transaction_id.hex(),
        }
        for item in found.rounds
    ]
    data: Json = {"root": "0x" + root.hex(), "bank": found.bank, "issuer": found.issuer, "rounds": rounds}
    shown = {"package": data["root"], "bank": found.bank, "issuer": found.issuer}
    shown |= {f"round {item['round']}": f"{item['status']}, block {item['height']}" for item in rounds}
    output.show(data, lambda console: panel(console, "Claimed", shown))


# -- operation -------------------------------------------------------------------------------------------


@click.command("allot")
@click.argument("product", metavar="PRODUCT")
@_organisation
@click.option(
    "--ratio",
    metavar="PERCENT",
    type=click.FloatRange(0.01, 100),
    default=100.0,
    show_default=True,
    help="What each initial subscription gets, in steps of 0.01.",
)
@socket_option
@network_option
@json_option
def allot(product: str, organisation: str, ratio: float, socket: Path | None, place: Place, output: Output) -> None:
    """Allot a product's initial subscriptions, once: each is confirmed with code 130.

    Example: hansa agency issuer allot C00003 --as issuer-c --ratio 80
    """
    from services.agency.issuer_interface import Allot, Allotted

    query = Allot(product, round(ratio * 100))
    path = socket_of(place, organisation, ISSUER, socket)
    found = ask_program(path, lambda link: link.call("allot", query, Allotted, timeout_ms=CALL_TIMEOUT_MS))
    data: Json = {
        "product": found.product,
        "ratioBasisPoints": found.ratio_basis_points,
        "packages": found.packages,
        "waiting": found.waiting,
    }
    shown = {
        "ratio": f"{found.ratio_basis_points / 100:g} %",
        "packages answered": found.packages,
        "wait for other products": found.waiting,
    }
    output.show(data, lambda console: panel(console, f"{product} is allotted", shown))


@click.command("status")
@_organisation
@click.option("--gateway", "socket", metavar="FILE", type=click.Path(path_type=Path), help="The gateway's socket.")
@network_option
@json_option
def status(organisation: str, socket: Path | None, place: Place, output: Output) -> None:
    """Print how an institution's gateway and business end stand; exit code 1 with alarms or a program that is down.

    Example: hansa agency status --as bank-a
    """
    from services.agency.interfaces import Status, StatusQuery

    path = socket_of(place, organisation, GATEWAY, socket)
    found = ask_program(path, lambda link: link.call("status", StatusQuery(), Status))
    end, fault = _end_status(place, organisation)
    good = not (found.alarms or found.trouble or fault or not found.channels)
    data: Json = {
        "ok": good,
        "organisation": found.organisation,
        "node": found.node,
        "chainId": found.chain_id,
        "businessKey": found.business_key,
        "channels": found.channels,
        "packages": found.packages,
        "waitingAnchors": found.waiting_anchors,
        "alarms": found.alarms,
        "trouble": found.trouble,
        "end": end,
        "endFault": fault,
    }
    output.show(data, lambda console: _draw_status(console, found, end, fault, good=good))
    if not good:
        leave(EXIT_REFUSED)


def _end_status(place: Place, organisation: str) -> tuple[Json, str]:
    """Return how the sales end or issuer end beside a gateway stands, and why it does not say."""
    from services.agency.issuer_interface import IssuerSummary, SummaryQuery
    from services.agency.sales_interface import SalesSummary, SalesSummaryQuery
    from services.client.errors import Unreachable

    sales, issuer = (socket_of(place, organisation, program, None) for program in (SALES, ISSUER))
    try:
        if sales.parent.exists():
            found = ask_program(sales, lambda link: link.call("summary", SalesSummaryQuery(), SalesSummary))
            return _sales_json(found), ""
        if issuer.parent.exists():
            summary = ask_program(issuer, lambda link: link.call("summary", SummaryQuery(), IssuerSummary))
            return _issuer_json(summary), ""
    except Unreachable as error:
        return {}, error.message
    return {}, ""


def _sales_json(found: "SalesSummary") -> Json:
    totals = {f"{item.state.value} {item.reason}".strip(): item.count for item in found.totals}
    return {"packages sent": found.packages, "sources": found.sources, "profiles": found.profiles, **totals}


def _issuer_json(found: "IssuerSummary") -> Json:
    counts = {"packages": found.packages, "accepted": found.accepted, "rejected": found.rejected, "users": found.users}
    return {**counts, **{f"rejected {reason}": count for reason, count in found.reasons.items()}}


def _draw_status(console: "Console", found: "Status", end: Json, fault: str, *, good: bool) -> None:
    shown: Json = {
        "node": found.node or "does not answer",
        "packages": ", ".join(f"{count:,} {state}" for state, count in found.packages.items()) or "none",
        "anchors watched": found.waiting_anchors,
        "chain": found.trouble or "answers",
        "alarms": "\n".join(found.alarms) or "none",
    }
    if not found.channels:
        shown["channels"] = f"{found.node or 'the node'} does not answer, or has none yet"
    if fault:
        shown["business end"] = fault
    panel(console, f"Gateway of {found.organisation}", shown, good=good)
    if end:
        panel(console, "Business end", {name: f"{count:,}" for name, count in end.items()})
    rows = [
        (
            item.get("channel"),
            item.get("phase"),
            item.get("connected"),
            item.get("waiting"),
            item.get("lastError") or "–",
        )
        for item in found.channels
    ]
    table(console, ["channel", "phase", "connected", ">waiting", "last error"], rows)


COMMANDS: Iterable[click.Command] = (disclose, dispute, claim, status)
