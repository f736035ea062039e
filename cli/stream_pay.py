"""``hansa stream pay``: pays a stream as units come, with a live table, until it ends or the payer ends it."""

import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cli.options import Number, json_option
from cli.output import EXIT_REFUSED, Output, leave, note_error_details, panel
from cli.stream_live import Seen, Table, quantity
from cli.stream_payer import OnChain, Purse, chain_fields, chain_json, find_kept, on_chain, purse_options
from cli.stream_place import counted, names_of, party, stream_argument
from cli.stream_service import REASONS
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    import trio
    from rich.console import Console
    from structlog.typing import EventDict

    from services.client.client import Client
    from services.stream.interfaces import Meter
    from services.stream.payer import Figures, Payer, Way
    from services.stream.payer_store import KeptStream

Json = dict[str, Any]

FRAMES, HTTP = "frames", "http"
CLOSED, PAYING = "CLOSED", "PAYING"
"""A stream whose deposit is back, and one that is being paid; see ``services.stream.payermachine.Status``."""
NOT_BACK = "deposit_not_back"
OWN_REASONS = {
    "payer": "this payer has ended it",
    "ended": "the service party has ended it",
    "owner": "the service party has ended it",
    "stream_ended": "the service party has ended it",
    "settled": "settled on the chain",
    "timeout": "nothing came in time",
}
"""Why a stream ended in its payer's words, where they differ from the service party's."""
PATIENCE_S, PATIENCE_S_MAX = 20, 3_600
"""How long the end of a stream waits for the service party."""
NOTES = {
    "STOPPED": "ended; the service party settles, then the rest comes back …",
    "CLOSING": "closing together on the chain …",
}


@dataclass(frozen=True, slots=True)
class Road:
    """How the service party is reached: its address or that of the opening, by frames or HTTP, or a private channel."""

    url: str | None
    over: str
    owner: Path | None
    channel: str | None

    def way(self, kept: "KeptStream") -> "Way":
        """Return what connects.

        Raises:
            LocalError: ``bad_url`` where no address is known, ``bad_file`` where the node's socket is not there.
            UsageError: half a private channel.
        """
        from services.stream.link import open_frames, open_requests

        if (self.owner is None) != (self.channel is None):
            raise click.UsageError("--owner and --channel together name a private channel")
        if self.owner is not None and self.channel is not None:
            from services.stream.private import open_private

            owner, channel = self.owner, self.channel
            if not owner.is_socket():  # waiting for it would end the stream
                raise LocalError("bad_file", f"{owner} is no socket: it is run/owner.sock of a node that runs")
            return lambda: open_private(owner, channel)
        url = self.url or kept.url
        if not url:
            raise LocalError("bad_url", "where the service party is reached is not known: --service URL")
        return (lambda: open_requests(url)) if self.over == HTTP else (lambda: open_frames(url))


