"""What a trusted environment keeps on disk, sealed: its keys, and how far the chain was that it has seen.

Both are sealed under a key that is derived from a secret of the machine and the measurement of the code, so that other
code does not open them (``wrong_measurement``), and neither does this code on another machine. In hardware the
processor holds that secret; here it is a file, and whoever reads it can do the same.

    keys.sealed   the measurement in clear, and the sealed secrets of both keys
    head.sealed   two places of one size, written in turn: one of them is whole at any time
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec

from consensus.ledger.codec import Record, RecordCodec, Value, encode
from consensus.ledger.errors import LocalError, PeerError, StorageError
from consensus.ledger.keys import PrivateKey
from consensus.ledger.merkle import HashBytes
from consensus.ledger.sealing import KEY_BYTES, NONCE_BYTES, TAG_BYTES, Sealer
from services.payee.enclave import EnvironmentKeys
from services.payee.sealing import ExchangeKey, derived

KEYS_FILE = "keys.sealed"
HEAD_FILE = "head.sealed"
SECRET_MODE = 0o600

_HEIGHT_BYTES: Final = 8
_PLACE_BYTES: Final = NONCE_BYTES + _HEIGHT_BYTES + TAG_BYTES
_PLACES: Final = 2


class _KeysFile(Record, frozen=True):
    measurement: HashBytes
    sealed: Annotated[bytes, msgspec.Meta(max_length=256)]


_keys_codec: RecordCodec[_KeysFile] = RecordCodec(_KeysFile, bytes_max=512)


class HeadFile:
    """The highest head that an environment has seen; open and locked while it runs."""

    def __init__(self, descriptor: int, path: Path, sealer: Sealer, place: list[Value]) -> None:
        """Take an open file."""
        self._descriptor = descriptor
        self._path = path
        self._sealer = sealer
        self._places = [encode(["payee-head", *place, number]) for number in range(_PLACES)]
        self._next = 0

    def begin(self) -> None:
        """Write height 0 to both places of a new file."""
        for _ in range(_PLACES):
            self.write(0)

    def read(self) -> int:
        """Return the height; what is written next replaces the other place.

        Raises:
            StorageError: ``not_sealed_here`` where no place opens, ``disk_failed``.
        """
        best = -1
        for number, place in enumerate(self._places):
            try:
                data = os.pread(self._descriptor, _PLACE_BYTES, number * _PLACE_BYTES)
                height = int.from_bytes(self._sealer.open(place, data), "big")
            except OSError as error:
                raise StorageError("disk_failed", f"{self._path}: {error.strerror}") from None
            except StorageError:
                continue  # a write of it was cut short
            if height > best:
                best, self._next = height, 1 - number
        if best < 0:
            raise StorageError("not_sealed_here", f"{self._path} was not written by this environment")
        return best

    def write(self, height: int) -> None:
        """Write a height, and return once it is on the disk.

        Raises:
            StorageError: ``disk_failed``.
        """
        sealed = self._sealer.seal(self._places[self._next], height.to_bytes(_HEIGHT_BYTES, "big"))
        try:
            if os.pwrite(self._descriptor, sealed, self._next * _PLACE_BYTES) != len(sealed):
                raise StorageError("disk_full", f"{self._path} was written in part")
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise StorageError("disk_failed", f"{self._path}: {error.strerror}") from None
        self._next = 1 - self._next


@contextmanager
def open_sealed(
    folder: Path, machine: Path, *, name: str, chain_id: bytes, measurement: bytes
) -> Iterator[tuple[EnvironmentKeys, HeadFile]]:
    """Give the keys and the head of an environment; made anew in a folder that holds no keys.

    Raises:
        LocalError: ``already_running``; ``wrong_measurement``: other code sealed the keys; ``key_lost``: the machine's
            secret is gone; ``key_permissions``, ``bad_key`` of its file; ``bad_config`` where a folder cannot be used.
        StorageError: ``not_sealed_here``: another machine, chain or name; ``corrupted``, ``disk_failed``.
    """
    place: list[Value] = [chain_id, name]
    keys_file, head_path = folder / KEYS_FILE, folder / HEAD_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(head_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SECRET_MODE)
        try:
            _lock(descriptor, folder)
            # Only now: of two that start at once, one makes the secrets, and the other touches nothing.
            is_new = not keys_file.exists()
            if not is_new and os.fstat(descriptor).st_size == 0:
                raise StorageError("corrupted", f"{folder} holds keys and no {HEAD_FILE}")
            sealer = _sealer(machine, measurement, is_new=is_new)
            head = HeadFile(descriptor, head_path, sealer, place)
            if is_new:
                head.begin()
                _make_keys(keys_file, sealer, place, measurement)
            yield _read_keys(keys_file, sealer, place, measurement), head
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LocalError("bad_config", f"{error.filename or folder}: {error.strerror}") from None


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LocalError("already_running", f"another process runs the environment in {folder}") from None


def _sealer(machine: Path, measurement: bytes, *, is_new: bool) -> Sealer:
    """Return what seals under the machine's secret for this code."""
    try:
        if machine.stat().st_mode & 0o077:
            raise LocalError("key_permissions", f"others may read {machine}: chmod 600 it")
        secret = machine.read_bytes()
    except FileNotFoundError:
        if not is_new:
            raise LocalError("key_lost", f"{machine} is gone, and the environment's keys with it") from None
        secret = secrets.token_bytes(KEY_BYTES)
        _write_new(machine, secret)
    if len(secret) != KEY_BYTES:
        raise LocalError("bad_key", f"{machine} has {len(secret)} bytes, a secret has {KEY_BYTES}")
    key = derived(secret, encode(["payee-environment", measurement]), bytes_count=KEY_BYTES)
    return Sealer(key, secrets.token_bytes)


