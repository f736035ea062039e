"""Small fund files, and what reading one ends in."""

from collections.abc import Callable

from consensus.ledger.errors import LocalError
from services.agency.ofd.files import FundFile
from services.agency.ofd.reader import read
from services.agency.ofd.synthetic import orders_file
from services.agency.ofd.writer import write

SMALL = write(orders_file(7, orders=5, accounts=4, products=("000198", "C00002")))
"""Five records; line 85 holds their count, lines 86 to 90 are they, 91 is the end mark."""


def refusal(call: Callable[[], object]) -> str:
    """The message of the ``bad_fund_file`` that a call ends in, or nothing if it succeeds."""
    try:
        call()
    except LocalError as error:
        if error.code != "bad_fund_file":
            raise
        return error.message
    return ""


def outcome_of(data: bytes) -> FundFile | str:
    """What a file reads as, or the message of the ``bad_fund_file`` that reading ends in."""
    files: list[FundFile] = []
    message = refusal(lambda: files.append(read(data, "f")))
    return files[0] if files else message


def with_line(data: bytes, number: int, line: bytes | None) -> bytes:
    """The file with one line replaced, without its end, or left out."""
    lines = data.split(b"\r\n")
    lines[number - 1 : number] = [] if line is None else [line]
    return b"\r\n".join(lines)


def line_of(data: bytes, number: int) -> bytes:
    """A line without its end, counted from 1."""
    return data.split(b"\r\n")[number - 1]


def with_bytes(data: bytes, number: int, at: int, new: bytes) -> bytes:
    """The file with bytes of one line overwritten, at an offset that counts from 0."""
    line = line_of(data, number)
    return with_line(data, number, line[:at] + new + line[at + len(new) :])
