"""The store in a file of this machine: SQLite, with a write-ahead log that is synced before anything is answered.

Two tables: ``messages`` has a small row for every key that is known, ``bodies`` what waits or is a dead letter. A body
is dropped with the change that ends its message, so that pages it filled are free for the next ones.

All calls run one after the other in a worker thread, each as one transaction. A file lock keeps other processes
away; the epoch, checked in every transaction, fences off an owner that lost the lock without knowing it.
"""

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import trio

from consensus.ledger.errors import InvariantError, LocalError, StorageError
from services.local.sqlite import disk_error, sync_folder, typed_errors
from services.messages.store import Change, Counts, Entry, NewMessage, Published, Record, State

DATABASE = "messages.db"
FORMAT = 1
_APPLICATION_ID = 0x48414E51  # "HANQ"
_BUSY_S = 5.0
"""How long a reader of the file, an operator's shell say, may hold up a write."""
_FORGET_ROWS_MAX = 1_000
"""How much is forgotten in one transaction, so that publishers wait for milliseconds only."""

_CHUNKS = (256, 64, 16, 4, 1)
"""Rows in one statement: few sizes, so that all these statements stay prepared."""
_STATEMENTS_MAX = 64

_NUMBERS = {State.WAITING: 0, State.DONE: 1, State.REFUSED: 2, State.DEAD: 3}
_STATES = tuple(_NUMBERS)

_PRAGMAS = (
    # Readers do not block the writer, and one sync of one file makes a transaction durable.
    "PRAGMA journal_mode = WAL",
    # Sync the log at every commit: what was returned survives a power cut. NORMAL would lose the last ones.
    "PRAGMA synchronous = FULL",
    # Move the log into the database each 8 MiB: seldom enough that pages written again and again move once.
    "PRAGMA wal_autocheckpoint = 2048",
    # After a burst the log's file shrinks to this again.
    "PRAGMA journal_size_limit = 16777216",
    # Debian builds SQLite to overwrite what is deleted; bodies are pseudonymous, and their pages are used again soon.
    "PRAGMA secure_delete = OFF",
    # 16 MiB of pages: the key index of a backlog, which is read at random, stays in memory.
    "PRAGMA cache_size = -16384",
    # Sorting of a page of a listing needs no file.
    "PRAGMA temp_store = MEMORY",
)

_SCHEMA = """
CREATE TABLE meta (epoch INTEGER NOT NULL, last_sequence INTEGER NOT NULL);
INSERT INTO meta VALUES (0, 0);
CREATE TABLE messages (
    sequence INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, mark BLOB NOT NULL, lane TEXT NOT NULL,
    state INTEGER NOT NULL, attempts INTEGER NOT NULL, due_ms INTEGER NOT NULL, is_parked INTEGER NOT NULL,
    detail TEXT NOT NULL, published_ms INTEGER NOT NULL, ended_ms INTEGER NOT NULL
);
CREATE TABLE bodies (sequence INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE INDEX unusual ON messages (state, sequence) WHERE state >= 2;
CREATE INDEX ended ON messages (ended_ms, sequence) WHERE state IN (1, 2);
"""

_RECORD = """
SELECT m.sequence, m.key, m.lane, coalesce(b.body, x''), m.state, m.attempts, m.detail, m.published_ms, m.ended_ms
FROM messages m LEFT JOIN bodies b ON b.sequence = m.sequence
"""

Answer = TypeVar("Answer")


