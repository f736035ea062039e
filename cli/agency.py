"""``hansa agency``: agency sale (代销): the programs, terms, orders and records, evidence."""

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli import views
from cli.agency_evidence import COMMANDS as EVIDENCE
from cli.agency_evidence import allot
from cli.agency_orders import COMMANDS as ORDERS
from cli.agency_sample import sample
from cli.agency_terms import terms
from cli.options import json_option
from cli.output import Output
from cli.place import Place

if TYPE_CHECKING:
    from rich.console import Console

    from services.agency.setup import Prepared

_home = click.option(
    "--home",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder with service.toml, such as net/services/bank-a-gateway.",
)


@click.group()
def agency() -> None:
    """Agency sale: a bank sells an issuer's products over a private channel.

    hansa network up --with agency starts a network with all programs. On servers of their own: gateway serve beside
    each node, sales serve at the bank, issuer serve at the issuer.
    """


agency.add_command(terms)
for _command in (sample, *ORDERS, *EVIDENCE):
    agency.add_command(_command)


# -- programs --------------------------------------------------------------------------------------------


@agency.command("setup")
@click.option("--network", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Network folder.")
@json_option
def setup(folder: Path | None, output: Output) -> None:
    """Prepare a running network: business keys, parties, products, an agreement, channels, terms, programs' folders.

    What is there stays, and what is missing is made. All keys are those of the network's folder.

    Example: hansa agency setup --network net
    """
    prepared = prepare(Place(folder, (), None), output)
    data = {
        "channels": list(prepared.channels),
        "products": list(prepared.products),
        "homes": [str(home) for home in prepared.homes],
        "done": list(prepared.done),
    }
    shown = {
        "channels": list(prepared.channels),
        "products": list(prepared.products),
        "programs": [home.name for home in prepared.homes],
        "folders": str(prepared.homes[0].parent),
    }

    def draw(console: "Console") -> None:
        views.fields(console, "Agency sale is set up", shown)
        console.print("Next: hansa network up --with agency", markup=False, soft_wrap=True)

    output.show(data, draw)


def prepare(place: Place, output: Output) -> "Prepared":
    """Set a running network up for agency sale; errors as ``set_up``."""
    from cli.agency_plan import plan_of
    from services.agency.setup import set_up

    plan = plan_of(place.network)
    prepared = place.ask(lambda client: set_up(client, plan))
    for line in prepared.done:
        output.progress(f"made: {line}")
    return prepared


@agency.group("gateway")
def gateway() -> None:
    """The gateway: sales-node and issuer-node parts beside a node, on its owner socket."""


@gateway.command("serve")
@_home
def serve_gateway(home: Path) -> None:
    """Run an institution's gateway in the foreground until SIGTERM or Ctrl-C.

    Example: hansa agency gateway serve --home net/services/bank-a-gateway
    """
    import trio

    from services.agency.config import GatewayFile, gateway_settings
    from services.agency.gateway import run
    from services.local.files import read_service

    trio.run(run, gateway_settings(home, read_service(home, GatewayFile)))


@agency.group("sales")
def sales() -> None:
    """The sales end: the bank's business system, with its orders and records."""


@sales.command("serve")
@_home
def serve_sales(home: Path) -> None:
    """Run a bank's sales end in the foreground until SIGTERM or Ctrl-C.

    Example: hansa agency sales serve --home net/services/bank-a-sales
    """
    import trio

    from services.agency.config import SalesFile, sales_settings
    from services.agency.sales import run
    from services.local.files import read_service

    trio.run(run, sales_settings(home, read_service(home, SalesFile)))


@agency.group("issuer")
def issuer() -> None:
    """The issuer end: the issuer's register of users and holdings, which confirms each order."""


issuer.add_command(allot)


@issuer.command("serve")
@_home
def serve_issuer(home: Path) -> None:
    """Run an issuer's end in the foreground until SIGTERM or Ctrl-C.

    Example: hansa agency issuer serve --home net/services/issuer-c-end
    """
    import trio

    from services.agency.config import IssuerFile, issuer_settings
    from services.agency.issuer import run
    from services.local.files import read_service

    trio.run(run, issuer_settings(home, read_service(home, IssuerFile)))
