"""``hansa rights``: reward rights: the programs, campaigns and prices, users with their proven history."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cli import views
from cli.options import Number, json_option, network_option, signer_options
from cli.output import EXIT_REFUSED, Output, leave, note_error_details, table
from cli.place import Place, network_folder, read_genesis
from cli.rights_center import dead_letters, refused, status
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from rich.console import Console

    from consensus.ledger.transaction import Transaction
    from services.client.client import Client
    from services.local.files import F
    from services.rights.history import History
    from services.rights.setup import Prepared

Json = dict[str, Any]

BUSINESS = "shop"
"""The account of the business server in the default consortium."""
BUSINESS_ROLE = "business-server"
AMOUNT_MAX = 2**63 - 1
PRICE_MAX = 10**15
PAGE = 100
ENTRIES_MAX = 10_000
"""How many history entries of a user are shown; a history file holds them all."""

_store = click.option(
    "--store", metavar="embedded|URL", help="What keeps the messages: embedded, or redis://HOST:PORT."
)
_rate = click.option("--rate", metavar="N", type=click.FloatRange(0, min_open=True), help="Deliveries per second.")
_strict = click.option("--strict", is_flag=True, help="Deliver in one global order instead of one order a lane.")
_server = click.option(
    "--server", metavar="NAME|0x…", help="The business server whose user it is; else the only one of genesis."
)


def _home_option(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--home",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help=f"Folder with service.toml; else services/{name} of the network.",
    )


@click.group()
def rights() -> None:
    """Reward rights under flash-sale load: programs, campaigns, users, messages.

    hansa network up --with rights starts a network with all programs. On servers of their own: setup, then
    center serve, business serve, server serve.
    """


rights.add_command(status)
rights.add_command(dead_letters)
rights.add_command(refused)


# -- programs --------------------------------------------------------------------------------------------


@rights.command("setup")
@_rate
@_store
@click.option("--leave-messages", is_flag=True, help="With --store: leave behind what the present store holds.")
@click.option("--strict/--lanes", "strict", default=None, help="One global order, or one order a lane.")
@click.option(
    "--as", "name", metavar="NAME", default=BUSINESS, show_default=True, help="The business server's account, an admin."
)
@click.option("--network", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Network folder.")
@json_option
def setup(
    rate: float | None,
    store: str | None,
    leave_messages: bool,
    strict: bool | None,
    name: str,
    folder: Path | None,
    output: Output,
) -> None:
    """Prepare a running network for rights: keys, account, what is appointed on the chain, folders of the programs.

    What is there stays; an option that is given changes service.toml, which counts from the program's next start on.
    Messages do not move to another store: it is refused while the present one holds waiting ones or dead letters.

    Example: hansa rights setup --network net --rate 500
    """
    place = Place(folder, (), None)
    prepared = prepare(place, name, output, rate=rate, store=store, strict=strict, may_leave_messages=leave_messages)
    data = {
        "business": prepared.business_url,
        "center": prepared.center,
        "eventKey": prepared.event_key,
        "rightsServer": "0x" + prepared.rights_server.address.hex(),
        "homes": [str(home) for home in prepared.homes],
        "done": list(prepared.done),
        "restart": _outdated(place, prepared),
    }
    if store is not None and "rights-center" in data["restart"]:
        output.progress("until it is restarted the message centre takes messages into the store it had: restart it now")
    command = "hansa network up --with rights"
    following = f"hansa network down, then {command}" if data["restart"] else command

    def draw(console: "Console") -> None:
        views.fields(console, "Rights are set up", data)
        console.print(f"Next: {following}", markup=False, soft_wrap=True)

    output.show(data, draw)


def _outdated(place: Place, prepared: "Prepared") -> list[str]:
    """Return the programs that run with another ``service.toml`` than there is now."""
    from node.network.programs import SERVICE_FILE, find_programs

    changed = [program for program in find_programs(place.network) if f"{program.name}/{SERVICE_FILE}" in prepared.done]
    return [program.name for program in changed if program.process.pid() is not None]


def prepare(
    place: Place,
    name: str,
    output: Output,
    *,
    rate: float | None = None,
    store: str | None = None,
    strict: bool | None = None,
    may_leave_messages: bool = False,
) -> "Prepared":
    """Set a running network up for rights, the account ``name`` being the business server's; errors as ``set_up``."""
    from cli.rights_plan import plan_of
    from services.rights.setup import set_up

    network = place.network
    plan = plan_of(network, rate_per_s=rate, store=store, is_strict=strict, may_leave_messages=may_leave_messages)
    signer = place.signer(name, None, network.passphrase_file)  # the programs open their keys with it too
    prepared = place.ask(lambda client: set_up(client, signer, plan))
    for line in prepared.done:
        output.progress(f"made: {line}")
    return prepared


