"""What every SQLite file of a program needs: its errors by their meaning, and names of new files that last."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
