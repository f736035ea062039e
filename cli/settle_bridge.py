"""``hansa settle bridge``: confirmed purchases of the agency sale are settled by themselves."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import rich_click as click

from cli.options import json_option, network_option
from cli.output import Output, panel, table
from cli.place import Place
from cli.settle_place import home_of, home_option, money

if TYPE_CHECKING:
    from rich.console import Console

    from services.local.link import LocalLink
    from services.settlement.bridge_interface import BridgeStatus

T = TypeVar("T")

BRIDGE_HOME = "settle-bridge"
SHOWN_MAX = 20
"""How many failed sales the status shows; --json gives more."""


@click.group()
def bridge() -> None:
    """The bridge at the issuer: each purchase that agency sale confirms becomes a settlement event."""


@bridge.command("serve")
@home_option(BRIDGE_HOME)
def serve(home: Path | None) -> None:
    """Run the bridge in the foreground until SIGTERM or Ctrl-C.

    Example: hansa settle bridge serve --home net/services/settle-bridge
    """
    import trio

    from services.local.files import read_service
    from services.settlement.bridge import run
    from services.settlement.bridge_config import BridgeFile, bridge_settings

    place = home_of(BRIDGE_HOME, home)
    trio.run(run, bridge_settings(place, read_service(place, BridgeFile)))


@bridge.command("status")
@network_option
@json_option
def status(place: Place, output: Output) -> None:
    """Show how many purchases are settled, what stands in the way, and which sales failed.

    Example: hansa settle bridge status
    """
    import msgspec

    from services.settlement.bridge_interface import BridgeStatus, BridgeStatusQuery

    found = _ask(place, lambda link: link.call("status", BridgeStatusQuery(), BridgeStatus))
    output.show(msgspec.to_builtins(found), lambda console: _draw(console, found))


@bridge.command("retry")
@click.argument("sales", metavar="[SALE]…", nargs=-1)
@network_option
@json_option
def retry(sales: tuple[str, ...], place: Place, output: Output) -> None:
    """Try failed sales again, all of them where none is named; settled ones stay settled.

    Example: hansa settle bridge retry
    """
    from services.settlement.bridge_interface import Retried, Retry

    found = _ask(place, lambda link: link.call("retry", Retry([*sales]), Retried))
    shown: dict[str, object] = {"opened again": found.count}
    if (other := len({*sales}) - found.count) > 0:
        shown["left alone"] = f"{other}, for no failed sale has that id: hansa settle bridge status"
    output.show({"opened": found.count}, lambda console: panel(console, "Bridge", shown))


def _ask(place: Place, use: "Callable[[LocalLink], Awaitable[T]]") -> T:
    """Run a function with a link to the bridge.

    Raises:
        Unreachable: ``program_unreachable``, saying how to start it.
    """
    import trio

    from services.client.errors import Unreachable
    from services.local.link import LocalLink
    from services.settlement.bridge_config import BRIDGE_SOCKET

    path = home_of(BRIDGE_HOME, None, place) / "run" / BRIDGE_SOCKET

    async def run() -> T:
        async with LocalLink(path) as link:
            return await use(link)

    try:
        return trio.run(run)
    except Unreachable as error:
        if error.code != "program_unreachable":
            raise
        way = "hansa network up --with agency,settlement starts it beside both systems"
        raise Unreachable(f"the bridge does not answer on {path}: {way}", code=error.code) from None


def _draw(console: "Console", found: "BridgeStatus") -> None:
    trouble = {name: text for name, text in found.trouble.items() if text}
    shown = {name.lower(): count for name, count in found.totals.items()} | trouble
    panel(console, "Settlement bridge", shown, good=not trouble and not found.failed)
    rows = [(sale.id, sale.code, f"{money(sale.price)} {sale.currency}") for sale in found.failed[:SHOWN_MAX]]
    if rows:
        table(console, ("sale", "why", ">price"), rows, title="Failed")
        if (more := found.totals.get("FAILED", 0) - len(rows)) > 0:
            console.print(f"… and {more} more", markup=False)
        console.print("Next: hansa settle bridge retry, once what stood in the way is mended", markup=False)
