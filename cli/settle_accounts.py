"""``hansa settle accounts``: an account system with simulated money."""

import re
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.agency_place import time_text
from cli.options import Number, json_option
from cli.output import EXIT_REFUSED, Output, leave, panel, table
from cli.place import network_folder
from cli.settle_place import ACCOUNTS_HOME, HINT, Pattern, Price, decimal_text, fits, home_of, home_option, money

if TYPE_CHECKING:
    from services.accounts.faults import FaultAt
    from services.accounts.ledger import Account
    from services.accounts.link import AccountsLink
    from services.accounts.port import Entry, Standing

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])
Json = dict[str, Any]

SIMULATED = "simulated money"
PAGE_DEFAULT, PAGE_MAX = 50, 1_000
FAULTS = ("delay", "lose_answer", "answer_twice", "refuse", "down")
OPERATIONS = ("reserve", "pay", "release", "reverse")

_ACCOUNT = Pattern(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", re.ASCII), "account", "1 to 64 of A–Z a–z 0–9 . _ : -"
)
_EVENT = Pattern(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII), "event id", "1 to 64 of A–Z a–z 0–9 . _ -")
_CURRENCY = Pattern(re.compile(r"[A-Z]{3}", re.ASCII), "currency", "three capital letters of ISO 4217, such as CNY")
_currency = click.option(
    "--currency", metavar="CODE", type=_CURRENCY, default="CNY", show_default=True, help="Of the money."
)


@dataclass(frozen=True, slots=True)
class Door:
    """Where an account system answers, and what it asks for."""

    url: str
    token: str

    def ask(self, use: "Callable[[AccountsLink], Awaitable[T]]") -> T:
        """Run a function with a link to it, and return its result.

        Raises:
            Unreachable: ``accounts_unreachable``, saying how to start it.
        """
        import trio

        from services.accounts.link import open_accounts
        from services.client.errors import Unreachable

        async def run() -> T:
            async with open_accounts(self.url, token=self.token) as link:
                return await use(link)

        try:
            return trio.run(run)
        except Unreachable as error:
            raise Unreachable(f"{error.message}: {HINT}", code=error.code) from None


