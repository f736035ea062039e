"""``hansa stream show`` and ``list``: a payer's streams: its own records, the chain, and the service party's word."""

from typing import TYPE_CHECKING, Any

import rich_click as click

from cli.options import Number, json_option
from cli.output import Output, panel, table
from cli.stream_live import quantity
from cli.stream_pay import own_reason
from cli.stream_payer import Purse, chain_fields, chain_json, find_kept, on_chain, purse_options
from cli.stream_place import counted, names_of, party, short, stream_argument, terms_fields
from cli.stream_service import service_fields
from consensus.ledger.errors import HansaError, LocalError

if TYPE_CHECKING:
    from rich.console import Console

    from services.stream.payer_store import KeptStream
    from services.stream.service_interface import StreamShown

Json = dict[str, Any]

LIST_DEFAULT, LIST_MAX = 50, 1_000


@click.command("show")
@stream_argument
@purse_options
@json_option
def show(stream: str, purse: Purse, output: Output) -> None:
    """Show a stream: what this payer has signed, what the chain proves, what the service party says.

    ID may be its beginning for a payer's own; of other streams the chain alone is asked.

    Example: hansa stream show 3f9a
    """
    kept = _kept(purse, stream)
    key = bytes.fromhex(stream) if kept is None else bytes(kept.owed.stream)
    found = purse.place.ask(lambda client: on_chain(client, key))
    if kept is None and found.record is None:
        raise LocalError("unknown_stream", f"neither this payer nor the chain has a stream 0x{stream}")
    said, why = (None, "") if kept is None or not kept.url else _ask_service(kept)
    names = names_of(purse.place)
    shown: Json = {}
    if kept is not None:
        shown |= _own_fields(kept)
    elif found.record is not None:
        shown |= {"payer": party(found.record.payer, names), "service party": party(found.record.service, names)}
    shown |= chain_fields(found)
    if said is not None:
        shown |= {f"service: {name}": text for name, text in service_fields(said).items() if name != "due"}
    elif why:
        shown["service party"] = why
    data: Json = {
        "stream": f"0x{key.hex()}",
        "chain": chain_json(found),
        "own": None if kept is None else own_json(kept),
    }
    data["service"] = None if said is None else _said_json(said)
    is_fined = found.record is not None and found.record.is_fined

    def draw(console: "Console") -> None:
        panel(console, f"Stream {short(key)}", shown, good=not is_fined)
        if kept is not None:
            panel(console, "Agreed", terms_fields(kept.owed.terms, names), style="dim")
        console.print(f"stream 0x{key.hex()}", markup=False, soft_wrap=True)

    output.show(data, draw)


@click.command("list")
@click.option("--limit", type=Number(1, LIST_MAX), default=LIST_DEFAULT, show_default=True, help="How many.")
@purse_options
@json_option
def list_streams(limit: int, purse: Purse, output: Output) -> None:
    """List this payer's streams, the newest first, as its own records have them.

    Example: hansa stream list
    """
    with purse.store() as store:
        found = [kept for kept in store.streams(LIST_MAX) if purse.name in (None, kept.account)][:limit]
    names = names_of(purse.place)
    rows = [
        (
            short(kept.owed.stream),
            kept.account,
            party(kept.owed.terms.service, names),
            _status(kept),
            counted(kept.owed.signed_due, kept.owed.terms.unit),
            f"{kept.owed.terms.deposit:,}",
        )
        for kept in found
    ]

    def draw(console: "Console") -> None:
        if not rows:
            console.print("No streams yet. Next: hansa stream open --help", markup=False)
            return
        table(console, ("stream", "payer", "to", "status", ">signed", ">deposit"), rows, title="Streams")

    output.show({"streams": [own_json(kept) for kept in found]}, draw)


def own_json(kept: "KeptStream") -> Json:
    """Return a payer's own record of a stream, for JSON."""
    from services.stream.iteration_file import terms_json

    owed = kept.owed
    return {
        "stream": f"0x{bytes(owed.stream).hex()}",
        "account": kept.account,
        "url": kept.url or None,
        "status": _status(kept),
        "reason": str(owed.reason) or None,
        "signedDue": owed.signed_due,
        "storedDue": owed.stored_due,
        "count": owed.count,
        "receivedUnits": owed.received_units,
        "madeMs": kept.made_ms,
        "terms": terms_json(owed.terms),
    }


def _kept(purse: Purse, digits: str) -> "KeptStream | None":
    """Return the payer's own record, None of a whole id that it does not have."""
    try:
        with purse.store() as store:
            return find_kept(store, digits)
    except LocalError as error:
        if len(digits) != 2 * 32 or error.code not in ("unknown_stream", "no_network"):
            raise
        return None


def _ask_service(kept: "KeptStream") -> "tuple[StreamShown | None, str]":
    """Return what the service party says of a stream, or why it says nothing."""
    import trio

    from services.local.asking import Program, open_program
    from services.stream.opening import SERVICE, UNREACHABLE
    from services.stream.service_interface import StreamShown

    async def run() -> StreamShown:
        async with open_program(Program(kept.url, SERVICE, UNREACHABLE), answer_ms_max=5_000) as program:
            return await program.ask("GET", f"/streams/0x{bytes(kept.owed.stream).hex()}", None, StreamShown)

    try:
        return trio.run(run), ""
    except HansaError as error:
        why = "has not heard of it yet" if error.code == "unknown_stream" else error.code
        return None, f"{why} ({kept.url})"


def _own_fields(kept: "KeptStream") -> Json:
    owed = kept.owed
    terms = owed.terms
    worth = counted(owed.received_units * terms.price, terms.unit)
    return {
        "this payer": _status_text(kept),
        "signed": f"{counted(owed.signed_due, terms.unit)} in {owed.count:,} iterations, {owed.stored_due:,} stored",
        "supplied": f"{quantity(owed.received_units, terms.what)}, which is {worth}",
    }


def _status_text(kept: "KeptStream") -> str:
    reason = str(kept.owed.reason)
    if kept.is_opening:
        return "OPENING; hansa stream pay goes on with it"
    return _status(kept) + (f", {own_reason(reason)}" if reason else "")


def _status(kept: "KeptStream") -> str:
    """Return how a stream stands for its payer: before it was seen on the chain it is not paid yet."""
    return "OPENING" if kept.is_opening else str(kept.owed.status)


def _said_json(said: "StreamShown") -> Json:
    import msgspec

    found: Json = msgspec.to_builtins(said)
    return found