def road_options(function: Any) -> Any:
    """Add how the service party is reached, as ``url``, ``over``, ``owner`` and ``channel``."""
    options = [
        click.option("--service", "url", metavar="URL", help="The service party; else where the stream was opened."),
        click.option("--over", type=click.Choice([FRAMES, HTTP]), default=FRAMES, show_default=True, help="The way."),
        click.option(
            "--owner", metavar="SOCKET", type=click.Path(path_type=Path), help="Own node's run/owner.sock, and"
        ),
        click.option("--channel", metavar="BANK/ISSUER", help="the private channel that leads to the service party."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


patience_option = click.option(
    "--patience",
    "patience_s",
    metavar="SECONDS",
    type=Number(0, PATIENCE_S_MAX),
    default=PATIENCE_S,
    show_default=True,
    help="How long the end waits for the service party.",
)


@click.command("pay")
@stream_argument
@road_options
@click.option("--meter", metavar="URL", help="A meter of the payer's own: nothing is paid that it has not counted.")
@patience_option
@purse_options
@json_option
def pay(
    stream: str,
    url: str | None,
    over: str,
    owner: Path | None,
    channel: str | None,
    meter: str | None,
    patience_s: int,
    purse: Purse,
    output: Output,
) -> None:
    """Pay a stream as units come, until it ends; then the rest of the deposit comes back.

    Each iteration is durable here before it is sent. Ctrl-C ends the stream together with the service party, a second
    one leaves at once; the same command goes on where it was, after a crash too. Exit code 1 where the deposit is not
    back at the end: hansa stream withdraw takes it back alone.

    Example: hansa stream pay 3f9a
    """
    road = Road(url, over, owner, channel)

    async def use(client: "Client", payer: "Payer", kept: "KeptStream", table: Table) -> "Figures":
        import trio

        key, way = bytes(kept.owed.stream), road.way(kept)
        stopping = trio.Event()
        async with AsyncExitStack() as stack:
            own = None if meter is None else await _meter(stack, meter, purse)
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(_stop_at_signal, stopping)
            await payer.open_interrupted(key)
            figures = await payer.pay(
                key,
                way,
                on_figures=shows(table, stopping),
                meter=own,
                stopping=stopping,
                closing_ms=1_000 * patience_s,
            )
            nursery.cancel_scope.cancel()
        return figures

    run_paying(purse, stream, output, use)


def run_paying(
    purse: Purse,
    digits: str,
    output: Output,
    use: "Callable[[Client, Payer, KeptStream, Table], Awaitable[Figures]]",
) -> None:
    """Run a stream with its table, then show the card of its end; exit code 1 where the deposit is not back."""
    from services.client.tasks import single_errors
    from services.stream.payer import Payer

    with purse.store() as store:
        kept = find_kept(store, digits)
        signer = purse.signer(kept.account)
        key, terms = bytes(kept.owed.stream), kept.owed.terms
        note_error_details(stream=f"0x{key.hex()}")
        parties = f"{kept.account} → {party(terms.service, names_of(purse.place))}"

        async def run(client: "Client") -> "tuple[Figures, OnChain]":
            with (
                single_errors(),
                Table(output, terms, key, parties, count_before=kept.owed.count) as table,
                speaking(output, is_silent=table.is_live),
            ):
                figures = await use(client, Payer(client, signer, store), kept, table)
            return figures, await on_chain(client, key)

        figures, found = purse.place.ask(run)
    _show_end(output, figures, found)


def shows(table: Table, stopping: "trio.Event") -> "Callable[[Figures], None]":
    """Return what brings a payer's figures into the table."""

    def see(figures: "Figures") -> None:
        note = NOTES.get(figures.status, "")
        if note and figures.trouble:
            note = f"{note} ({figures.trouble})"
        if figures.status == PAYING:
            if stopping.is_set():
                note = "ending; again Ctrl-C leaves at once …"
            elif figures.trouble:
                note = f"{figures.trouble}; trying again …"
            elif not figures.is_connected:
                note = "connecting …"
        table.see(Seen(figures.units, figures.signed_due, figures.stored_due, figures.count, note))

    return see


@contextmanager
def speaking(output: Output, *, is_silent: bool) -> Iterator[None]:
    """Say on standard error what the payer would log; nothing while a table shows it."""
    import structlog

    def say(_logger: object, name: str, entry: "EventDict") -> "EventDict":
        if not is_silent and name == "warning":
            output.progress(f"{entry.get('code', entry['event'])}: {entry.get('why', '')}; trying again")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[say], wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    try:
        yield
    finally:
        structlog.configure(**before)


def own_reason(reason: str) -> str:
    """Return in words why a stream ended for its payer."""
    return OWN_REASONS.get(reason, REASONS.get(reason, reason))


# -- inside ----------------------------------------------------------------------------------------------


async def _stop_at_signal(stopping: "trio.Event") -> None:
    """Set ``stopping`` at the first Ctrl-C; the second is the system's own again."""
    import trio

    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async for _ in signals:
            stopping.set()
            break
    await trio.sleep_forever()


async def _meter(stack: AsyncExitStack, text: str, purse: Purse) -> "Meter":
    from cli.place import network_folder
    from services.stream.meter import open_meter

    folder = purse.home or network_folder(purse.place.given) / "streams"
    found: Meter = await stack.enter_async_context(open_meter(text, folder / "meter"))
    return found


def _show_end(output: Output, figures: "Figures", found: OnChain) -> None:
    terms, record = figures.terms, found.record
    is_back = record is not None and record.status == CLOSED
    paid = 0 if record is None else record.paid
    reason = own_reason(figures.reason)
    shown: Json = {
        "supplied": f"{quantity(figures.units, terms.what)} in {figures.units:,} units",
        "signed": f"{counted(figures.signed_due, terms.unit)} in {figures.count:,} iterations",
        "ended": reason or "not yet",
    }
    shown |= chain_fields(found)
    data = {
        "stream": f"0x{figures.stream.hex()}",
        "status": figures.status,
        "reason": figures.reason or None,
        "units": figures.units,
        "what": terms.what,
        "signedDue": figures.signed_due,
        "storedDue": figures.stored_due,
        "unit": terms.unit,
        "count": figures.count,
        "trouble": figures.trouble or None,
        "ok": is_back,
        "chain": chain_json(found),
    }
    why = "the service party has not agreed in time: hansa stream withdraw takes the deposit back alone"
    if not is_back:
        data["error"] = {"code": NOT_BACK, "message": why}

    def draw(console: "Console") -> None:
        what = quantity(figures.units, terms.what)
        title = f"Paid {counted(paid, terms.unit)} for {what}" if is_back else "Ended, and the deposit is not back yet"
        panel(console, title, shown, good=is_back)
        console.print(f"stream 0x{figures.stream.hex()}", markup=False, soft_wrap=True)
        if not is_back:
            console.print(f"Next: hansa stream withdraw {figures.stream.hex()[:8]}", markup=False, soft_wrap=True)
            click.echo(f"{click.style('error', fg='red', bold=True)} {NOT_BACK}: {why}", err=True)

    output.show(data, draw)
    if not is_back:
        leave(EXIT_REFUSED)
