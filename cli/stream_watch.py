"""``hansa stream watch``: the watcher settles or claims for a service party that is offline."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.options import Number, json_option, network_option
from cli.output import Output, panel, table
from cli.place import Place
from cli.stream_iteration import read_file
from cli.stream_place import WATCHER_HOME, StreamId, ask, counted, full_id, home_of, home_option, short
from consensus.ledger.errors import PeerError
from services.client.times import utc_text

if TYPE_CHECKING:
    from rich.console import Console

    from services.stream.watcher_interface import Watched

C = TypeVar("C", bound=Callable[..., Any])
T = TypeVar("T")
Json = dict[str, Any]

PAGE_DEFAULT, PAGE_MAX = 50, 500


class Door:
    """The watcher a command works with."""

    def __init__(self, home: Path) -> None:
        """Read its service.toml.

        Raises:
            LocalError: ``no_home``, ``bad_config``.
        """
        from services.local.files import read_service
        from services.stream.config import WATCHER_SOCKET, WatcherFile

        self._path = home / read_service(home, WatcherFile).run / WATCHER_SOCKET

    def call(self, method: str, params: object, kind: type[T]) -> T:
        """Call one method of its socket; ``program_unreachable`` says how to start it."""
        return ask(self._path, "the watcher", lambda link: link.call(method, params, kind))


def door_options(function: C) -> C:
    """Add ``--home`` and those of the network; give the command a :class:`Door` as ``door``."""

    @home_option(WATCHER_HOME)
    @network_option
    @wraps(function)
    def command(*args: Any, home: Path | None, place: Place, **options: Any) -> Any:
        return function(*args, door=Door(home_of(WATCHER_HOME, home, place.given)), **options)

    return command  # type: ignore[return-value]


@click.group()
def watch() -> None:
    """A watcher has copies of last iterations, and settles or claims when their time comes.

    What it does pays the service party alone, so that anyone may run one.
    """


@watch.command("serve")
@home_option(WATCHER_HOME)
@click.option("--network", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Network folder.")
def serve(home: Path | None, folder: Path | None) -> None:
    """Run the watcher in the foreground until SIGTERM or Ctrl-C.

    Example: hansa stream watch serve --network net
    """
    import trio

    from services.local.files import read_service
    from services.stream.config import WatcherFile
    from services.stream.watcher import run, watcher_settings

    place = home_of(WATCHER_HOME, home, folder)
    trio.run(run, watcher_settings(place, read_service(place, WatcherFile)))


@watch.command("add")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--now", "is_urgent", is_flag=True, help="Settle at once, and not only when its time comes.")
@door_options
@json_option
def add(file: Path, is_urgent: bool, door: Door, output: Output) -> None:
    """Give the watcher an iteration; one of a lower total than it has changes nothing.

    Example: hansa stream watch add last.json
    """
    from services.stream.watcher_interface import Watch, Watched

    try:
        content = read_file(file).decode()
    except UnicodeDecodeError:
        raise PeerError("malformed", f"{file}: no file of an iteration") from None
    _show(door.call("watch", Watch(content, is_urgent), Watched), output)


@watch.command("show")
@click.argument("stream", metavar="ID", type=StreamId())
@door_options
@json_option
def show(stream: str, door: Door, output: Output) -> None:
    """Show a stream as the watcher has it.

    Example: hansa stream watch show 0x3f9a…
    """
    from services.stream.watcher_interface import Watched, WatchedQuery

    _show(door.call("stream", WatchedQuery(f"0x{full_id(stream).hex()}"), Watched), output)


@watch.command("status")
@click.option("--limit", type=Number(1, PAGE_MAX), default=PAGE_DEFAULT, show_default=True, help="How many streams.")
@click.option("--after", metavar="ID", type=StreamId(), help="Streams that follow this one.")
@door_options
@json_option
def status(limit: int, after: str | None, door: Door, output: Output) -> None:
    """Show what the watcher watches, and what stands in its way.

    Example: hansa stream watch status
    """
    import msgspec

    from services.stream.watcher_interface import StatusQuery, WatchedListQuery, WatchedPage, WatcherStatus

    found = door.call("status", StatusQuery(), WatcherStatus)
    start = f"0x{full_id(after).hex()}" if after else ""
    page = door.call("streams", WatchedListQuery(start, limit), WatchedPage)
    shown = {
        "account": f"{found.account} {found.address}",
        "streams": ", ".join(f"{count:,} {name}" for name, count in found.counts.items() if count) or "none",
    }
    if found.trouble:
        shown["in its way"] = found.trouble
    rows = [
        (
            short(item.stream),
            item.status + (f" {item.trouble}" if item.trouble else ""),
            counted(item.due, item.unit),
            f"{item.paid:,}",
            utc_text(item.settles_at_ms)[:19],
        )
        for item in page.items
    ]

    def draw(console: "Console") -> None:
        panel(console, "Watcher", shown, good=not found.trouble)
        if rows:
            table(console, ("stream", "status", ">due", ">paid", "settles at (UTC)"), rows)
        else:
            console.print("Next: hansa stream watch add FILE", markup=False)
        if page.next:
            console.print(f"Next: hansa stream watch status --after {page.next}", markup=False, soft_wrap=True)

    items = [msgspec.to_builtins(item) for item in page.items]
    output.show({**msgspec.to_builtins(found), "streams": items, "next": page.next or None}, draw)


def _show(found: "Watched", output: Output) -> None:
    import msgspec

    shown = {
        "status": found.status + (f", {found.trouble}" if found.trouble else ""),
        "due": f"{counted(found.due, found.unit)} in all",
        "paid": f"{counted(found.paid, found.unit)} in all" + (f", and a fine of {found.fine:,}" if found.fine else ""),
        "settles at": f"{utc_text(found.settles_at_ms)} UTC",
        "valid until": f"{utc_text(found.valid_until_ms)} UTC",
    }
    if found.transaction:
        shown["transaction"] = found.transaction

    def draw(console: "Console") -> None:
        panel(console, f"Stream {short(found.stream)}, watched", shown, good=not found.trouble)
        console.print(f"stream {found.stream}", markup=False, soft_wrap=True)

    output.show(msgspec.to_builtins(found), draw)
