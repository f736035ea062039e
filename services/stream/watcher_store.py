"""What a watcher keeps: of each stream the iteration with the greatest total, and what came of it.

A greater total takes the place of a lower one, and the same one that is valid for longer. SQLite, synced; calls block
for the time of a write. One process at a time has it.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from consensus.ledger.errors import StorageError
from services.client.errors import Refused
from services.local.sqlite import sync_folder, typed_errors

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

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Take over an open database."""
        self._connection = connection
        self._path = path
        self._entries = msgspec.msgpack.Decoder(Entry)

    def take(self, entry: Entry) -> Entry:
        """Keep an iteration, unless one with a greater total is there, or the same that is valid for as long.

        Return what is there then.

        Raises:
            Refused: ``watcher_full``.
        """
        with self._writing() as connection:
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
        with self._writing() as connection:
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
        rows = self._rows("SELECT entry FROM watched WHERE id = ?", bytes(stream))
        return self._entry(rows[0][0]) if rows else None

    def watching(self) -> list[Entry]:
        """Return what is not over, by id."""
        return [self._entry(row[0]) for row in self._rows("SELECT entry FROM watched WHERE status = 'WATCHING'")]

    def page(self, after: bytes, limit: int) -> list[Entry]:
        """Return entries by id, from after one on."""
        query = "SELECT entry FROM watched WHERE id > ? ORDER BY id LIMIT ?"
        return [self._entry(row[0]) for row in self._rows(query, bytes(after), limit)]

    def counts(self) -> dict[str, int]:
        """Return how many streams stand how."""
        found = dict(self._rows("SELECT status, count(*) FROM watched GROUP BY status"))
        return {status.value: found.get(status.value, 0) for status in Status}

    def _put(self, connection: sqlite3.Connection, entry: Entry) -> None:
        (last,) = connection.execute("SELECT coalesce(max(changed), 0) FROM watched").fetchone()
        connection.execute(
            "INSERT OR REPLACE INTO watched VALUES (?, ?, ?, ?, ?)",
            (entry.stream, entry.due, entry.status.value, last + 1, msgspec.msgpack.encode(entry)),
        )

    def _count(self, status: str) -> int:
        return int(self._rows("SELECT count(*) FROM watched WHERE status = ?", status)[0][0])

    def _entry(self, data: bytes) -> Entry:
        try:
            return self._entries.decode(data)
        except msgspec.MsgspecError as error:
            raise StorageError("corrupted", f"{self._path}: {error}") from None

    def _rows(self, query: str, *values: object) -> list[Any]:
        with typed_errors(self._path):
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with typed_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


@contextmanager
def open_watcher_store(folder: Path) -> Iterator[WatcherStore]:
    """Give the store of a folder, made where there is none; one process at a time has it.

    Raises:
        LocalError: ``store_locked``.
        StorageError: ``wrong_format`` and others.
    """
    path = folder / "watcher.db"
    with typed_errors(path):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    try:
        with typed_errors(path):
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, FORMAT):
                raise StorageError("wrong_format", f"{path} has format {version}, this is for {FORMAT}")
            if version == 0:
                for table in _TABLES:
                    connection.execute(table)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.execute("COMMIT")
            sync_folder(folder)
        yield WatcherStore(connection, path)
    finally:
        connection.close()
