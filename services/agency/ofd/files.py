"""What a fund file is made of: header, records, name; and what every fault in one says. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from consensus.ledger.errors import InvariantError, LocalError
from services.agency.ofd.layout import LAYOUTS, FileType, Layout

ENCODING: Final = "gb18030"
LINE_END: Final = b"\r\n"
DATA_MARK: Final = "OFDCFDAT"
END_MARK: Final = "OFDCFEND"
VERSIONS: Final = ("20", "21")
"""The versions whose widths are known here; 22 (GB/T 39595-2020) has wider fields and another header."""

RECORDS_MAX: Final = 200_000
FIELDS_MAX: Final = 200
NAME_BYTES_MAX: Final = 64

HEADER_WIDTHS: Final = {
    "identity": 8,
    "version": 4,
    "creator": 9,
    "receiver": 9,
    "date": 8,
    "summary": 3,
    "file type": 2,
    "sender": 8,
    "recipient": 8,
    "field count": 3,
}
"""The header's lines in their order, with their widths; then the fields' names, then the record count (8)."""
COUNT_WIDTH: Final = 8

Value: TypeAlias = "str | int | None"
"""Text without its padding, or a number in its last digit's unit, or None of a number that is left blank."""


def fault(file: str, line: int, field: str, text: str) -> LocalError:
    """Return the error of a malformed file; ``line`` counts from 1, ``field`` is a field of header or record, or ""."""
    place = f"{file}, line {line}, {field}" if field else f"{file}, line {line}"
    return LocalError("bad_fund_file", f"{place}: {text}")


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the records.

    Args:
        file_type: what the records are.
        creator: who wrote the file, ``receiver`` whom it is for: codes of institutions, up to 9 characters.
        date: YYYYMMDD of the business day.
        names: of the fields as the file spells them (any case), in the records' order.
        version: ``20`` or ``21``.
        summary: number of the summary table; a fact of the file, nothing is read out of it.
        sender: a person or system at the creator, ``recipient`` at the receiver.
    """

    file_type: FileType
    creator: str
    receiver: str
    date: str
    names: tuple[str, ...]
    version: str = "20"
    summary: str = "001"
    sender: str = ""
    recipient: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One record: values in the order of its fields, and the line it stood in (0 of one that was made here)."""

    places: Mapping[str, int]
    values: tuple[Value, ...]
    line: int = 0

    def text(self, name: str) -> str:
        """Return a text field's value, "" where it is blank or the file has no such field."""
        match self._value(name):
            case str(value):
                return value
            case None:
                return ""
            case _:
                raise InvariantError(f"{name} is a number")

    def number(self, name: str) -> int:
        """Return a number field's value in its last digit's unit, 0 where it is blank or not there."""
        match self._value(name):
            case int(value):
                return value
            case None:
                return 0
            case _:
                raise InvariantError(f"{name} is no number")

    def _value(self, name: str) -> Value:
        place = self.places.get(name)
        return None if place is None else self.values[place]


@dataclass(frozen=True, slots=True)
class FundFile:
    """A whole file in memory; ``name`` is where it came from, for errors.

    ``is_ended`` says that the line of the end mark has its own line end, as the real file has.
    """

    name: str
    header: Header
    layout: Layout
    records: Sequence[Record]
    is_ended: bool = True


def make_record(layout: Layout, values: Mapping[str, Value]) -> Record:
    """Return a record of these fields; what is not named is blank, a number 0, as the real files have it.

    Raises:
        LocalError: ``bad_fund_file`` for a field that the layout has not.
    """
    unknown = values.keys() - layout.places.keys()
    if unknown:
        raise LocalError("bad_fund_file", f"type {layout.file_type} has no field {min(unknown)}")
    return Record(layout.places, tuple(values.get(field.name, field.blank) for field in layout.fields))


@dataclass(frozen=True, slots=True)
class FileName:
    """``OFD_creator_receiver_YYYYMMDD_type.TXT``; a bank that sends several of one type a day adds ``_batch``."""

    creator: str
    receiver: str
    date: str
    file_type: str
    batch: str = ""

    @property
    def text(self) -> str:
        """The name as it is written."""
        batch = f"_{self.batch}" if self.batch else ""
        return f"OFD_{self.creator}_{self.receiver}_{self.date}_{self.file_type}{batch}.TXT"


_NAME = re.compile(
    r"OFD_(?P<creator>[0-9A-Za-z]{1,9})_(?P<receiver>[0-9A-Za-z]{1,9})_(?P<date>\d{8})_(?P<type>[0-9A-Za-z]{2})"
    r"(?:_(?P<batch>\d{3}))?\.TXT\Z",
    re.IGNORECASE | re.ASCII,
)


def parse_name(name: str) -> FileName | None:
    """Return what a file's name says, in any case; None where it has another form."""
    match = _NAME.match(name)
    if match is None:
        return None
    return FileName(match["creator"], match["receiver"], match["date"], match["type"], match["batch"] or "")


def new_header(file_type: FileType, *, creator: str, receiver: str, date: str) -> Header:
    """Return the header of a new file with all fields of its type."""
    names = tuple(field.name for field in LAYOUTS[file_type].fields)
    return Header(file_type, creator, receiver, date, names, sender=creator, recipient=receiver)


def file_name(header: Header, batch: int = 0) -> str:
    """Return the name that a file with this header has; ``batch`` 1 to 999 tells several of one type and day apart."""
    number = f"{batch:03d}" if batch else ""
    return FileName(header.creator, header.receiver, header.date, header.file_type, number).text
