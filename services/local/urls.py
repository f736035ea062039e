"""Where a program's database is: in a file of its own, or on a server that a URL names."""

from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

import msgspec

from consensus.ledger.errors import LocalError
from services.local.files import SERVICE_FILE, resolved, wrong

EMBEDDED = "embedded"
DRIVER = "postgresql+psycopg"

DatabaseName = Annotated[
    str, msgspec.Meta(pattern=r"^(embedded|(postgres|postgresql|postgresql\+psycopg)://\S{1,500})\Z")
]
"""``embedded``, or ``postgresql://USER:PASSWORD@HOST:PORT/NAME``, also with ``?host=/folder/of/a/socket``."""


def database_url(home: Path, name: str, file: str) -> str:
    """Return the URL for SQLAlchemy of the database that a program's ``service.toml`` names.

    Args:
        home: the program's folder.
        name: what its field ``database`` says, a :data:`DatabaseName`.
        file: where the embedded database lies, relative to ``home``.

    Raises:
        LocalError: ``bad_config`` for no URL; ``key_permissions`` where others may read the password in it.
    """
    if name == EMBEDDED:
        return f"sqlite:///{resolved(home, file)}"
    if has_password(name):
        path = home / SERVICE_FILE
        if path.exists() and path.stat().st_mode & 0o077:
            raise LocalError("key_permissions", f"others may read {path}, which holds a password: chmod 600 it")
    try:
        _ = urlsplit(name).port
    except ValueError as error:
        raise wrong(home, "database", f"{without_password(name)}: {error}") from None
    return f"{DRIVER}://{name.partition('://')[2]}"


def has_password(name: str) -> bool:
    """Tell whether a database's URL holds a password."""
    parts = urlsplit(name)
    return bool(parts.password) or "password" in parse_qs(parts.query)


def without_password(name: str) -> str:
    """Return a database's name for people: without the user, the password and the options."""
    if name == EMBEDDED:
        return name
    parts = urlsplit(name)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
