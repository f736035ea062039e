"""What SQLite files of programs need: errors by their meaning, names of new files that last, small stores."""

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from consensus.ledger.errors import LocalError, StorageError


@contextmanager
def typed_errors(database: Path) -> Iterator[None]:
    """Say of SQLite's errors about a file what they mean for who runs the program.

    Raises:
        LocalError: ``store_locked``.
        StorageError: ``disk_full``, ``corrupted``, ``disk_failed``.
    """
    try:
        yield
    except sqlite3.Error as error:
        # Errors of the module itself (a closed connection, a wrong number of values) have no code: those are bugs.
        primary = getattr(error, "sqlite_errorcode", None)
        match primary if primary is None else primary & 0xFF:
            case None:
                raise
            case sqlite3.SQLITE_FULL:
                raise disk_error(database.parent, errno.ENOSPC, str(error)) from None
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                raise StorageError("corrupted", f"{database}: {error}") from None
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise LocalError("store_locked", f"another process holds {database}") from None
            case _:
                raise StorageError("disk_failed", f"{database}: {error}") from None
    except OSError as error:
        raise disk_error(database.parent, error.errno, error.strerror or "") from None


def disk_error(folder: Path, number: int | None, words: str) -> StorageError:
    """Return the error for what the operating system says of a folder: ``disk_full`` or ``disk_failed``."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StorageError("disk_full", f"{folder}: {words}; make room and start again: nothing is lost")
    return StorageError("disk_failed", f"{folder}: {words}")


def sync_folder(folder: Path) -> None:
    """Make the new files' names durable, which syncing the files alone does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Tables:
    """A small store in one SQLite file, opened by :func:`open_tables`; calls block for the time of a write.

    Its errors are those of :func:`typed_errors`.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Take over an open database."""
        self._connection = connection
        self.path = path

    def rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """Return what a query finds."""
        with typed_errors(self.path):
            return self._connection.execute(query, [*values]).fetchall()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for one transaction: durable once the block has ended, undone if it raises."""
        with typed_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


@contextmanager
def open_tables(path: Path, tables: Sequence[str], version: int, *, busy_s: float | None = None) -> Iterator[Tables]:
    """Give the store in a file, made with its folder where there is none, readable by its owner alone.

    Args:
        path: the file.
        tables: the statements that make its tables.
        version: their number; a file with another one is refused.
        busy_s: how long another process's write is waited for; None where one process at a time has the file.

    Raises:
        LocalError: ``store_locked``.
        StorageError: ``wrong_format`` and others.
    """
    with typed_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, timeout=busy_s or 0)
    try:
        with typed_errors(path):
            if busy_s is None:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found not in (0, version):
                raise StorageError("wrong_format", f"{path} has format {found}, this is for {version}")
            if found == 0:
                for table in tables:
                    connection.execute(table)
                connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("COMMIT")
            sync_folder(path.parent)
        yield Tables(connection, path)
    finally:
        connection.close()
