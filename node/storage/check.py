"""What LevelDB does not check by itself: a look at its files before it opens them, and at every byte of them.

Opening, LevelDB takes files that are gone for files that never were: without CURRENT it begins an empty
database and deletes the rest; without a log, or with a manifest that was cut short, it goes on with an
older state. :func:`check_before_opening` is quick and refuses that.

:func:`check_files` is for audits. Walking through all records with checksums covers the data and index
blocks of a table. Left over are its footer and its filter, whose damage LevelDB passes over, and its logs,
where a damaged length looks like a write that was cut off. Formats: LevelDB's ``doc/table_format.md`` and
``doc/log_format.md``; checksums are CRC-32C (RFC 3720, appendix B.4), stored masked, little-endian.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from os import SEEK_END
from pathlib import Path

from consensus.ledger.errors import StorageError

_FOOTER_BYTES = 48
_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_TRAILER_BYTES = 5
_UNCOMPRESSED = 0
_LOG_BLOCK_BYTES = 32 * 1024
_LOG_HEADER_BYTES = 7
_LENGTH_BITS = 16
_WHOLE, _LAST = 1, 4
_LOG_NUMBER, _DELETED_TABLE, _NEW_TABLE = 2, 6, 7
_EDIT_FIELDS: dict[int, tuple[bool, tuple[bool, ...]]] = {
    1: (False, (True,)),  # comparator
    _LOG_NUMBER: (False, (False,)),
    3: (False, (False,)),  # next file
    4: (False, (False,)),  # last sequence
    5: (True, (True,)),  # compaction pointer
    _DELETED_TABLE: (True, (False,)),
    _NEW_TABLE: (True, (False, False, True, True)),  # number, size, first and last key
    9: (False, (False,)),  # log before
}
"""A manifest's edit by tag: whether a level comes first, and of each number whether so many bytes follow it."""


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC_TABLE = _crc_table()


def masked_checksum(data: bytes) -> bytes:
    """Return the checksum of these bytes as LevelDB stores it (4 bytes)."""
    crc, table = 0xFFFFFFFF, _CRC_TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


@dataclass(slots=True)
class _Manifest:
    """What the manifest says is there: the oldest log in use (0: none yet), and tables by number with their sizes."""

    log: int = 0
    tables: dict[int, int] = field(default_factory=dict)


def check_before_opening(folder: Path) -> None:
    """Refuse a folder of which LevelDB would silently make less than it held; a new folder passes.

    It reads manifest, the last block of each log and the tables' footers. What a log lost at its end cannot be
    told from a write that was cut off.

    Raises:
        StorageError: ``corrupted`` naming the file.
    """
    if not (folder / "CURRENT").exists():
        if any(folder.glob("*.ldb")) or any(folder.glob("*.log")):
            raise StorageError("corrupted", "CURRENT is missing, the file that names the manifest")
        return
    manifest = _read_manifest(folder)
    logs = {int(path.stem): path for path in folder.glob("*.log") if path.stem.isdigit()}
    if manifest.log and manifest.log not in logs:
        raise StorageError("corrupted", f"{manifest.log:06}.log is missing")
    for number, path in sorted(logs.items()):
        if number >= manifest.log and not _is_log(_last_block(path)):
            raise StorageError("corrupted", f"{path.name} is damaged at its end")
    for number, size in sorted(manifest.tables.items()):
        path = folder / f"{number:06}.ldb"
        found = path.stat().st_size if path.exists() else None
        if found != size:
            raise StorageError("corrupted", f"{path.name} is {'missing' if found is None else 'cut'}")
        if _footer(_last_bytes(path, _FOOTER_BYTES), size) is None:
            raise StorageError("corrupted", f"{path.name} is damaged in its footer")


def check_files(folder: Path) -> None:
    """Check logs, manifest, and what no read of records covers of tables, before the database is opened.

    An unfinished write at the end of a log is no damage, and neither is a table that was being made when the
    process was killed: the manifest does not name it. All other blocks of the tables must be read besides.

    Raises:
        StorageError: ``corrupted`` naming the file.
    """
    for path in sorted([*folder.glob("*.log"), *folder.glob("MANIFEST-*")]):
        if not _is_log(path.read_bytes()):
            raise StorageError("corrupted", f"{path.name} is damaged")
    for number in sorted(_read_manifest(folder).tables):
        path = folder / f"{number:06}.ldb"
        try:
            content = path.read_bytes()
        except OSError:
            raise StorageError("corrupted", f"{path.name} is missing") from None
        if not _is_table(content):
            raise StorageError("corrupted", f"{path.name} is damaged in its filter or footer")


