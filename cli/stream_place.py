"""What the commands of payment streams share: amounts and terms for people, folders, ids, the way to programs."""

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.place import Place, network_folder
from consensus.ledger.errors import LocalError, PeerError

if TYPE_CHECKING:
    from consensus.ledger.genesis import Genesis
    from consensus.ledger.streams import Terms
    from services.local.link import LocalLink

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])
Json = dict[str, Any]

HINT = "hansa network up --with stream starts the programs"
SERVICE_HOME, WATCHER_HOME = "stream-service", "stream-watcher"
MODES = ("service first", "payment first")
"""In words, by ``consensus.ledger.streams.Mode``."""
MODE_NAMES = ("service-first", "payment-first")
STREAM_DIGITS = 64
AMOUNT_MAX, DIGITS_MAX = 10**15, 16
_STREAM = re.compile(rf"(?:0x)?([0-9a-f]{{{STREAM_DIGITS}}})", re.ASCII)
_BEGINNING = re.compile(rf"(?:0x)?([0-9a-f]{{4,{STREAM_DIGITS}}})…?", re.ASCII)
_SPANS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"))


def counted(amount: int, unit: str) -> str:
    """Return an amount in smallest units with its unit, thousands apart."""
    return f"{amount:,} {unit}"


def span(time_ms: int) -> str:
    """Return how long a time is, in the largest unit that it fills."""
    for size, unit in _SPANS:
        if time_ms >= size:
            count = time_ms / size
            return f"{count:.1f}".removesuffix(".0") + f" {unit}"
    return f"{time_ms} ms"


def ends_of(terms: "Terms") -> str:
    """Return when a stream ends, in words."""
    ends = []
    if terms.count_max:
        ends.append(f"after {terms.count_max:,} iterations")
    if terms.amount_max:
        ends.append(f"at {counted(terms.amount_max, terms.unit)}")
    if terms.duration_ms_max:
        ends.append(f"after {span(terms.duration_ms_max)}")
    return " or ".join(ends or ["when either closes it"])


def terms_fields(terms: "Terms", names: dict[bytes, str]) -> Json:
    """Return terms for people; ``names`` are those of accounts by address."""
    return {
        "payer": party(terms.payer, names),
        "service party": party(terms.service, names),
        "price": f"{counted(terms.price, terms.unit)} for {terms.what}, {MODES[terms.mode]}",
        "deposit": f"{counted(terms.deposit, terms.unit)}, of which a fine of {terms.fine:,} at the most",
        "at stake": f"{counted(terms.step_max, terms.unit)} at the most, a step",
        "ends": ends_of(terms),
    }


def names_in(genesis: "Genesis") -> dict[bytes, str]:
    """Return the names of the accounts of genesis by address."""
    return {bytes(account.address): account.name for account in genesis.accounts}


def names_of(place: Place) -> dict[bytes, str]:
    """Return the names of the accounts of genesis by address; none where there is no genesis at hand."""
    try:
        return names_in(place.genesis)
    except LocalError:
        return {}


def party(address: bytes, names: dict[bytes, str]) -> str:
    """Return an account's name, else its address."""
    return names.get(bytes(address), f"0x{address.hex()}")


def short(stream: str | bytes) -> str:
    """Return the beginning of an id, which commands take where it is unique."""
    text = stream if isinstance(stream, str) else f"0x{stream.hex()}"
    return f"{text[:10]}…"


class Amount(click.ParamType[int]):
    """A whole number of a unit's smallest parts, from ``least`` on."""

    name = "amount"

    def __init__(self, least: int = 1) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the amount."""
        text = str(value)
        if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS_MAX):
            self.fail(f"{text[:40]!r} is no amount: a whole number of the unit's smallest parts", param, ctx)
        if not self._least <= int(text) <= AMOUNT_MAX:
            self.fail(f"{text} is not between {self._least} and {AMOUNT_MAX:,}", param, ctx)
        return int(text)


class StreamId(click.ParamType[str]):
    """A stream's id, or its beginning from four hex digits on; without 0x."""

    name = "stream"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the hex digits."""
        found = _BEGINNING.fullmatch(str(value))
        if found is None:
            self.fail(
                f"{str(value)[:80]!r} is no stream: 0x and {STREAM_DIGITS} hex digits, or the first of them", param, ctx
            )
        return found[1]


stream_argument = click.argument("stream", metavar="ID", type=StreamId())


def full_id(digits: str) -> bytes:
    """Return a whole id.

    Raises:
        LocalError: ``bad_id`` for a beginning alone.
    """
    if _STREAM.fullmatch(digits) is None:
        raise LocalError("bad_id", f"0x{digits} is the beginning of an id alone: give all {STREAM_DIGITS} hex digits")
    return bytes.fromhex(digits)


def one_of(digits: str, known: list[bytes], where: str) -> bytes:
    """Return the one known stream whose id begins so; a whole id need not be known.

    Raises:
        LocalError: ``unknown_stream``, ``bad_id`` where several begin so.
    """
    if len(digits) == STREAM_DIGITS:
        return bytes.fromhex(digits)
    found = [stream for stream in known if stream.hex().startswith(digits)]
    match found:
        case [stream]:
            return stream
        case []:
            raise LocalError("unknown_stream", f"no stream that begins with 0x{digits} is known {where}")
        case _:
            raise LocalError("bad_id", f"{len(found)} streams begin with 0x{digits}: give more digits")


def write_file(path: Path, content: bytes) -> None:
    """Write a file for its owner alone, in one step.

    Raises:
        LocalError: ``bad_file``.
    """
    from services.local.files import replace_file

    try:
        replace_file(path, content)
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None


@contextmanager
def fault_of(file: Path) -> Iterator[None]:
    """Say of bad bytes in which file they are."""
    try:
        yield
    except PeerError as error:
        raise PeerError(error.code, f"{file}: {error.message}") from None


def home_option(name: str) -> Callable[[C], C]:
    """Add ``--home``: the folder of a program."""
    return click.option(
        "--home",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help=f"Folder with service.toml; else services/{name} of the network.",
    )


def home_of(name: str, given: Path | None, folder: Path | None = None) -> Path:
    """Return a program's folder: the given one, else the network's."""
    return given or network_folder(folder) / "services" / name


def ask(path: Path, who: str, use: "Callable[[LocalLink], Awaitable[T]]") -> T:
    """Run a function with a link to a program of this machine, and return its result.

    Raises:
        Unreachable: ``program_unreachable``, saying how to start it.
    """
    import trio

    from services.client.errors import Unreachable
    from services.local.link import LocalLink

    async def run() -> T:
        async with LocalLink(path) as link:
            return await use(link)

    try:
        return trio.run(run)
    except Unreachable as error:
        if error.code != "program_unreachable":
            raise
        raise Unreachable(f"{who} does not answer on {path}: {HINT}", code=error.code) from None


def address_of(place: Place, text: str) -> bytes | None:
    """Return the address that 0x-hex or a name of the genesis document says; None for a name it does not know."""
    from consensus.ledger.ids import ADDRESS_BYTES

    if text.startswith("0x"):
        if len(text) != 2 + 2 * ADDRESS_BYTES or set(text[2:].lower()) - set("0123456789abcdef"):
            raise LocalError("bad_arguments", f"{text[:80]!r} is not 0x and {2 * ADDRESS_BYTES} hex digits")
        return bytes.fromhex(text[2:])
    return next((bytes(item.address) for item in place.genesis.accounts if item.name == text), None)
