"""One helper for context managers that keep background tasks in a nursery of their own."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single_errors() -> Iterator[None]:
    """Raise the one error inside exception groups as itself, so that callers catch it by its type.

    A nursery wraps what its body raises. Groups of several different errors stay as they are.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__
