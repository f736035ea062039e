"""What the payer's commands share: its folder of streams, whose key signs, and the chain's word on a stream."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.options import keys_option, network_option, passphrase_option
from cli.output import Output, note_error_details
from cli.place import Place, network_folder
from cli.stream_place import full_id, span
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from consensus.ledger.streams import StreamRecord
    from consensus.ledger.transaction import Transaction
    from services.client.client import Client
    from services.client.keystore import Signer
    from services.client.reader import Reader
    from services.stream.payer import Payer
    from services.stream.payer_store import KeptStream, PayerStore

C = TypeVar("C", bound=Callable[..., Any])
T = TypeVar("T")
Json = dict[str, Any]

FOLDER = "streams"
"""The payers' folder in the network's."""
SHORT_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Purse:
    """Where a payer's streams are kept, and which key signs for them."""

    place: Place
    home: Path | None
    name: str | None
    keys: Path | None
    passphrase_file: Path | None

    @contextmanager
    def store(self) -> "Iterator[PayerStore]":
        """Open the payer's records.

        Raises:
            LocalError: ``no_network`` where there is neither a network folder nor ``--home``.
            StorageError: ``wrong_format`` and others.
        """
        from services.stream.payer_store import open_payer_store

        folder = self.home
        if folder is None:
            folder = network_folder(self.place.given) / FOLDER
            if not folder.parent.is_dir():
                raise LocalError("no_network", f"{folder.parent} is no folder: give --network, or --home DIR")
        with open_payer_store(folder) as store:
            yield store

    def signer(self, name: str) -> "Signer":
        """Open the key of ``--as``, else of this name; errors as of ``Place.signer``."""
        return self.place.signer(self.name or name, self.keys, self.passphrase_file)

    def run(
        self, digits: str, output: Output, use: "Callable[[Client, Payer, KeptStream], Awaitable[T]]"
    ) -> "tuple[KeptStream, T]":
        """Do something with one of the payer's streams on the chain, and return it with what came of it.

        Raises:
            LocalError: ``unknown_stream``, ``bad_id``, and those of the key.
            Refused: the chain's code.
            Unreachable: ``outcome_unknown`` and others.
        """
        from services.stream.payer import Payer

        with self.store() as store:
            kept = find_kept(store, digits)
            signer = self.signer(kept.account)
            note_error_details(stream=f"0x{bytes(kept.owed.stream).hex()}")
            return kept, self.place.ask(lambda client: use(client, Payer(client, signer, store), kept))


def purse_options(function: C) -> C:
    """Add ``--as``, ``--home``, keys and those of the network; give the command a :class:`Purse` as ``purse``."""

    @click.option("--as", "name", metavar="NAME", help="The identity that pays; else the one that opened the stream.")
    @_home_option
    @keys_option
    @passphrase_option
    @network_option
    @wraps(function)
    def command(
        *args: Any,
        name: str | None,
        home: Path | None,
        keys: Path | None,
        passphrase_file: Path | None,
        place: Place,
        **options: Any,
    ) -> Any:
        return function(*args, purse=Purse(place, home, name, keys, passphrase_file), **options)

    return command  # type: ignore[return-value]


def opener_options(function: C) -> C:
    """Add the options of :func:`purse_options` with ``--payer``, which must be given, in place of ``--as``."""

    @click.option("--payer", "--as", "name", metavar="NAME", required=True, help="The identity that pays; it signs.")
    @_home_option
    @keys_option
    @passphrase_option
    @network_option
    @wraps(function)
    def command(
        *args: Any,
        name: str,
        home: Path | None,
        keys: Path | None,
        passphrase_file: Path | None,
        place: Place,
        **options: Any,
    ) -> Any:
        return function(*args, purse=Purse(place, home, name, keys, passphrase_file), **options)

    return command  # type: ignore[return-value]


_home_option = click.option(
    "--home",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the payer's records; else streams of the network.",
)


def find_kept(store: "PayerStore", digits: str) -> "KeptStream":
    """Return the one stream of the payer whose id begins so.

    Raises:
        LocalError: ``unknown_stream``, ``bad_id`` where several begin so.
    """
    found = store.find(digits)
    match found:
        case [kept]:
            return kept
        case []:
            raise LocalError("unknown_stream", f"this payer has no stream 0x{digits[:64]}: hansa stream list")
        case _:
            raise LocalError("bad_id", f"several streams begin with 0x{digits}: give more digits")


def stream_of(purse: Purse, digits: str) -> bytes:
    """Return the id of a stream that is whole or begins one of the payer's; errors as of :func:`find_kept`."""
    if len(digits) == 2 * 32:
        return full_id(digits)
    with purse.store() as store:
        return bytes(find_kept(store, digits).owed.stream)


@dataclass(frozen=True, slots=True)
class OnChain:
    """What the chain proves of a stream, as of a block at these times; no record: it was never opened."""

    record: "StreamRecord | None"
    height: int
    uptime_ms: int


async def on_chain(reader: "Reader", stream: bytes) -> OnChain:
    """Return what the chain proves of a stream now; errors as of ``Reader.state``."""
    from consensus.ledger.streams import read_record, stream_key

    found = await reader.state(stream_key(stream), is_newest=True)
    record = None if found.value is None else read_record(found.value)
    return OnChain(record, found.height, found.verified.header.uptime_ms)


def chain_fields(found: OnChain) -> Json:
    """Return how a stream stands on the chain, for people."""
    record = found.record
    if record is None:
        return {"on the chain": f"not there, as of block {found.height}"}
    shown: Json = {"on the chain": f"{record.status}, as of block {found.height}"}
    shown["paid"] = f"{record.paid:,} {record.unit}, {record.taken:,} of it out of the deposit"
    fined = record.fine if record.is_fined else 0
    left = record.deposit - record.taken - fined
    shown["deposit"] = (
        f"{record.deposit:,} {record.unit}" + (f", a fine of {fined:,} paid" if fined else "") + f", {left:,} left"
        if record.status == "OPEN"
        else f"{record.deposit:,} {record.unit}" + (f", a fine of {fined:,} paid" if fined else "") + f", {left:,} back"
    )
    if record.settled_by:
        shown["settled by"] = f"0x{record.settled_by.hex()}"
    if record.status == "OPEN" and record.withdraw_at_uptime_ms:
        left_ms = record.withdraw_at_uptime_ms - found.uptime_ms
        shown["withdrawal"] = f"in {span(left_ms)} of uptime" if left_ms > 0 else "may be taken now"
    return shown


def chain_json(found: OnChain) -> Json:
    """Return what the chain proves of a stream, for JSON."""
    record = found.record
    shown: Json = {"height": found.height, "uptimeMs": found.uptime_ms, "status": "NONE"}
    if record is not None:
        shown |= {
            "status": record.status,
            "unit": record.unit,
            "deposit": record.deposit,
            "taken": record.taken,
            "paid": record.paid,
            "fine": record.fine,
            "fined": record.is_fined,
            "settledBy": f"0x{record.settled_by.hex()}" if record.settled_by else None,
            "withdrawAtUptimeMs": record.withdraw_at_uptime_ms or None,
            "openedAtMs": record.opened_at_ms,
        }
    return shown


def hears(output: Output) -> "Callable[[Transaction], None]":
    """Return what says of each signed transaction that it is under way."""

    def on_signed(transaction: "Transaction") -> None:
        note_error_details(transactionId=f"0x{transaction.id.hex()}")
        output.progress(f"submitting 0x{transaction.id.hex()}")

    return on_signed
