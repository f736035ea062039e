"""``hansa query``: ask a contract."""

from typing import TYPE_CHECKING

import rich_click as click

from cli import views
from cli.options import json_option, network_option
from cli.output import Output
from cli.place import Place

if TYPE_CHECKING:
    from services.client.client import Client


@click.command("query")
@click.argument("contract")
@click.argument("method")
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE | NAME:=JSON]...")
@network_option
@json_option
def query(contract: str, method: str, arguments: tuple[str, ...], place: Place, output: Output) -> None:
    """Ask a contract's query on one node; for a proven value use state get.

    Example: hansa query tokens units
    """
    from services.client.calls import query_typed, value_json

    async def ask(client: "Client") -> object:
        return value_json(await query_typed(client, contract, method, arguments))

    value = place.ask(ask)
    output.show({"value": value}, lambda console: views.value(console, f"{contract}.{method}", value))