@rights.group("business")
def business() -> None:
    """The business server: takes orders over HTTP and answers once they are durable."""


@business.command("serve")
@_home_option("rights-business")
@click.option("--direct", metavar="KEY", help="Submit each order by itself under this key, without a message centre.")
@click.option("--strict", is_flag=True, help="With --direct: one order in flight.")
def serve_business(home: Path | None, direct: str | None, strict: bool) -> None:
    """Run the business server in the foreground until SIGTERM or Ctrl-C.

    Example: hansa rights business serve --home net/services/rights-business
    """
    import msgspec
    import trio

    from services.rights.business import run
    from services.rights.config import BusinessFile, business_settings

    place, file = _service(home, "rights-business", BusinessFile)
    file = msgspec.structs.replace(file, direct=direct or file.direct, direct_strict=strict or file.direct_strict)
    if strict and not file.direct:
        raise click.UsageError("--strict needs --direct KEY: the message centre has its own")
    trio.run(run, business_settings(place, file))


@rights.group("center")
def center() -> None:
    """The message centre: keeps all messages and delivers them in turn, no faster than its rate."""


@center.command("serve")
@_home_option("rights-center")
@_store
@_rate
@_strict
def serve_center(home: Path | None, store: str | None, rate: float | None, strict: bool) -> None:
    """Run the message centre in the foreground until SIGTERM or Ctrl-C.

    Options count before service.toml.

    Example: hansa rights center serve --home net/services/rights-center --rate 500
    """
    import trio

    from services.local.files import changed
    from services.messages.config import CenterFile, center_settings
    from services.messages.program import run

    place, file = _service(home, "rights-center", CenterFile)
    options = {"store": store, "rate_per_s": rate, "strict": strict or None}
    file = changed(place, file, {name: value for name, value in options.items() if value is not None})
    trio.run(run, center_settings(place, file))


@rights.group("server")
def server() -> None:
    """The rights server: consumes messages, packs them into transactions, acknowledges what is final."""


@server.command("serve")
@_home_option("rights-server")
def serve_server(home: Path | None) -> None:
    """Run the rights server in the foreground until SIGTERM or Ctrl-C.

    Example: hansa rights server serve --home net/services/rights-server
    """
    import trio

    from services.rights.config import ServerFile, server_settings
    from services.rights.server import run

    trio.run(run, server_settings(*_service(home, "rights-server", ServerFile)))


def _service(home: Path | None, name: str, kind: "type[F]") -> "tuple[Path, F]":
    """Return a program's folder and what its file says.

    Raises:
        LocalError: ``no_home``, ``bad_config``.
    """
    from services.local.files import read_service

    place = home or network_folder(None) / "services" / name
    return place, read_service(place, kind)


# -- campaigns and prices --------------------------------------------------------------------------------


@rights.group("campaign")
def campaign() -> None:
    """Campaigns: what may be given away, and by which rule."""


