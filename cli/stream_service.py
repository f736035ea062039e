"""``hansa stream service``: the service party: its program, the streams that it serves, their last iterations."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.options import Number, json_option, network_option
from cli.output import Output, panel, table
from cli.place import Place
from cli.stream_place import (
    SERVICE_HOME,
    StreamId,
    ask,
    counted,
    home_of,
    home_option,
    names_of,
    one_of,
    party,
    short,
    span,
    terms_fields,
    write_file,
)
from services.client.times import utc_text

if TYPE_CHECKING:
    from rich.console import Console

    from services.stream.service_interface import ServiceStatus, StreamShown

C = TypeVar("C", bound=Callable[..., Any])
T = TypeVar("T")
Json = dict[str, Any]

PAGE_DEFAULT, PAGE_MAX = 50, 500
STATUSES = ("STREAMING", "ENDING", "UPLOADED", "SETTLED", "CLAIMED", "CLOSED", "LOST")
REASONS = {
    "count": "agreed count",
    "amount": "agreed amount",
    "time": "agreed time",
    "close": "closed together",
    "deposit": "deposit used up",
    "timeout": "no payment in time",
    "wrong_amount": "wrong amount",
    "expiry": "iteration about to expire",
    "withdrawal": "payer withdraws",
    "meter": "its meter has ended it",
    "owner": "ended by its owner",
}
"""Why a stream ended, in words."""


class Door:
    """The service party a command works with."""

    def __init__(self, home: Path) -> None:
        """Read its service.toml.

        Raises:
            LocalError: ``no_home``, ``bad_config``.
        """
        from services.local.files import read_service
        from services.stream.service_config import StreamServiceFile
        from services.stream.service_interface import SERVICE_SOCKET

        self.file = read_service(home, StreamServiceFile)
        self._path = home / self.file.run / SERVICE_SOCKET

    def call(self, method: str, params: object, kind: type[T]) -> T:
        """Call one method of its socket; ``program_unreachable`` says how to start it."""
        return ask(self._path, "the service party", lambda link: link.call(method, params, kind))

    def find(self, digits: str) -> str:
        """Return the id, as 0x-hex, of the one stream that begins so; errors as of ``one_of``."""
        from services.stream.service_interface import STREAMS_PAGE_MAX, StreamsPage, StreamsQuery

        known: list[bytes] = []
        after, is_last = "", len(digits) == 64
        while not is_last:
            page = self.call("streams", StreamsQuery(after=after, limit=STREAMS_PAGE_MAX), StreamsPage)
            known += [bytes.fromhex(item.stream[2:]) for item in page.items]
            after, is_last = page.next, not page.next
        return f"0x{one_of(digits, known, 'to the service party').hex()}"


def door_options(function: C) -> C:
    """Add ``--home`` and those of the network; give the command a :class:`Door` as ``door``."""

    @home_option(SERVICE_HOME)
    @network_option
    @wraps(function)
    def command(*args: Any, home: Path | None, place: Place, **options: Any) -> Any:
        return function(*args, door=Door(home_of(SERVICE_HOME, home, place.given)), place=place, **options)

    return command  # type: ignore[return-value]


@click.group()
def service() -> None:
    """The service party: supplies as long as it is paid, keeps the last iteration, uploads it at the end."""


@service.command("serve")
@home_option(SERVICE_HOME)
@click.option("--meter", metavar="URL|demo", help="What supplies and counts; else what service.toml names.")
@click.option("--network", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Network folder.")
def serve(home: Path | None, meter: str | None, folder: Path | None) -> None:
    """Run the service party in the foreground until SIGTERM or Ctrl-C.

    A meter is asked over HTTP; demo is a charging session of an electric car, made from a seed.

    Example: hansa stream service serve --network net
    """
    import trio

    from services.local.files import changed, read_service
    from services.stream.service import run
    from services.stream.service_config import StreamServiceFile, service_settings

    place = home_of(SERVICE_HOME, home, folder)
    file = read_service(place, StreamServiceFile)
    if meter is not None:
        file = changed(place, file, {"meter": meter})
    trio.run(run, service_settings(place, file))


@service.command("status")
@door_options
@json_option
def status(door: Door, place: Place, output: Output) -> None:
    """Show what the service party takes, what it has, and what stands in its way.

    Example: hansa stream service status
    """
    import msgspec

    from services.stream.service_interface import ServiceStatus, StatusQuery

    found = door.call("status", StatusQuery(), ServiceStatus)
    output.show(msgspec.to_builtins(found), lambda console: _draw_status(console, found))


@service.command("list")
@click.option("--status", "wanted", type=click.Choice(STATUSES, case_sensitive=False), help="With this status alone.")
@click.option("--after", metavar="ID", type=StreamId(), help="Those that follow this one.")
@click.option("--limit", type=Number(1, PAGE_MAX), default=PAGE_DEFAULT, show_default=True, help="How many.")
@door_options
@json_option
def list_streams(wanted: str | None, after: str | None, limit: int, door: Door, place: Place, output: Output) -> None:
    """List the streams that the service party has, in the order of their ids.

    Example: hansa stream service list --status streaming
    """
    import msgspec

    from services.stream.service_interface import StreamsPage, StreamsQuery

    start = door.find(after) if after else ""
    page = door.call("streams", StreamsQuery((wanted or "").upper(), start, limit), StreamsPage)
    names = names_of(place)
    rows = [
        (
            short(item.stream),
            party(bytes.fromhex(str(item.terms["payer"])[2:]), names),
            item.status,
            f"{item.count:,}",
            counted(item.due, str(item.terms["unit"])),
        )
        for item in page.items
    ]

    def draw(console: "Console") -> None:
        table(console, ("stream", "payer", "status", ">iterations", ">due in all"), rows, title="Streams")
        if page.next:
            console.print(f"Next: hansa stream service list --after {page.next}", markup=False, soft_wrap=True)

    data = {"streams": [msgspec.to_builtins(item) for item in page.items], "next": page.next or None}
    output.show(data, draw)


_stream = click.argument("stream", metavar="ID", type=StreamId())


@service.command("show")
@_stream
@door_options
@json_option
def show(stream: str, door: Door, place: Place, output: Output) -> None:
    """Show a stream as the service party has it.

    Example: hansa stream service show 3f9a
    """
    from services.stream.service_interface import StreamQuery, StreamShown

    _show(door.call("stream", StreamQuery(door.find(stream)), StreamShown), place, output)


@service.command("end")
@_stream
@door_options
@json_option
def end(stream: str, door: Door, place: Place, output: Output) -> None:
    """Supply nothing more on a stream, and upload its last iteration.

    Example: hansa stream service end 3f9a
    """
    from services.stream.service_interface import StreamEnd, StreamShown

    _show(door.call("end", StreamEnd(door.find(stream)), StreamShown), place, output)


@service.command("export")
@_stream
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Where the file is written.",
)
@door_options
@json_option
def export(stream: str, out: Path, door: Door, place: Place, output: Output) -> None:
    """Write a stream's last iteration to a file, for a watcher or a claim.

    Example: hansa stream service export 3f9a --out last.json
    """
    from services.stream.iteration_file import decode_carried_untrusted
    from services.stream.service_interface import Export, Exported

    found = door.call("export", Export(door.find(stream)), Exported)
    write_file(out, found.content.encode())
    carried, _ = decode_carried_untrusted(found.content.encode())
    unit = carried.terms.unit
    shown = {"stream": found.stream, "due": f"{counted(found.due, unit)} in all", "written to": str(out)}

    def draw(console: "Console") -> None:
        panel(console, "Last iteration", shown)
        console.print(f"Next: hansa stream watch add {out}", markup=False, soft_wrap=True)

    output.show({"stream": found.stream, "due": found.due, "out": str(out)}, draw)


# -- inside ----------------------------------------------------------------------------------------------


def _show(found: "StreamShown", place: Place, output: Output) -> None:
    import msgspec

    shown = service_fields(found) | {"last heard": f"{utc_text(found.heard_ms)} UTC"}
    terms = _terms(found, place)
    good = found.status not in ("LOST",)

    def draw(console: "Console") -> None:
        panel(console, f"Stream {short(found.stream)}, as the service party has it", shown | terms, good=good)
        console.print(f"stream {found.stream}", markup=False, soft_wrap=True)

    output.show(msgspec.to_builtins(found), draw)


def service_fields(found: "StreamShown") -> Json:
    """Return how a stream stands at the service party, for people."""
    unit, what = str(found.terms["unit"]), str(found.terms["what"])
    why = f", {REASONS.get(found.reason, found.reason)}" if found.reason else ""
    shown = {
        "status": f"{found.status}{why}",
        "due": f"{counted(found.due, unit)} of {found.limit:,} at the most",
        "iterations": f"{found.count:,} stored",
        "supplied": f"{found.units:,} of {found.allowed_units:,} allowed ({what} each)",
    }
    if found.upload_id:
        shown["uploaded as"] = found.upload_id
    elif found.count:
        shown["to upload until"] = f"{utc_text(found.valid_until_ms)} UTC"
    return shown


def _terms(found: "StreamShown", place: Place) -> Json:
    from services.stream.iteration_file import terms_from_json_untrusted

    return terms_fields(terms_from_json_untrusted(found.terms), names_of(place))


def _draw_status(console: "Console", found: "ServiceStatus") -> None:
    tariff = found.tariff
    shown = {
        "account": f"{found.account} {found.address}",
        "price": f"{counted(tariff.price, tariff.unit)} for {tariff.what}",
        "a step": f"{counted(tariff.step_max, tariff.unit)} at the most, within {span(tariff.step_ms)}",
        "deposit from": counted(tariff.deposit_min, tariff.unit),
        "fine from": counted(tariff.fine_min, tariff.unit),
        "modes": tariff.modes,
        "window": span(tariff.window_ms),
        "streams": ", ".join(f"{count:,} {status}" for status, count in found.counts.items() if count) or "none",
        "since its start": f"{found.iterations:,} iterations in {found.groups:,} writes",
        "connections": found.connections,
    }
    if found.trouble:
        shown["in its way"] = found.trouble
    panel(console, "Service party", shown, good=not found.trouble)
