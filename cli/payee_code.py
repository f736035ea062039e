"""``hansa payee code``: codes made, drawn, read from images, and checked field by field."""

import re
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cli.options import json_option, network_option, passphrase_option
from cli.output import EXIT_REFUSED, Output, leave, panel
from cli.payee_place import merchants_option, open_merchant, payload_of, payment_code, store_of
from cli.place import Place
from cli.settle_place import Pattern, Price, money
from consensus.ledger.errors import LocalError, PeerError

if TYPE_CHECKING:
    from rich.console import Console

    from consensus.ledger.ids import ChainId
    from services.payee.codes import ReadCode
    from services.payee.emv import Payload
    from services.payee.emv_rows import Row
    from services.payee.merchants import Merchant

Json = dict[str, Any]

EXPIRY_DEFAULT = "15m"
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_SPAN = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_CURRENCY = Pattern(re.compile(r"[A-Z]{3}", re.ASCII), "currency", "three capital letters of ISO 4217, such as CNY")
_CATEGORY = Pattern(re.compile(r"[0-9]{4}", re.ASCII), "category", "four digits of ISO 18245, such as 5812")


class Expiry(click.ParamType[int]):
    """A time in the future: how long from now, or UTC; in ms since 1970, whole seconds."""

    name = "expiry"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the time in ms."""
        if isinstance(value, int):
            return value
        text, now_s = str(value), int(time.time())
        if span := _SPAN.fullmatch(text):
            expires_s = now_s + int(span[1]) * _SECONDS[span[2]]
        else:
            try:
                moment = datetime.fromisoformat(text)
            except ValueError:
                self.fail(f"{text[:40]!r} is no expiry: 15m, 2h, 1d, or UTC as 2030-01-31T12:00", param, ctx)
            expires_s = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
        if expires_s <= now_s:
            self.fail(f"{text[:40]} is past: a code expires in the future", param, ctx)
        return 1_000 * expires_s


@click.group()
def code() -> None:
    """Codes: EMVCo merchant-presented payloads with the merchant's identity, as QR codes.

    A static code is for many payments, a dynamic one, signed by the merchant, for one order.
    """


# -- make ------------------------------------------------------------------------------------------------


@code.command("make")
@click.option("--merchant", metavar="NAME|IDENTITY", required=True, help="Whose code it is.")
@click.option("--amount", metavar="AMOUNT", type=Price(), help="What is to pay; else the payer enters it.")
@click.option("--currency", metavar="CODE", type=_CURRENCY, help="Of the amount; CNY if nothing says another.")
@click.option("--order", metavar="ID", help="Order: the code becomes dynamic, for one payment; needs --amount.")
@click.option(
    "--expires", metavar="15m|UTC", type=Expiry(), help=f"When an order's code expires; else in {EXPIRY_DEFAULT}."
)
@click.option("--name", metavar="TEXT", help="Merchant's name for the payer's eyes, up to 25 characters.")
@click.option("--city", metavar="TEXT", help="Its city, up to 15 characters.")
@click.option("--country", metavar="XX", help="Its country, two letters of ISO 3166; else CN.")
@click.option("--category", metavar="NNNN", type=_CATEGORY, help="Its category, ISO 18245; else 0000.")
@click.option("--sign", "is_signed", is_flag=True, help="Sign a static code too, so that nothing in it can change.")
@click.option("--into", metavar="PAYLOAD|FILE", help="Add the identity to another scheme's code, which stays as it is.")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it as .png or .svg.",
)
@merchants_option
@passphrase_option
@network_option
@json_option
def make(
    merchant: str,
    amount: int | None,
    currency: str | None,
    order: str | None,
    expires: int | None,
    name: str | None,
    city: str | None,
    country: str | None,
    category: str | None,
    is_signed: bool,
    into: str | None,
    out: Path | None,
    merchants_folder: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Make a code, write it as an image, and print it.

    Without --order the code is static. It stays right whatever platforms the merchant works with.

    Example: hansa payee code make --merchant tea-house --amount 12.50 --order A-1 --out code.png
    """
    from services.payee import emv
    from services.payee.codes import CodeTerms, make_code
    from services.payee.images import image_bytes, image_kind, terminal_text

    kind = image_kind(out) if out is not None else ""
    if order is not None and expires is None:
        expires = Expiry().convert(EXPIRY_DEFAULT, None, None)
    terms = CodeTerms(
        amount=amount,
        currency=currency,
        order=order,
        expires_ms=expires,
        name=name,
        city=city,
        country=country,
        category=category,
    )
    base = None if into is None else emv.parse(payload_of(into))
    if is_signed or order is not None:
        signer: Merchant | None = open_merchant(
            place, merchant, folder=merchants_folder, passphrase_file=passphrase_file
        )
    else:
        signer = None
    identity, key_part = (signer.identity, signer.key_part) if signer else _known(place, merchant, merchants_folder)
    made = make_code(
        identity,
        terms,
        chain_id=_chain_id(place, is_needed=signer is not None),
        key=None if signer is None else signer.key,
        into=base,
        key_part=key_part,
    )
    drawn = terminal_text(made.text, is_colored=sys.stdout.isatty())
    if out is not None:
        out.write_bytes(image_bytes(made.text, kind))
    data: Json = {"merchant": merchant, **_code_json(made), "payload": made.text, "file": str(out) if out else None}

    def draw(console: "Console") -> None:
        panel(console, "Dynamic code" if made.is_dynamic else "Static code", _code_shown(made, merchant))
        if drawn.columns <= console.width:
            click.echo(drawn.text)
        elif out is None:
            console.print(f"The code takes {drawn.columns} columns: --out FILE writes an image", markup=False)
        console.print(made.text, markup=False, soft_wrap=True)
        if out is not None:
            console.print(f"Written to {out}", markup=False, soft_wrap=True)

    output.show(data, draw)


