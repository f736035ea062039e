"""Addresses of unix sockets; a system takes at most 107 bytes of one, and folders may lie deeper."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS_BYTES_MAX = 107


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Give what to bind or connect to for a socket at ``path``, for the time of the block.

    One too long is reached through its folder, which stays open for so long (``/proc/self/fd``, Linux).

    Raises:
        OSError: the folder cannot be opened.
    """
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
