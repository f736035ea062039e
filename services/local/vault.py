"""A program's own durable store: an ordered map of bytes whose values lie encrypted on the disk.

Every value is sealed with AES-256-GCM under the key of a file beside it and bound to its place, see
:mod:`consensus.ledger.sealing`. Keys of the map lie in the clear and in order: roots, positions and what
:meth:`Vault.blind` makes of a name belong there, a name does not. A write of many pairs is one SQLite transaction and
one sync, in a worker thread; reads are made where they are asked for, and see what was last written.
"""

import fcntl
import hashlib
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from consensus.ledger.errors import InvariantError, LocalError, StorageError
from consensus.ledger.sealing import KEY_BYTES, Sealer
from services.local.sqlite import sync_folder, typed_errors

DATABASE = "vault.db"
FORMAT = 1
KEY_FILE_MODE = 0o600
NAME_BYTES_MAX = 512
"""Size of a key of the map."""
VALUE_BYTES_MAX = 16 * 1024 * 1024
BLIND_BYTES = 16
SEALED_MAX = 2**32
"""Values one key may seal before two random nonces might meet (NIST SP 800-38D, 8.3)."""

_APPLICATION_ID = 0x48414E56  # "HANV"
_BUSY_S = 5.0
_PAGE_ROWS = 256
_CHECK_PLACE = b"vault"
_CHECK_VALUE = b"opens"

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    # Sync the log at every commit: what was written survives a power cut.
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 4096",
    "PRAGMA journal_size_limit = 33554432",
    "PRAGMA cache_size = -16384",
)
_SCHEMA = f"""
BEGIN;
CREATE TABLE meta (sealed INTEGER NOT NULL, check_value BLOB NOT NULL);
CREATE TABLE map (name BLOB PRIMARY KEY, value BLOB NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {FORMAT};
"""

Pair = tuple[bytes, bytes | None]
"""A key of the map and its value; None removes it."""


