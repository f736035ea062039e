"""The lines of fund files and index files, of known widths, bounded. Pure: it reads a stream that it is given."""

import re
from typing import BinaryIO

from services.agency.ofd.files import ENCODING, END_MARK, LINE_END, NAME_BYTES_MAX, fault

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class BadValueError(ValueError):
    """A value breaks a rule; who caught it knows file, line and field."""


def text_of(raw: bytes) -> str:
    """Return text without the spaces on its right.

    Raises:
        BadValueError: it is not GB18030, in which each character has one spelling.
    """
    raw = raw.rstrip(b" ")
    if raw.isascii():
        return raw.decode("ascii")
    try:
        return raw.decode(ENCODING)
    except UnicodeError:
        raise BadValueError("not GB18030") from None


def is_digits(text: str, width: int) -> bool:
    """Tell whether it is exactly ``width`` digits 0 to 9."""
    return len(text) == width and text.isascii() and text.isdigit()


class Lines:
    """The lines of one stream, counted from 1; every fault is a ``bad_fund_file`` with its line."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self.number = 0

    def next(self, width: int, field: str, expected: str) -> bytes:
        """Return the next line without its end, of exactly ``width`` bytes without control characters."""
        raw = self._any(width, field, expected)
        if len(raw) != width:
            if raw == END_MARK.encode():
                raise fault(self._name, self.number, field, f"{END_MARK} comes too early: {expected} is expected")
            raise fault(self._name, self.number, field, f"{len(raw)} bytes, {width} are expected")
        return raw

    def text(self, width: int, field: str) -> str:
        """Return a header line of this width as text."""
        return self._text(self.next(width, field, "the header"), field)

    def name(self, width_max: int = NAME_BYTES_MAX, field: str = "field name") -> str:
        """Return a line of free width, 1 to ``width_max`` bytes, that neither begins nor ends with a space."""
        raw = self._any(width_max, field, "a name")
        if raw == END_MARK.encode():
            raise fault(self._name, self.number, field, f"{END_MARK} comes too early: a name is expected")
        if not raw or len(raw) > width_max or raw != raw.strip():
            raise fault(self._name, self.number, field, f"1 to {width_max} bytes without spaces around are expected")
        return self._text(raw, field)

    def last(self) -> bool:
        """Take the end mark's line; tell whether it has its own line end.

        Raises:
            LocalError: ``bad_fund_file`` where something else stands there, or something stands behind.
        """
        self.number += 1
        mark = END_MARK.encode()
        raw = self._stream.readline(len(mark) + len(LINE_END))
        if raw.removesuffix(LINE_END) != mark:
            what = f"{END_MARK} is expected" if raw else f"the file ends without {END_MARK}"
            raise fault(self._name, self.number, "", what)
        if self._stream.read(1):
            raise fault(self._name, self.number, "", f"something stands behind {END_MARK}")
        return raw != mark

    def _any(self, width_max: int, field: str, expected: str) -> bytes:
        self.number += 1
        raw = self._stream.readline(width_max + len(LINE_END))
        if not raw.endswith(LINE_END):
            if raw.endswith(b"\n"):
                raise fault(self._name, self.number, field, "the line ends with LF alone, not with CR LF")
            if len(raw) >= width_max + len(LINE_END):
                raise fault(self._name, self.number, field, f"longer than {width_max} bytes")
            if raw == END_MARK.encode():
                raise fault(self._name, self.number, field, f"{END_MARK} comes too early: {expected} is expected")
            raise fault(self._name, self.number, field, f"the file ends here: {expected} is expected")
        raw = raw[: -len(LINE_END)]
        bad = _CONTROL.search(raw)
        if bad is not None:
            raise fault(self._name, self.number, field, f"control character at byte {bad.start() + 1}")
        return raw

    def _text(self, raw: bytes, field: str) -> str:
        try:
            return text_of(raw)
        except BadValueError as error:
            raise fault(self._name, self.number, field, str(error)) from None
