"""Writes fund files. Pure: to bytes, or to a stream that it is given.

A file that was read comes out byte by byte as it was. What does not fit its field is refused, never cut.
"""

from collections.abc import Iterable
from typing import assert_never

from consensus.ledger.errors import LocalError
from services.agency.ofd.files import (
    COUNT_WIDTH,
    DATA_MARK,
    ENCODING,
    END_MARK,
    HEADER_WIDTHS,
    LINE_END,
    RECORDS_MAX,
    FundFile,
    Header,
    Record,
    Value,
    fault,
)
from services.agency.ofd.layout import LAYOUTS, Field, Kind, Layout

_CONTROLS = frozenset(map(chr, range(32))) | {"\x7f"}


def write(file: FundFile) -> bytes:
    """Return the bytes of a file.

    Raises:
        LocalError: ``bad_fund_file`` naming line and field of what does not fit, is no text of GB18030 or is negative.
    """
    lines = [*_header_lines(file.header, file.name), _padded(len(file.records), COUNT_WIDTH)]
    if len(file.records) > RECORDS_MAX:
        raise LocalError("bad_fund_file", f"{file.name}: {len(file.records)} records, at most {RECORDS_MAX}")
    for number, record in enumerate(file.records, len(lines) + 1):
        lines.append(_record_line(file.layout, record, file.name, number))
    lines.append(END_MARK.encode())
    return LINE_END.join(lines) + (LINE_END if file.is_ended else b"")


def new_file(header: Header, records: Iterable[Record], name: str) -> FundFile:
    """Return a file of records that were made with all fields of the header's type."""
    return FundFile(name, header, LAYOUTS[header.file_type], tuple(records))


def _header_lines(header: Header, name: str) -> list[bytes]:
    values = (
        DATA_MARK,
        header.version,
        header.creator,
        header.receiver,
        header.date,
        header.summary,
        header.file_type,
        header.sender,
        header.recipient,
        f"{len(header.names):03d}",
    )
    lines = []
    for line, ((field, width), value) in enumerate(zip(HEADER_WIDTHS.items(), values, strict=True), 1):
        try:
            lines.append(padded_text(value, width))
        except ValueError as error:
            raise fault(name, line, field, str(error)) from None
    return [*lines, *(field.encode(ENCODING) for field in header.names)]


def _record_line(layout: Layout, record: Record, name: str, line: int) -> bytes:
    parts = []
    for field, value in zip(layout.fields, record.values, strict=True):
        try:
            parts.append(_field(field, value))
        except ValueError as error:
            raise fault(name, line, field.name, str(error)) from None
    return b"".join(parts)


def _field(field: Field, value: Value) -> bytes:
    match value:
        case None:
            return b" " * field.width
        case int():
            if field.kind is not Kind.NUMBER:
                raise ValueError("a number in a field of text")
            return _padded(value, field.width)
        case str():
            if field.kind is Kind.NUMBER or (field.kind is Kind.DIGITS and not (value.isascii() and value.isdigit())):
                raise ValueError("something else than digits")
            return padded_text(value, field.width)
        case _:
            assert_never(value)


def _padded(value: int, width: int) -> bytes:
    if value < 0:
        raise ValueError("a negative number")
    text = f"{value:0{width}d}"
    if len(text) > width:
        raise ValueError(f"{len(text)} digits, {width} fit")
    return text.encode("ascii")


def padded_text(value: str, width: int) -> bytes:
    """Return text padded with spaces on its right.

    Raises:
        ValueError: it is too wide, no GB18030, has control characters, or ends with a space.
    """
    if _CONTROLS & set(value):
        raise ValueError("a control character")
    if value.endswith(" "):
        raise ValueError("a space at the end, which the padding would swallow")
    try:
        raw = value.encode(ENCODING)
    except UnicodeError:
        raise ValueError("a character that GB18030 has not") from None
    if len(raw) > width:
        raise ValueError(f"{len(raw)} bytes, {width} fit")
    return raw.ljust(width)
