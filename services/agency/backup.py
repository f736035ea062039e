"""Encrypted backups of a channel: packages with their salts, and answers, out of one gateway and into one again.

    "hansa-backup-1\\n" ‖ length(4) ‖ header ‖ { length(4) ‖ sealed page }…

The header is JSON with the channel, the chain and how the key is made of a passphrase (scrypt, RFC 7914). A page holds
messages as they travelled, in MessagePack, sealed for its number, whether it is the last, and the header; so pages that
are missing, moved or of another backup are found out. Lengths are big-endian.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from consensus.ledger.errors import LocalError, StorageError
from consensus.ledger.sealing import KEY_BYTES, Sealer
from services.agency.interfaces import ExportPage, ExportQuery, Import, Imported
from services.local.link import LocalLink

MAGIC = b"hansa-backup-1\n"
HEADER_BYTES_MAX = 4_096
PAGE_BYTES_MAX = 40 * 1024 * 1024
SALT_BYTES = 16
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**15, 8, 1
SCRYPT_N_MAX = 2**20
CALL_TIMEOUT_MS = 120_000

OnPage = Callable[[int], None]
"""Hears how many messages were written or read so far."""


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bank: str
    issuer: str
    organisation: str
    salt: bytes
    kdf: Literal["scrypt"] = "scrypt"
    n: Annotated[int, msgspec.Meta(ge=2**14, le=SCRYPT_N_MAX)] = SCRYPT_N
    r: Annotated[int, msgspec.Meta(ge=1, le=32)] = SCRYPT_R
    p: Annotated[int, msgspec.Meta(ge=1, le=16)] = SCRYPT_P


async def export_channel(
    gateway: LocalLink, path: Path, passphrase: bytes, *, organisation: str, bank: str, issuer: str, on_page: OnPage
) -> int:
    """Write all that a gateway has of a channel into a new file, mode 0600, and return how many messages it holds.

    Raises:
        LocalError: ``file_exists``, ``bad_file``.
        Refused, Unreachable: the gateway's.
    """
    header = msgspec.json.encode(_Header(bank, issuer, organisation, secrets.token_bytes(SALT_BYTES)))
    sealer = _sealer(msgspec.json.decode(header, type=_Header), passphrase)
    draft = path.with_name(f".{path.name}.new")
    _check_free(path)
    try:
        with _new_file(draft) as file:
            file.write(MAGIC + _framed(header))
            count = 0
            after, number, is_last = b"", 0, False
            while not is_last:
                query = ExportQuery(bank, issuer, after)
                page = await gateway.call("export", query, ExportPage, timeout_ms=CALL_TIMEOUT_MS)
                after, is_last = page.after, page.is_last
                sealed = sealer.seal(_place(header, number, is_last=is_last), msgspec.msgpack.encode(page.messages))
                file.write(_framed(sealed))
                number, count = number + 1, count + len(page.messages)
                on_page(count)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            draft.unlink()
    return count


async def import_channel(gateway: LocalLink, path: Path, passphrase: bytes, *, on_page: OnPage) -> int:
    """Give a backup back to the gateway it came from, and return how many packages were new there.

    The whole file is opened before anything is given back; the gateway judges each message by its signatures.

    Raises:
        LocalError: ``bad_file``, ``wrong_passphrase``.
        Refused, Unreachable: the gateway's.
    """
    for _ in _pages(path, passphrase):
        pass
    packages = count = 0
    for header, messages in _pages(path, passphrase):
        count += len(messages)
        if messages:
            params = Import(header.bank, header.issuer, messages)
            answer = await gateway.call("import", params, Imported, timeout_ms=CALL_TIMEOUT_MS)
            packages += answer.packages
        on_page(count)
    return packages


def read_channel(path: Path) -> tuple[str, str, str]:
    """Return whose backup a file is, and of which bank's channel with which issuer; unproven before it is opened.

    Raises:
        LocalError: ``bad_file``.
    """
    try:
        with path.open("rb") as file:
            header = _header(file, path)[1]
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None
    return header.organisation, header.bank, header.issuer


def _pages(path: Path, passphrase: bytes) -> Iterator[tuple[_Header, list[bytes]]]:
    try:
        with path.open("rb") as file:
            data, header = _header(file, path)
            sealer = _sealer(header, passphrase)
            number, is_last = 0, False
            while (sealed := _frame(file, PAGE_BYTES_MAX, path)) is not None:
                if is_last:
                    raise LocalError("bad_file", f"{path}: something stands after the last page")
                messages, is_last = _open_page(sealer, data, number, sealed, path)
                number += 1
                yield header, messages
            if not is_last:
                raise LocalError("bad_file", f"{path} is cut off after page {number}")
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None


def _open_page(sealer: Sealer, header: bytes, number: int, sealed: bytes, path: Path) -> tuple[list[bytes], bool]:
    for is_last in (False, True):
        with suppress(StorageError):
            content = sealer.open(_place(header, number, is_last=is_last), sealed)
            return msgspec.msgpack.decode(content, type=list[bytes]), is_last
    if number:
        raise LocalError("bad_file", f"{path}: page {number + 1} is not what was written there")
    raise LocalError("wrong_passphrase", f"{path} does not open with this passphrase, or was altered")


def _header(file: BinaryIO, path: Path) -> tuple[bytes, _Header]:
    if file.read(len(MAGIC)) != MAGIC:
        raise LocalError("bad_file", f"{path} is no backup of a channel")
    data = _frame(file, HEADER_BYTES_MAX, path) or b""
    try:
        return data, msgspec.json.decode(data, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LocalError("bad_file", f"{path}: its header: {error}") from None


def _frame(file: BinaryIO, bytes_max: int, path: Path) -> bytes | None:
    """Return what comes next; None at the end."""
    size = file.read(4)
    if not size:
        return None
    length = int.from_bytes(size, "big")
    if length > bytes_max:
        raise LocalError("bad_file", f"{path}: a part of {length} bytes is too large")
    data = file.read(length)
    if len(size) < 4 or len(data) < length:
        raise LocalError("bad_file", f"{path} is cut off")
    return data


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _place(header: bytes, number: int, *, is_last: bool) -> bytes:
    return hashlib.sha256(header).digest() + number.to_bytes(8, "big") + bytes([is_last])


def _sealer(header: _Header, passphrase: bytes) -> Sealer:
    key = Scrypt(salt=header.salt, length=KEY_BYTES, n=header.n, r=header.r, p=header.p).derive(passphrase)
    return Sealer(key, secrets.token_bytes)


def _check_free(path: Path) -> None:
    if path.exists():
        raise LocalError("file_exists", f"{path} exists and is not overwritten")


def _new_file(path: Path) -> BinaryIO:
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
