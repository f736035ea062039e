"""``hansa stream offer`` and ``open``: terms that a service party signs, and the stream that a payer opens by them."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.core import ParameterSource

from cli.options import json_option
from cli.output import Output, note_error_details, panel
from cli.place import Place
from cli.stream_payer import Purse, opener_options
from cli.stream_place import (
    HINT,
    MODE_NAMES,
    SERVICE_HOME,
    Amount,
    fault_of,
    home_of,
    names_of,
    short,
    terms_fields,
    write_file,
)
from consensus.ledger.errors import LocalError, PeerError
from services.client.times import utc_text

if TYPE_CHECKING:
    from rich.console import Console

    from services.client.client import Client
    from services.client.keystore import Signer
    from services.stream.opening import Agreed, Opened
    from services.stream.service_interface import Offer, OfferWanted

Json = dict[str, Any]

OFFER_BYTES_MAX = 16 * 1024
FINE_SHARE = 10
"""A fine is this part of the deposit where nobody says another."""
_END = re.compile(r"(count|amount)=([0-9]{1,15})|time=([0-9]{1,9})(s|m|min|h|d)", re.ASCII)
_MS = {"s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


class End(click.ParamType[tuple[str, int]]):
    """An agreed end: ``count=200``, ``amount=5000``, ``time=1h``."""

    name = "end"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Return the term's name and its value."""
        if isinstance(value, tuple):
            return value
        found = _END.fullmatch(str(value))
        if found is None or not int(found[2] or found[3]):
            self.fail(f"{str(value)[:80]!r} is no end: count=200, amount=5000 or time=1h", param, ctx)
        if found[1]:
            return f"{found[1]}_max", int(found[2])
        return "duration_ms_max", int(found[3]) * _MS[found[4]]


_service_option = click.option(
    "--service", metavar="NAME|URL", help="The service party, or where it takes payers; else the network's own."
)


