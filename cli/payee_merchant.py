"""``hansa payee merchant``: identities and keys, consent, and the removal of records."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cli.options import json_option, network_option
from cli.output import Output, panel, table
from cli.payee_place import Carrier, carrier_options, merchants_option, open_merchant, passphrase_of, store_of
from cli.payee_records import sign
from cli.place import Place, network_folder, new_passphrase
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from rich.console import Console

    from services.client.client import Client
    from services.payee.merchants import MerchantState, RecordState

Json = dict[str, Any]

_merchant = click.argument("merchant", metavar="NAME|IDENTITY")


@click.group()
def merchant() -> None:
    """Merchants: a random identity and the key that signs for it.

    The keys stand in merchants/ of the network's folder, or in --merchants DIR. A merchant has no account: one of the
    role merchant or wallet carries what it signs to the chain (--as).
    """


merchant.add_command(sign)


@merchant.command("new")
@click.argument("name")
@click.option(
    "--split", "is_split", is_flag=True, help="Its codes carry a part of a split key: for platform add --split."
)
@merchants_option
@carrier_options
@network_option
@json_option
def new(
    name: str, is_split: bool, merchants_folder: Path | None, carrier: Carrier, place: Place, output: Output
) -> None:
    """Make a merchant with a random identity, and register its key on the chain.

    Interrupted, the same command goes on. With --split all its codes carry the same part of a key, and platforms can
    keep records that nobody opens without a code: it cannot be added to codes that are printed.

    Example: hansa payee merchant new tea-house
    """
    from services.payee import merchants
    from services.payee.identity import identity_text

    store = store_of(place, merchants_folder)
    if store.has(name):
        passphrase, _ = passphrase_of(place, name, carrier.passphrase_file)
    else:
        network_file = network_folder(place.given) / "identities" / "passphrase"
        passphrase = new_passphrase(name, carrier.passphrase_file, network_file)
    account = carrier.signer(place)  # before anything is made
    made = store.make(name, passphrase, is_split=is_split)
    state, height = carrier.submit(
        place,
        output,
        lambda client, account, on_signed: merchants.register(client, account, made, on_signed=on_signed),
        account,
    )
    if height is None and store.find(name).is_registered:
        message = f"{name} is registered, its identity is {identity_text(made.identity)}: choose another NAME"
        raise LocalError("merchant_exists", message)
    store.note_registered(name)
    data = _merchant_json(name, made.identity, state) | {"height": height, "file": str(store.folder / f"{name}.pem")}
    data["split"] = is_split
    shown = {"identity": data["identity"], "key": data["key"], "block": height, "key file": data["file"]}
    if is_split:
        shown["split key"] = f"a part in every code; kept in {name}.json"

    def draw(console: "Console") -> None:
        panel(console, f"Merchant {name}", shown)
        console.print("Next: a platform adds its record, which both sign", markup=False)
        following = f"hansa payee platform add --platform P --merchant {name} --acquiring FILE"
        following += " --split" if is_split else ""
        console.print(following, markup=False, soft_wrap=True)

    output.show(data, draw)


@merchant.command("list")
@merchants_option
@network_option
@json_option
def list_merchants(merchants_folder: Path | None, place: Place, output: Output) -> None:
    """List the merchants whose keys are here; the chain is not asked.

    Example: hansa payee merchant list
    """
    from services.payee.identity import identity_text

    store = store_of(place, merchants_folder)
    entries = store.entries()
    rows: list[Json] = [
        {
            "merchant": entry.name,
            "identity": identity_text(entry.identity),
            "key": f"0x{entry.public_key.hex()}",
            "registered": entry.is_registered,
            "split": entry.key_part is not None,
        }
        for entry in entries
    ]
    if not rows and merchants_folder is None:
        place.network  # noqa: B018 - says that there is no network rather than that it has no merchants
    columns = ["merchant", "identity", "registered", "split"]
    cells = [tuple(row[name] for name in columns) for row in rows]
    output.show({"merchants": rows}, lambda console: table(console, columns, cells))


@merchant.command("show")
@_merchant
@merchants_option
@network_option
@json_option
def show(merchant: str, merchants_folder: Path | None, place: Place, output: Output) -> None:
    """Print a merchant as the chain has it: key, consent, and the record of every platform; all of it proven.

    An identity may be anybody's.

    Example: hansa payee merchant show tea-house
    """
    from services.client.errors import Refused
    from services.payee import merchants

    name, identity = _named(place, merchant, merchants_folder)

    async def read(client: "Client") -> "tuple[MerchantState | None, dict[str, RecordState | None]]":
        found = await merchants.merchant_state(client, identity)
        servers = found.servers if found is not None else []
        return found, {server: await merchants.record_state(client, server, identity) for server in servers}

    state, records = place.ask(read)
    if state is None:
        way = f": hansa payee merchant new {name} registers it" if name else ""
        raise Refused("unknown_merchant", f"the chain has no merchant {merchant[:40]}{way}")
    rows: list[Json] = [
        {
            "platform": server,
            "version": record.version,
            "contentVersion": record.content_version,
            "epoch": record.epoch,
            "shareable": record.is_shareable,
            "status": record.status,
        }
        for server, record in records.items()
        if record is not None
    ]
    data = _merchant_json(name, identity, state) | {"records": rows}
    cells = [(row["platform"], row["version"], row["epoch"], row["shareable"]) for row in rows]

    def draw(console: "Console") -> None:
        panel(console, f"Merchant {name}".strip(), _shown(data))
        if rows:
            table(console, ["platform", ">version", ">epoch", "may be shown"], cells, title="Active records")

    output.show(data, draw)


@merchant.command("consent")
@_merchant
@click.argument("word", metavar="on|off", type=click.Choice(["on", "off"]))
@merchants_option
@carrier_options
@network_option
@json_option
def consent(
    merchant: str, word: str, merchants_folder: Path | None, carrier: Carrier, place: Place, output: Output
) -> None:
    """Let every platform's clients see the merchant's shareable records (mode candidates), or no more.

    Example: hansa payee merchant consent tea-house on
    """
    from services.payee import merchants

    is_given = word == "on"
    opened = open_merchant(place, merchant, folder=merchants_folder, passphrase_file=carrier.passphrase_file)
    state, height = carrier.submit(
        place,
        output,
        lambda client, account, on_signed: merchants.set_consent(
            client, account, opened, is_given=is_given, on_signed=on_signed
        ),
    )
    data = _merchant_json(opened.name, opened.identity, state) | {"changed": height is not None, "height": height}
    title = f"Consent is {'given' if is_given else 'withdrawn'}" + ("" if height else ", as it was")
    output.show(data, lambda console: panel(console, title, {"merchant": opened.name, **_shown(data)}))


@merchant.group("key")
def key() -> None:
    """A merchant's key."""


