"""Where a program's database is: in a file of its own, or on a server that a URL names."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import msgspec

from consensus.ledger.errors import LocalError
from services.local.files import SERVICE_FILE, resolved, wrong

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

EMBEDDED = "embedded"
DRIVER = "postgresql+psycopg"
_PASSWORDS = ("password", "sslpassword")
"""Options of a URL that nobody else reads."""

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
    except ValueError:  # whose words may hold a part of the password
        hint = "host or port cannot be read; in a password / ? # [ ] @ : are written %2F %3F %23 %5B %5D %40 %3A"
        raise wrong(home, "database", hint) from None
    return f"{DRIVER}://{name.partition('://')[2]}"


def has_password(name: str) -> bool:
    """Tell whether a database's URL may hold a password, also one that is not escaped as it ought to be."""
    place = unquote(name.partition("://")[2])
    return ":" in place.rpartition("@")[0] or any(f"{option}=" in place for option in _PASSWORDS)


def without_password(name: str) -> str:
    """Return a database's name for people: without the user, the password and the options."""
    if name == EMBEDDED:
        return name
    scheme, _, rest = name.partition("://")
    place, *options = re.split("[?#]", rest, maxsplit=1)
    # An @ behind the place: what looks like one may be the beginning of a password.
    return f"{scheme}://{'…' if options and '@' in options[0] else place.rpartition('@')[2]}"


def shown(url: "URL") -> str:
    """Return SQLAlchemy's URL for messages: without passwords."""
    return url.difference_update_query(_PASSWORDS).render_as_string(hide_password=True)
