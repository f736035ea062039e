"""The store on LevelDB through plyvel.

Only synced, transactional batches exist here: plyvel's default writes a batch even when its block was
left by an exception, and unsynced puts can be lost out of order (R55, R57). Whatever LevelDB reports
becomes a :class:`StorageError`; nothing is repaired, because a repair keeps what should be thrown away
(R54).
"""

import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import plyvel

from consensus.ledger.errors import LocalError, StorageError
from node.storage import layout
from node.storage.check import check_before_opening
from node.storage.store import Write

CACHE_BYTES = 8 * 1024 * 1024
"""Of blocks of tables: values, nodes and accounts have caches of their own above it."""
WRITE_BUFFER_BYTES = 32 * 1024 * 1024
"""The smaller, the more often LevelDB merges what it wrote before; two of them may stand in memory."""
OPEN_FILES_MAX = 256


class LevelStore:
    """A LevelDB folder. Reads come from any thread; a batch holds a lock so that closing waits for it."""

    def __init__(self, database: "plyvel.DB") -> None:
        self._database = database
        self._writing = threading.Lock()
        self._failure: StorageError | None = None

    @classmethod
    def open(cls, folder: Path, *, is_salvage: bool = False) -> "LevelStore":
        """Open the folder, making it when it is not there.

        ``is_salvage`` leaves out what is damaged instead of refusing: only for finding out what that was.

        Raises:
            LocalError: ``store_locked`` when another process holds it.
            StorageError: ``corrupted``, ``disk_full`` or ``disk_failed``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if not is_salvage:
            _check(folder)
        try:
            database = plyvel.DB(
                str(folder),
                create_if_missing=True,
                paranoid_checks=not is_salvage,
                lru_cache_size=CACHE_BYTES,
                write_buffer_size=WRITE_BUFFER_BYTES,
                max_open_files=OPEN_FILES_MAX,
                bloom_filter_bits=10,
                compression=None,  # Mostly hashes and signatures: trying to compress them took an eighth of a node.
            )
        except plyvel.IOError as error:
            if "lock" in str(error).lower():
                raise LocalError("store_locked", f"another process holds {folder}") from None
            raise _disk_error(f"cannot open {folder}: {_words(error)}") from None
        except plyvel.Error as error:
            raise StorageError("corrupted", f"cannot open {folder}: {_words(error)}") from None
        return cls(database)

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""
        try:
            value: bytes | None = self._database.get(key, verify_checksums=True)
        except plyvel.Error as error:
            raise _storage_error(error, key) from None
        return value

    def scan(self, prefix: bytes, start: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Yield pairs in order of the keys; see :class:`~node.storage.store.Store`.

        The raw iterator asks LevelDB at every step whether all is well; plyvel's other one takes a damaged
        block at the end of a table for the end of the records.
        """
        end = _after(prefix)
        try:
            with self._database.raw_iterator(verify_checksums=True) as place:
                if reverse:
                    yield from _down(place, prefix, prefix + start if start else end)
                else:
                    yield from _up(place, prefix + start, end)
        except plyvel.Error as error:
            raise _storage_error(error, prefix) from None

    def write(self, batch: Iterable[Write]) -> None:
        """Write all or nothing, synced; see :class:`~node.storage.store.Store`.

        After a failure every further write fails too: LevelDB would append it behind what it wrote in part.
        """
        with self._writing:
            if self._failure is not None:
                raise self._failure
            try:
                with self._database.write_batch(transaction=True, sync=True) as writes:
                    for key, value in batch:
                        if value is None:
                            writes.delete(key)
                        else:
                            writes.put(key, value)
            except plyvel.Error as error:
                self._failure = _storage_error(error)
                raise self._failure from None

    def close(self) -> None:
        """Close after the batch that may be under way (closing under a busy thread can crash, R57)."""
        with self._writing:
            self._database.close()


def _check(folder: Path) -> None:
    """Look at the files before LevelDB does; while another process writes to them that would mean nothing."""
    try:
        check_before_opening(folder)
    except StorageError as error:
        with (folder / "LOCK").open("ab") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise LocalError("store_locked", f"another process holds {folder}") from None
        raise StorageError(error.code, f"cannot open {folder}: {error.message}") from None
    except OSError as error:
        raise _disk_error(f"cannot read {folder}: {error.strerror}") from None


def _up(place: "plyvel.RawIterator", low: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
    """Yield pairs from ``low`` on, up to below ``end``."""
    place.seek(low)
    while place.valid():
        pair = place.item()
        if end is not None and pair[0] >= end:
            return
        yield pair
        place.next()


def _down(place: "plyvel.RawIterator", low: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
    """Yield pairs from just below ``end`` down to ``low``."""
    if end is None:
        place.seek_to_last()
    else:
        place.seek(end)
        if place.valid():
            place.prev()
        else:
            place.seek_to_last()
    while place.valid():
        pair = place.item()
        if pair[0] < low:
            return
        yield pair
        place.prev()


def _after(prefix: bytes) -> bytes | None:
    """Return the first key above all keys with this prefix, None when there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


def _storage_error(error: Exception, key: bytes = b"") -> StorageError:
    """Return what LevelDB's error means, naming the record that was asked for, or the kind of records."""
    place = f" in its {layout.describe(key)}" if key else ""
    if isinstance(error, plyvel.CorruptionError):
        return StorageError("corrupted", f"the database is damaged{place}: {_words(error)}")
    return _disk_error(f"the database failed{place}: {_words(error)}")


def _disk_error(message: str) -> StorageError:
    """Tell a full disk, which is mended by making room, from one that fails: LevelDB has words for it alone."""
    if os.strerror(errno.ENOSPC) in message or os.strerror(errno.EDQUOT) in message:
        return StorageError("disk_full", f"{message}; make room and start the node again: nothing is lost")
    return StorageError("disk_failed", message)


def _words(error: Exception) -> str:
    """Return what LevelDB says, which plyvel hands over as bytes."""
    (said, *_) = error.args or ("",)
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
