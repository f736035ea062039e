"""Keys of accounts on disk: encrypted PKCS#8 files, one a name, readable by their owner alone.

``NAME.pem`` may begin with lines ``Address: 0x…`` and ``Public-Key: 0x…`` above the PEM block (RFC 7468
allows such text), so that keys are listed without a passphrase. The address there counts: it is the
account's name for life, also when another key has taken the place of the first.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from consensus.ledger.errors import LocalError
from consensus.ledger.ids import ADDRESS_BYTES, Address
from consensus.ledger.keys import PrivateKey

PASSPHRASE_BYTES_MAX = 1_024
_FILE_BYTES_MAX = 64 * 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_HEADER = re.compile(rb"^(Address|Public-Key): 0x([0-9a-f]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Signer:
    """A name, the account it signs for, and the key that signs."""

    name: str
    address: Address
    key: PrivateKey

    @staticmethod
    def of(name: str, key: PrivateKey) -> "Signer":
        """Return the signer of the account that was created with this key."""
        return Signer(name, key.public.address, key)


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key file as it can be read without its passphrase; empty fields where the file does not say."""

    name: str
    path: Path
    address: bytes
    public_key: bytes


class KeyStore:
    """The key files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> list[KeyEntry]:
        """Return the keys in ascending order of their names; none when the folder is missing."""
        paths = sorted(self.folder.glob("*.pem")) if self.folder.is_dir() else []
        return [self.entry(path.stem) for path in paths if _NAME.fullmatch(path.stem)]

    def entry(self, name: str) -> KeyEntry:
        """Return what the file of this name says without its passphrase.

        Raises:
            LocalError: ``unknown_key``.
        """
        path = self._path(name)
        head = _read(path)
        found = {title: bytes.fromhex(text.decode()) for title, text in _HEADER.findall(head) if len(text) % 2 == 0}
        address = found.get(b"Address", b"")
        return KeyEntry(name, path, address if len(address) == ADDRESS_BYTES else b"", found.get(b"Public-Key", b""))

    def check_free(self, name: str) -> None:
        """Raise LocalError ``key_exists`` or ``bad_name`` when ``create`` would."""
        if (path := self._path(name)).exists():
            raise LocalError("key_exists", f"{path} exists and is not overwritten")

    def create(self, name: str, passphrase: bytes, key: PrivateKey | None = None) -> Signer:
        """Write a new key (or the given one) under this name, mode 0600.

        Raises:
            LocalError: ``key_exists``, ``bad_name`` or ``weak_passphrase`` for an empty one.
        """
        if not passphrase:
            raise LocalError("weak_passphrase", "a key is not stored without a passphrase")
        path = self._path(name)
        signer = Signer.of(name, key or PrivateKey.generate())
        header = f"Address: 0x{signer.address.hex()}\nPublic-Key: 0x{signer.key.public.compressed.hex()}\n\n"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise LocalError("key_exists", f"{path} exists and is not overwritten") from None
        with os.fdopen(handle, "wb") as file:
            file.write(header.encode() + signer.key.to_pem(passphrase))
            file.flush()
            os.fsync(handle)
        return signer

    def load(self, name: str, passphrase: bytes) -> Signer:
        """Open a key.

        Raises:
            LocalError: ``unknown_key``, ``wrong_passphrase``, ``bad_key``, or ``key_permissions`` when
                others may read the file.
        """
        entry = self.entry(name)
        if entry.path.stat().st_mode & 0o077:
            raise LocalError("key_permissions", f"others may read {entry.path}: chmod 600 it")
        key = PrivateKey.from_pem(_read(entry.path), passphrase)
        return Signer(name, Address(entry.address) if entry.address else key.public.address, key)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise LocalError("bad_name", f"{name!r} is no name: 1 to 32 of a-z 0-9 -")
        return self.folder / f"{name}.pem"


def read_passphrase(path: Path) -> bytes:
    """Return the passphrase in a file, without the newline at its end.

    Raises:
        LocalError: ``bad_passphrase_file``.
    """
    try:
        passphrase = path.read_bytes()[: PASSPHRASE_BYTES_MAX + 1].rstrip(b"\r\n")
    except OSError as error:
        raise LocalError("bad_passphrase_file", f"{path}: {error.strerror}") from None
    if not 0 < len(passphrase) <= PASSPHRASE_BYTES_MAX:
        raise LocalError("bad_passphrase_file", f"{path} must hold 1 to {PASSPHRASE_BYTES_MAX} bytes")
    return passphrase


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_FILE_BYTES_MAX)
    except FileNotFoundError:
        raise LocalError("unknown_key", f"there is no key file {path}") from None
    except OSError as error:
        raise LocalError("bad_key", f"{path}: {error.strerror}") from None
