"""The one root of all errors, and the kinds that decide who is to blame.

A code is a short text in snake_case; every code is listed in ``docs/errors.md`` and is what the RPC
returns as ``data.code``. Messages are for people and may change.
"""


class HansaError(Exception):
    """Root of every error that Hansa raises on purpose."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.code = code
        self.message = message or code


class LocalError(HansaError):
    """Our own misuse of an interface, or a user's wrong input to a local program."""


class PeerError(HansaError):
    """Bytes or behaviour of someone else that break the rules; the only error out of ``*_untrusted``."""


class Revert(HansaError):
    """A contract refuses; the code goes into the receipt and the call has no effect."""


class StorageError(HansaError):
    """The disk failed or holds what cannot be; the node stops and nothing is retried."""


class InvariantError(HansaError):
    """Something that cannot happen has happened; the node stops before it can do harm."""

    def __init__(self, message: str) -> None:
        super().__init__("invariant", message)
