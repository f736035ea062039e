"""One helper for context managers that keep background tasks in a nursery of their own."""

from collections.abc import Iterator
from contextlib import contextmanager

from consensus.ledger.errors import HansaError


@contextmanager
def single_errors() -> Iterator[None]:
    """Raise the one error inside exception groups as itself, so that callers catch it by its type.

    A nursery wraps what its body raises. Several of one typed code are one error that several tasks met, and the first
    stands for all; groups of different errors stay as they are.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error, *others = _errors_in(group)
        if any(not _is_same(error, other) for other in others):
            raise
        raise error from error.__cause__


def _errors_in(error: BaseException) -> list[BaseException]:
    """Return what is inside of groups, at any depth, in order."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [inner for part in error.exceptions for inner in _errors_in(part)]


def _is_same(error: BaseException, other: BaseException) -> bool:
    return isinstance(error, HansaError) and type(error) is type(other) and error.code == getattr(other, "code", None)
