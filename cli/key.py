"""``hansa key``: keys of accounts, encrypted on disk."""

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli import views
from cli.options import json_option, keys_option, passphrase_option
from cli.output import Output, panel, table
from cli.place import Place, network_folder, new_passphrase
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from rich.console import Console

_network = click.option(
    "--network", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Network whose identities are meant."
)


@click.group()
def key() -> None:
    """Keys of accounts, encrypted on disk (PKCS#8, mode 0600).

    A passphrase comes from --passphrase-file, HANSA_PASSPHRASE, or a prompt.
    """


@key.command("new")
@click.argument("name")
@_network
@keys_option
@passphrase_option
@json_option
def new(name: str, folder: Path | None, keys: Path | None, passphrase_file: Path | None, output: Output) -> None:
    """Make a key and print the address and public key that a member registers.

    Example: hansa key new shop-2 --keys keys
    """
    from services.client.keystore import KeyStore

    store = KeyStore(keys or network_folder(folder) / "identities")
    store.check_free(name)
    passphrase = new_passphrase(name, passphrase_file, store.folder / "passphrase")
    signer = store.create(name, passphrase)
    data = {
        "name": name,
        "address": "0x" + signer.address.hex(),
        "publicKey": "0x" + signer.key.public.compressed.hex(),
        "file": str(store.folder / f"{name}.pem"),
    }
    call = f"hansa tx call membership register_account name={name} public_key={data['publicKey']} --as ADMIN"
    join = f"hansa member request --home HOME --root FILE --admin {name} --keys {store.folder}"

    def draw(console: "Console") -> None:
        views.fields(console, "New key", data)
        panel(console, "Next: an admin of your organisation registers it", {})
        console.print(call, markup=False, soft_wrap=True)
        panel(console, "Or, as the admin of an organisation that joins with a node", {})
        console.print(join, markup=False, soft_wrap=True)

    output.show(data | {"next": call}, draw)


@key.command("list")
@_network
@keys_option
@json_option
def list_keys(folder: Path | None, keys: Path | None, output: Output) -> None:
    """List the keys of a folder; no passphrase is needed.

    Example: hansa key list --network net
    """
    from services.client.keystore import KeyStore

    place = keys or network_folder(folder) / "identities"
    if not place.is_dir():
        raise LocalError("bad_folder", f"{place} is no folder of keys")
    entries = KeyStore(place).entries()
    rows = [
        {"name": entry.name, "address": "0x" + entry.address.hex() if entry.address else None, "file": str(entry.path)}
        for entry in entries
    ]
    output.show(
        {"keys": rows},
        lambda console: table(console, ["name", "address"], [(row["name"], row["address"]) for row in rows]),
    )


@key.command("show")
@click.argument("name")
@_network
@keys_option
@passphrase_option
@json_option
def show(name: str, folder: Path | None, keys: Path | None, passphrase_file: Path | None, output: Output) -> None:
    """Open a key and print its address and public key; the private key is never shown.

    Example: hansa key show shop
    """
    signer = Place(folder, (), None).signer(name, keys, passphrase_file)
    data = {
        "name": name,
        "address": "0x" + signer.address.hex(),
        "publicKey": "0x" + signer.key.public.compressed.hex(),
    }
    output.show(data, lambda console: views.fields(console, name, data))