def _wish_options(function: Any) -> Any:
    """Add what a payer wishes of an offer."""
    options = [
        click.option("--deposit", metavar="N", type=Amount(), help="Set aside on the chain."),
        click.option("--fine", metavar="N", type=Amount(0), help="Of the deposit; else a tenth of it."),
        click.option("--credit", metavar="N", type=Amount(0), default=0, help="Due beyond the deposit; else none."),
        click.option(
            "--mode",
            metavar="MODE",
            type=click.Choice(MODE_NAMES),
            default=MODE_NAMES[0],
            show_default=True,
            help="Who goes first in each step; or payment-first.",
        ),
        click.option(
            "--end", "ends", metavar="WHAT=N", type=End(), multiple=True, help="count=N, amount=N, time=1h; or several."
        ),
        click.option("--price", metavar="N", type=Amount(), help="Of one unit, at the most."),
        click.option("--step", metavar="N", type=Amount(), help="To lose at the most; refuse more."),
        click.option("--number", metavar="N", type=Amount(0), help="The stream's; else a new one."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class Wish:
    """What a payer wishes of an offer, as options say it, and what it accepts at the most."""

    deposit: int | None
    fine: int | None
    credit: int
    mode: str
    ends: tuple[tuple[str, int], ...]
    price: int | None
    step: int | None
    number: int | None

    def wanted(self, payer: bytes, next_number: int) -> "OfferWanted":
        """Return what the service party is asked for, with the next number unless one was said.

        Raises:
            UsageError: no deposit, or two ends of a kind.
        """
        from services.stream.service_interface import OfferWanted

        if self.deposit is None:
            raise click.UsageError("say with --deposit how much is set aside, or name a file with --offer")
        if len({name for name, _ in self.ends}) != len(self.ends):
            raise click.UsageError("--end: each of count, amount and time once")
        fine = self.deposit // FINE_SHARE if self.fine is None else self.fine
        return OfferWanted(
            payer=f"0x{payer.hex()}",
            number=next_number if self.number is None else self.number,
            deposit=self.deposit,
            fine=fine,
            credit=self.credit,
            mode=self.mode,
            **dict(self.ends),
        )


@click.command("offer")
@_service_option
@_wish_options
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Where the offer is written.",
)
@opener_options
@json_option
def offer(service: str | None, out: Path, purse: Purse, output: Output, **wishes: Any) -> None:
    """Ask a service party for terms, check what it signed, and write the offer to a file for `stream open --offer`.

    Amounts are whole numbers of the unit's smallest parts.

    Example: hansa stream offer --payer user-b --deposit 4000 --end count=200 --out offer.json
    """
    import msgspec

    from services.stream.payer import Payer

    signer = purse.signer("")
    url = service_url(purse.place, service)
    with purse.store() as store:
        given, agreed = purse.place.ask(
            lambda client: _agree(client, url, signer, Wish(**wishes), Payer(client, signer, store).next_number())
        )
    write_file(out, msgspec.json.format(msgspec.json.encode(given), indent=2) + b"\n")
    shown = terms_fields(agreed.terms, names_of(purse.place)) | {
        "stands until": f"{utc_text(agreed.terms.offer_until_ms)} UTC",
        "written to": str(out),
    }

    def draw(console: "Console") -> None:
        panel(console, f"Offer of stream {short(agreed.stream)}, signed", shown)
        next_step = f"hansa stream open --payer {signer.name} --offer {out} --service {url}"
        console.print(f"Next: {next_step}", markup=False, soft_wrap=True)

    output.show({**_agreed_json(agreed), "url": url, "out": str(out)}, draw)


@click.command("open")
@_service_option
@click.option(
    "--offer", "offer_file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="From stream offer."
)
@_wish_options
@opener_options
@json_option
def open_stream(service: str | None, offer_file: Path | None, purse: Purse, output: Output, **wishes: Any) -> None:
    """Open a stream: terms that the service party has signed, and the deposit, set aside on the chain.

    The deposit comes back at the end, less what is not paid out of the balance. The fine stays in it: it goes to the
    service party if the payer uses the stream's number otherwise or cannot pay. Amounts are whole numbers of the unit's
    smallest parts. Interrupted, nothing is lost: hansa stream list shows it,
    and hansa stream pay goes on.

    Example: hansa stream open --payer user-b --deposit 4000 --price 8 --end count=200
    """
    wish = Wish(**wishes)
    if offer_file is not None and (said := [f"--{word}" for name, word in _TERMS.items() if _is_said(name)]):
        raise click.UsageError(f"--offer says all terms: leave {' and '.join(said)} out")
    from services.stream.payer import Payer

    signer = purse.signer("")
    url = service_url(purse.place, service)
    given = None if offer_file is None else _read_offer(offer_file)

    async def run(client: "Client") -> "tuple[Agreed, Opened]":
        payer = Payer(client, signer, store)
        if given is None:
            _, agreed = await _agree(client, url, signer, wish, payer.next_number())
        else:
            agreed = await _check(client, given, wish)
        note_error_details(stream=f"0x{agreed.stream.hex()}", isOpening=True)
        output.progress(f"opening stream 0x{agreed.stream.hex()}")
        return agreed, await payer.open(agreed, url=url)

    with purse.store() as store:
        agreed, opened = purse.place.ask(run)
    _show_opened(output, purse, agreed, opened, url)


def service_url(place: Place, service: str | None) -> str:
    """Return where the service party takes payers.

    Raises:
        LocalError: ``no_home``, ``bad_config``; ``unknown_service`` for a name that the network's does not have.
    """
    from services.local.files import read_service
    from services.stream.service_config import StreamServiceFile

    if service is not None and "://" in service:
        return service.rstrip("/")
    home = home_of(SERVICE_HOME, None, place.given)
    if not (home / "service.toml").is_file():
        raise LocalError("no_home", f"{home} holds no service party: {HINT}, --service URL names another")
    file = read_service(home, StreamServiceFile)
    if service not in (None, file.account):
        message = f"the network's service party is {file.account}, not {str(service)[:40]}: --service URL names another"
        raise LocalError("unknown_service", message)
    return f"http://{file.listen}"


# -- inside ----------------------------------------------------------------------------------------------

_TERMS = {name: name for name in ("deposit", "fine", "credit", "mode", "number")} | {"ends": "end"}
"""Parameter → option that wishes for a term; the others say what is accepted of one."""


def _is_said(name: str) -> bool:
    """Tell whether the running command was given an option, even with its default."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE


async def _agree(client: "Client", url: str, signer: "Signer", wish: Wish, next_number: int) -> "tuple[Offer, Agreed]":
    """Ask for an offer, and check it."""
    from services.stream.opening import ask_offer, check_offer

    wanted = wish.wanted(bytes(signer.address), next_number)
    given = await ask_offer(url, wanted)
    return given, await check_offer(client, given, wanted, now_ms=_now_ms(), accepted=_accepted(wish))


async def _check(client: "Client", given: "Offer", wish: Wish) -> "Agreed":
    """Check an offer out of a file: what it says was wished when it was asked for."""
    from services.stream.opening import check_offer
    from services.stream.service_interface import OfferWanted

    terms, _ = given.check_untrusted(client.chain_id)
    wanted = OfferWanted(
        payer=f"0x{terms.payer.hex()}",
        number=terms.number,
        deposit=terms.deposit,
        fine=terms.fine,
        credit=terms.credit,
        mode=MODE_NAMES[terms.mode],
        count_max=terms.count_max,
        amount_max=terms.amount_max,
        duration_ms_max=terms.duration_ms_max,
    )
    return await check_offer(client, given, wanted, now_ms=_now_ms(), accepted=_accepted(wish))


def _accepted(wish: Wish) -> Any:
    from dataclasses import replace

    from services.stream.opening import ANYTHING

    accepted = ANYTHING if wish.price is None else replace(ANYTHING, price_max=wish.price)
    return accepted if wish.step is None else replace(accepted, step_max=wish.step)


def _read_offer(path: Path) -> "Offer":
    import msgspec

    from services.stream.service_interface import Offer

    try:
        with path.open("rb") as file:
            content = file.read(OFFER_BYTES_MAX + 1)
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None
    with fault_of(path):
        if len(content) > OFFER_BYTES_MAX:
            raise PeerError("too_large", f"an offer has at most {OFFER_BYTES_MAX} bytes")
        try:
            return msgspec.json.decode(content, type=Offer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PeerError("malformed", f"no offer: {error}") from None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _agreed_json(agreed: "Agreed") -> Json:
    from services.stream.iteration_file import terms_json

    return {"stream": f"0x{agreed.stream.hex()}", "terms": terms_json(agreed.terms)}


def _show_opened(output: Output, purse: Purse, agreed: "Agreed", opened: "Opened", url: str) -> None:
    terms, outcome = agreed.terms, opened.outcome
    shown = terms_fields(terms, names_of(purse.place))
    if outcome is not None:
        shown |= {"transaction": f"0x{outcome.transaction.id.hex()}", "block": outcome.height}
    data = _agreed_json(agreed) | {
        "url": url,
        "opened": outcome is not None,
        "transactionId": None if outcome is None else f"0x{outcome.transaction.id.hex()}",
        "height": None if outcome is None else outcome.height,
    }

    def draw(console: "Console") -> None:
        is_new = "is open" if outcome is not None else "was open before"
        panel(console, f"Stream {short(agreed.stream)} {is_new}", shown)
        console.print(f"stream 0x{agreed.stream.hex()}", markup=False, soft_wrap=True)
        console.print(f"Next: hansa stream pay {agreed.stream.hex()[:8]}", markup=False, soft_wrap=True)

    output.show(data, draw)
