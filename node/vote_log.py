"""Which votes a key has cast, and whether this store is where that is written.

A vote key and its log belong together: a key without its log could contradict what it has signed. Both
sides therefore carry the same *incarnation*: a random id, made when the key first votes, and a count of
starts. The store holds one copy, a file beside the key the other. A store that was wiped lacks the id,
one that was restored from a backup lags behind in the count; with either the node follows the chain and
casts no vote until the membership has admitted a new key.
"""

import errno
import os
import secrets
from pathlib import Path
from typing import Annotated, Protocol

import msgspec

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import PeerError, StorageError
from consensus.ledger.transaction import Natural
from node.storage import layout
from node.storage.store import Store

INCARNATION_FILE = "incarnation"


class Incarnation(Record, frozen=True):
    """One life of a vote key (33 bytes): its random id (16 bytes), and how often the node started in it."""

    vote_key: Annotated[bytes, msgspec.Meta(min_length=33, max_length=33)]
    id: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    starts: Natural


incarnation_codec: RecordCodec[Incarnation] = RecordCodec(Incarnation, bytes_max=128)


class KeySide(Protocol):
    """Where the copy beside the key is kept. Both methods raise StorageError ``disk_failed`` or ``disk_full``."""

    def load(self) -> bytes | None:
        """Return what was saved last, None on the first start."""

    def save(self, data: bytes) -> None:
        """Replace it, synced, so that a crash leaves the old or the new one."""


class IncarnationFile:
    """The copy in the folder of the keys."""

    def __init__(self, keys: Path) -> None:
        self._path = keys / INCARNATION_FILE

    def load(self) -> bytes | None:
        """Read the file, if it is there."""
        return _read_if_there(self._path)

    def save(self, data: bytes) -> None:
        """Replace the file."""
        _write_synced(self._path, data)


def open_log(store: Store, keys: Path, vote_key: bytes) -> tuple[bool, dict[bytes, bytes]]:
    """Return whether this key may vote with this store, and the engine's records.

    Raises:
        StorageError: ``corrupted`` when either copy of the incarnation cannot be read, ``disk_failed``.
    """
    return open_log_beside(store, IncarnationFile(keys), vote_key)


def open_log_beside(store: Store, key_side: KeySide, vote_key: bytes) -> tuple[bool, dict[bytes, bytes]]:
    """Do the same wherever the copy beside the key is kept."""
    stored = _decode(store.get(layout.META_INCARNATION), vote_key)
    beside = _decode(key_side.load(), vote_key)
    if beside is None and stored is None:
        stored = beside = Incarnation(vote_key, secrets.token_bytes(16), 0)
    elif beside is None and stored is not None and stored.starts == 1:
        # The node died between the two writes below, on its first start; it has not voted yet. It counts as the
        # first start however often that happens: a second one would look like a file that was lost.
        stored = beside = Incarnation(vote_key, stored.id, 0)
    if stored is None or beside is None or stored.id != beside.id or stored.starts < beside.starts:
        return False, {}
    next_start = Incarnation(vote_key, stored.id, stored.starts + 1)
    data = incarnation_codec.encode(next_start)
    store.write([(layout.META_INCARNATION, data)])
    key_side.save(data)
    return True, {key[1:]: value for key, value in store.scan(layout.VOTE)}


def _read_if_there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError("disk_failed", f"{path}: {error.strerror}") from None


def _decode(data: bytes | None, vote_key: bytes) -> Incarnation | None:
    """Return the incarnation of this key; one of an earlier key says nothing about this one."""
    if data is None:
        return None
    try:
        incarnation = incarnation_codec.decode_untrusted(data)
    except PeerError as error:
        raise StorageError("corrupted", f"the incarnation of the vote key cannot be read: {error}") from None
    return incarnation if incarnation.vote_key == vote_key else None


def _write_synced(path: Path, data: bytes) -> None:
    """Replace a file so that a crash leaves the old or the new one."""
    temporary = path.with_suffix(".new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError("disk_full" if is_full else "disk_failed", f"{path}: {error.strerror}") from None
