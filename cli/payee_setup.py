"""``hansa payee setup``: environments, platforms and their account system beside a running network."""

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli import views
from cli.options import json_option
from cli.output import Output
from cli.place import Place

if TYPE_CHECKING:
    from rich.console import Console

    from services.payee.setup import Prepared

COMMAND = "hansa network up --with payee"


@click.command("setup")
@click.option("--network", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Network folder.")
@json_option
def setup(folder: Path | None, output: Output) -> None:
    """Prepare a running network: the measurement that is allowed, folders of environments, platforms, account system.

    What is there stays. hansa network up --with payee does this, starts the programs, registers the environments and
    has each platform begin its first epoch.

    Example: hansa payee setup --network net
    """
    from services.payee.wording import EMULATED

    prepared = prepare(Place(folder, (), None), output)
    data = {
        "emulated": True,
        "measurement": f"0x{prepared.measurement.hex()}",
        "environments": {name: str(socket) for name, socket in prepared.environments.items()},
        "platforms": dict(prepared.payers_urls),
        "accounts": prepared.accounts_url,
        "homes": [str(home) for home in prepared.homes],
        "done": list(prepared.done),
    }
    shown = {
        "environments": f"{', '.join(prepared.environments)} ({EMULATED})",
        "measurement": data["measurement"],
        "platforms": [f"{name} {url}" for name, url in prepared.payers_urls.items()],
        "accounts": f"{prepared.accounts_url} (simulated money)",
        "folders": str(prepared.plan.services),
    }

    def draw(console: "Console") -> None:
        views.fields(console, "Payee codes are set up", shown)
        console.print(f"Next: {COMMAND}", markup=False, soft_wrap=True)

    output.show(data, draw)


def prepare(place: Place, output: Output) -> "Prepared":
    """Set a running network up for payee codes; errors as :func:`services.payee.setup.set_up`."""
    from cli.payee_plan import plan_of
    from services.payee.setup import set_up

    plan = plan_of(place.network)
    prepared = place.ask(lambda client: set_up(client, plan))
    for line in prepared.done:
        output.progress(f"made: {line}")
    return prepared


def finish(place: Place, prepared: "Prepared", output: Output) -> None:
    """Do what can be done once the programs run; errors as :func:`services.payee.setup.finish`."""
    from services.payee import setup as payees

    for line in place.ask(lambda client: payees.finish(client, prepared)):
        output.progress(f"made: {line}")
