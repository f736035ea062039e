"""``hansa settle trade``: the transaction system: registers a trade, holds the money, submits, waits."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cli.options import Number, json_option, keys_option, network_option, passphrase_option
from cli.output import Output, note_error_details
from cli.place import Place
from cli.settle_events import show_event
from cli.settle_place import PAYER_HOME, Pattern, Price, explaining, home_of, socket_of, socket_option
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from structlog.typing import EventDict

    from consensus.ledger.codec import Value
    from services.client.client import Client
    from services.client.keystore import Signer
    from services.settlement.interfaces import EventAnswer
    from services.settlement.trader import Trade, Trader

EVENT_CHARACTERS_MAX = 48
WAIT_S_MAX = 3_600
UNITS_MAX = 2**63 - 1
_EVENT = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{EVENT_CHARACTERS_MAX - 1}}}", re.ASCII)
_REVERSAL = re.compile(r"\.reverse[0-9]*\Z")
_ASSET = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,63}", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", re.ASCII)


class EventParameter(Pattern):
    """The id of a new trade; endings that reversals have are kept for them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the id."""
        text = super().convert(value, param, ctx)
        if _REVERSAL.search(text):
            self.fail(f"{text!r} ends as a reversal's id does", param, ctx)
        return text


@dataclass(frozen=True, slots=True)
class Doors:
    """Where event system and account system are, and what the latter asks for."""

    socket: Path
    accounts: str
    token: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A trade as it was asked for, before names and units are looked up on the chain."""

    event: str
    buyer: str
    asset: str
    units: int
    price: int
    currency: str
    payer: str | None
    payee: str | None
    validity_ms: int


@click.command("trade")
@click.option("--seller", metavar="NAME", required=True, help="The identity that delivers; its key signs.")
@click.option("--buyer", metavar="NAME|0x…", required=True, help="The account on the chain that gets the units.")
@click.option(
    "--asset",
    metavar="UNIT",
    type=Pattern(_ASSET, "unit", "1 to 64 of letters, digits and .:_-"),
    required=True,
    help="The unit that is sold, such as BOND-1.",
)
@click.option(
    "--units",
    metavar="N",
    type=Number(1, UNITS_MAX),
    required=True,
    help="How many of it, in smallest units.",
)
@click.option(
    "--price", metavar="AMOUNT", type=Price(), required=True, help="For all of them, such as 12.50; simulated money."
)
@click.option(
    "--currency",
    metavar="CODE",
    type=Pattern(_CURRENCY, "currency", "three capital letters of ISO 4217"),
    default="CNY",
    show_default=True,
    help="Of the price.",
)
@click.option(
    "--event",
    metavar="ID",
    type=EventParameter(_EVENT, "event id", f"1 to {EVENT_CHARACTERS_MAX} of letters, digits and ._-"),
    help="The trade's id: the same again is the same trade. Else a random one.",
)
@click.option(
    "--payer",
    metavar="ACCOUNT",
    type=Pattern(_ACCOUNT, "account", "1 to 64 of letters, digits and ._:-"),
    help="Money account that pays; else the buyer's name.",
)
@click.option(
    "--payee",
    metavar="ACCOUNT",
    type=Pattern(_ACCOUNT, "account", "1 to 64 of letters, digits and ._:-"),
    help="Money account that is paid; else the seller's name.",
)
@click.option(
    "--validity",
    "validity_s",
    metavar="SECONDS",
    type=Number(10, 3_600),
    default=60,
    show_default=True,
    help="How long the chain may take it.",
)
@click.option("--no-wait", is_flag=True, help="Leave once it is submitted.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=Number(1, WAIT_S_MAX),
    default=120,
    show_default=True,
    help="How long this command takes at the most.",
)
@socket_option
@click.option("--accounts", metavar="URL", help="The account system; else the one that the network's payer uses.")
@click.option(
    "--accounts-token-file",
    "token_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What it asks for.",
)
@keys_option
@passphrase_option
@network_option
@json_option
def trade(
    seller: str,
    validity_s: int,
    no_wait: bool,
    timeout_s: int,
    socket: Path | None,
    accounts: str | None,
    token_file: Path | None,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
    event: str | None,
    **terms: Any,
) -> None:
    """Sell units for money: both move, or neither.

    The trade is registered, the buyer's money is held, then the signed delivery goes to any node. The event system
    sees to the rest, also when this command is interrupted: the same command with --event goes on where it was.
    Exit code 1 and a code where it is cancelled or needs an operator.

    Example: hansa settle trade --seller shop --buyer user-b --asset BOND-1 --units 10 --price 1250.00
    """
    doors = doors_of(place, socket, accounts, token_file)
    signer = place.signer(seller, keys, passphrase_file)
    wanted = Wanted(event or f"t-{secrets.token_hex(6)}", **terms, validity_ms=1_000 * validity_s)
    answer = _run(place, doors, signer, wanted, timeout_s, output, must_end=not no_wait)
    show_event(answer, place, output, is_asked=True, must_end=not no_wait)


