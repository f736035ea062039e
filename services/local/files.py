"""``service.toml`` of a program, read once at start, and what it points to.

Relative paths are taken from the folder that holds the file. Unknown fields are refused, so that a misspelt name does
not silently leave a default in force. Secrets stand in files of their own; what is written here has mode 0600 all the
same.
"""

import json
import os
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from consensus.ledger.errors import LocalError
from consensus.ledger.genesis import Genesis, decode_genesis_untrusted
from services.client.keystore import KeyStore, Signer, read_passphrase

SERVICE_FILE = "service.toml"
PROGRAMS = {
    "center": "message centre",
    "business": "business server",
    "server": "rights server",
    "gateway": "gateway",
    "sales": "sales end",
    "issuer": "issuer end",
    "authority": "permission desk",
    "accounts": "account system",
    "events": "event system",
    "payer": "payer",
    "bridge": "settlement bridge",
    "environment": "environment",
    "platform": "platform",
    "stream-service": "service party",
    "stream-watcher": "watcher",
}
"""All programs in words, by the ``program`` of their files: a folder that is another's is said to be so."""
SERVICE_BYTES_MAX = 256 * 1024
TOKEN_BYTES = 32
PASSPHRASE_VARIABLE = "HANSA_PASSPHRASE"

Level = Annotated[str, msgspec.Meta(pattern="^(debug|info|warning|error)$")]
Urls = Annotated[list[str], msgspec.Meta(min_length=1, max_length=100)]


class ServiceFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what a ``service.toml`` holds; a subclass has a field ``program`` that says whose file it is."""

    run: str = "run"
    log_level: Level = "info"


F = TypeVar("F", bound=ServiceFile)


def read_service(home: Path, kind: type[F]) -> F:
    """Read the ``service.toml`` of a program's folder.

    Raises:
        LocalError: ``no_home`` when there is none, ``bad_config`` naming the file and the field.
    """
    path = home / SERVICE_FILE
    try:
        with path.open("rb") as source:
            content = source.read(SERVICE_BYTES_MAX + 1)
        if len(content) > SERVICE_BYTES_MAX:
            raise LocalError("bad_config", f"{path}: has more than {SERVICE_BYTES_MAX} bytes")
        values = tomllib.loads(content.decode())
        own = next(field.default for field in msgspec.structs.fields(kind) if field.name == "program")
        written = values.get("program")
        if written != own and isinstance(written, str) and written in PROGRAMS:
            raise LocalError(
                "bad_config", f"{home} is the folder of the {PROGRAMS[written]}, not of the {PROGRAMS[own]}"
            )
        return msgspec.convert(values, kind)
    except FileNotFoundError:
        raise LocalError("no_home", f"{home} is no program's folder: it holds no {SERVICE_FILE}") from None
    except OSError as error:
        raise LocalError("bad_config", f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise LocalError("bad_config", f"{path}: {error}") from None


def existing(home: Path, kind: type[F]) -> F | None:
    """Return what a program's folder says, None where there is no ``service.toml``; errors as :func:`read_service`."""
    return read_service(home, kind) if (home / SERVICE_FILE).exists() else None


def changed(home: Path, file: F, changes: Mapping[str, object]) -> F:
    """Return a program's file with other values, checked as if they had been read.

    Raises:
        LocalError: ``bad_config`` naming the field.
    """
    try:
        return msgspec.convert(msgspec.to_builtins(file) | changes, type(file))
    except msgspec.ValidationError as error:
        raise LocalError("bad_config", f"{home / SERVICE_FILE} is not changed: {error}") from None


def service_text(file: ServiceFile) -> str:
    """Return the text of a ``service.toml``; tables without entries are left out."""
    lines: list[str] = []
    tables: list[str] = []
    for name, value in msgspec.to_builtins(file).items():
        if isinstance(value, dict):
            tables += _table(name, value)
        else:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def write_service(home: Path, file: ServiceFile) -> None:
    """Write a program's ``service.toml`` in one step; its folder and ``run`` are made when missing."""
    for part in (home, home / file.run):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(home / SERVICE_FILE, service_text(file).encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, mode 0600, so that a crash leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(handle)
    temporary.replace(path)


def make_token(path: Path) -> None:
    """Make the file of a token that callers show, unless it is there."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, secrets.token_urlsafe(TOKEN_BYTES).encode() + b"\n")


def resolved(home: Path, name: str) -> Path:
    """Return the path that a field of a folder's file names."""
    return (home / name).resolve()


def wrong(home: Path, field: str, message: str) -> LocalError:
    """Return ``bad_config`` about a field of a folder's file."""
    return LocalError("bad_config", f"{home / SERVICE_FILE}: {field}: {message}")


def genesis_at(home: Path, name: str) -> Genesis:
    """Read the genesis document that a field names.

    Raises:
        LocalError: ``bad_config``, ``bad_genesis``.
    """
    path = resolved(home, name)
    try:
        return decode_genesis_untrusted(path.read_bytes())
    except OSError as error:
        raise wrong(home, "genesis", f"{path}: {error.strerror}") from None


def signer_at(home: Path, *, keys: str, passphrase: str, name: str) -> Signer:
    """Open a key of the folder ``keys``, with the passphrase in a file or else in the environment.

    Raises:
        LocalError: ``bad_config``, ``unknown_key``, ``wrong_passphrase``, ``key_permissions``, ….
    """
    if passphrase:
        secret = read_passphrase(resolved(home, passphrase))
    elif PASSPHRASE_VARIABLE in os.environ:
        secret = os.environ[PASSPHRASE_VARIABLE].encode()
    else:
        raise wrong(home, "passphrase", f"names no file, and {PASSPHRASE_VARIABLE} is not set")
    return KeyStore(resolved(home, keys)).load(name, secret)


def _table(name: str, entries: Mapping[str, object]) -> list[str]:
    """Return the lines of a table; entries that are tables themselves stand below it."""
    plain = {key: value for key, value in entries.items() if not isinstance(value, dict)}
    lines = ["", f"[{name}]", *(f"{_toml(key)} = {_toml(value)}" for key, value in plain.items())] if plain else []
    for key, value in entries.items():
        if isinstance(value, dict):
            lines += _table(f"{name}.{_toml(key)}", value)
    return lines


def _toml(value: object) -> str:
    """Return a text, number, truth value or list as TOML; JSON writes these the same."""
    return json.dumps(value, ensure_ascii=False)
