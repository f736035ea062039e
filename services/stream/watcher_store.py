"""What a watcher keeps: of each stream the iteration with the greatest total, and what came of it.

A greater total takes the place of a lower one, and the same one that is valid for longer. SQLite, synced; calls block
for the time of a write. One process at a time has it.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import msgspec

from consensus.ledger.errors import StorageError
from services.client.errors import Refused
from services.local.sqlite import Tables, open_tables

FORMAT = 1
WATCHED_MAX = 4_096
"""Streams that are watched at the same time: each is looked up on the chain again and again."""
OVER_MAX = 20_000
"""Streams of which nothing is left to do that are still shown, the last ones."""
_TABLES = (
    """CREATE TABLE watched (id BLOB PRIMARY KEY, due INTEGER NOT NULL, status TEXT NOT NULL, changed INTEGER NOT NULL,
        entry BLOB NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX watched_open ON watched (id) WHERE status = 'WATCHING'",
    "CREATE INDEX watched_over ON watched (changed) WHERE status <> 'WATCHING'",
)


class Status(StrEnum):
    """How a stream stands at its watcher."""

    WATCHING = "WATCHING"
    SETTLED = "SETTLED"
    """The iteration is on the chain."""
    CLAIMED = "CLAIMED"
    """It was claimed out of the deposit."""
    OVER = "OVER"
    """Others have done it, or the stream is closed: nothing is left to get."""


class Entry(msgspec.Struct, frozen=True):
    """A watched stream; ``file`` are the bytes that were given, ``transaction`` the last that took effect (32 bytes).

    ``due`` and ``valid_until_ms`` are the iteration's. Amounts in smallest units. ``fine`` is what claims brought
    beside what was due.
    """

    stream: bytes
    due: int
    valid_until_ms: int
    file: bytes
    status: Status = Status.WATCHING
    is_urgent: bool = False
    paid: int = 0
    fine: int = 0
    transaction: bytes = b""


class WatcherStore:
    """Opened by :func:`open_watcher_store`; ``LocalError`` and ``StorageError`` as :mod:`services.local.sqlite`."""

    def __init__(self, tables: Tables) -> None:
        """Take over an open database."""
        self._tables = tables
        self._entries = msgspec.msgpack.Decoder(Entry)

    def take(self, entry: Entry) -> Entry:
        """Keep an iteration, unless one with a greater total is there, or the same that is valid for as long.

        Return what is there then.

        Raises:
            Refused: ``watcher_full``.
        """
        with self._tables.writing() as connection:
            known = self.entry(entry.stream)
            if known is not None:
                is_urgent = known.is_urgent or entry.is_urgent
                if (entry.due, entry.valid_until_ms) <= (known.due, known.valid_until_ms):
                    entry = msgspec.structs.replace(known, is_urgent=is_urgent)
                else:
                    entry = msgspec.structs.replace(
                        entry, is_urgent=is_urgent, paid=known.paid, fine=known.fine, transaction=known.transaction
                    )
            elif self._count("WATCHING") >= WATCHED_MAX:
                raise Refused("watcher_full", f"{WATCHED_MAX} streams are watched already")
            if entry != known:
                self._put(connection, entry)
        return entry

    def put(self, entry: Entry) -> None:
        """Keep what came of an iteration; a greater one that was given meanwhile stays watched."""
        with self._tables.writing() as connection:
            known = self.entry(entry.stream)
            if known is not None and (known.due, known.valid_until_ms) > (entry.due, entry.valid_until_ms):
                entry = msgspec.structs.replace(known, paid=entry.paid, fine=entry.fine, transaction=entry.transaction)
            self._put(connection, entry)
            connection.execute(
                "DELETE FROM watched WHERE id IN (SELECT id FROM watched WHERE status <> 'WATCHING'"
                " ORDER BY changed DESC LIMIT -1 OFFSET ?)",
                (OVER_MAX,),
            )

    def entry(self, stream: bytes) -> Entry | None:
        """Return one stream's."""
        rows = self._tables.rows("SELECT entry FROM watched WHERE id = ?", (bytes(stream),))
        return self._entry(rows[0][0]) if rows else None

    def watching(self) -> list[Entry]:
        """Return what is not over, by id."""
        return [self._entry(row[0]) for row in self._tables.rows("SELECT entry FROM watched WHERE status = 'WATCHING'")]

    def page(self, after: bytes, limit: int) -> list[Entry]:
        """Return entries by id, from after one on."""
        query = "SELECT entry FROM watched WHERE id > ? ORDER BY id LIMIT ?"
        return [self._entry(row[0]) for row in self._tables.rows(query, (bytes(after), limit))]

    def counts(self) -> dict[str, int]:
        """Return how many streams stand how."""
        found = dict(self._tables.rows("SELECT status, count(*) FROM watched GROUP BY status"))
        return {status.value: found.get(status.value, 0) for status in Status}

    def _put(self, connection: sqlite3.Connection, entry: Entry) -> None:
        (last,) = connection.execute("SELECT coalesce(max(changed), 0) FROM watched").fetchone()
        connection.execute(
            "INSERT OR REPLACE INTO watched VALUES (?, ?, ?, ?, ?)",
            (entry.stream, entry.due, entry.status.value, last + 1, msgspec.msgpack.encode(entry)),
        )

    def _count(self, status: str) -> int:
        return int(self._tables.rows("SELECT count(*) FROM watched WHERE status = ?", (status,))[0][0])

    def _entry(self, data: bytes) -> Entry:
        try:
            return self._entries.decode(data)
        except msgspec.MsgspecError as error:
            raise StorageError("corrupted", f"{self._tables.path}: {error}") from None


@contextmanager
def open_watcher_store(folder: Path) -> Iterator[WatcherStore]:
    """Give the store of a folder, made where there is none; one process at a time has it.

    Raises:
        LocalError: ``store_locked``.
        StorageError: ``wrong_format`` and others.
    """
    with open_tables(folder / "watcher.db", _TABLES, FORMAT) as tables:
        yield WatcherStore(tables)