def _read_manifest(folder: Path) -> _Manifest:
    try:
        path = folder / (folder / "CURRENT").read_text("ascii").strip()
        content = path.read_bytes()
    except (OSError, ValueError):
        raise StorageError("corrupted", "CURRENT names no manifest that is there") from None
    if not _is_log(content):
        raise StorageError("corrupted", f"{path.name} is damaged")
    manifest = _Manifest()
    try:
        for edit in _records(content):
            _apply(edit, manifest)
    except (KeyError, IndexError):
        raise StorageError("corrupted", "the manifest holds what is no edit") from None
    return manifest


def _apply(edit: bytes, manifest: _Manifest) -> None:
    place = 0
    while place < len(edit):
        tag, place = _number(edit, place)
        level_first, fields = _EDIT_FIELDS[tag]
        if level_first:
            _, place = _number(edit, place)
        values = []
        for is_text in fields:
            value, place = _number(edit, place)
            place += value if is_text else 0
            values.append(value)
        if tag == _NEW_TABLE:
            manifest.tables[values[0]] = values[1]
        elif tag == _DELETED_TABLE:
            manifest.tables.pop(values[0], None)
        elif tag == _LOG_NUMBER:
            manifest.log = values[0]


def _last_block(path: Path) -> bytes:
    """Return a log from where its last block begins: there alone a wrong length looks like the end of the file."""
    return _last_bytes(path, path.stat().st_size % _LOG_BLOCK_BYTES)


def _last_bytes(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(-size, SEEK_END)
        return file.read()


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a log, put together from their parts."""
    place, parts = 0, b""
    while place + _LOG_HEADER_BYTES <= len(content):
        if (in_block := _LOG_BLOCK_BYTES - place % _LOG_BLOCK_BYTES) < _LOG_HEADER_BYTES:
            place += in_block
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        place += _LOG_HEADER_BYTES + length
        if place > len(content):
            return
        parts += content[place - length : place]
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""


def _is_log(content: bytes) -> bool:
    place = 0
    while place < len(content):
        in_block = _LOG_BLOCK_BYTES - place % _LOG_BLOCK_BYTES
        if in_block < _LOG_HEADER_BYTES:
            if any(content[place : place + in_block]):
                return False
            place += in_block
            continue
        header = content[place : place + _LOG_HEADER_BYTES]
        length = int.from_bytes(header[4:6], "little")
        start = place + _LOG_HEADER_BYTES
        if start + length > len(content):
            return not any(_holds(content, place, length ^ 1 << bit) for bit in range(_LENGTH_BITS))
        if not _holds(content, place, length):
            return not any(content[place:])
        place = start + length
    return True


def _holds(content: bytes, place: int, length: int) -> bool:
    """Tell whether a log's record stands here with this length."""
    kind, end = place + 6, place + _LOG_HEADER_BYTES + length
    in_block = place % _LOG_BLOCK_BYTES + _LOG_HEADER_BYTES + length <= _LOG_BLOCK_BYTES
    return in_block and end <= len(content) and masked_checksum(content[kind:end]) == content[place : place + 4]


def _footer(footer: bytes, size: int) -> tuple[int, int] | None:
    """Return where the list of a table's filters stands and its size, None when the footer does not fit the table."""
    try:
        meta_offset, place = _number(footer, 0)
        meta_size, place = _number(footer, place)
        index_offset, place = _number(footer, place)
        index_size, place = _number(footer, place)
    except IndexError:
        return None
    fits = index_offset + index_size + _TRAILER_BYTES == size - _FOOTER_BYTES
    follows = meta_offset + meta_size + _TRAILER_BYTES == index_offset
    if not fits or not follows or any(footer[place:-8]) or footer[-8:] != _MAGIC:
        return None
    return meta_offset, meta_size


def _is_table(content: bytes) -> bool:
    footer = _footer(content[-_FOOTER_BYTES:], len(content))
    if footer is None or not _is_block(content, *footer):
        return False
    meta_offset, meta_size = footer
    try:
        if content[meta_offset + meta_size] != _UNCOMPRESSED:
            return True  # never seen: a block of one short entry gains nothing by compression
        meta = content[meta_offset : meta_offset + meta_size]
        key_size, value_size = meta[1], meta[2]  # the one entry, "filter.…": nothing shared with a key before it
        if not key_size:
            return True  # written without a filter
        value = meta[3 + key_size : 3 + key_size + value_size]
        filter_offset, place = _number(value, 0)
        filter_size, _ = _number(value, place)
    except IndexError:
        return False
    return filter_offset + filter_size + _TRAILER_BYTES == meta_offset and _is_block(
        content, filter_offset, filter_size
    )


def _is_block(content: bytes, offset: int, size: int) -> bool:
    """Tell whether the checksum behind a block is right; it covers the block's type too."""
    end = offset + size + 1
    return masked_checksum(content[offset:end]) == content[end : end + 4]


def _number(data: bytes, place: int) -> tuple[int, int]:
    """Return a base-128 number, lowest part first, and the place behind it."""
    number = shift = 0
    while True:
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, place
