"""Reads fund files strictly: what it takes, the writer gives back byte by byte. Pure but for :func:`read_path`.

Rules; each fault is a ``bad_fund_file`` that names file, line and field:

R1  Every line ends with CR LF; the last one, ``OFDCFEND``, may do without. Nothing stands behind it.
R2  Header lines have their widths. Version 20 or 21, a known file type, digits where digits belong.
R3  Each field is named once (in any case), is known, and stands in the layout's order; the required ones are there.
R4  As many records as the header counts, at most 200,000, each exactly as many bytes of GB18030 as its fields have.
R5  A number is digits through its whole width, or blank. Digits-as-text begin on the left and are padded with spaces.
R6  Text is valid GB18030 within its field, without control characters.

Memory is bounded by one line while a :class:`FundReader` is iterated over.
"""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from struct import Struct
from typing import BinaryIO, Final

from consensus.ledger.errors import LocalError
from services.agency.ofd.files import (
    COUNT_WIDTH,
    DATA_MARK,
    FIELDS_MAX,
    HEADER_WIDTHS,
    RECORDS_MAX,
    VERSIONS,
    FundFile,
    Header,
    Record,
    Value,
    fault,
    parse_name,
)
from services.agency.ofd.layout import LAYOUTS, FileType, Kind, Layout
from services.agency.ofd.lines import BadValueError, Lines, is_digits, text_of


def read(data: bytes, name: str) -> FundFile:
    """Read a file's bytes; ``name`` stands in errors.

    Raises:
        LocalError: ``bad_fund_file``.
    """
    return _read(BytesIO(data), name)


def read_path(path: Path) -> FundFile:
    """Read a file of the disk; a name of the standard's form must say what the header says.

    Raises:
        LocalError: ``file_error`` where it cannot be read, ``bad_fund_file``.
    """
    try:
        with path.open("rb") as stream:
            file = _read(stream, path.name)
    except OSError as error:
        raise LocalError("file_error", f"cannot read {path}: {error.strerror}") from error
    name, header = parse_name(path.name), file.header
    if name is not None:
        for line, field, said, has in (
            (3, "creator", name.creator, header.creator),
            (4, "receiver", name.receiver, header.receiver),
            (5, "date", name.date, header.date),
            (7, "file type", name.file_type, header.file_type),
        ):
            if said.upper() != has.upper():
                raise fault(path.name, line, field, f"{has}, but the file's name says {said}")
    return file


def _read(stream: BinaryIO, name: str) -> FundFile:
    reader = FundReader(stream, name)
    records = list(reader)
    return FundFile(name, reader.header, reader.layout, records, reader.is_ended)


class FundReader:
    """Reads the header at once, then one record after the other while it is iterated over, once.

    Raises:
        LocalError: ``bad_fund_file``; at the end of the iteration for what stands behind the records.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._lines = Lines(stream, name)
        self._name = name
        lines = {field: self._lines.text(width, field) for field, width in HEADER_WIDTHS.items()}
        if lines["identity"] != DATA_MARK:
            raise fault(name, 1, "identity", f"{DATA_MARK} is expected")
        if lines["version"] not in VERSIONS:
            raise fault(name, 2, "version", f"{lines['version'] or 'blank'}; known are {' and '.join(VERSIONS)}")
        if not is_digits(lines["date"], HEADER_WIDTHS["date"]):
            raise fault(name, 5, "date", "8 digits are expected")
        if lines["file type"] not in frozenset(FileType):
            raise fault(name, 7, "file type", f"{lines['file type'] or 'blank'}; known are {', '.join(FileType)}")
        file_type = FileType(lines["file type"])
        names = self._names(lines["field count"])
        self.layout = self._layout(LAYOUTS[file_type], names)
        self.count = self._count()
        self.is_ended = True
        self.header = Header(
            file_type=file_type,
            creator=lines["creator"],
            receiver=lines["receiver"],
            date=lines["date"],
            names=names,
            version=lines["version"],
            summary=lines["summary"],
            sender=lines["sender"],
            recipient=lines["recipient"],
        )

    def __iter__(self) -> Iterator[Record]:
        lines, places, width = self._lines, self.layout.places, self.layout.record_bytes
        unpack = Struct("".join(f"{field.width}s" for field in self.layout.fields)).unpack
        readers = [_READERS[field.kind] for field in self.layout.fields]
        for index in range(self.count):
            parts: tuple[bytes, ...] = unpack(lines.next(width, "", f"record {index + 1} of {self.count}"))
            try:
                values = tuple([read(part) for read, part in zip(readers, parts, strict=True)])
            except BadValueError:
                raise self._bad_field(parts) from None
            yield Record(places, values, lines.number)
        self.is_ended = lines.last()

    def _bad_field(self, parts: tuple[bytes, ...]) -> LocalError:
        for field, part in zip(self.layout.fields, parts, strict=True):
            try:
                _READERS[field.kind](part)
            except BadValueError as error:
                return fault(self._name, self._lines.number, field.name, str(error))
        return fault(self._name, self._lines.number, "", "the record cannot be read")

    def _names(self, count: str) -> tuple[str, ...]:
        if not is_digits(count, HEADER_WIDTHS["field count"]) or not 1 <= int(count) <= FIELDS_MAX:
            raise fault(self._name, self._lines.number, "field count", f"001 to {FIELDS_MAX} is expected")
        return tuple(self._lines.name() for _ in range(int(count)))

    def _layout(self, whole: Layout, names: tuple[str, ...]) -> Layout:
        """Return the layout of the fields that this file has (R3)."""
        known = {field.name.lower(): place for place, field in enumerate(whole.fields)}
        chosen: list[int] = []
        for line, name in enumerate(names, len(HEADER_WIDTHS) + 1):
            place = known.get(name.lower())
            if place is None:
                raise fault(self._name, line, name, f"no field of type {whole.file_type}")
            if place in chosen:
                raise fault(self._name, line, name, "the field is named twice")
            if chosen and place < chosen[-1]:
                before = whole.fields[chosen[-1]].name
                raise fault(self._name, line, name, f"out of order: the layout has it before {before}")
            chosen.append(place)
        own = whole.only([whole.fields[place].name for place in chosen])
        missing = whole.required - own.places.keys()
        if missing:
            raise fault(self._name, self._lines.number, min(missing), f"type {whole.file_type} needs this field")
        return own

    def _count(self) -> int:
        text = self._lines.text(COUNT_WIDTH, "record count")
        if not is_digits(text, COUNT_WIDTH) or int(text) > RECORDS_MAX:
            raise fault(
                self._name, self._lines.number, "record count", f"8 digits, at most {RECORDS_MAX}, are expected"
            )
        return int(text)


def _read_text(raw: bytes) -> Value:
    return text_of(raw) or None


def _read_digits(raw: bytes) -> Value:
    digits = raw.rstrip(b" ")
    if digits and not digits.isdigit():
        raise BadValueError("something else than digits")
    return digits.decode("ascii") or None


def _read_number(raw: bytes) -> Value:
    if raw.isdigit():
        return int(raw)
    if raw.strip(b" "):
        raise BadValueError("something else than digits in a number")
    return None


_READERS: Final[dict[Kind, Callable[[bytes], Value]]] = {
    Kind.TEXT: _read_text,
    Kind.DIGITS: _read_digits,
    Kind.NUMBER: _read_number,
}
