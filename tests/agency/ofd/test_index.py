"""Index files: read, written, refused."""

import dataclasses

import pytest

from services.agency.ofd.index import IndexFile, read_index, write_index
from tests.agency.ofd.support import refusal, with_line

INDEX = IndexFile("996", "H0", "20170427", ("OFD_996_H0_20170427_01.TXT", "OFD_996_H0_20170427_03.txt"))
DATA = write_index(INDEX)


def test_an_index_file_comes_out_as_it_went_in() -> None:
    assert DATA.startswith(b"OFDCFIDX\r\n20  \r\n996      \r\nH0       \r\n20170427\r\n002\r\nOFD_996_")
    assert read_index(DATA, "i") == INDEX
    assert INDEX.file_name == "OFI_996_H0_20170427.TXT"
    bare = DATA.removesuffix(b"\r\n")
    assert write_index(read_index(bare, "i")) == bare
    empty = dataclasses.replace(INDEX, names=())
    assert read_index(write_index(empty), "i") == empty


@pytest.mark.parametrize(
    ("number", "line", "place"),
    [
        (1, b"OFDCFDAT", "line 1, identity"),
        (2, b"22  ", "line 2, version"),
        (3, b"996", "line 3, creator"),
        (5, b"2017-427", "line 5, date"),
        (6, b" 02", "line 6, file count"),
        (6, b"001", "line 8: OFDCFEND is expected"),
        (6, b"003", "line 9, file name: OFDCFEND comes too early"),
        (8, None, "line 8, file name: OFDCFEND comes too early"),
        (7, b"orders.txt", "line 7, file name: orders.txt has not the form"),
        (7, b"OFD_997_H0_20170427_01.TXT", "line 7, file name"),
        (7, b"OFD_996_H0_20170428_01.TXT", "line 7, file name"),
        (8, b"ofd_996_H0_20170427_01.txt", "line 8, file name: ofd_996_H0_20170427_01.txt stands twice"),
        (9, b"OFDCFEND\r\nmore", "line 9: something stands behind"),
    ],
)
def test_malformed_index_files_get_an_error_with_line_and_field(number: int, line: bytes | None, place: str) -> None:
    message = refusal(lambda: read_index(with_line(DATA, number, line), "i"))
    assert message.startswith(f"i, {place}"), message


def test_what_does_not_fit_is_not_written() -> None:
    assert "line 3, creator" in refusal(lambda: write_index(IndexFile("9" * 10, "H0", "20170427", ())))
    assert "stands twice" in refusal(lambda: write_index(dataclasses.replace(INDEX, names=INDEX.names[:1] * 2)))
    many = dataclasses.replace(INDEX, names=tuple(f"OFD_996_H0_20170427_03_{n:03d}.TXT" for n in range(1_000)))
    assert "at most 999" in refusal(lambda: write_index(many))
