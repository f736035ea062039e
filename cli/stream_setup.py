"""``hansa stream setup``: service party and watcher beside a running network."""

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli import views
from cli.options import json_option
from cli.output import Output
from cli.place import Place

if TYPE_CHECKING:
    from rich.console import Console

    from services.stream.setup import Prepared

COMMAND = "hansa network up --with stream"


@click.command("setup")
@click.option("--network", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Network folder.")
@json_option
def setup(folder: Path | None, output: Output) -> None:
    """Prepare a running network: a unit to pay in, folders of service party and watcher.

    What is there stays. hansa network up --with stream does this and starts the programs.

    Example: hansa stream setup --network net
    """
    from services.stream.setup import PAYER, SERVICE, UNIT

    prepared = prepare(Place(folder, (), None), output)
    data = {
        "service": prepared.service_url,
        "watcher": prepared.watcher_url,
        "unit": UNIT,
        "homes": [str(home) for home in prepared.homes],
        "done": list(prepared.done),
    }
    shown = {
        "service party": f"{prepared.service_url} ({SERVICE})",
        "watcher": prepared.watcher_url,
        "payer": f"{PAYER}, in {UNIT} (simulated money)",
        "folders": str(prepared.homes[0].parent),
    }

    def draw(console: "Console") -> None:
        views.fields(console, "Payment streams are set up", shown)
        console.print(f"Next: {COMMAND}", markup=False, soft_wrap=True)

    output.show(data, draw)


def prepare(place: Place, output: Output) -> "Prepared":
    """Set a running network up for payment streams; errors as :func:`services.stream.setup.set_up`."""
    from cli.stream_plan import plan_of
    from services.stream.setup import ISSUER, set_up

    network = place.network
    plan = plan_of(network)
    issuer = place.signer(ISSUER, None, network.passphrase_file)
    prepared = place.ask(lambda client: set_up(client, issuer, plan))
    for line in prepared.done:
        output.progress(f"made: {line}")
    return prepared
