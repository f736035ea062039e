"""What a payer keeps of its streams: one SQLite file, readable while a stream is being paid, synced before anything is
sent.

Of each stream it holds what was agreed and how far was signed. A total that was signed is never followed by a lower
one, whatever dies: a row is only ever replaced by one with at least its total. One process at a time pays a stream.
Calls block for the time of a write.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from consensus.ledger.errors import InvariantError, LocalError, StorageError
from services.local.sqlite import Tables, disk_error, open_tables, typed_errors
from services.stream.opening import Agreed
from services.stream.payermachine import Owed, Status

FORMAT = 1
STORE_FILE = "payer.db"
STREAMS_PAGE_MAX = 1_000
BUSY_S = 5.0
"""How long another command's write is waited for."""
_TABLES = (
    """CREATE TABLE stream (id BLOB PRIMARY KEY, account TEXT NOT NULL, url TEXT NOT NULL, made_ms INTEGER NOT NULL,
        signature BLOB NOT NULL, signed_due INTEGER NOT NULL, owed BLOB NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX stream_made ON stream (made_ms, id)",
)


class KeptStream(msgspec.Struct, frozen=True):
    """A stream of a payer.

    Args:
        owed: what was agreed and how far it was signed.
        signature: the service party's, of the terms.
        account: the name of the key that pays.
        url: where the service party is reached, "" where that is not known.
        made_ms: when the payer took the offer, UTC.
    """

    owed: Owed
    signature: bytes
    account: str
    url: str
    made_ms: int

    @property
    def agreed(self) -> Agreed:
        """What opens the stream."""
        return Agreed(self.owed.terms, self.signature)

    @property
    def is_opening(self) -> bool:
        """Tell whether its opening was interrupted: the payer has not seen it on the chain, and has signed nothing."""
        return not self.owed.opened_ms and not self.owed.raw and self.owed.status == Status.PAYING


class PayerStore:
    """Opened by :func:`open_payer_store`; ``LocalError`` and ``StorageError`` as :mod:`services.local.sqlite`."""

    def __init__(self, tables: Tables) -> None:
        """Take over an open database."""
        self._tables = tables
        self._owed = msgspec.msgpack.Decoder(Owed)

    def add(self, kept: KeptStream) -> None:
        """Keep a new stream; what is known of one with this id stays, but for where it is reached."""
        with self._tables.writing() as connection:
            connection.execute(
                "INSERT INTO stream VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET url = excluded.url",
                (
                    bytes(kept.owed.stream),
                    kept.account,
                    kept.url,
                    kept.made_ms,
                    kept.signature,
                    kept.owed.signed_due,
                    msgspec.msgpack.encode(kept.owed),
                ),
            )

    def keep(self, owed: Owed) -> None:
        """Make durable how a stream stands now.

        Raises:
            InvariantError: less was signed by this than is known to be signed.
        """
        with self._tables.writing() as connection:
            changed = connection.execute(
                "UPDATE stream SET signed_due = ?, owed = ? WHERE id = ? AND signed_due <= ?",
                (owed.signed_due, msgspec.msgpack.encode(owed), bytes(owed.stream), owed.signed_due),
            ).rowcount
        if changed != 1:
            raise InvariantError(f"stream {bytes(owed.stream).hex()} is not there, or more was signed than is kept now")

    def remove(self, stream: bytes) -> None:
        """Forget a stream that never came to be on the chain; nothing was signed in it."""
        with self._tables.writing() as connection:
            connection.execute("DELETE FROM stream WHERE id = ? AND signed_due = 0", (bytes(stream),))

    def stream(self, stream: bytes) -> KeptStream:
        """Return one stream.

        Raises:
            LocalError: ``unknown_stream``.
        """
        rows = self._tables.rows(
            "SELECT owed, signature, account, url, made_ms FROM stream WHERE id = ?", (bytes(stream),)
        )
        if not rows:
            raise LocalError("unknown_stream", f"{self._tables.path} holds no stream 0x{stream.hex()}")
        return self._kept(*rows[0])

    def find(self, prefix: str) -> list[KeptStream]:
        """Return up to ten streams whose ids begin with these hex digits, as people write them."""
        query = "SELECT owed, signature, account, url, made_ms FROM stream WHERE hex(id) LIKE ? ORDER BY id LIMIT 10"
        digits = prefix.lower().removeprefix("0x")
        if not all(digit in "0123456789abcdef" for digit in digits):
            return []
        return [self._kept(*row) for row in self._tables.rows(query, (digits.upper() + "%",))]

    def streams(self, limit: int = STREAMS_PAGE_MAX) -> list[KeptStream]:
        """Return the newest streams, the newest first."""
        query = "SELECT owed, signature, account, url, made_ms FROM stream ORDER BY made_ms DESC, id LIMIT ?"
        return [self._kept(*row) for row in self._tables.rows(query, (limit,))]

    def newest_number(self) -> int:
        """Return the greatest number that any stream here has, -1 where there is none."""
        return max((kept.owed.terms.number for kept in self.streams()), default=-1)

    @contextmanager
    def held(self, stream: bytes) -> Iterator[None]:
        """Be the only one who signs for a stream, for the time of the block; the system lets go with the process.

        Raises:
            LocalError: ``stream_held``: another process pays it.
        """
        path = self._tables.path.with_name(f"{stream.hex()}.lock")
        with typed_errors(self._tables.path):
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LocalError("stream_held", f"another process pays stream 0x{stream.hex()}") from None
            except OSError as error:
                raise disk_error(path.parent, error.errno, error.strerror or "") from None
            yield
        finally:
            os.close(lock)

    def _kept(self, owed: bytes, signature: bytes, account: str, url: str, made_ms: int) -> KeptStream:
        try:
            return KeptStream(self._owed.decode(owed), signature, account, url, made_ms)
        except msgspec.MsgspecError as error:
            raise StorageError("corrupted", f"{self._tables.path}: {error}") from None


@contextmanager
def open_payer_store(folder: Path) -> Iterator[PayerStore]:
    """Give the store of a folder, made where there is none; other processes may have it open too.

    Raises:
        StorageError: ``wrong_format`` and others.
    """
    with open_tables(folder / STORE_FILE, _TABLES, FORMAT, busy_s=BUSY_S) as tables:
        yield PayerStore(tables)