class EmbeddedStore:
    """Fills :class:`services.messages.store.Store` with a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; :meth:`open` makes it if it is missing."""
        self._folder = folder
        self._worker = trio.CapacityLimiter(1)
        self._owned: _Owned | None = None

    async def open(self) -> int:
        """Take the folder over and return the epoch.

        Raises:
            LocalError: ``store_locked``: another process holds it.
            StorageError: ``wrong_format``, ``corrupted``, ``disk_full`` or ``disk_failed``.
        """
        if self._owned is not None:
            raise LocalError("store_locked", f"{self._folder} is open already")
        self._owned = await trio.to_thread.run_sync(_Owned, self._folder, limiter=self._worker)
        return self._owned.epoch

    async def append(self, messages: Sequence[NewMessage], now_ms: int) -> list[Published]:
        """See the port."""
        return await self._run(lambda owned: owned.append(messages, now_ms))

    async def entries(self, after: int, limit: int) -> list[Entry]:
        """See the port."""
        return await self._run(lambda owned: owned.entries(after, limit))

    async def bodies(self, sequences: Sequence[int]) -> dict[int, tuple[str, bytes]]:
        """See the port."""
        return await self._run(lambda owned: owned.bodies(sequences))

    async def change(self, changes: Sequence[Change], now_ms: int) -> None:
        """See the port."""
        await self._run(lambda owned: owned.change(changes, now_ms))

    async def find(self, keys: Sequence[str]) -> list[Record | None]:
        """See the port."""
        return await self._run(lambda owned: owned.find(keys))

    async def ended(self, state: State, after: int, limit: int) -> list[Record]:
        """See the port."""
        return await self._run(lambda owned: owned.ended(state, after, limit))

    async def revive(self, sequences: Sequence[int]) -> list[Entry]:
        """See the port."""
        return await self._run(lambda owned: owned.revive(sequences))

    async def discard(self, sequences: Sequence[int]) -> int:
        """See the port."""
        return await self._run(lambda owned: owned.discard(sequences))

    async def counts(self) -> Counts:
        """See the port."""
        return await self._run(lambda owned: owned.counts())

    async def forget(self, ended_before_ms: int, keep_max: int) -> int:
        """See the port; other calls go between the transactions that this takes."""
        forgotten = 0
        while True:
            count = await self._run(lambda owned: owned.forget(ended_before_ms, keep_max))
            forgotten += count
            if count < _FORGET_ROWS_MAX:
                return forgotten

    async def close(self) -> None:
        """Close the file and let go of the lock; twice is harmless."""
        owned, self._owned = self._owned, None
        if owned is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(owned.close, limiter=self._worker)

    async def _run(self, work: Callable[["_Owned"], Answer]) -> Answer:
        owned = self._owned
        if owned is None:
            raise LocalError("store_closed", f"{self._folder} is not open")

        def call() -> Answer:
            with typed_errors(owned.folder / DATABASE), owned.transaction():
                return work(owned)

        return await trio.to_thread.run_sync(call, limiter=self._worker)


