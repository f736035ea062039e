"""The way to a program of the same institution, see :mod:`services.local.service`."""

from services.client.unix import UnixLink


class LocalLink(UnixLink):
    """Calls the methods behind a program's socket: ``program_unreachable`` while it is down, ``program_timeout``."""