def _run(
    place: Place, doors: Doors, signer: "Signer", wanted: Wanted, timeout_s: int, output: Output, *, must_end: bool
) -> "EventAnswer":
    """Bring a trade to its end, or as far as it is submitted; return it as it stands when time is up."""
    import trio

    from services.accounts.link import open_accounts
    from services.local.link import LocalLink

    async def run() -> "EventAnswer":
        async with (
            place.client() as client,
            LocalLink(doors.socket) as link,
            open_accounts(doors.accounts, token=doors.token) as accounts,
        ):
            from services.settlement.interfaces import EventsStatus, StatusQuery
            from services.settlement.trader import Trader

            agent = (await link.call("status", StatusQuery(), EventsStatus)).agent
            trader = Trader(link, accounts, client, agent=agent)
            trade = await _trade(client, signer, wanted)
            note_error_details(event=wanted.event)
            output.progress(f"event {wanted.event}")
            until = trio.current_time() + timeout_s
            with trio.move_on_at(until) as placing:
                await _place(trader, trade, output)
            if placing.cancelled_caught:
                output.progress(f"not submitted within {timeout_s} s; the same with --event {wanted.event} goes on")
            left_ms = max(0, int(1_000 * (until - trio.current_time())))
            return await trader.wait(trade.event, timeout_ms=left_ms if must_end else 0)

    with place.explaining(), explaining(doors.socket), _speaking(output):
        return trio.run(run)


@contextmanager
def _speaking(output: Output) -> Iterator[None]:
    """Say on standard error what the transaction system would log."""
    import structlog

    def say(_logger: object, _name: str, entry: "EventDict") -> "EventDict":
        output.progress(f"{entry.get('why') or entry['event']}; trying again")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[say])
    try:
        yield
    finally:
        structlog.configure(**before)


async def _place(trader: "Trader", trade: "Trade", output: Output) -> None:
    """Bring a trade to the chain, and say how far it went.

    Raises:
        Refused: it went no further, with the code that says why.
    """
    from services.client.errors import Refused

    (kept,) = await trader.place([trade])
    if kept.event is None:
        raise Refused(kept.code, kept.message or kept.code)
    note_error_details(event=trade.event, transactionId=f"0x{kept.event.transaction_id.hex()}")
    if not kept.event.is_finished:
        said = "submitted" if kept.event.is_released else "not sent, for its time is over; the event system ends it"
        if kept.code:
            said = f"{kept.code}: {kept.message}; the event system goes on"
        output.progress(f"{said} (transaction 0x{kept.event.transaction_id.hex()})")


async def _trade(client: "Client", signer: "Signer", wanted: Wanted) -> "Trade":
    """Look up what a trade names, and return its terms.

    Raises:
        LocalError: ``unknown_account``, ``unknown_unit``, ``bad_trade``.
    """
    from services.settlement.states import Terms
    from services.settlement.trader import Trade

    buyer, name = await _buyer(client, wanted.buyer)
    payer, payee = wanted.payer or name, wanted.payee or signer.name
    if buyer == signer.address or payer == payee:
        raise LocalError(
            "bad_trade", f"{payer} cannot trade with itself: --buyer and --payer name another than --seller"
        )
    await _check_unit(client, wanted.asset)
    terms = Terms(
        seller=bytes(signer.address),
        buyer=buyer,
        asset=wanted.asset,
        units=wanted.units,
        price=wanted.price,
        currency=wanted.currency,
        payer=payer,
        payee=payee,
    )
    return Trade(wanted.event, signer, terms, validity_ms=wanted.validity_ms)


async def _buyer(client: "Client", text: str) -> tuple[bytes, str]:
    """Return a buyer's address, and the name of its money account where nobody says otherwise.

    Raises:
        LocalError: ``unknown_account``, ``bad_arguments``.
    """
    from consensus.ledger.ids import ADDRESS_BYTES
    from services.client.calls import account_address

    known = {account.name: bytes(account.address) for account in client.genesis.accounts}
    if text.startswith("0x"):
        if len(text) != 2 + 2 * ADDRESS_BYTES or set(text[2:].lower()) - set("0123456789abcdef"):
            raise LocalError("bad_arguments", f"--buyer: {text[:80]!r} is not 0x and {2 * ADDRESS_BYTES} hex digits")
        address = bytes.fromhex(text[2:])
        return address, next((name for name, item in known.items() if item == address), text)
    if text in known:
        return known[text], text
    try:
        return await account_address(client, text), text
    except LocalError as error:
        raise LocalError(error.code, f"{error.message}; those of genesis: {', '.join(known)}") from None


async def _check_unit(client: "Client", asset: str) -> None:
    """Refuse a unit that the chain proves not to know: nothing need be held for it.

    Raises:
        LocalError: ``unknown_unit``.
    """
    key = f"tokens/unit/{asset}"
    # Units stay: only one that is not sealed yet is waited for.
    found = await _proven(client, key, is_newest=False) or await _proven(client, key, is_newest=True)
    if found is None:
        raise LocalError("unknown_unit", f"no unit is named {asset}: hansa tx call tokens define makes one")


async def _proven(client: "Client", key: str, *, is_newest: bool) -> "Value":
    """Return the proven value at a state key, None where there is none."""
    from services.client.errors import Refused

    try:
        return (await client.state(key, is_newest=is_newest)).value
    except Refused as error:
        if error.code != "genesis_unsigned":
            raise
        return None


def doors_of(place: Place, socket: Path | None, accounts: str | None, token_file: Path | None) -> Doors:
    """Return where the programs answer.

    Raises:
        LocalError: ``no_home``, ``bad_config``, ``key_permissions``.
    """
    from services.local.files import read_service
    from services.messages.config import read_token, token_at
    from services.settlement.config import PayerFile

    events = socket_of(place, socket)
    token = ""
    if accounts is None:
        home = home_of(PAYER_HOME, None, place)
        file = read_service(home, PayerFile)
        accounts, token = file.accounts, read_token(home, "accounts_token", file.accounts_token)
    if token_file is not None:
        token = token_at(token_file, "--accounts-token-file")
    return Doors(events, accounts, token)
