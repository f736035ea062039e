"""What LevelDB does not read by itself, checked against its own checksums: every byte of a stopped database.

Walking through all records with checksums covers the data and index blocks of a table. Left over are its
footer and its filter, whose damage LevelDB passes over, and its logs, where a damaged length looks like a
write that was cut off. Formats: LevelDB's ``doc/table_format.md`` and ``doc/log_format.md``; checksums
are CRC-32C (RFC 3720, appendix B.4), stored masked, little-endian.
"""

from collections.abc import Iterator
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
_DELETED_TABLE, _NEW_TABLE = 6, 7
_EDIT_FIELDS: dict[int, tuple[bool, tuple[bool, ...]]] = {
    1: (False, (True,)),  # comparator
    2: (False, (False,)),  # log
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
    for number in sorted(_live_tables(folder)):
        path = folder / f"{number:06}.ldb"
        try:
            content = path.read_bytes()
        except OSError:
            raise StorageError("corrupted", f"{path.name} is missing") from None
        if not _is_table(content):
            raise StorageError("corrupted", f"{path.name} is damaged in its filter or footer")


def _live_tables(folder: Path) -> set[int]:
    """Return the numbers of the tables that the manifest names; its checksums must have been checked."""
    try:
        manifest = (folder / (folder / "CURRENT").read_text("ascii").strip()).read_bytes()
    except (OSError, ValueError):
        raise StorageError("corrupted", "CURRENT names no manifest that is there") from None
    tables: set[int] = set()
    try:
        for edit in _records(manifest):
            _apply(edit, tables)
    except (KeyError, IndexError):
        raise StorageError("corrupted", "the manifest holds what is no edit") from None
    return tables


def _apply(edit: bytes, tables: set[int]) -> None:
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
            tables.add(values[0])
        elif tag == _DELETED_TABLE:
            tables.discard(values[0])


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


def _is_table(content: bytes) -> bool:
    footer = content[-_FOOTER_BYTES:]
    try:
        meta_offset, place = _number(footer, 0)
        meta_size, place = _number(footer, place)
        index_offset, place = _number(footer, place)
        index_size, place = _number(footer, place)
        fits = index_offset + index_size + _TRAILER_BYTES == len(content) - _FOOTER_BYTES
        follows = meta_offset + meta_size + _TRAILER_BYTES == index_offset
        if not fits or not follows or any(footer[place:-8]) or footer[-8:] != _MAGIC:
            return False
        if not _is_block(content, meta_offset, meta_size):
            return False
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