class Vault:
    """The store while it is open; made by :func:`open_vault`."""

    def __init__(self, folder: Path, key_file: Path) -> None:
        """Open or make it; blocks. Errors as for :func:`open_vault`."""
        self.folder = folder
        self._lock = _lock(folder)
        self._worker = trio.CapacityLimiter(1)
        try:
            with typed_errors(folder / DATABASE):
                key, is_new = _read_key(key_file, is_empty=not (folder / DATABASE).exists())
                self._sealer = Sealer(key, secrets.token_bytes)
                self._blinding = hashlib.sha256(b"hansa vault names" + key).digest()
                self._writer = _open_database(folder, self._sealer)
                try:
                    self._reader = _connect(folder)
                    (self._sealed,) = self._reader.execute("SELECT sealed FROM meta").fetchone()
                except BaseException:
                    self._writer.close()
                    raise
                if is_new:
                    sync_folder(key_file.parent)
        except BaseException:
            os.close(self._lock)
            raise

    def get(self, name: bytes) -> bytes | None:
        """Return the value at a key, or None.

        Raises:
            StorageError: the disk fails, or the value does not open.
        """
        with typed_errors(self.folder / DATABASE):
            row = self._reader.execute("SELECT value FROM map WHERE name = ?", (name,)).fetchone()
        return None if row is None else self._sealer.open(name, row[0])

    def get_many(self, names: Sequence[bytes]) -> list[bytes | None]:
        """Return the values at keys, in their order."""
        return [self.get(name) for name in names]

    def scan(
        self, prefix: bytes, start: bytes = b"", *, reverse: bool = False, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs whose keys begin with ``prefix``, in order of the keys, read a few at a time.

        Ascending from ``prefix + start`` on, or, in reverse, descending from ``prefix + start`` on; an empty ``start``
        begins at the end where the scan begins. What is written meanwhile may or may not be seen.
        """
        lower, upper = prefix, _after(prefix)
        if start:
            lower, upper = (lower, prefix + start + b"\0") if reverse else (prefix + start, upper)
        left = limit
        while left is None or left > 0:
            wanted = _PAGE_ROWS if left is None else min(_PAGE_ROWS, left)
            rows = self._page(lower, upper, reverse=reverse, limit=wanted)
            for name, sealed in rows:
                yield name, self._sealer.open(name, sealed)
            if len(rows) < wanted:
                return
            left = None if left is None else left - len(rows)
            lower, upper = (lower, rows[-1][0]) if reverse else (rows[-1][0] + b"\0", upper)

    async def write(self, batch: Iterable[Pair]) -> None:
        """Write all or nothing, and return once it is on the disk. Writes of several tasks follow each other.

        Raises:
            LocalError: ``too_large`` for a key or value beyond its bound.
            StorageError: the disk refuses, or ``key_worn``: the key has sealed as much as it may.
        """
        pairs = list(batch)
        for name, value in pairs:
            if not 0 < len(name) <= NAME_BYTES_MAX or len(value or b"") > VALUE_BYTES_MAX:
                message = f"a key has 1 to {NAME_BYTES_MAX} bytes and a value at most {VALUE_BYTES_MAX}"
                raise LocalError("too_large", message)
        if pairs:
            await trio.to_thread.run_sync(self._write, pairs, limiter=self._worker)

    def blind(self, *parts: str) -> bytes:
        """Return 16 bytes that stand for a name in keys: the same for the same parts, and telling nothing alone."""
        digest = hashlib.blake2b(key=self._blinding, digest_size=BLIND_BYTES)
        for part in parts:
            text = part.encode()
            digest.update(len(text).to_bytes(4, "big") + text)
        return digest.digest()

    def close(self) -> None:
        """Close the files and let go of the lock; no write may be under way."""
        self._reader.close()
        self._writer.close()
        os.close(self._lock)

    def _page(self, lower: bytes, upper: bytes | None, *, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        order = "DESC" if reverse else "ASC"
        below = "" if upper is None else "AND name < ?"
        values = (lower, limit) if upper is None else (lower, upper, limit)
        text = f"SELECT name, value FROM map WHERE name >= ? {below} ORDER BY name {order} LIMIT ?"
        with typed_errors(self.folder / DATABASE):
            return self._reader.execute(text, values).fetchall()

    def _write(self, pairs: Sequence[Pair]) -> None:
        """Write in the worker thread."""
        sealed = self._sealed + len(pairs)
        if sealed > SEALED_MAX:
            raise StorageError("key_worn", f"{self.folder}: its key has sealed {self._sealed} values, and may no more")
        self._sealed = sealed  # also where the write fails: its nonces were used
        rows = [(name, None if value is None else self._sealer.seal(name, value)) for name, value in pairs]
        with typed_errors(self.folder / DATABASE), _transaction(self._writer):
            for name, value in rows:
                if value is None:
                    self._writer.execute("DELETE FROM map WHERE name = ?", (name,))
                else:
                    self._writer.execute(_PUT, (name, value))
            self._writer.execute("UPDATE meta SET sealed = ?", (sealed,))


_PUT = "INSERT INTO map VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"


@asynccontextmanager
async def open_vault(folder: Path, key_file: Path) -> AsyncIterator[Vault]:
    """Give the vault of a folder for the time of the block; folder and key file are made when missing.

    Raises:
        LocalError: ``store_locked``: another process holds it; ``key_lost``: there is a database and no key
            file; ``bad_key``, ``key_permissions`` of the key file.
        StorageError: ``wrong_format``, ``corrupted``, ``not_sealed_here`` (another key), ``disk_full``,
            ``disk_failed``.
    """
    vault = await trio.to_thread.run_sync(Vault, folder, key_file)
    try:
        yield vault
    finally:
        vault.close()


def _after(prefix: bytes) -> bytes | None:
    """Return the first key that does not begin with a prefix and comes after it; None where there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def _read_key(path: Path, *, is_empty: bool) -> tuple[bytes, bool]:
    """Return the key, and whether it was made now."""
    try:
        if path.stat().st_mode & 0o077:
            raise LocalError("key_permissions", f"others may read {path}: chmod 600 it")
        key = path.read_bytes()
    except FileNotFoundError:
        if not is_empty:
            raise LocalError("key_lost", f"what lies in {path.parent} was sealed with {path}") from None
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _make_key(path), True
    if len(key) != KEY_BYTES:
        raise LocalError("bad_key", f"{path} has {len(key)} bytes, a key has {KEY_BYTES}")
    return key, False


def _make_key(path: Path) -> bytes:
    """Write a new key: whole or not at all, since a database may follow it at once."""
    key = secrets.token_bytes(KEY_BYTES)
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, KEY_FILE_MODE)
    with os.fdopen(handle, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(handle)
    draft.replace(path)
    return key


def _lock(folder: Path) -> int:
    """Make the folder and lock it; the lock lives as long as the descriptor, and ends with the process."""
    with typed_errors(folder / DATABASE):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LocalError("store_locked", f"another process holds {folder}") from None
    return descriptor


def _connect(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(folder / DATABASE, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        for pragma in _PRAGMAS:
            database.execute(pragma)
    except BaseException:
        database.close()
        raise
    return database


def _open_database(folder: Path, sealer: Sealer) -> sqlite3.Connection:
    """Open the file, make its tables if it is new, and see that the key is the one it was made with."""
    database = _connect(folder)
    try:
        (application,), (version,) = (
            database.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            os.chmod(folder / DATABASE, KEY_FILE_MODE)
            database.executescript(_SCHEMA)
            database.execute("INSERT INTO meta VALUES (1, ?)", (sealer.seal(_CHECK_PLACE, _CHECK_VALUE),))
            database.execute("COMMIT")
            for changed in (folder, folder.parent):
                sync_folder(changed)
        elif (application, version) != (_APPLICATION_ID, FORMAT):
            raise StorageError("wrong_format", f"{folder / DATABASE} has format {version}, this program reads {FORMAT}")
        elif (found := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise StorageError("corrupted", f"{folder / DATABASE}: {found}")
        (check,) = database.execute("SELECT check_value FROM meta").fetchone()
        if sealer.open(_CHECK_PLACE, check) != _CHECK_VALUE:
            raise InvariantError("a sealed value opened and is another")
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
