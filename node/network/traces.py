"""Everything that a node has left on its disk, for whoever looks for what should not be there.

Databases are read twice: record by record out of a copy, since LevelDB cuts long records and shares the beginnings of
keys; and file by file, for what was deleted and not yet overwritten. Key files are left out.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from node.network.homes import NodeHome
from node.storage.leveldb import LevelStore

KEYS = "keys"
DATABASE_MARK = "CURRENT"
"""A folder with a file of this name is a LevelDB."""
FILE_BYTES_MAX = 256 * 1024 * 1024
"""Larger files are read in parts of this size, which overlap by ``OVERLAP_BYTES``."""
OVERLAP_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class Trace:
    """Bytes that stand somewhere; ``place`` names file or record for people."""

    place: str
    data: bytes


def traces_of(home: NodeHome) -> Iterator[Trace]:
    """Yield what stands below a node's home. Whole only when the node does not run.

    Raises:
        LocalError, StorageError: as :meth:`node.storage.leveldb.LevelStore.open`.
    """
    for path in sorted(home.folder.rglob("*")):
        place = path.relative_to(home.folder)
        if place.parts[0] == KEYS or path.is_symlink():
            continue
        if path.is_dir():
            if (path / DATABASE_MARK).is_file():
                yield from _records_of(path, f"{home.name}/{place}")
        elif path.is_file():
            yield from file_traces(path, f"{home.name}/{place}")


def file_traces(path: Path, place: str) -> Iterator[Trace]:
    """Yield the bytes of one file."""
    with path.open("rb") as file:
        tail = b""
        while part := file.read(FILE_BYTES_MAX):
            yield Trace(place, tail + part)
            tail = part[-OVERLAP_BYTES:]


def _records_of(folder: Path, place: str) -> Iterator[Trace]:
    with tempfile.TemporaryDirectory(prefix="hansa-traces-") as copies:
        copy = Path(copies) / folder.name
        # Folders inside are stores of their own.
        shutil.copytree(folder, copy, ignore=lambda _, names: [name for name in names if (folder / name).is_dir()])
        store = LevelStore.open(copy)
        try:
            for key, value in store.scan(b""):
                yield Trace(f"{place} {key[:40]!r}", key + b"\n" + value)
        finally:
            store.close()
