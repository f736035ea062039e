"""What the commands of payee codes share: merchants and their keys, codes as arguments, who carries transactions."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.options import keys_option, passphrase_option
from cli.output import Output, note_error_details
from cli.place import Place, find_passphrase, network_folder
from consensus.ledger.errors import LocalError, PeerError

if TYPE_CHECKING:
    from consensus.ledger.transaction import Transaction
    from services.client.client import Client, OnSigned
    from services.client.keystore import Signer
    from services.payee.merchants import Merchant, Merchants

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])
Json = dict[str, Any]

CARRIER = "merchant-m"
"""The account that brings to the chain what merchants have signed, if no other is named."""
PAYLOAD_START = "000201"
"""How every payload begins: what begins otherwise is the name of an image."""
WHY = {
    "bad_signature": "a signature does not hold: the chain has another key than this folder",
    "not_allowed": "this account may not do it: it needs the role merchant or wallet",
    "key_used": "this key was another merchant's, platform's, environment's or account's before",
    "unknown_account": "the chain has no account with this key",
}
"""What a code of the chain means to people; the others speak for themselves."""

merchants_option = click.option(
    "--merchants",
    "merchants_folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of merchants' keys; else merchants of the network.",
)


def store_of(place: Place, folder: Path | None = None) -> "Merchants":
    """Return the merchants of ``--merchants DIR``, else of the network's folder."""
    from services.payee.merchants import FOLDER, Merchants

    return Merchants(folder or network_folder(place.given) / FOLDER)


def passphrase_of(place: Place, name: str, passphrase_file: Path | None) -> tuple[bytes, str]:
    """Return the passphrase of a merchant's key, and where it is from; errors as of ``find_passphrase``."""
    return find_passphrase(name, network_folder(place.given) / "identities" / "passphrase", passphrase_file)


def open_merchant(
    place: Place, text: str, *, folder: Path | None = None, passphrase_file: Path | None = None
) -> "Merchant":
    """Open the key of the merchant with this name or identity.

    Raises:
        LocalError: ``no_merchant``, ``wrong_passphrase``, ``key_change_open`` and others of ``Merchants.open``.
    """
    store = store_of(place, folder)
    entry = store.find(text)
    passphrase, source = passphrase_of(place, entry.name, passphrase_file)
    try:
        return store.open(entry.name, passphrase)
    except LocalError as error:
        if error.code != "wrong_passphrase":
            raise
        message = f"{store.folder / entry.name}.pem does not open with the passphrase from {source}"
        raise LocalError(error.code, message) from None


def payload_of(text: str) -> str:
    """Return the payload that an argument is, or the one in the image or text file that it names.

    Raises:
        LocalError: ``no_code``, ``several_codes``, ``bad_image``, ``image_too_large``.
        PeerError: ``bad_payload``, ``too_large``.
    """
    if text.startswith(PAYLOAD_START):
        return text
    from services.payee.emv import text_of
    from services.payee.images import read_content, read_file

    if not os.path.exists(text):  # whatever characters and however many
        raise LocalError("bad_image", f"{text[:80]!r} is no file, and no payload: payloads begin with {PAYLOAD_START}")
    content = read_file(Path(text))
    if content.startswith(PAYLOAD_START.encode()):
        return text_of(content.rstrip(b"\r\n"))
    return payment_code(read_content(content, Path(text).name), Path(text))


def payment_code(text: str, image: Path) -> str:
    """Return the text of the code in an image, if it begins as payloads do.

    Raises:
        PeerError: ``bad_payload``.
    """
    from services.payee.emv import shown

    if not text.startswith(PAYLOAD_START):
        raise PeerError("bad_payload", f"the code in {image.name} is no payment code: {shown(text)}")
    return text


@dataclass(frozen=True, slots=True)
class Carrier:
    """The account that brings what merchants sign to the chain."""

    name: str
    keys: Path | None
    passphrase_file: Path | None

    def signer(self, place: Place) -> "Signer":
        """Open its key; errors as of ``Place.signer``."""
        return place.signer(self.name, self.keys, self.passphrase_file)

    def submit(
        self,
        place: Place,
        output: Output,
        use: "Callable[[Client, Signer, OnSigned], Awaitable[T]]",
        account: "Signer | None" = None,
    ) -> T:
        """Run an errand on the chain, and say of the chain's refusals what they mean.

        Args:
            account: where its key was opened before; nobody types a passphrase twice.

        Raises:
            Refused: the chain's code.
            Unreachable: ``outcome_unknown`` and others.
        """
        from services.client.errors import Refused

        signer = account or self.signer(place)

        def on_signed(transaction: "Transaction") -> None:
            note_error_details(transactionId=f"0x{transaction.id.hex()}")
            output.progress(f"submitting 0x{transaction.id.hex()}")

        try:
            return place.ask(lambda client: use(client, signer, on_signed))
        except Refused as error:
            if error.code not in WHY:
                raise
            raise Refused(error.code, f"{WHY[error.code]} ({error.message})") from None


def carrier_options(function: C) -> C:
    """Add ``--as``, ``--keys`` and ``--passphrase-file`` and give the command a :class:`Carrier` as ``carrier``."""

    @click.option(
        "--as",
        "account",
        metavar="NAME",
        default=CARRIER,
        show_default=True,
        help="The account that carries it; the merchant's key signs.",
    )
    @keys_option
    @passphrase_option
    @wraps(function)
    def command(*args: Any, account: str, keys: Path | None, passphrase_file: Path | None, **options: Any) -> Any:
        return function(*args, carrier=Carrier(account, keys, passphrase_file), **options)

    return command  # type: ignore[return-value]
