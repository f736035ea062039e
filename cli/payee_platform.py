"""``hansa payee platform``: payment platforms: the program, records of merchants, keys, payments."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cli.options import Number, json_option
from cli.output import Output, panel, table
from cli.payee_door import Door, door_options, home_of, home_option
from cli.payee_records import add, records, remove, update
from cli.place import Place
from cli.settle_accounts import SIMULATED
from cli.settle_place import decimal_text, money
from consensus.ledger.errors import LocalError
from services.client.times import utc_text
from services.payee.wording import EMULATED

if TYPE_CHECKING:
    from rich.console import Console

    from services.payee.interfaces import Payment, PlatformStatus

Json = dict[str, Any]

PAGE_DEFAULT, PAGE_MAX = 50, 500
ROTATE_MS_MAX = 600_000
"""How long a rotation is waited for; interrupted, the same command goes on."""


@click.group()
def platform() -> None:
    """Payment platforms: each has encrypted records of its merchants on the chain, and pays over an account system.

    All money here is simulated. The environments that open records are emulated, without hardware isolation.
    """


@platform.command("serve")
@click.argument("server", metavar="[PLATFORM]", required=False)
@home_option
@click.option("--network", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Network folder.")
def serve(server: str | None, home: Path | None, folder: Path | None) -> None:
    """Run a platform in the foreground until SIGTERM or Ctrl-C.

    Example: hansa payee platform serve wallet-p
    """
    import trio

    from services.local.files import read_service
    from services.payee.platform import run
    from services.payee.platform_config import PlatformFile, platform_settings

    place = home_of(folder, server, home)
    trio.run(run, platform_settings(place, read_service(place, PlatformFile)))


for command in (add, update, remove, records):
    platform.add_command(command)


# -- keys ------------------------------------------------------------------------------------------------

_environments = click.argument("environments", metavar="ENVIRONMENT…", nargs=-1, required=True)


@platform.command("status")
@door_options
@json_option
def status(door: Door, place: Place, output: Output) -> None:
    """Show a platform: its epoch, which environments can open its records, what it has.

    Example: hansa payee platform status --platform wallet-p
    """
    from services.payee.interfaces import NoParams, PlatformStatus

    found = door.call("status", NoParams(), PlatformStatus)
    output.show(_status_json(found), lambda console: _draw_status(console, found))


@platform.command("rotate")
@_environments
@door_options
@json_option
def rotate(environments: tuple[str, ...], door: Door, place: Place, output: Output) -> None:
    """Begin a new epoch for these environments alone, and encrypt all records anew.

    So an environment is trusted no longer. What it could read before stays exposed to it. Interrupted, the same
    command goes on. Environments are emulated, without hardware isolation.

    Example: hansa payee platform rotate bank-a --platform wallet-p
    """
    from services.payee.interfaces import Rotate, Rotated

    asked = Rotate(_names(environments))
    output.progress(f"{door.server} begins an epoch and encrypts its records anew")
    found = door.call("rotate", asked, Rotated, timeout_ms=ROTATE_MS_MAX)
    data = {
        "platform": door.server,
        "epoch": found.epoch,
        "encrypted": found.encrypted,
        "environments": sorted(set(environments)),
        "isolation": EMULATED,
    }
    shown = {
        "epoch": found.epoch,
        "records encrypted anew": found.encrypted,
        "environments": f"{', '.join(sorted(set(environments)))} ({EMULATED})",
    }

    def draw(console: "Console") -> None:
        panel(console, f"{door.server} has a new key", shown)
        console.print("What an environment could read before stays exposed to it.", markup=False)

    output.show(data, draw)


@platform.command("trust")
@_environments
@door_options
@json_option
def trust(environments: tuple[str, ...], door: Door, place: Place, output: Output) -> None:
    """Give more environments the key of the epoch in force.

    Environments are emulated, without hardware isolation.

    Example: hansa payee platform trust issuer-c --platform wallet-p
    """
    from services.payee.interfaces import PlatformStatus, Trust

    found = door.call("trust", Trust(_names(environments)), PlatformStatus)
    output.show(_status_json(found), lambda console: _draw_status(console, found))


@platform.command("register")
@click.option("--replace", "is_replacing", is_flag=True, help="Where the chain has another key: make it this vault's.")
@door_options
@json_option
def register(is_replacing: bool, door: Door, place: Place, output: Output) -> None:
    """Register the platform's key on the chain; a platform does so by itself at its first start.

    After its vault was lost, --replace goes on with a new key: then rotate, and add the records anew.

    Example: hansa payee platform register --replace --platform wallet-p
    """
    from services.payee.interfaces import PlatformStatus, Register

    found = door.call("register", Register(is_replacing), PlatformStatus)
    output.show(_status_json(found), lambda console: _draw_status(console, found))


# -- payments --------------------------------------------------------------------------------------------


@platform.command("payments")
@click.option("--merchant", "identity", metavar="IDENTITY", default="", help="Of this merchant alone.")
@click.option("--limit", type=Number(1, PAGE_MAX), default=PAGE_DEFAULT, show_default=True, help="How many.")
@door_options
@json_option
def payments(identity: str, limit: int, door: Door, place: Place, output: Output) -> None:
    """List payments, the newest first. The money is simulated.

    Example: hansa payee platform payments --platform wallet-p
    """
    from services.payee.identity import identity_of
    from services.payee.interfaces import Payments, PaymentsQuery

    if identity:
        identity_of(identity)
    found = door.call("payments", PaymentsQuery(identity, limit), Payments).items
    cells = [(one.order, f"{money(one.amount)} {one.currency}", one.payer, _state_text(one)) for one in found]
    title = f"Payments of {door.server} ({SIMULATED})"

    def draw(console: "Console") -> None:
        table(console, ("order", ">amount", "payer", "paid"), cells, title=title)

    data = {"platform": door.server, "money": SIMULATED, "payments": [_payment_json(one) for one in found]}
    output.show(data, draw)


# -- inside ----------------------------------------------------------------------------------------------


def _names(environments: tuple[str, ...]) -> list[str]:
    """Return names of environments; ``LocalError`` ``bad_name`` for what is none."""
    import msgspec

    from services.payee.interfaces import EnvironmentText

    try:
        return msgspec.convert([*environments], list[EnvironmentText])
    except msgspec.ValidationError:
        raise LocalError("bad_name", "an environment's name has 1 to 32 of a-z 0-9 -") from None


def _status_json(found: "PlatformStatus") -> Json:
    return {
        "platform": found.server,
        "key": f"0x{found.key.hex()}",
        "trouble": found.trouble or None,
        "epoch": found.epoch,
        "environments": found.environments,
        "isolation": EMULATED,
        "records": found.records,
        "more": found.is_more,
        "outdated": found.outdated,
        "lost": found.lost,
        "payments": found.payments,
        "unfinished": found.unfinished,
        "money": SIMULATED,
    }


def _draw_status(console: "Console", found: "PlatformStatus") -> None:
    from services.payee.interfaces import RECORDS_COUNTED_MAX

    shown: Json = {"key": f"0x{found.key.hex()}", "epoch": found.epoch or "none yet: hansa payee platform rotate"}
    shown["environments"] = f"{', '.join(found.environments) or 'none'} ({EMULATED})"
    shown["records"] = f"{found.records} of the first {RECORDS_COUNTED_MAX:,}" if found.is_more else found.records
    if found.outdated:
        shown["under an old key"] = f"{found.outdated}: hansa payee platform rotate encrypts them anew"
    if found.lost:
        shown["key lost"] = f"{found.lost}: their merchants have to sign again, hansa payee platform update"
    shown["payments"] = f"{found.payments}, {found.unfinished} unfinished ({SIMULATED})"
    if found.trouble:
        shown["trouble"] = found.trouble
    panel(console, f"Platform {found.server}", shown, good=not found.trouble and not found.lost)


def _payment_json(one: "Payment") -> Json:
    return {
        "identity": one.identity,
        "order": one.order,
        "payer": one.payer,
        "payee": one.payee,
        "amount": decimal_text(one.amount),
        "currency": one.currency,
        "state": one.state,
        "code": one.code or None,
        "event": one.event,
        "timeMs": one.time_ms or None,
    }


def _state_text(one: "Payment") -> str:
    """Return when it was paid, else how it stands."""
    return utc_text(one.time_ms)[:19] if one.state == "PAID" else f"{one.state} {one.code}".rstrip()
