"""What the commands of settlement share: where its programs answer, amounts and states for people."""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.place import Place, network_folder
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from rich.console import Console

    from services.local.link import LocalLink
    from services.settlement.states import Event, HistoryRow

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])
Json = dict[str, Any]

HINT = "hansa network up --with settlement starts the programs"
EVENTS_HOME, ACCOUNTS_HOME, PAYER_HOME = "settle-events", "settle-accounts", "settle-payer"
WORDS = {"REGISTERED": "登记", "ACCOUNT_PENDING": "待账户系统处理", "CANCELLED": "取消", "COMPLETED": "完成"}
"""The four states as the business calls them."""
PRICE_DIGITS_MAX = 14
BETWEEN_COLUMNS = 3
"""How many columns of the screen a column of a table takes beside its text."""
_PRICE = re.compile(rf"([0-9]{{1,{PRICE_DIGITS_MAX}}})(?:\.([0-9]{{1,2}}))?", re.ASCII)


class Pattern(click.ParamType[str]):
    """A text of a given form."""

    def __init__(self, pattern: re.Pattern[str], name: str, form: str) -> None:
        self._pattern = pattern
        self.name = name
        self._form = form

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        if self._pattern.fullmatch(str(value)) is None:
            self.fail(f"{str(value)[:80]!r} is no {self.name}: {self._form}", param, ctx)
        return str(value)


class Price(click.ParamType[int]):
    """An amount of money with up to two decimals, taken exactly; in 1/100."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the amount in 1/100."""
        if isinstance(value, int):
            return value
        found = _PRICE.fullmatch(str(value))
        if found is None:
            self.fail(f"{str(value)[:40]!r} is no amount: digits and up to two decimals, such as 12.50", param, ctx)
        cents = int(found[1]) * 100 + int((found[2] or "").ljust(2, "0"))
        if not 0 < cents <= 10**15:
            self.fail(f"{str(value)[:40]!r} is not between 0.01 and {money(10**15)}", param, ctx)
        return cents


def check_database(name: str | None) -> None:
    """Refuse what is no database's name, without saying it again: there may be a password in it.

    Raises:
        LocalError: ``bad_config``.
    """
    import msgspec

    from services.local.urls import DatabaseName

    try:
        msgspec.convert(name, DatabaseName | None)
    except msgspec.ValidationError:
        raise LocalError("bad_config", "--database is neither embedded nor postgresql://USER@HOST/NAME") from None


def fits(console: "Console", columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bool:
    """Tell whether a table of one-line cells is no wider than the console."""
    from rich.cells import cell_len

    widths = [max(cell_len(str(cell)) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    return sum(widths) + BETWEEN_COLUMNS * len(columns) <= console.width


def money(cents: int) -> str:
    """Return an amount in 1/100 with its decimals, thousands apart."""
    return f"{cents // 100:,}.{cents % 100:02d}"


def decimal_text(amount: int, decimals: int = 2) -> str:
    """Return an amount in smallest units as a decimal number without other signs, as ``--price`` takes it."""
    if not decimals:
        return str(amount)
    whole, rest = divmod(amount, 10**decimals)
    return f"{whole}.{rest:0{decimals}d}"


def socket_option(function: C) -> C:
    """Add ``--socket``: where the event system answers, for machines without a network folder."""
    option = click.option(
        "--socket",
        "socket",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The event system's socket; else services/settle-events/run of the network.",
    )
    return option(function)


def home_option(name: str) -> Callable[[C], C]:
    """Add ``--home``: the folder of a program."""
    return click.option(
        "--home",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help=f"Folder with service.toml; else services/{name} of the network.",
    )


def home_of(name: str, given: Path | None, place: Place | None = None) -> Path:
    """Return a program's folder: the given one, else the network's."""
    return given or network_folder(place.given if place else None) / "services" / name


def socket_of(place: Place, given: Path | None) -> Path:
    """Return the event system's socket.

    Raises:
        LocalError: ``no_home`` where neither the network nor ``--socket`` says where.
    """
    if given is not None:
        return given
    home = home_of(EVENTS_HOME, None, place)
    if not (home / "service.toml").is_file():
        way = "hansa network up --with settlement sets one up, --socket names another"
        raise LocalError("no_home", f"{home} holds no event system: {way}")
    return home / "run" / "events.sock"


def ask_events(path: Path, use: "Callable[[LocalLink], Awaitable[T]]") -> T:
    """Run a function with a link to the event system, and return its result.

    Raises:
        Unreachable: ``program_unreachable``, saying how to start it.
    """
    import trio

    from services.local.link import LocalLink

    async def run() -> T:
        async with LocalLink(path) as link:
            return await use(link)

    with explaining(path):
        return trio.run(run)


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Say of programs that do not answer how they are started."""
    from services.client.errors import Unreachable

    try:
        yield
    except Unreachable as error:
        match error.code:
            case "program_unreachable":
                message = f"the event system does not answer on {path}: {HINT}"
            case "accounts_unreachable":
                message = f"the account system does not answer ({error.message}): {HINT}"
            case _:
                raise
        raise Unreachable(message, code=error.code) from None


def state_text(event: "Event") -> str:
    """Return an event's state in words: how it ended, or what stands in its way."""
    text = event.state.value
    if event.outcome:
        text += f" {event.outcome.value}"
    if event.code and event.state.value != "COMPLETED":
        text += f" {event.code}"
    if event.is_flagged and not event.is_finished:
        text += " (needs an operator)"
    return text


def event_json(event: "Event", names: "dict[bytes, str]") -> Json:
    """Return an event as commands print it: addresses by name where genesis knows one, amounts as decimal text."""
    terms = event.terms
    return {
        "event": event.event,
        "kind": event.kind.value,
        "original": event.original or None,
        "state": event.state.value,
        "outcome": event.outcome.value or None,
        "code": event.code or None,
        "flagged": event.is_flagged,
        "wish": event.wish.value or None,
        "attempts": event.attempts,
        "released": event.is_released,
        "seller": _party(terms.seller, names),
        "buyer": _party(terms.buyer, names),
        "asset": terms.asset,
        "units": str(terms.units),
        "price": decimal_text(terms.price),
        "currency": terms.currency,
        "payer": terms.payer,
        "payee": terms.payee,
        "transactionId": f"0x{event.transaction_id.hex()}",
        "height": event.height or None,
        "validUntilMs": event.valid_until_ms,
        "registeredMs": event.registered_ms,
        "changedMs": event.changed_ms,
        "version": event.version,
    }


def history_json(rows: "Sequence[HistoryRow]") -> list[Json]:
    """Return an event's history as commands print it."""
    return [
        {
            "version": row.version,
            "from": row.state_before or None,
            "to": row.state_after,
            "outcome": row.outcome or None,
            "code": row.code or None,
            "why": row.why,
            "topics": list(row.topics),
            "timeMs": row.time_ms,
        }
        for row in rows
    ]


def names_of(place: Place) -> dict[bytes, str]:
    """Return the names of the accounts of genesis by address; none where there is no genesis at hand."""
    try:
        return {bytes(account.address): account.name for account in place.genesis.accounts}
    except LocalError:
        return {}


def age_text(age_ms: int) -> str:
    """Return how long ago something was, in one unit."""
    seconds = max(0, age_ms) / 1000
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _party(address: bytes, names: "dict[bytes, str]") -> str:
    return names.get(address, f"0x{address.hex()}")
