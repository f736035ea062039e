"""The private database: what goes through channels, sealed on the disk under a key of the node's own.

It is a LevelDB of its own beside the chain's. Every value is sealed by :mod:`consensus.ledger.sealing`, bound to
its key, so that whoever reads the disk learns keys, sizes and times of values and no more, and whoever alters one
or puts it elsewhere is found out. Nobody is kept from putting the whole folder back to an older state: both sides
of a channel find that out by its numbers.

The key file stands with the node's other keys and is made when neither it nor data are there. A key seals at most
2^32 values: a year at 136 a second.
"""

import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import trio

from consensus.ledger.errors import LocalError, StorageError
from consensus.ledger.ids import ChainId
from consensus.ledger.sealing import KEY_BYTES, Sealer
from node.network.keys import replace_secret
from node.storage.leveldb import LevelStore
from node.storage.store import Write

FORMAT = b"1"
META = b"\0meta"
"""Under it stand format and chain, sealed: they open with the right key alone. No scan with a prefix meets it."""


class SealedStore:
    """Fills :class:`p2p.private.port.PrivateStore`. Reads come from the trio thread, writes go to a worker thread."""

    def __init__(self, database: LevelStore, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    @classmethod
    def open(cls, folder: Path, key_file: Path, chain_id: ChainId) -> "SealedStore":
        """Open the folder with the key in the file, making both when neither is there.

        Raises:
            LocalError: ``key_lost`` for data without their key, ``bad_key``, ``file_error``, ``wrong_chain``,
                ``store_locked``.
            StorageError: ``not_sealed_here`` when the key is another one or the data were altered, and what
                :meth:`LevelStore.open` raises.
        """
        sealer = Sealer(_load_key(key_file, folder), secrets.token_bytes)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = LevelStore.open(folder)
        try:
            _check_meta(database, sealer, chain_id, folder, key_file)
        except BaseException:
            database.close()
            raise
        return cls(database, sealer)

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None.

        Raises:
            StorageError: ``not_sealed_here`` or ``corrupted``; the node has to stop.
        """
        sealed = self._database.get(key)
        return None if sealed is None else self._sealer.open(key, sealed)

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs whose keys begin with ``prefix``, from ``prefix + start`` on; errors as :meth:`get`."""
        for key, sealed in self._database.scan(prefix, start):
            yield key, self._sealer.open(key, sealed)

    async def write(self, batch: Iterable[Write]) -> None:
        """Write all or nothing, and return once it is on the disk; one caller at a time.

        Raises:
            StorageError: the disk refuses; every further write fails too.
        """
        await trio.to_thread.run_sync(self._write, list(batch))

    def _write(self, items: list[Write]) -> None:
        seal = self._sealer.seal
        self._database.write((key, None if value is None else seal(key, value)) for key, value in items)

    def close(self) -> None:
        """Release the files; further calls fail."""
        self._database.close()


def _load_key(key_file: Path, folder: Path) -> bytes:
    """Return the key, made when there is nothing yet that it could open.

    Raises:
        LocalError: ``key_lost``, ``bad_key``, ``file_error``.
    """
    try:
        key = key_file.read_bytes()
    except FileNotFoundError:
        if (folder / "CURRENT").exists():
            message = f"{key_file} is missing, and nothing else opens the data in {folder}"
            raise LocalError("key_lost", f"{message}; put the key back, or the folder aside") from None
        replace_secret(key_file, secrets.token_bytes(KEY_BYTES))
        return key_file.read_bytes()
    except OSError as error:
        raise LocalError("file_error", f"{key_file}: {error.strerror}") from None
    if len(key) != KEY_BYTES:
        raise LocalError("bad_key", f"{key_file} has {len(key)} bytes, a key for sealing {KEY_BYTES}")
    if os.stat(key_file).st_mode & 0o077:
        raise LocalError("bad_key", f"{key_file} may be read by others; its mode must be 0600")
    return key


def _check_meta(database: LevelStore, sealer: Sealer, chain_id: ChainId, folder: Path, key_file: Path) -> None:
    """See to it that key, format and chain are those of the data, and note them in an empty database."""
    sealed = database.get(META)
    if sealed is None:
        if any(True for _ in database.scan(b"")):
            raise StorageError("corrupted", f"{folder} does not say how it is sealed")
        database.write([(META, sealer.seal(META, FORMAT + chain_id))])
        return
    try:
        meta = sealer.open(META, sealed)
    except StorageError as error:
        raise StorageError(error.code, f"{folder} does not open with {key_file}") from None
    if meta[:1] != FORMAT:
        raise LocalError("bad_version", f"{folder} has format {meta[:1]!r}, this node reads {FORMAT!r}")
    if meta[1:] != chain_id:
        raise LocalError("wrong_chain", f"{folder} belongs to another chain")