def _door_options(function: C) -> C:
    """Add what says where the account system is, and give the command a :class:`Door` as ``door``."""

    @click.option("--url", metavar="URL", help="Where it answers; else as the network's account system says.")
    @click.option(
        "--token-file",
        "token_file",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="What it asks for.",
    )
    @click.option("--network", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Network folder.")
    @wraps(function)
    def command(*args: Any, url: str | None, token_file: Path | None, folder: Path | None, **options: Any) -> Any:
        return function(*args, door=_door(url, token_file, folder), **options)

    return command  # type: ignore[return-value]


def _door(url: str | None, token_file: Path | None, folder: Path | None) -> Door:
    """Raises ``no_home``, ``bad_config``, ``key_permissions``."""
    from services.accounts.config import AccountsFile
    from services.local.files import read_service
    from services.messages.config import read_token, token_at

    token = ""
    if url is None:
        home = network_folder(folder) / "services" / ACCOUNTS_HOME
        file = read_service(home, AccountsFile)
        url, token = f"http://{file.listen}", read_token(home, "token", file.token)
    if token_file is not None:
        token = token_at(token_file, "--token-file")
    return Door(url, token)


@click.group()
def accounts() -> None:
    """An account system: double entry over HTTP, each order once; all its money is simulated."""


@accounts.command("serve")
@home_option(ACCOUNTS_HOME)
@click.option("--allow-faults", is_flag=True, help="Let callers have it misbehave, for tests and demonstrations.")
def serve(home: Path | None, allow_faults: bool) -> None:
    """Run the account system in the foreground until SIGTERM or Ctrl-C.

    Options count before service.toml.

    Example: hansa settle accounts serve --home net/services/settle-accounts
    """
    import trio

    from services.accounts.config import AccountsFile, accounts_settings
    from services.accounts.program import run
    from services.local.files import changed, read_service

    place = home_of(ACCOUNTS_HOME, home)
    file = read_service(place, AccountsFile)
    trio.run(run, accounts_settings(place, changed(place, file, {"allow_faults": True} if allow_faults else {})))


# -- accounts --------------------------------------------------------------------------------------------


@accounts.command("open")
@click.argument("names", metavar="ACCOUNT…", type=_ACCOUNT, nargs=-1, required=True)
@_currency
@_door_options
@json_option
def open_accounts(names: tuple[str, ...], currency: str, door: Door, output: Output) -> None:
    """Open accounts; those that are open in this currency stay as they are.

    Example: hansa settle accounts open shop user-b
    """
    opened = door.ask(lambda link: link.open([(name, currency) for name in names]))
    _show_accounts(opened, output)


@accounts.command("list")
@_door_options
@json_option
def list_accounts(door: Door, output: Output) -> None:
    """List all accounts: what is available, what is held for trades.

    Example: hansa settle accounts list
    """
    _show_accounts(door.ask(lambda link: link.accounts()), output)


@accounts.command("show")
@click.argument("name", metavar="ACCOUNT", type=_ACCOUNT)
@_door_options
@json_option
def show(name: str, door: Door, output: Output) -> None:
    """Show one account.

    Example: hansa settle accounts show user-b
    """
    _show_account(door.ask(lambda link: link.account(name)), output)


@accounts.command("deposit")
@click.argument("name", metavar="ACCOUNT", type=_ACCOUNT)
@click.argument("amount", metavar="AMOUNT", type=Price())
@click.option("--key", metavar="ID", type=_EVENT, help="The same key again moves nothing; else a random one.")
@_door_options
@json_option
def deposit(name: str, amount: int, key: str | None, door: Door, output: Output) -> None:
    """Bring simulated money into an account.

    Example: hansa settle accounts deposit user-b 50000.00 --key opening-user-b
    """
    from services.client.errors import Unreachable

    key = key or f"deposit-{secrets.token_hex(8)}"
    output.progress(f"deposit {key}")
    try:
        account = door.ask(lambda link: link.deposit(name, amount, key=key))
    except Unreachable as error:
        told = f"{error.message}; it may be done, and the same with --key {key} does it once"
        raise Unreachable(told, code=error.code) from None
    _show_account(account, output, key)


@accounts.command("freeze")
@click.argument("name", metavar="ACCOUNT", type=_ACCOUNT)
@_door_options
@json_option
def freeze(name: str, door: Door, output: Output) -> None:
    """Let an account neither pay nor be paid; what is held in it can still be given up.

    Example: hansa settle accounts freeze user-b
    """
    _show_account(door.ask(lambda link: link.freeze(name)), output)


@accounts.command("unfreeze")
@click.argument("name", metavar="ACCOUNT", type=_ACCOUNT)
@_door_options
@json_option
def unfreeze(name: str, door: Door, output: Output) -> None:
    """Let an account pay and be paid again.

    Example: hansa settle accounts unfreeze user-b
    """
    _show_account(door.ask(lambda link: link.unfreeze(name)), output)


# -- orders and postings ---------------------------------------------------------------------------------


@accounts.command("order")
@click.argument("operation", metavar="|".join(OPERATIONS), type=click.Choice(OPERATIONS))
@click.argument("event", metavar="EVENT", type=_EVENT)
@click.option("--payer", metavar="ACCOUNT", type=_ACCOUNT, required=True, help="Who pays.")
@click.option("--payee", metavar="ACCOUNT", type=_ACCOUNT, required=True, help="Who is paid.")
@click.option("--amount", metavar="AMOUNT", type=Price(), required=True, help="Such as 1250.00.")
@_currency
@_door_options
@json_option
def order(
    operation: str, event: str, payer: str, payee: str, amount: int, currency: str, door: Door, output: Output
) -> None:
    """Give an order by hand: the payer's orders come by themselves. Exit code 1 where it is refused.

    Each operation of an event is done once; the same again gives the first answer.

    Example: hansa settle accounts order pay t-1 --payer user-b --payee shop --amount 1250.00
    """
    from services.accounts.port import Operation, Order

    wanted = Order(event, Operation(operation), payer, payee, amount, currency)
    (answer,) = door.ask(lambda link: link.run([wanted]))
    data = {
        "ok": answer.is_done,
        "event": event,
        "operation": operation,
        "amount": decimal_text(amount),
        "currency": currency,
        "code": answer.code or None,
        "message": answer.message or None,
        "timeMs": answer.time_ms or None,
        "simulated": True,
    }
    shown = {"event": event, "moves": f"{money(amount)} {currency} ({SIMULATED}) from {payer} to {payee}"}
    if answer.is_done:
        shown |= {"done first (UTC)": time_text(answer.time_ms)}
    else:
        shown |= {"refused": f"{answer.code}: {answer.message}"}
    title = f"{operation}: {'done' if answer.is_done else 'refused'}"
    output.show(data, lambda console: panel(console, title, shown, good=answer.is_done))
    if not answer.is_done:
        leave(EXIT_REFUSED)


@accounts.command("standing")
@click.argument("events", metavar="EVENT…", type=_EVENT, nargs=-1, required=True)
@_door_options
@json_option
def standing(events: tuple[str, ...], door: Door, output: Output) -> None:
    """Show what was done for events: held, paid, given up, paid back.

    Example: hansa settle accounts standing t-1
    """

    async def ask(link: "AccountsLink") -> "list[Standing | None]":
        pages = [await link.look_up(events[start : start + PAGE_MAX]) for start in range(0, len(events), PAGE_MAX)]
        return [standing for page in pages for standing in page]

    found = door.ask(ask)
    known = [(event, standing) for event, standing in zip(events, found, strict=True) if standing is not None]
    unknown = [event for event, standing in zip(events, found, strict=True) if standing is None]
    data = {"simulated": True, "standings": [_standing_json(item) for _, item in known], "unknown": unknown}
    columns = ["event", "from", "to", ">amount", "held", "paid", "given up", "paid back"]
    rows = [
        (
            *(item.event, item.payer, item.payee, f"{money(item.amount)} {item.currency}"),
            *(time_text(time_ms) for time_ms in (item.reserved_ms, item.paid_ms, item.released_ms, item.reversed_ms)),
        )
        for _, item in known
    ]

    def draw(console: Any) -> None:
        if rows:
            table(console, columns, rows, title=f"Orders ({SIMULATED}, times UTC)")
        for event in unknown:
            console.print(f"{event}: nothing was ever asked for it", markup=False, soft_wrap=True)

    output.show(data, draw)


@accounts.command("entries")
@click.option("--from-ms", metavar="MS", type=Number(0, 2**62), default=0, help="From this time on, UTC in ms.")
@click.option("--until-ms", metavar="MS", type=Number(0, 2**62), default=2**62, help="Before this time.")
@click.option("--after", metavar="NUMBER", type=Number(0, 2**62), default=0, help="Only those behind this one.")
@click.option(
    "--limit", metavar="N", type=Number(1, PAGE_MAX), default=PAGE_DEFAULT, show_default=True, help="So many at most."
)
@_door_options
@json_option
def entries(from_ms: int, until_ms: int, after: int, limit: int, door: Door, output: Output) -> None:
    """List postings, oldest first: each takes an amount out of one place and puts it into another.

    Example: hansa settle accounts entries --after 100
    """
    page = door.ask(lambda link: link.entries(from_ms=from_ms, until_ms=until_ms, after=after, limit=limit))
    data = {"simulated": True, "entries": [_entry_json(item) for item in page.items], "next": page.next or None}

    def draw(console: Any) -> None:
        columns = [">number", "time (UTC)", "event", "operation", "from", "to", ">amount"]
        rows: list[tuple[object, ...]] = [
            (
                *(item.number, time_text(item.time_ms), item.event, item.operation, item.debit, item.credit),
                f"{money(item.amount)} {item.currency}",
            )
            for item in page.items
        ]
        if not fits(console, columns, rows):
            columns = [">no.", "time (UTC)", "event, operation", "from, to", ">amount"]
            rows = [row for item in page.items for row in _two_rows(item)]
        table(console, columns, rows, title=f"Postings ({SIMULATED})")
        if page.next:
            console.print(f"There are more: --after {page.next}", markup=False, soft_wrap=True)

    output.show(data, draw)


def _two_rows(item: "Entry") -> Iterator[tuple[object, ...]]:
    """Yield a posting as two rows of a table that is narrow."""
    day, moment = time_text(item.time_ms).split()
    yield item.number, day, item.event, item.debit, money(item.amount)
    yield "", moment, item.operation, item.credit, item.currency


# -- faults ----------------------------------------------------------------------------------------------


@accounts.command("faults")
@click.option("--set", "kind", metavar="|".join(FAULTS), type=click.Choice(FAULTS), help="Misbehave in one more way.")
@click.option("--operation", metavar="NAME", type=click.Choice(OPERATIONS), help="Only with orders of this kind.")
@click.option("--count", metavar="N", type=Number(0, 10**6), help="So often; 0: until cleared. Else once.")
@click.option("--probability", metavar="PERCENT", type=Number(1, 100), help="How likely each time. Else always.")
@click.option("--seed", metavar="N", type=Number(0, 2**62), help="Of what is drawn.")
@click.option("--delay-ms", metavar="MS", type=Number(0, 60_000), help="Of a delay. Else 1000.")
@click.option(
    "--code",
    metavar="CODE",
    type=Pattern(re.compile(r"[a-z_]{1,40}", re.ASCII), "code", "1 to 40 of a–z _"),
    help="Of a refusal. Else account_frozen.",
)
@click.option("--clear", is_flag=True, help="Behave again, before --set counts.")
@_door_options
@json_option
def faults(kind: str | None, clear: bool, door: Door, output: Output, **options: Any) -> None:
    """Show the faults in force, set one more, or clear all; only where allow_faults in service.toml is true.

    delay: answers late. lose_answer: does it and hangs up. answer_twice: does it again and again, to no effect.
    refuse: refuses with --code. down: hangs up at once.

    Example: hansa settle accounts faults --set lose_answer --operation pay --count 2
    """
    from services.accounts.faults import Fault

    given = {name: value for name, value in options.items() if value is not None}
    if given and kind is None:
        raise click.UsageError(f"--{next(iter(given)).replace('_', '-')} needs --set")

    async def ask(link: "AccountsLink") -> "list[FaultAt]":
        if clear:
            await link.clear_faults()
        return await link.faults() if kind is None else await link.set_fault(Fault(kind, **given))  # type: ignore[arg-type]

    found = door.ask(ask)
    data = {"simulated": True, "faults": [_fault_json(item) for item in found]}

    def draw(console: Any) -> None:
        if not found:
            console.print("no faults: it behaves", markup=False)
            return
        columns = ["fault", "orders", ">times", ">happened", ">percent", ">seed", ">delay ms", "code"]
        rows = [
            (
                *(item.kind, item.operation or "all", item.count or "no end", item.happened, item.probability),
                *(item.seed, item.delay_ms if item.kind == "delay" else None, _code_of(item)),
            )
            for item in found
        ]
        table(console, columns, rows)

    output.show(data, draw)


# -- how they look ---------------------------------------------------------------------------------------


def _show_accounts(found: "list[Account]", output: Output) -> None:
    rows = [
        (
            *(item.id, item.currency, money(item.available), money(item.held)),
            "frozen" if item.is_frozen else "open",
        )
        for item in found
    ]
    columns = ["account", "currency", ">available", ">held", "state"]
    data = {"simulated": True, "accounts": [_account_json(item) for item in found]}
    output.show(data, lambda console: table(console, columns, rows, title=f"Accounts ({SIMULATED})"))


def _show_account(item: "Account", output: Output, deposit: str = "") -> None:
    more = {"deposit": deposit} if deposit else {}
    shown = {
        "available": f"{money(item.available)} {item.currency}",
        "held": f"{money(item.held)} {item.currency}",
        "state": "frozen: neither pays nor is paid" if item.is_frozen else "open",
        "opened (UTC)": time_text(item.opened_ms),
        **more,
    }
    data = {"simulated": True, **_account_json(item), **more}
    output.show(
        data, lambda console: panel(console, f"Account {item.id} ({SIMULATED})", shown, good=not item.is_frozen)
    )


def _account_json(item: "Account") -> Json:
    return {
        "id": item.id,
        "currency": item.currency,
        "available": decimal_text(item.available),
        "held": decimal_text(item.held),
        "frozen": item.is_frozen,
        "openedMs": item.opened_ms,
    }


def _standing_json(item: "Standing") -> Json:
    return {
        "event": item.event,
        "payer": item.payer,
        "payee": item.payee,
        "amount": decimal_text(item.amount),
        "currency": item.currency,
        "reservedMs": item.reserved_ms or None,
        "paidMs": item.paid_ms or None,
        "releasedMs": item.released_ms or None,
        "reversedMs": item.reversed_ms or None,
        "tombstone": item.is_tombstone,
    }


def _entry_json(item: "Entry") -> Json:
    return {
        "number": item.number,
        "event": item.event,
        "operation": item.operation,
        "debit": item.debit,
        "credit": item.credit,
        "amount": decimal_text(item.amount),
        "currency": item.currency,
        "timeMs": item.time_ms,
    }


def _fault_json(item: "FaultAt") -> Json:
    return {
        "kind": item.kind,
        "operation": item.operation or None,
        "count": item.count or None,
        "happened": item.happened,
        "probability": item.probability,
        "seed": item.seed,
        "delayMs": item.delay_ms if item.kind == "delay" else None,
        "code": _code_of(item),
    }


def _code_of(item: "FaultAt") -> str | None:
    return item.code if item.kind == "refuse" else None
