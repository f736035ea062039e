"""What a reconciliation has read, sorted by event on disk, so that a day may be longer than memory."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from services.accounts.port import Standing
from services.settlement.reconciling import Lien
from services.settlement.states import Event

BATCH = 500
"""How many events are taken together."""


class Moved(msgspec.Struct, frozen=True, array_like=True):
    """A movement of a lien in a block of the day; ``file`` is the name of its proof, "" without one."""

    seller: bytes
    name: str
    unit: str
    to: bytes
    amount: int
    agent: bytes
    time_ms: int
    height: int
    transaction_id: bytes
    file: str


class Posting(msgspec.Struct, frozen=True, array_like=True):
    operation: str
    amount: int
    currency: str


@dataclass(slots=True)
class Found:
    """What was read of one event; ``liens`` by seller, and the lien of the trade that a reversal gives back."""

    record: Event | None = None
    moved: list[Moved] = field(default_factory=list)
    postings: list[Posting] = field(default_factory=list)
    standing: Standing | None = None
    liens: dict[bytes, Lien] = field(default_factory=dict)
    trade: Lien | None = None
    files: list[str] = field(default_factory=list)


class Sorted:
    """What was read, sorted by event on disk; gone when it is closed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE record (event TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID")
        connection.execute("CREATE TABLE moved (event TEXT, seller BLOB, body BLOB)")
        connection.execute("CREATE TABLE posting (event TEXT, body BLOB)")
        for table in ("moved", "posting"):
            connection.execute(f"CREATE INDEX {table}_event ON {table} (event)")
        self._encode = msgspec.msgpack.Encoder().encode
        self._events = msgspec.msgpack.Decoder(Event)
        self._moves = msgspec.msgpack.Decoder(Moved)
        self._postings = msgspec.msgpack.Decoder(Posting)

    @classmethod
    @contextmanager
    def opened(cls) -> "Iterator[Sorted]":
        """Give an empty one in a folder of its own."""
        with TemporaryDirectory(prefix="hansa-reconcile-") as folder:
            connection = sqlite3.connect(Path(folder) / "sorted", isolation_level=None)
            try:
                yield cls(connection)
            finally:
                connection.close()

    def add_records(self, events: Sequence[Event]) -> None:
        """Keep events of the store."""
        rows = [(event.event, self._encode(event)) for event in events]
        self._connection.executemany("INSERT OR REPLACE INTO record VALUES (?, ?)", rows)

    def add_moved(self, event: str, moved: Moved) -> None:
        """Keep a movement of a lien."""
        self._connection.execute("INSERT INTO moved VALUES (?, ?, ?)", (event, moved.seller, self._encode(moved)))

    def add_postings(self, postings: Sequence[tuple[str, Posting]]) -> None:
        """Keep postings with their events."""
        rows = [(event, self._encode(posting)) for event, posting in postings]
        self._connection.executemany("INSERT INTO posting VALUES (?, ?)", rows)

    def has_other_seller(self, event: str, seller: bytes) -> bool:
        """Tell whether another seller moved something under an event."""
        query = "SELECT 1 FROM moved WHERE event = ? AND seller <> ? LIMIT 1"
        return self._connection.execute(query, (event, seller)).fetchone() is not None

    def batches(self) -> Iterator[dict[str, Found]]:
        """Yield what was read of all events, ``BATCH`` events at a time, in the order of their ids."""
        names = " UNION ".join(
            f"SELECT event FROM (SELECT DISTINCT event FROM {table} WHERE event > ?1 ORDER BY event LIMIT {BATCH})"
            for table in ("record", "moved", "posting")
        )
        after = ""
        while rows := self._connection.execute(f"{names} ORDER BY 1 LIMIT {BATCH}", (after,)).fetchall():
            batch = {str(event): Found() for (event,) in rows}
            bounds = (rows[0][0], rows[-1][0])
            for event, body in self._rows("record", bounds):
                batch[event].record = self._events.decode(body)
            for event, body in self._rows("moved", bounds):
                batch[event].moved.append(self._moves.decode(body))
            for event, body in self._rows("posting", bounds):
                batch[event].postings.append(self._postings.decode(body))
            yield batch
            after = rows[-1][0]

    def _rows(self, table: str, bounds: tuple[str, str]) -> Iterator[tuple[str, bytes]]:
        yield from self._connection.execute(
            f"SELECT event, body FROM {table} WHERE event BETWEEN ? AND ? ORDER BY event, rowid"
            if table != "record"
            else "SELECT event, body FROM record WHERE event BETWEEN ? AND ? ORDER BY event",
            bounds,
        )
