"""``hansa contract``: what the chain can be asked to do."""

import rich_click as click

from cli import views
from cli.options import json_option, network_option
from cli.output import Output, table
from cli.place import Place


@click.group()
def contract() -> None:
    """The contracts on the chain and how to call them."""


@contract.command("list")
@network_option
@json_option
def list_contracts(place: Place, output: Output) -> None:
    """List the active contracts.

    Example: hansa contract list
    """
    from services.client.calls import contracts

    rows = place.ask(contracts)
    cells = [(row["name"], row["version"], views.short(str(row["codeHash"]), 16)) for row in rows]
    output.show({"contracts": rows}, lambda console: table(console, ["name", ">version", "code hash"], cells))


@contract.command("describe")
@click.argument("name")
@network_option
@json_option
def describe(name: str, place: Place, output: Output) -> None:
    """Print a contract's methods, their arguments and what they do.

    Example: hansa contract describe rights
    """
    from services.client.calls import describe as describe_contract

    data = place.ask(lambda client: describe_contract(client, name))
    output.show(data, lambda console: views.contract(console, data))
