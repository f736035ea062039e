"""Index files: which fund files one institution sends another on a day. Pure.

Lines: ``OFDCFIDX``, version (4), creator (9), receiver (9), date (8), count of files (3), the files' names, one a line,
``OFDCFEND``. The name is ``OFI_creator_receiver_YYYYMMDD.TXT``. No real sample was there: ``docs/fund-files.md``.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Final

from consensus.ledger.errors import LocalError
from services.agency.ofd.files import ENCODING, END_MARK, LINE_END, VERSIONS, FileName, fault, parse_name
from services.agency.ofd.lines import Lines, is_digits
from services.agency.ofd.writer import padded_text

INDEX_MARK: Final = "OFDCFIDX"
FILES_MAX: Final = 999
_WIDTHS: Final = {"identity": 8, "version": 4, "creator": 9, "receiver": 9, "date": 8, "file count": 3}


@dataclass(frozen=True, slots=True)
class IndexFile:
    """Names of up to 999 fund files that agree with creator, receiver and date; each stands once."""

    creator: str
    receiver: str
    date: str
    names: tuple[str, ...]
    version: str = "20"
    is_ended: bool = True

    @property
    def file_name(self) -> str:
        """The name that the index file itself has."""
        return f"OFI_{self.creator}_{self.receiver}_{self.date}.TXT"


def read_index(data: bytes, name: str) -> IndexFile:
    """Read an index file; ``name`` stands in errors.

    Raises:
        LocalError: ``bad_fund_file``.
    """
    lines = Lines(BytesIO(data), name)
    head = {field: lines.text(width, field) for field, width in _WIDTHS.items()}
    if head["identity"] != INDEX_MARK:
        raise fault(name, 1, "identity", f"{INDEX_MARK} is expected")
    if head["version"] not in VERSIONS:
        raise fault(name, 2, "version", f"{head['version'] or 'blank'}; known are {' and '.join(VERSIONS)}")
    if not is_digits(head["date"], _WIDTHS["date"]):
        raise fault(name, 5, "date", "8 digits are expected")
    if not is_digits(head["file count"], _WIDTHS["file count"]):
        raise fault(name, 6, "file count", "3 digits are expected")
    names = tuple(lines.name(field="file name") for _ in range(int(head["file count"])))
    is_ended = lines.last()
    index = IndexFile(head["creator"], head["receiver"], head["date"], names, head["version"], is_ended)
    _check(index, name)
    return index


def write_index(index: IndexFile) -> bytes:
    """Return the bytes of an index file.

    Raises:
        LocalError: ``bad_fund_file``.
    """
    name = index.file_name
    _check(index, name)
    values = (INDEX_MARK, index.version, index.creator, index.receiver, index.date, f"{len(index.names):03d}")
    lines = []
    for line, ((field, width), value) in enumerate(zip(_WIDTHS.items(), values, strict=True), 1):
        try:
            lines.append(padded_text(value, width))
        except ValueError as error:
            raise fault(name, line, field, str(error)) from None
    lines += [entry.encode(ENCODING) for entry in index.names]
    return LINE_END.join([*lines, END_MARK.encode()]) + (LINE_END if index.is_ended else b"")


def _check(index: IndexFile, name: str) -> None:
    """Refuse names of another form, of other institutions or another day, or that stand twice."""
    if len(index.names) > FILES_MAX:
        raise LocalError("bad_fund_file", f"{name}: {len(index.names)} files, at most {FILES_MAX}")
    seen: set[str] = set()
    for line, entry in enumerate(index.names, len(_WIDTHS) + 1):
        said = parse_name(entry)
        if said is None:
            raise fault(
                name, line, "file name", f"{entry} has not the form {FileName('C', 'R', 'YYYYMMDD', '03').text}"
            )
        if (said.creator, said.receiver, said.date) != (index.creator, index.receiver, index.date):
            raise fault(name, line, "file name", f"{entry} is not of {index.creator}, {index.receiver}, {index.date}")
        if entry.upper() in seen:
            raise fault(name, line, "file name", f"{entry} stands twice")
        seen.add(entry.upper())