@campaign.command("create")
@click.argument("name_of_campaign", metavar="NAME")
@click.option("--quota", metavar="N", type=Number(1, AMOUNT_MAX), required=True, help="Smallest units in all.")
@click.option("--order-max", metavar="N", type=Number(1, AMOUNT_MAX), help="Smallest units of one order at the most.")
@click.option(
    "--share-basis-points",
    metavar="N",
    type=Number(1, 1_000_000),
    help="What of an order's amount is given, in 1/10,000; else all of it.",
)
@signer_options
@network_option
@json_option
def create_campaign(
    name_of_campaign: str,
    quota: int,
    order_max: int | None,
    share_basis_points: int | None,
    name: str,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Open a campaign, and wait until it is final.

    Example: hansa rights campaign create summer --quota 1000000 --as shop
    """
    tokens = [f"campaign={name_of_campaign}", f"quota={quota}"]
    tokens += [f"order_max={order_max}"] if order_max is not None else []
    tokens += [f"share_basis_points={share_basis_points}"] if share_basis_points is not None else []
    _call("open_campaign", tokens, name, keys, passphrase_file, place, output)


@campaign.command("show")
@click.argument("name", required=False)
@network_option
@json_option
def show_campaign(name: str | None, place: Place, output: Output) -> None:
    """Print a campaign, or all: rule, quota, what is left of it, and the totals of its orders.

    One node is asked and believed.

    Example: hansa rights campaign show summer
    """
    if name is not None:
        value = _query(place, "campaign", [f"campaign={name}"])
        output.show({"campaign": value}, lambda console: views.fields(console, f"Campaign {name}", value))
        return
    found: list[Json] = []
    while len(page := _query(place, "campaigns", [f"start={found[-1]['campaign'] if found else ''}"])) > bool(found):
        found += page[bool(found) :]  # a page begins with the last one of the page before
    columns = [">quota", ">left", ">reserved", ">granted", ">revoked", ">refunded"]
    rows = [[item["campaign"], item["isClosed"], *(item[column.lstrip(">")] for column in columns)] for item in found]
    output.show({"campaigns": found}, lambda console: table(console, ["campaign", "closed", *columns], rows))


@campaign.command("close")
@click.argument("name_of_campaign", metavar="NAME")
@signer_options
@network_option
@json_option
def close_campaign(
    name_of_campaign: str,
    name: str,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Close a campaign: no new orders; those that it has go on.

    Example: hansa rights campaign close summer --as shop
    """
    _call("close_campaign", [f"campaign={name_of_campaign}"], name, keys, passphrase_file, place, output)


@rights.group("price")
def price() -> None:
    """Prices of what rights are redeemed for."""


@price.command("set")
@click.argument("item")
@click.argument("amount", metavar="N", type=Number(0, PRICE_MAX))
@signer_options
@network_option
@json_option
def set_price(
    item: str, amount: int, name: str, keys: Path | None, passphrase_file: Path | None, place: Place, output: Output
) -> None:
    """Set what one of an item costs from now on, in smallest units; 0 takes it off.

    Example: hansa rights price set coffee 30 --as shop
    """
    _call("set_price", [f"item={item}", f"price={amount}"], name, keys, passphrase_file, place, output)


@price.command("list")
@_server
@network_option
@json_option
def list_prices(server: str | None, place: Place, output: Output) -> None:
    """List the prices of a business server's items; one node is asked and believed.

    Example: hansa rights price list
    """
    address = f"server=0x{_server_address(place, server).hex()}"
    found: list[Json] = []
    while len(page := _query(place, "prices", [address, f"start={found[-1]['item'] if found else ''}"])) > bool(found):
        found += page[bool(found) :]
    rows = [(item["item"], item["price"], item["version"]) for item in found]
    output.show({"prices": found}, lambda console: table(console, ["item", ">price", ">version"], rows))


# -- users -----------------------------------------------------------------------------------------------


@rights.command("user")
@click.argument("user")
@_server
@click.option("--history", "with_history", is_flag=True, help="Every change of the balance too.")
@click.option("--prove", is_flag=True, help="Fetch the whole history with its proof, and check it here.")
@click.option(
    "--out", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="With --prove: keep it as a file."
)
@network_option
@json_option
def show_user(
    user: str, server: str | None, with_history: bool, prove: bool, out: Path | None, place: Place, output: Output
) -> None:
    """Print a user's rights; with --prove nothing is believed, and what is shown is complete.

    Example: hansa rights user u-17 --history --prove --out u-17.history
    """
    if out is not None and not prove:
        raise click.UsageError("--out keeps what --prove has checked: give both")
    address = _server_address(place, server)
    if prove:
        data = _proven(place, user, address, out)
    else:
        arguments = [f"user={user}", f"server=0x{address.hex()}"]
        balance: Json = _query(place, "balance", arguments)
        data = {"user": user, "server": "0x" + address.hex(), "proven": False, **balance}
        if with_history:
            data["entries"] = _entries(place, arguments)
    if not with_history:
        data.pop("entries", None)
    output.show(data, lambda console: _draw_user(console, data))


@rights.group("history")
def history() -> None:
    """History files: a user's whole history with its proof."""


@history.command("verify")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--genesis",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Genesis file that the network was started from.",
)
@click.option("--entries", "with_entries", is_flag=True, help="Print every entry too.")
@json_option
def verify_file(file: Path, genesis: Path, with_entries: bool, output: Output) -> None:
    """Check a history file offline: that every entry is the chain's, and that none is left out.

    Example: hansa rights history verify u-17.history --genesis net/genesis.json
    """
    from services.rights.history import load_untrusted, verify_history

    document = read_genesis(genesis)
    loaded = load_untrusted(file)
    data = _history_json(verify_history(loaded, document))
    if not with_entries:
        data.pop("entries", None)
    output.show(data, lambda console: _draw_user(console, data))