def _known(place: Place, text: str, folder: Path | None) -> tuple[bytes, bytes | None]:
    """Return identity and part of a split key of a merchant by name, or an identity as it is written.

    Raises:
        LocalError: ``no_merchant``.
    """
    from services.payee.identity import identity_of

    try:
        entry = store_of(place, folder).find(text)
    except LocalError as error:
        if error.code != "no_merchant":
            raise
        try:
            return identity_of(text), None
        except LocalError:
            raise error from None
    return entry.identity, entry.key_part


def _chain_id(place: Place, *, is_needed: bool) -> "ChainId":
    from consensus.ledger.ids import ZERO_HASH, ChainId

    return place.genesis.chain_id() if is_needed else ChainId(ZERO_HASH)


# -- read and show ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checks of a payload came to: ``word`` is ``right``, ``unsigned`` (a static code without a signature),

    ``foreign`` (no payee code), ``not_checked`` or the error's code.
    """

    word: str
    message: str
    code: "ReadCode | None" = None

    @property
    def is_ok(self) -> bool:
        """Whether nothing was found to be wrong."""
        return self.word in ("right", "unsigned", "foreign", "not_checked")


@code.command("read")
@click.argument("image", type=click.Path(path_type=Path))
@merchants_option
@network_option
@json_option
def read(image: Path, merchants_folder: Path | None, place: Place, output: Output) -> None:
    """Read the code in an image, name every field, and check CRC and signature; exit code 1 when one is wrong.

    PNG and JPEG, also photos; SVG as code make writes it. The signature is checked with the merchant's key on the
    chain, so a network is needed for that.

    Example: hansa payee code read code.png
    """
    from services.payee.images import read_image

    _show(payment_code(read_image(image), image), merchants_folder, place, output)


@code.command("show")
@click.argument("payload")
@merchants_option
@network_option
@json_option
def show(payload: str, merchants_folder: Path | None, place: Place, output: Output) -> None:
    """Name every field of a payload, and check CRC and signature; exit code 1 when one is wrong.

    The signature is checked with the merchant's key on the chain, so a network is needed for that.

    Example: hansa payee code show 00020101021126…
    """
    _show(payload, merchants_folder, place, output)


def _show(text: str, merchants_folder: Path | None, place: Place, output: Output) -> None:
    from services.payee import emv
    from services.payee.emv_rows import describe

    payload = emv.parse_unchecked(text)
    verdict = _judge(place, payload)
    rows = describe(payload)
    data: Json = {
        "ok": verdict.is_ok,
        "payload": text,
        "characters": len(text),
        "fields": [{"path": row.path, "name": row.name, "value": row.value, "note": row.note} for row in rows],
        "crc": payload.has_right_crc,
        "check": verdict.word,
        "message": verdict.message,
        "payee": None if verdict.code is None else _code_json(verdict.code),
    }

    def draw(console: "Console") -> None:
        _draw_rows(console, f"Payload of {len(text)} characters", rows)
        found = verdict.code
        shown = {} if found is None else _code_shown(found, _local_name(place, found.identity, merchants_folder))
        title = "Payee code" if found else "No payee code" if verdict.is_ok else "Not right"
        crc = "right" if payload.has_right_crc else f"WRONG, {payload.right_crc} would be right"
        panel(console, title, {**shown, "CRC": crc, "checked": verdict.message}, good=verdict.is_ok)

    output.show(data, draw)
    if not verdict.is_ok:
        leave(EXIT_REFUSED)


def _judge(place: Place, payload: "Payload") -> Verdict:
    """Check CRC, form and signature, the latter with the merchant's key on the chain."""
    from services.client.errors import Unreachable
    from services.payee.codes import read_code, verify_code
    from services.payee.merchants import merchant_state

    if not payload.has_right_crc:
        return Verdict("bad_crc", "the CRC is wrong: this is not what was printed, and nothing else of it was checked")
    try:
        found = read_code(payload)
    except PeerError as error:
        word = "foreign" if error.code == "no_identity" else error.code
        return Verdict(word, error.message)
    try:
        chain_id = place.genesis.chain_id()
        state = place.ask(lambda client: merchant_state(client, found.identity))
    except (LocalError, Unreachable) as error:
        if error.code not in ("no_network", "node_unreachable", "node_timeout"):
            raise
        reason = "no network" if error.code == "no_network" else "no node answers"
        return Verdict("not_checked", f"identity and signature are not checked: {reason}", found)
    if state is None:
        return Verdict("unknown_merchant", "the chain has no merchant with this identity", found)
    try:
        verify_code(found, state.key, chain_id, time.time_ns() // 1_000_000)
    except PeerError as error:
        is_of_old = error.code == "bad_code" and state.key_number
        hint = "; the merchant has replaced its key, and codes that the old one signed are refused" if is_of_old else ""
        return Verdict(error.code, error.message + hint, found)
    if not found.is_signed:
        return Verdict(
            "unsigned", "the identity is on the chain; without a signature nothing else is vouched for", found
        )
    return Verdict("right", "the signature is the merchant's, with its key on the chain", found)


def _local_name(place: Place, identity: bytes, folder: Path | None) -> str:
    """Return how a merchant is called here, "" where its key is not."""
    from services.payee.identity import identity_text

    try:
        return store_of(place, folder).find(identity_text(identity)).name
    except LocalError:
        return ""


def _code_json(made: "ReadCode") -> Json:
    from services.payee.identity import identity_text

    return {
        "identity": identity_text(made.identity),
        "dynamic": made.is_dynamic,
        "amount": None if made.amount is None else f"{made.amount // 100}.{made.amount % 100:02d}",
        "currency": made.currency,
        "order": made.order,
        "expiresMs": made.expires_ms,
        "signed": made.is_signed,
        "split": made.key_part is not None,
    }


def _code_shown(made: "ReadCode", name: str) -> Json:
    from services.client.times import utc_text
    from services.payee.identity import identity_text

    identity = identity_text(made.identity)
    shown: Json = {"merchant": name} if name and name != identity else {}
    amount = "the payer enters it" if made.amount is None else f"{money(made.amount)} {made.currency}"
    shown |= {
        "identity": identity,
        "kind": "dynamic: for one payment" if made.is_dynamic else "static: for many payments",
        "amount": amount,
    }
    if made.order is not None:
        shown["order"] = made.order
    if made.expires_ms is not None:
        is_past = made.expires_ms <= time.time_ns() // 1_000_000
        shown["expires (UTC)"] = utc_text(made.expires_ms)[:19] + (", which is past" if is_past else "")
    shown["signed"] = "yes" if made.is_signed else "no"
    if made.key_part is not None:
        shown["split key"] = "a part of it is in this code"
    return shown


def _draw_rows(console: "Console", title: str, rows: "list[Row]") -> None:
    """Draw fields one below the other, parts set in; what does not fit beside its name stands below it, unbroken."""
    from rich.cells import cell_len
    from rich.text import Text

    panel(console, title, {}, style="dim")
    paths = 2 + max(len(row.path) for row in rows)
    names = 2 + max(len(row.name) for row in rows)
    for row in rows:
        start, indent = 2 + paths + names, " " * (2 + paths)
        is_beside = start + cell_len(row.value) <= console.width
        value, note = (row.value if is_beside else ""), (f"  {row.note}" if row.value else row.note)
        is_noted = is_beside and start + cell_len(value) + cell_len(note) <= console.width
        line = Text.assemble(
            (f"  {row.path:<{paths}}{row.name:<{names}}", "dim"), value, (note if is_noted else "", "dim")
        )
        line.rstrip()
        console.print(line, soft_wrap=True)
        if row.value and not is_beside:
            console.print(Text(f"{indent}{row.value}"), soft_wrap=True)
        if row.note and not is_noted:
            console.print(Text(f"{indent}{row.note}", style="dim"), soft_wrap=True)
    console.print()