@key.command("new")
@_merchant
@merchants_option
@carrier_options
@network_option
@json_option
def new_key(merchant: str, merchants_folder: Path | None, carrier: Carrier, place: Place, output: Output) -> None:
    """Replace a merchant's key; the identity and printed codes without a signature stay as they are.

    Codes that the old key signed are refused from then on. Interrupted, the same command goes on.

    Example: hansa payee merchant key new tea-house
    """
    from services.payee import merchants

    store = store_of(place, merchants_folder)
    entry = store.find(merchant)
    passphrase, _ = passphrase_of(place, entry.name, carrier.passphrase_file)
    state, height = carrier.submit(
        place,
        output,
        lambda client, account, on_signed: merchants.replace_key(
            client, account, store, entry.name, passphrase, on_signed=on_signed
        ),
    )
    data = _merchant_json(entry.name, entry.identity, state) | {"height": height}
    output.show(data, lambda console: panel(console, f"{entry.name} has a new key", _shown(data)))


@merchant.command("remove-record")
@_merchant
@click.option("--platform", metavar="PLATFORM", required=True, help="Whose record is removed.")
@merchants_option
@carrier_options
@network_option
@json_option
def remove_record(
    merchant: str,
    platform: str,
    merchants_folder: Path | None,
    carrier: Carrier,
    place: Place,
    output: Output,
) -> None:
    """Remove a platform's record: its payers no longer reach the merchant; leaves a tombstone.

    The merchant alone may do it; for the record's return both sign.

    Example: hansa payee merchant remove-record tea-house --platform wallet-p
    """
    from services.payee import merchants
    from services.payee.identity import identity_text

    opened = open_merchant(place, merchant, folder=merchants_folder, passphrase_file=carrier.passphrase_file)
    record, height = carrier.submit(
        place,
        output,
        lambda client, account, on_signed: merchants.remove_record(
            client, account, opened, platform, on_signed=on_signed
        ),
    )
    data: Json = {
        "merchant": opened.name,
        "identity": identity_text(opened.identity),
        "platform": platform,
        "version": record.version,
        "changed": height is not None,
        "height": height,
    }
    shown = {name: data[name] for name in ("merchant", "platform", "version")} | {"block": height}
    title = "The record is removed" if height else "The record was removed before"
    output.show(data, lambda console: panel(console, title, shown))


def _named(place: Place, text: str, folder: Path | None) -> tuple[str, bytes]:
    """Return name and identity of a merchant; the name is "" for an identity whose key is not here.

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
            return "", identity_of(text)
        except LocalError:
            raise error from None
    return entry.name, entry.identity


def _merchant_json(name: str, identity: bytes, state: "MerchantState") -> Json:
    from services.payee.identity import identity_text

    return {
        "merchant": name or None,
        "identity": identity_text(identity),
        "key": f"0x{state.key.hex()}",
        "keyNumber": state.key_number,
        "consent": state.consent,
        "platforms": state.servers,
        "changes": state.changes,
    }


def _shown(data: Json) -> Json:
    return {
        "identity": data["identity"],
        "key": data["key"],
        "keys before": data["keyNumber"],
        "consent": "given: shareable records are shown to all" if data["consent"] else "not given",
        "platforms": data["platforms"],
        "changes": data["changes"],
    }
