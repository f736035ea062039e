"""What the commands of agency sale share: an institution's sockets and keys, transactions, amounts for people."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.output import Output, note_error_details
from cli.place import Place, network_folder
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from consensus.ledger.transaction import Call, Transaction
    from services.client.client import Client
    from services.client.keystore import Signer
    from services.client.outcome import Outcome
    from services.local.link import LocalLink

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])
Json = dict[str, Any]

GATEWAY, SALES, ISSUER = ("gateway", "gateway.sock"), ("sales", "sales.sock"), ("end", "issuer.sock")
"""The programs of an institution: how their folders' names end, and their sockets."""
WHY = {
    "not_allowed": "this account may not do it; proposed terms are accepted by the other party",
    "not_party": "this account's organisation is neither its bank nor its issuer",
    "bad_signature": "a signature does not hold: hansa channel agreement show FILE --check says whose",
    "unknown_channel": "there is no such channel",
    "channel_revoked": "the channel is revoked, or was after this agreement had begun",
    "unknown_proposal": "nothing is proposed under this id: it is enacted or withdrawn, or never was",
}
"""What a contract's code means to people; the others speak for themselves."""


class ChannelParameter(click.ParamType[tuple[str, str]]):
    """A channel: ``BANK/ISSUER``."""

    name = "BANK/ISSUER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return bank and issuer."""
        bank, slash, issuer = str(value).partition("/")
        if not (bank and slash and issuer) or "/" in issuer:
            self.fail(f"{str(value)[:80]!r} is no channel: BANK/ISSUER, such as bank-a/issuer-c", param, ctx)
        return bank, issuer


class HexParameter(click.ParamType[bytes]):
    """32 bytes as hex digits, with or without 0x."""

    name = "0x…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Return the bytes."""
        if isinstance(value, bytes):
            return value
        digits = str(value).removeprefix("0x")
        if len(digits) != 64 or set(digits.lower()) - set("0123456789abcdef"):
            self.fail(f"{str(value)[:80]!r} is not 0x and 64 hex digits", param, ctx)
        return bytes.fromhex(digits)


def socket_option(function: C) -> C:
    """Add ``--socket``: where the program answers, for machines without a network folder."""
    option = click.option(
        "--socket",
        "socket",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The program's socket; else services/NAME/run of the network.",
    )
    return option(function)


def bank_option(function: C) -> C:
    """Add ``--bank`` as ``bank``; :func:`bank_of` says which where it was not given."""
    return click.option("--bank", metavar="ORG", help="The bank; else the one that has a sales end here.")(function)


def bank_of(place: Place, given: str | None) -> str:
    """Return the bank that was named, else the one whose sales end stands in the network's folder.

    Raises:
        LocalError: ``which_bank`` where there is none or more than one.
    """
    if given is not None:
        return given
    folder = network_folder(place.given) / "services"
    found = sorted(home.name.removesuffix("-sales") for home in folder.glob("*-sales") if home.is_dir())
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise LocalError("which_bank", f"--bank says whose orders these are; sales ends in {folder}: {names}")
    return found[0]


def socket_of(place: Place, organisation: str, program: tuple[str, str], given: Path | None) -> Path:
    """Return the socket of an institution's program."""
    suffix, name = program
    return given or network_folder(place.given) / "services" / f"{organisation}-{suffix}" / "run" / name


def ask_program(path: Path, use: "Callable[[LocalLink], Awaitable[T]]") -> T:
    """Run a function with a link to a program's socket, and return its result.

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
        if error.code != "program_unreachable" or path.exists():
            raise
        hint = f"nobody answers on {path}: hansa network up --with agency starts the programs"
        raise Unreachable(hint, code=error.code) from None


def business_key(
    place: Place, organisation: str, name: str | None, keys: Path | None, passphrase_file: Path | None
) -> "Signer":
    """Open an institution's business key: the one of this name, else ``ORGANISATION-business``."""
    return place.signer(name or f"{organisation}-business", keys, passphrase_file)


def submit(place: Place, signer: "Signer", calls: "Sequence[Call]", output: Output) -> "Outcome":
    """Submit calls as one transaction, all or nothing, and return its proven outcome.

    Raises:
        Refused: the chain's code.
        Unreachable: ``outcome_unknown`` and others.
    """
    from consensus.ledger.transaction import ATOMIC
    from services.client.errors import Refused

    def on_signed(transaction: "Transaction") -> None:
        note_error_details(transactionId=f"0x{transaction.id.hex()}")
        output.progress(f"submitting 0x{transaction.id.hex()}")

    async def run(client: "Client") -> "Outcome":
        return (await client.call_many(signer, calls, mode=ATOMIC, on_signed=on_signed)).check()

    try:
        return place.ask(run)
    except Refused as error:
        if error.code not in WHY:
            raise
        raise Refused(error.code, f"{WHY[error.code]} ({error.message})") from None


def anchor_json(outcome: "Outcome") -> Json:
    """Return where a transaction stands, for the end of a card."""
    return {"transactionId": f"0x{outcome.transaction.id.hex()}", "height": outcome.height}


def money(amount: int) -> str:
    """Return an amount in 1/100 with its decimals, thousands apart."""
    return f"{amount // 100:,}.{amount % 100:02d}"


def time_text(time_ms: int) -> str:
    """Return a time as UTC to the second, – for none."""
    from services.client.times import utc_text

    return utc_text(time_ms)[:19] if 0 < time_ms < 4_000_000_000_000 else "–" if not time_ms else "never"