def _make_keys(path: Path, sealer: Sealer, place: list[Value], measurement: bytes) -> None:
    both = ExchangeKey.generate().secret() + ExchangeKey.generate().secret()
    _write_new(path, _keys_codec.encode(_KeysFile(measurement, sealer.seal(encode(["payee-keys", *place]), both))))


def put_aside(folder: Path) -> bool:
    """Rename sealed keys, so that the environment begins anew; tell whether there were any. Nothing is deleted.

    Raises:
        LocalError: ``already_running``; ``bad_config``.
    """
    keys = folder / KEYS_FILE
    if not keys.exists():
        return False
    try:
        descriptor = os.open(folder / HEAD_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SECRET_MODE)
        try:
            _lock(descriptor, folder)
            number = 1
            while (aside := keys.with_name(f"{keys.name}.{number}")).exists():
                number += 1
            keys.rename(aside)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LocalError("bad_config", f"{error.filename or folder}: {error.strerror}") from None
    return True


def sealed_by(path: Path) -> bytes:
    """Return the measurement of the code that has sealed the keys in a file, as the file says.

    Raises:
        StorageError: ``corrupted``.
    """
    return _read_file(path).measurement


def _read_file(path: Path) -> _KeysFile:
    try:
        return _keys_codec.decode_untrusted(path.read_bytes())
    except PeerError:
        raise StorageError("corrupted", f"{path} holds no sealed keys") from None


def _read_keys(path: Path, sealer: Sealer, place: list[Value], measurement: bytes) -> EnvironmentKeys:
    file = _read_file(path)
    if file.measurement != measurement:
        told = f"{path} was sealed by code {file.measurement.hex()[:16]}…, and this is {measurement.hex()[:16]}…"
        raise LocalError("wrong_measurement", f"{told}: serve --new-keys puts it aside and begins anew")
    both = sealer.open(encode(["payee-keys", *place]), file.sealed)
    exchange, signing = both[:KEY_BYTES], both[KEY_BYTES:]
    return EnvironmentKeys(ExchangeKey.from_secret(exchange), PrivateKey.from_secret(int.from_bytes(signing, "big")))


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that is not there: whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SECRET_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
