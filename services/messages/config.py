"""``service.toml`` of the message centre, which every system that runs one shares; also a token's and a place's rules.

How such a file is read and written says :mod:`services.local.files`.
"""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from consensus.ledger.errors import LocalError
from services.local.files import SERVICE_FILE, ServiceFile, resolved, wrong

if TYPE_CHECKING:
    from services.messages.program import CenterSettings

TOKEN_BYTES_MAX = 1_024
RATE_MAX_PER_S = 1_000_000
LOOPBACK = ("127.", "localhost", "::1")

Place = Annotated[str, msgspec.Meta(pattern=r"^(unix:.{1,100}|(\[[0-9a-fA-F:.]+\]|[^:\s\[\]]{1,253}):[0-9]{1,5})\Z")]
"""HOST:PORT, or unix:PATH."""
StoreName = Annotated[str, msgspec.Meta(pattern=r"^(embedded|(rediss?://|unix:)\S{1,500})\Z")]
Rate = Annotated[float, msgspec.Meta(gt=0, le=RATE_MAX_PER_S)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


class CenterFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The message centre's file. ``token`` names the file of what every peer shows; "" for none, on loopback alone."""

    program: Literal["center"] = "center"
    listen: Place
    token: str
    rate_per_s: Rate
    strict: bool = False
    store: StoreName = "embedded"
    data: str = "data"
    health_port: Port = 0
    """Where ``/healthz`` and ``/metrics`` are answered on this machine; 0: nowhere."""
    queue: dict[str, Any] = msgspec.field(default_factory=dict)
    """Bounds of the queue that are not their defaults, by their names."""


def center_settings(home: Path, file: CenterFile) -> "CenterSettings":
    """Return what the message centre runs with.

    Raises:
        LocalError: ``bad_config``, ``key_permissions``.
    """
    from services.messages.program import CenterSettings
    from services.messages.queue import QueueSettings

    known = {field.name for field in fields(QueueSettings)} - {"rate_per_s", "is_strict"}  # these stand above
    if unknown := sorted(set(file.queue) - known):
        raise wrong(home, f"queue.{unknown[0]}", f"is none of: {', '.join(sorted(known))}")
    for name, value in file.queue.items():
        if type(value) is not int:
            raise wrong(home, f"queue.{name}", f"{value!r} is no whole number")
    token = read_token(home, "token", file.token)
    check_token(home, file.listen, token)
    return CenterSettings(
        listen=file.listen,
        token=token,
        store=file.store,
        data=resolved(home, file.data),
        run=resolved(home, file.run),
        rate_per_s=file.rate_per_s,
        is_strict=file.strict,
        log_level=file.log_level,
        queue=QueueSettings(**file.queue),
        health_port=file.health_port,
    )


def split_place(place: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT.

    Raises:
        LocalError: ``bad_address``.
    """
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535 or place.startswith("unix:"):
        raise LocalError("bad_address", f"{place!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def read_token(home: Path, field: str, name: str) -> str:
    """Return the token in a file that a field names, "" where it names none; errors as :func:`token_at`."""
    return token_at(resolved(home, name), f"{home / SERVICE_FILE}: {field}") if name else ""


def token_at(path: Path, named_by: str) -> str:
    """Return the token in a file; errors say who named it.

    Raises:
        LocalError: ``bad_config``, or ``key_permissions`` when others may read the file.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise LocalError("key_permissions", f"others may read {path}: chmod 600 it")
        token = path.read_bytes()[: TOKEN_BYTES_MAX + 1].strip().decode()
    except OSError as error:
        raise LocalError("bad_config", f"{named_by}: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LocalError("bad_config", f"{named_by}: {path} holds no text") from None
    if not 0 < len(token) <= TOKEN_BYTES_MAX:
        raise LocalError("bad_config", f"{named_by}: {path} must hold 1 to {TOKEN_BYTES_MAX} bytes")
    return token


def check_token(home: Path, listen: str, token: str) -> None:
    """Refuse a program without a token that others than this machine reach.

    Raises:
        LocalError: ``bad_config``, ``bad_address``.
    """
    is_local = listen.startswith("unix:") or split_place(listen)[0].startswith(LOOPBACK)
    if not is_local and not token:
        raise wrong(home, "token", f"is needed where others than this machine reach {listen}")
