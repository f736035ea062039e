"""``hansa state``: contract state, proven."""

from typing import cast

import rich_click as click

from cli import views
from cli.options import Number, json_option, network_option
from cli.output import Output
from cli.place import Place


@click.group()
def state() -> None:
    """Read contract state."""


@state.command("get")
@click.argument("key")
@network_option
@json_option
def get(key: str, place: Place, output: Output) -> None:
    """Read the value at a key (CONTRACT/KEY) as of the last sealed block, and check its proof.

    Example: hansa state get membership/validators
    """
    from services.client.calls import read_state

    data = place.ask(lambda client: read_state(client, key))
    title = "Present" if data["present"] else "Absent: there is no value at this key"
    output.show(data, lambda console: views.fields(console, title, data))


@state.command("scan")
@click.argument("prefix")
@click.option("--limit", metavar="N", type=Number(1, 500), default=50, show_default=True, help="How many keys.")
@click.option("--cursor", metavar="KEY", help="Go on behind this key, as the page before said.")
@network_option
@json_option
def scan(prefix: str, limit: int, cursor: str | None, place: Place, output: Output) -> None:
    """List the keys that begin with a prefix, with their newest values: one node's word, proven one by one by get.

    Example: hansa state scan rights/user/
    """
    from services.client.calls import scan_state

    page = place.ask(lambda client: scan_state(client, prefix, cursor=cursor, limit=limit))
    items = cast(list[dict[str, object]], page["items"])
    output.show(page, lambda console: views.pairs(console, items))