class _Owned:
    """The folder while we own it; everything here runs in the worker thread, inside a transaction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = _lock(folder)
        try:
            with typed_errors(folder / DATABASE):
                self._database = _open_database(folder)
                self._database.execute("BEGIN IMMEDIATE")
                (self.epoch,) = self._one("UPDATE meta SET epoch = epoch + 1 RETURNING epoch")
                (last,) = self._one(
                    "SELECT max(last_sequence, (SELECT coalesce(max(sequence), 0) FROM messages)) FROM meta"
                )
                self._next_sequence = last + 1
                self._counts = dict.fromkeys(range(len(_STATES)), 0)
                self._counts.update(self._database.execute("SELECT state, count(*) FROM messages GROUP BY state"))
                (self._waiting_bytes,) = self._one(
                    "SELECT coalesce(sum(length(body)), 0) FROM bodies JOIN messages USING (sequence) WHERE state = 0"
                )
                self._database.execute("COMMIT")
        except BaseException:
            os.close(self._lock)
            raise

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do what follows whole or not at all, and only while no other owner has come."""
        before = (self._next_sequence, dict(self._counts), self._waiting_bytes)
        self._database.execute("BEGIN IMMEDIATE")
        try:
            (epoch,) = self._one("SELECT epoch FROM meta")
            if epoch != self.epoch:
                raise StorageError("fenced", f"{self.folder} was opened by another process since")
            yield
            self._database.execute("COMMIT")
        except BaseException:
            self._next_sequence, self._counts, self._waiting_bytes = before
            # A full disk has rolled back by itself, and then there is nothing to roll back.
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise

    def append(self, messages: Sequence[NewMessage], now_ms: int) -> list[Published]:
        rows = self._many(
            "SELECT key, sequence, mark FROM messages WHERE key IN (VALUES", [(one.key,) for one in messages], ")"
        )
        known: dict[str, tuple[int, bytes]] = {key: (sequence, mark) for key, sequence, mark in rows}
        answers, added, bodies = [], [], []
        for message in messages:
            mark = message.mark or hashlib.sha256(message.body).digest()
            found = known.get(message.key)
            if found is not None:
                answers.append(Published(found[0], is_new=False, is_conflict=found[1] != mark))
                continue
            sequence = self._next_sequence
            self._next_sequence += 1
            known[message.key] = sequence, mark
            answers.append(Published(sequence, is_new=True))
            added.append((sequence, message.key, mark, message.lane, 0, 0, 0, 0, "", now_ms, 0))
            bodies.append((sequence, message.body))
            self._waiting_bytes += len(message.body)
        self._many("INSERT INTO messages VALUES", added)
        self._many("INSERT INTO bodies VALUES", bodies)
        self._counts[0] += len(added)
        return answers

    def entries(self, after: int, limit: int) -> list[Entry]:
        # What waits has a body, so what was done is not even looked at.
        rows = self._database.execute(
            "SELECT m.sequence, lane, attempts, due_ms, is_parked FROM bodies b CROSS JOIN messages m USING (sequence) "
            "WHERE b.sequence > ? AND state = 0 ORDER BY b.sequence LIMIT ?",
            (after, limit),
        )
        return [
            Entry(sequence, lane, attempts, due_ms, bool(parked)) for sequence, lane, attempts, due_ms, parked in rows
        ]

    def bodies(self, sequences: Sequence[int]) -> dict[int, tuple[str, bytes]]:
        # In one row, for the same reason as in _many; that costs less than the rows would.
        (found,) = self._database.execute(
            "SELECT json_group_array(json_array(sequence, key, hex(body))) FROM messages JOIN bodies USING (sequence) "
            "WHERE state = 0 AND sequence IN (SELECT value FROM json_each(?))",
            (json.dumps(list(sequences)),),
        ).fetchone()
        return {sequence: (key, bytes.fromhex(body)) for sequence, key, body in json.loads(found)}

    def change(self, changes: Sequence[Change], now_ms: int) -> None:
        waiting = self._among([change.sequence for change in changes], State.WAITING)
        rows: dict[int, tuple[object, ...]] = {}
        ended, dropped = [], []
        for change in changes:
            sequence, number = change.sequence, _NUMBERS[change.state]
            if sequence not in waiting:
                continue
            ended_ms = 0
            if change.state is not State.WAITING:
                waiting.remove(sequence)
                ended.append(sequence)
                ended_ms = now_ms
                self._counts[0] -= 1
                self._counts[number] += 1
                if change.state is not State.DEAD:
                    dropped.append(sequence)
            waits = change.attempts, change.due_ms, change.is_parked
            rows[sequence] = (sequence, number, *waits, change.detail, ended_ms)
        self._many(
            "UPDATE messages SET state = column2, attempts = column3, due_ms = column4, is_parked = column5, "
            "detail = column6, ended_ms = column7 FROM (VALUES",
            list(rows.values()),
            ") WHERE sequence = column1",
        )
        self._waiting_bytes -= self._bytes_of(ended)
        self._database.execute(
            "DELETE FROM bodies WHERE sequence IN (SELECT value FROM json_each(?))", (json.dumps(dropped),)
        )

    def find(self, keys: Sequence[str]) -> list[Record | None]:
        rows = self._many(f"{_RECORD} WHERE m.key IN (VALUES", [(key,) for key in keys], ")")
        found = {record.key: record for record in map(_record, rows)}
        return [found.get(key) for key in keys]

    def ended(self, state: State, after: int, limit: int) -> list[Record]:
        number = _NUMBERS[state]
        # The constant lets SQLite see that the index of refused and dead ones covers it.
        unusual = "AND m.state >= 2" if number >= _NUMBERS[State.REFUSED] else ""
        rows = self._database.execute(
            f"{_RECORD} WHERE m.state = ? {unusual} AND m.sequence > ? ORDER BY m.sequence LIMIT ?",
            (number, after, limit),
        )
        return [_record(row) for row in rows]

    def revive(self, sequences: Sequence[int]) -> list[Entry]:
        dead = sorted(self._among(sequences, State.DEAD))
        self._database.execute(
            "UPDATE messages SET state = 0, attempts = 0, due_ms = 0, is_parked = 0, ended_ms = 0 "
            "WHERE sequence IN (SELECT value FROM json_each(?))",
            (json.dumps(dead),),
        )
        self._counts[_NUMBERS[State.DEAD]] -= len(dead)
        self._counts[0] += len(dead)
        self._waiting_bytes += self._bytes_of(dead)
        rows = self._database.execute(
            "SELECT sequence, lane FROM messages WHERE sequence IN (SELECT value FROM json_each(?)) ORDER BY sequence",
            (json.dumps(dead),),
        )
        return [Entry(sequence, lane) for sequence, lane in rows]

    def discard(self, sequences: Sequence[int]) -> int:
        dead = json.dumps(list(self._among(sequences, State.DEAD)))
        self._database.execute("DELETE FROM bodies WHERE sequence IN (SELECT value FROM json_each(?))", (dead,))
        count = self._drop(dead)
        self._counts[_NUMBERS[State.DEAD]] -= count
        return count

    def counts(self) -> Counts:
        waiting, done, refused, dead = (self._counts[number] for number in range(len(_STATES)))
        return Counts(waiting, done, refused, dead, self._waiting_bytes)

    def forget(self, ended_before_ms: int, keep_max: int) -> int:
        ended = self._counts[_NUMBERS[State.DONE]] + self._counts[_NUMBERS[State.REFUSED]]
        rows = self._database.execute(
            "SELECT sequence, state, ended_ms FROM messages WHERE state IN (1, 2) ORDER BY ended_ms, sequence LIMIT ?",
            (_FORGET_ROWS_MAX,),
        )
        dropped = []
        for position, (sequence, state, ended_ms) in enumerate(rows):
            if ended_ms >= ended_before_ms and position >= ended - keep_max:
                break
            dropped.append(sequence)
            self._counts[state] -= 1
        return self._drop(json.dumps(dropped))

    def _drop(self, sequences_json: str) -> int:
        """Forget messages that have no body, and return how many."""
        count = self._database.execute(
            "DELETE FROM messages WHERE sequence IN (SELECT value FROM json_each(?))", (sequences_json,)
        ).rowcount
        # The highest sequence may be among them, and none is given twice.
        self._database.execute("UPDATE meta SET last_sequence = ?", (self._next_sequence - 1,))
        return count

    def close(self) -> None:
        """Close the file first, then let go of the lock."""
        with suppress(sqlite3.Error):
            self._database.close()
        os.close(self._lock)

    def _many(self, before: str, rows: Sequence[tuple[object, ...]], after: str = "") -> list[tuple[Any, ...]]:
        """Run a statement around a list of rows, a few hundred at a time, and return what it selects.

        A statement a row would hand the interpreter's lock over and back with each.
        """
        selected = []
        start = 0
        for size in _CHUNKS:
            while len(rows) - start >= size:
                chunk = rows[start : start + size]
                start += size
                row = f"({', '.join('?' * len(chunk[0]))})"
                statement = f"{before} {', '.join([row] * size)} {after}"
                selected += self._database.execute(statement, list(chain.from_iterable(chunk))).fetchall()
        return selected

    def _among(self, sequences: Sequence[int], state: State) -> set[int]:
        (found,) = self._database.execute(
            "SELECT json_group_array(sequence) FROM messages "
            "WHERE state = ? AND sequence IN (SELECT value FROM json_each(?))",
            (_NUMBERS[state], json.dumps(list(sequences))),
        ).fetchone()
        return set(json.loads(found))

    def _bytes_of(self, sequences: Sequence[int]) -> int:
        (count,) = self._one(
            "SELECT coalesce(sum(length(body)), 0) FROM bodies WHERE sequence IN (SELECT value FROM json_each(?))",
            json.dumps(list(sequences)),
        )
        return count

    def _one(self, statement: str, *values: str) -> tuple[int, ...]:
        row: tuple[int, ...] | None = self._database.execute(statement, values).fetchone()
        if row is None:
            raise InvariantError(f"no row: {statement}")
        return row


