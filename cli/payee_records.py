"""``hansa payee platform add``, ``update``, ``remove``, ``records``; ``hansa payee merchant sign``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.options import Number, json_option, network_option, passphrase_option
from cli.output import Output, panel, table
from cli.payee_door import Door, door_options
from cli.payee_place import merchants_option, open_merchant, payload_of, store_of
from cli.place import Place
from cli.settle_accounts import SIMULATED
from consensus.ledger.errors import LocalError
from services.payee.wording import EMULATED

if TYPE_CHECKING:
    from rich.console import Console

    from services.payee.interfaces import Acquiring, Draft, DraftRecord, PutRecord, RecordPut, RecordRow

C = TypeVar("C", bound=Callable[..., Any])
Json = dict[str, Any]

PAGE_DEFAULT, PAGE_MAX = 50, 500
FILE_BYTES_MAX = 64 * 1024


def _record_options(function: C) -> C:
    """Add what ``add`` and ``update`` share."""
    file = click.Path(path_type=Path, dir_okay=False)
    options = [
        click.option("--merchant", metavar="NAME|IDENTITY", help="Whom the record is of."),
        click.option(
            "--acquiring",
            metavar="FILE",
            type=file,
            help="JSON or TOML with account, name, currency; terminal and note may be left out.",
        ),
        click.option("--split", is_flag=True, help="Nobody opens it without the merchant's code: a split key."),
        click.option(
            "--code", metavar="IMAGE|PAYLOAD", help="With --split: one of the merchant's, if it is elsewhere."
        ),
        click.option("--shareable", is_flag=True, help="Others' clients may see it, where the merchant consents."),
        click.option("--offer", metavar="OUT", type=file, help="Write it for the merchant to sign elsewhere."),
        click.option("--signed", metavar="FILE", type=file, help="What the merchant has signed elsewhere."),
        merchants_option,
        passphrase_option,
        door_options,
        json_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command("add")
@_record_options
def add(output: Output, **options: Any) -> None:
    """Add a merchant: its acquiring information, signed by both, encrypted before it leaves the platform.

    The printed code stays as it is. Where the merchant's key is on another machine: --offer OUT here, hansa payee
    merchant sign there, --signed FILE here.

    Example: hansa payee platform add --platform wallet-p --merchant tea-house --acquiring tea.json
    """
    _put(output, is_update=False, **options)


@click.command("update")
@_record_options
def update(output: Output, **options: Any) -> None:
    """Replace the acquiring information of a merchant; both sign, as for add.

    Example: hansa payee platform update --platform wallet-p --merchant tea-house --acquiring tea.json
    """
    _put(output, is_update=True, **options)


def _put(
    output: Output,
    *,
    is_update: bool,
    merchant: str | None,
    acquiring: Path | None,
    split: bool,
    code: str | None,
    shareable: bool,
    offer: Path | None,
    signed: Path | None,
    merchants_folder: Path | None,
    passphrase_file: Path | None,
    door: Door,
    place: Place,
) -> None:
    from services.payee.interfaces import DraftRecord, RecordPut
    from services.payee.offers import check_asked, checked, read_signed

    if signed is not None:
        if merchant or acquiring or offer or split or code:
            raise click.UsageError("--signed FILE says all that it is about")
        asked = read_signed(signed, door.server)
        _show_put(output, door, asked, door.call("put_record", asked, RecordPut))
        return
    if merchant is None or acquiring is None:
        raise click.UsageError("needs --merchant and --acquiring, or --signed")
    if code is not None and not split:
        raise click.UsageError("--code is for --split")
    content = _read_acquiring(acquiring)
    opened = None
    if offer is None:
        opened = open_merchant(place, merchant, folder=merchants_folder, passphrase_file=passphrase_file)
    identity = _identity_of(place, merchant, merchants_folder)
    code_part = _code_part(place, identity, code, merchants_folder) if split else b""
    wanted = DraftRecord(identity, content, shareable, code_part)
    draft = _draft(door, wanted, is_update=is_update)
    check_asked(draft, checked(draft, opened.key_part if opened is not None else code_part), wanted, door.server)
    if opened is None or offer is not None:
        _show_offer(output, draft, offer)
        return
    output.progress(f"{opened.name} signs version {draft.version} of its record at {door.server}")
    put = _signed(draft, opened.sign_content, place)
    _show_put(output, door, put, door.call("put_record", put, RecordPut))


@click.command("sign")
@click.argument("offer", metavar="OFFER", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), required=True)
@merchants_option
@passphrase_option
@network_option
@json_option
def sign(
    offer: Path, out: Path, merchants_folder: Path | None, passphrase_file: Path | None, place: Place, output: Output
) -> None:
    """Sign what a platform offers to keep of a merchant, where the merchant's key is; shows what is signed.

    Needs no network but its genesis document, which names the chain. What is written holds the signature alone.

    Example: hansa payee merchant sign offer.json --out signed.json
    """
    from services.payee.offers import checked, read_offer, write_signed

    draft = read_offer(offer)
    opened = open_merchant(place, draft.identity, folder=merchants_folder, passphrase_file=passphrase_file)
    acquiring = checked(draft, opened.key_part)
    put = _signed(draft, opened.sign_content, place)
    write_signed(out, draft, put.merchant_signature)
    data = {**_draft_json(draft), "merchant": opened.name, "acquiring": _acquiring_json(acquiring), "out": str(out)}
    shown = {"merchant": opened.name, "platform": draft.server, **_acquiring_fields(acquiring)}
    shown |= {"may be shown": draft.is_shareable, "version": draft.version, "written to": str(out)}
    if draft.part:
        shown["split key"] = "opens with a code and the platform's part alone"
    output.show(data, lambda console: panel(console, f"{opened.name} has signed", shown))


@click.command("remove")
@click.option("--merchant", metavar="NAME|IDENTITY", required=True, help="Whose record is removed.")
@merchants_option
@door_options
@json_option
def remove(merchant: str, merchants_folder: Path | None, door: Door, place: Place, output: Output) -> None:
    """Remove a merchant's record: the platform alone signs; leaves a tombstone.

    Example: hansa payee platform remove --platform wallet-p --merchant tea-house
    """
    from services.payee.interfaces import RecordPut, RemoveRecord

    identity = _identity_of(place, merchant, merchants_folder)
    put = door.call("remove_record", RemoveRecord(identity), RecordPut)
    data = {**_put_json(put), "platform": door.server}
    shown = {"identity": put.identity, "version": f"{put.version}, a tombstone", "block": put.height}
    output.show(data, lambda console: panel(console, f"{door.server} has removed its record", shown))


@click.command("records")
@click.option("--after", metavar="IDENTITY", default="", help="Those behind this identity.")
@click.option("--limit", type=Number(1, PAGE_MAX), default=PAGE_DEFAULT, show_default=True, help="How many.")
@door_options
@json_option
def records(after: str, limit: int, door: Door, place: Place, output: Output) -> None:
    """List the platform's records as the chain has them, opened with its keys: for its owner's eyes.

    Example: hansa payee platform records --platform wallet-p
    """
    from services.payee.interfaces import Records, RecordsQuery

    found = door.call("records", RecordsQuery(_checked_identity(after) if after else "", limit), Records)
    data = {"platform": door.server, "records": [_row_json(row) for row in found.items], "next": found.next or None}
    cells = [(row.identity, row.version, row.epoch, row.is_shareable, _row_text(row)) for row in found.items]

    def draw(console: "Console") -> None:
        table(
            console,
            ("identity", ">version", ">epoch", "shareable", "pays to"),
            cells,
            title=f"Records of {door.server}",
        )
        if found.next:
            console.print(f"Next: --after {found.next}", markup=False)

    output.show(data, draw)


# -- inside ----------------------------------------------------------------------------------------------


def _read_acquiring(path: Path) -> "Acquiring":
    """Read acquiring information from JSON or TOML; an error says nothing of what stands there.

    Raises:
        LocalError: ``bad_file``.
    """
    import msgspec

    from services.payee.interfaces import Acquiring

    try:
        with path.open("rb") as source:
            content = source.read(FILE_BYTES_MAX)
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None
    decode = msgspec.toml.decode if path.suffix == ".toml" else msgspec.json.decode
    try:
        return decode(content, type=Acquiring)
    except msgspec.ValidationError as error:
        raise LocalError("bad_file", f"{path}: {error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        form = "TOML" if path.suffix == ".toml" else "JSON"
        raise LocalError("bad_file", f"{path} is no {form} with account, name and currency") from None


def _identity_of(place: Place, text: str, folder: Path | None) -> str:
    """Return the identity of a merchant by name, or the identity itself, whose key may be anywhere.

    Raises:
        LocalError: ``no_merchant``.
    """
    from services.payee.identity import identity_of, identity_text

    try:
        return identity_text(identity_of(text))
    except LocalError:
        return identity_text(store_of(place, folder).find(text).identity)


def _checked_identity(text: str) -> str:
    from services.payee.identity import identity_of, identity_text

    return identity_text(identity_of(text))


def _code_part(place: Place, identity: str, code: str | None, folder: Path | None) -> bytes:
    """Return a merchant's part of a split key, out of its files or of one of its codes.

    Raises:
        LocalError: ``no_merchant``; ``wrong_code`` for a code of somebody else; ``key_part_missing``.
    """
    from services.payee.identity import identity_text
    from services.payee.payer import read_payload

    if code is None:
        part = store_of(place, folder).find(identity).key_part
    else:
        read = read_payload(payload_of(code))
        if identity_text(read.identity) != identity:
            raise LocalError("wrong_code", "the code is not this merchant's")
        part = read.key_part
    if part is None:
        raise LocalError("key_part_missing", "this merchant has no part of a split key: payee merchant new --split")
    return part


def _draft(door: Door, asked: "DraftRecord", *, is_update: bool) -> "Draft":
    """Have the platform draft a record.

    Raises:
        Refused: ``record_exists`` of an add, ``unknown_record`` or ``record_removed`` of an update.
    """
    from services.client.errors import Refused
    from services.payee.interfaces import Draft

    draft = door.call("draft_record", asked, Draft)
    command = f"hansa payee platform {'add' if is_update else 'update'}"
    match is_update, draft.standing:
        case False, "ACTIVE":
            raise Refused("record_exists", f"{door.server} has an active record of this merchant: {command}")
        case True, "":
            raise Refused("unknown_record", f"{door.server} has no record of this merchant: {command}")
        case True, "REMOVED":
            raise Refused("record_removed", f"{door.server} has removed its record of this merchant: {command}")
    return draft


def _signed(draft: "Draft", sign: "Callable[..., bytes]", place: Place) -> "PutRecord":
    from services.payee.interfaces import PutRecord

    signature = sign(
        place.genesis.chain_id(), draft.server, draft.version, draft.commitment, is_shareable=draft.is_shareable
    )
    return PutRecord(draft.identity, draft.commitment, signature)


def _show_put(output: Output, door: Door, asked: "PutRecord", put: "RecordPut") -> None:
    data = {**_put_json(put), "platform": door.server, "commitment": f"0x{asked.commitment.hex()}"}
    shown = {
        "identity": put.identity,
        "version": f"{put.version}, under epoch {put.epoch}",
        "commitment": data["commitment"],
        "transaction": data["transaction"],
        "block": put.height,
    }

    def draw(console: "Console") -> None:
        panel(console, f"{door.server} has the merchant's record", shown)
        console.print("Signed by both, encrypted for the platform and environments that it trusts", markup=False)
        console.print(f"({EMULATED}). Printed codes stay as they are.", markup=False)

    output.show(data, draw)


def _show_offer(output: Output, draft: "Draft", offer: Path | None) -> None:
    from services.payee.offers import write_offer

    if offer is not None:
        write_offer(offer, draft)
    shown = {"platform": draft.server, "identity": draft.identity, "version": draft.version, "written to": str(offer)}

    def draw(console: "Console") -> None:
        panel(console, "Offered for the merchant's signature", shown)
        console.print(f"Next: hansa payee merchant sign {offer} --out signed.json", markup=False, soft_wrap=True)

    output.show({**_draft_json(draft), "out": str(offer)}, draw)


def _draft_json(draft: "Draft") -> Json:
    return {
        "platform": draft.server,
        "identity": draft.identity,
        "version": draft.version,
        "commitment": f"0x{draft.commitment.hex()}",
        "shareable": draft.is_shareable,
        "split": bool(draft.part),
    }


def _put_json(put: "RecordPut") -> Json:
    transaction = f"0x{put.transaction.hex()}" if put.transaction else None
    return {
        "identity": put.identity,
        "version": put.version,
        "epoch": put.epoch,
        "transaction": transaction,
        "height": put.height,
    }


def _acquiring_json(acquiring: "Acquiring | None") -> Json | None:
    import msgspec

    found: Json | None = None if acquiring is None else msgspec.to_builtins(acquiring)
    return found


def _acquiring_fields(acquiring: "Acquiring") -> Json:
    return {
        "pays to": f"{acquiring.account} ({acquiring.currency}, {SIMULATED})",
        "name": acquiring.name,
        **{name: getattr(acquiring, name) for name in ("terminal", "note") if getattr(acquiring, name)},
    }


def _row_json(row: "RecordRow") -> Json:
    return {
        "identity": row.identity,
        "version": row.version,
        "epoch": row.epoch,
        "shareable": row.is_shareable,
        "split": row.is_split,
        "status": "REMOVED" if row.is_removed else "ACTIVE",
        "acquiring": _acquiring_json(row.acquiring),
    }


def _row_text(row: "RecordRow") -> str:
    if row.is_removed:
        return "removed"
    if row.is_split:
        return "split key: opens with its code"
    return "does not open" if row.acquiring is None else f"{row.acquiring.account} {row.acquiring.currency}"
