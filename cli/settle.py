"""``hansa settle``: settlement: an asset on the chain and its payment in an account system move both, or neither."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli import views
from cli.options import json_option, network_option
from cli.output import Output
from cli.place import Place
from cli.settle_accounts import accounts
from cli.settle_bridge import bridge
from cli.settle_events import events
from cli.settle_place import PAYER_HOME, check_database, home_of, home_option
from cli.settle_reconcile import reconcile
from cli.settle_trade import trade

if TYPE_CHECKING:
    from rich.console import Console

    from services.settlement.setup import Prepared

CENTER_HOME = "settle-center"
BANK = "bank-a"
"""The account that registers the agent and issues the unit to try."""


@click.group()
def settle() -> None:
    """Settlement: an asset on the chain and its payment in an account system move both, or neither.

    hansa network up --with settlement starts a network with all programs. On servers of their own: accounts serve,
    center serve, events serve, payer serve. All money here is simulated.
    """


settle.add_command(trade)
settle.add_command(events)
settle.add_command(accounts)
settle.add_command(reconcile)
settle.add_command(bridge)


# -- set-up ----------------------------------------------------------------------------------------------


@settle.command("setup")
@click.option(
    "--database",
    metavar="embedded|URL",
    envvar="HANSA_DATABASE",
    help="Of events and accounts: embedded, or postgresql://USER@HOST/NAME. A password belongs into HANSA_DATABASE,"
    " where no list of processes shows it.",
)
@click.option("--leave-events", is_flag=True, help="With --database: leave behind what the present one holds.")
@click.option("--allow-faults/--no-faults", "allow_faults", default=None, help="Accounts misbehave on request.")
@click.option("--network", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Network folder.")
@json_option
def setup(
    database: str | None, leave_events: bool, allow_faults: bool | None, folder: Path | None, output: Output
) -> None:
    """Prepare a running network: the agent's account, the unit BOND-1 to trade, the programs' folders.

    What is there stays; an option that is given changes service.toml, which counts from the programs' next start on.

    Example: hansa settle setup --network net --database postgresql://hansa@localhost/settlement
    """
    check_database(database)
    place = Place(folder, (), None)
    prepared = prepare(place, output, database=database, allow_faults=allow_faults, may_leave_events=leave_events)
    data = {
        "agent": f"0x{prepared.agent.address.hex()}",
        "accounts": prepared.accounts_url,
        "database": prepared.database,
        "homes": [str(home) for home in prepared.homes],
        "done": list(prepared.done),
        "restart": _outdated(place, prepared),
    }
    shown = {
        "agent": data["agent"],
        "accounts": f"{prepared.accounts_url} (simulated money)",
        "database": prepared.database,
        "programs": [home.name for home in prepared.homes],
        "folders": str(prepared.homes[0].parent),
    }
    command = "hansa network up --with settlement"
    following = f"hansa network down, then {command}" if data["restart"] else command

    def draw(console: "Console") -> None:
        views.fields(console, "Settlement is set up", shown)
        console.print(f"Next: {following}", markup=False, soft_wrap=True)

    output.show(data, draw)


def _outdated(place: Place, prepared: "Prepared") -> list[str]:
    """Return the programs that run with another ``service.toml`` than there is now."""
    from node.network.programs import SERVICE_FILE, find_programs

    changed = [
        program
        for program in find_programs(place.network, "settlement")
        if f"{program.name}/{SERVICE_FILE}" in prepared.done
    ]
    return [program.name for program in changed if program.process.pid() is not None]


def prepare(
    place: Place,
    output: Output,
    *,
    database: str | None = None,
    allow_faults: bool | None = None,
    changes: Mapping[str, object] | None = None,
    may_leave_events: bool = False,
) -> "Prepared":
    """Set a running network up for settlement; arguments as ``plan_of``, errors as ``set_up``.

    Where agency sale is set up too, the bridge between both is.
    """
    from cli.settle_plan import bridge_plan_of, plan_of
    from services.settlement.bridge_setup import set_up_bridge
    from services.settlement.setup import set_up

    network = place.network
    plan = plan_of(
        network, database=database, allow_faults=allow_faults, changes=changes, may_leave_events=may_leave_events
    )
    bank = place.signer(BANK, None, network.passphrase_file)
    prepared = place.ask(lambda client: set_up(client, bank, plan))
    other = bridge_plan_of(network)
    made = set_up_bridge(other) if other is not None else []
    for line in (*prepared.done, *made):
        output.progress(f"made: {line}")
    return prepared


def open_money(prepared: "Prepared", output: Output) -> None:
    """Open an account of simulated money for everybody, once the account system runs."""
    import trio

    from services.settlement.setup import open_people

    for line in trio.run(open_people, prepared):
        output.progress(f"made: {line}")


# -- programs --------------------------------------------------------------------------------------------


@settle.group("center")
def center() -> None:
    """The message centre between event system and payer: keeps every notice until it is seen to."""


@center.command("serve")
@home_option(CENTER_HOME)
def serve_center(home: Path | None) -> None:
    """Run the message centre in the foreground until SIGTERM or Ctrl-C.

    Example: hansa settle center serve --home net/services/settle-center
    """
    import trio

    from services.local.files import read_service
    from services.messages.config import CenterFile, center_settings
    from services.messages.program import run

    place = home_of(CENTER_HOME, home)
    trio.run(run, center_settings(place, read_service(place, CenterFile)))


@center.command("status")
@network_option
@json_option
def center_status(place: Place, output: Output) -> None:
    """Print how the message centre stands: notices that wait, how old, how many were given up for a while.

    Example: hansa settle center status
    """
    from cli.rights_center import Operator, show_status

    show_status(Operator(place, None, None, home=CENTER_HOME, system="settlement"), output)


@settle.group("payer")
def payer() -> None:
    """The payer: takes notices from the message centre and gives orders to the account system."""


@payer.command("serve")
@home_option(PAYER_HOME)
def serve_payer(home: Path | None) -> None:
    """Run the payer in the foreground until SIGTERM or Ctrl-C.

    Example: hansa settle payer serve --home net/services/settle-payer
    """
    import trio

    from services.local.files import read_service
    from services.settlement.config import PayerFile, payer_settings
    from services.settlement.payer import run

    place = home_of(PAYER_HOME, home)
    trio.run(run, payer_settings(place, read_service(place, PayerFile)))