def _record(row: tuple[int, str, str, bytes, int, int, str, int, int]) -> Record:
    sequence, key, lane, body, state, attempts, detail, published_ms, ended_ms = row
    return Record(sequence, key, lane, body, _STATES[state], attempts, detail, published_ms, ended_ms)


def _lock(folder: Path) -> int:
    """Make the folder and lock it; the lock lives as long as the descriptor, and ends with the process."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise disk_error(folder, error.errno, error.strerror or "") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LocalError("store_locked", f"another process holds {folder}") from None
    return descriptor


def _open_database(folder: Path) -> sqlite3.Connection:
    """Open the file, and make its tables if it is new."""
    database = sqlite3.connect(
        folder / DATABASE,
        timeout=_BUSY_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_STATEMENTS_MAX,
    )
    try:
        for pragma in _PRAGMAS:
            database.execute(pragma)
        (application,), (version,) = (
            database.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            database.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {FORMAT}; COMMIT;"
            )
            for changed in (folder, folder.parent):
                sync_folder(changed)
        elif (application, version) != (_APPLICATION_ID, FORMAT):
            raise StorageError("wrong_format", f"{folder / DATABASE} has format {version}, this program reads {FORMAT}")
        elif (found := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise StorageError("corrupted", f"{folder / DATABASE}: {found}")
    except BaseException:
        database.close()
        raise
    return database