# -- helpers ---------------------------------------------------------------------------------------------


def _call(
    method: str,
    tokens: list[str],
    name: str,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Call a method of the contract and print the receipt; exit code 1 when it failed."""
    from services.client.calls import call_typed, outcome_json

    signer = place.signer(name, keys, passphrase_file)

    def on_signed(transaction: "Transaction") -> None:
        note_error_details(transactionId=f"0x{transaction.id.hex()}")
        output.progress(f"submitting 0x{transaction.id.hex()}")

    async def submit(client: "Client") -> dict[str, object]:
        return outcome_json(await call_typed(client, signer, "rights", method, tokens, on_signed=on_signed))

    data = place.ask(submit)
    output.show(data, lambda console: views.outcome(console, data))
    if not data["ok"]:
        leave(EXIT_REFUSED)


def _query(place: Place, method: str, tokens: list[str]) -> Any:
    from services.client.calls import query_typed, value_json

    async def ask(client: "Client") -> object:
        return value_json(await query_typed(client, "rights", method, tokens))

    return place.ask(ask)


def _entries(place: Place, tokens: list[str]) -> list[Json]:
    """Return a user's history entries, page by page; one node is believed."""
    found: list[Json] = []
    while len(found) < ENTRIES_MAX:
        page: list[Json] = _query(place, "history", [*tokens, f"start={len(found)}", f"limit={PAGE}"])
        found += page
        if len(page) < PAGE:
            break
    return found


def _server_address(place: Place, given: str | None) -> bytes:
    """Return the address of a business server, by its name, its address, or as the only one of genesis.

    Raises:
        LocalError: ``unknown_account``, ``which_server``.
    """
    from consensus.ledger.ids import ADDRESS_BYTES

    accounts = place.genesis.accounts
    if given is None:
        found = [account for account in accounts if BUSINESS_ROLE in account.roles]
        if len(found) != 1:
            names = ", ".join(account.name for account in found) or "none"
            raise LocalError("which_server", f"--server says whose user it is; genesis names {names}")
        return bytes(found[0].address)
    for account in accounts:
        if account.name == given:
            return bytes(account.address)
    digits = given.removeprefix("0x").lower()
    if len(digits) == 2 * ADDRESS_BYTES and not set(digits) - set("0123456789abcdef"):
        return bytes.fromhex(digits)
    raise LocalError("unknown_account", f"{given} is neither an address nor an account of genesis")


def _proven(place: Place, user: str, address: bytes, out: Path | None) -> Json:
    """Return a user's proven history, and keep it as a file where one was named."""
    from services.rights.history import fetch_history, save, verify_history

    fetched = place.ask(lambda client: fetch_history(client, user, address))
    if out is not None:
        save(fetched, out)
    data = _history_json(verify_history(fetched, place.genesis))
    return data if out is None else {**data, "file": str(out)}


def _history_json(proven: "History") -> Json:
    """Return what a history has proven; amounts as decimal text, as everywhere."""
    entries = [
        {
            "number": str(entry.number),
            "type": entry.type,
            "reference": entry.reference,
            "event": entry.event,
            "changes": {name: str(change) for name, change in entry.changes.items()},
            "height": str(entry.height),
            "timeMs": str(entry.time_ms),
        }
        for entry in proven.entries
    ]
    return {
        "user": proven.user,
        "server": "0x" + proven.server.hex(),
        "proven": True,
        **{name: str(amount) for name, amount in proven.balance.items()},
        "count": str(len(entries)),
        "height": proven.height,
        "timeMs": proven.time_ms,
        "signers": list(proven.signers),
        "entries": entries,
    }


def _draw_user(console: "Console", data: Json) -> None:
    """Draw a user's balance, and its history where it was asked for."""
    title = f"User {data['user']}, " + ("proven and complete" if data["proven"] else "as one node says")
    views.fields(console, title, {name: data[name] for name in data if name not in ("user", "proven", "entries")})
    if "entries" not in data:
        return
    columns = ["number", "type", "reference", "event", "changes", "height"]
    rows = [[_changes(item[name]) if name == "changes" else item[name] for name in columns] for item in data["entries"]]
    table(console, [">number", "type", "reference", "event", "changes", ">height"], rows)


def _changes(changes: dict[str, object]) -> str:
    return "  ".join(f"{name} {int(str(change)):+}" for name, change in changes.items())
