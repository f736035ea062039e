"""Reading and writing fund files: the real one byte by byte, each rule of the reader, bytes that break."""

import dataclasses
from io import BytesIO
from pathlib import Path
from random import Random

import pytest

from consensus.ledger.errors import LocalError
from services.agency.ofd.files import FundFile, make_record, new_header
from services.agency.ofd.layout import FIELDS, LAYOUTS, FileType, Kind
from services.agency.ofd.reader import FundReader, read, read_path
from services.agency.ofd.synthetic import orders_file
from services.agency.ofd.writer import new_file, write
from tests.agency.ofd.support import SMALL, line_of, outcome_of, refusal, with_bytes, with_line
from tests.conftest import data_folder
from tests.fuzz.mutate import mutate_bytes

REAL = "OFD_996_H0_20170427_03.txt"


def test_the_real_file_is_read_and_comes_out_byte_by_byte() -> None:
    path = data_folder("fund") / REAL
    file = read_path(path)
    assert (file.header.file_type, file.header.creator, file.header.receiver) == ("03", "996", "H0")
    assert (file.header.date, file.header.version, len(file.header.names)) == ("20170427", "20", 74)
    assert len(file.records) == 1_006
    assert sum(record.number("ApplicationAmount") for record in file.records) == 645_735_805
    assert len({record.text("TAAccountID") for record in file.records}) == 862
    assert [record.line for record in file.records if record.text("DistributorCode") != "996"] == [841]
    assert "基金" in file.records[0].text("Specification")
    assert write(file) == path.read_bytes()


def test_a_file_without_a_line_end_at_its_end_stays_so() -> None:
    data = SMALL.removesuffix(b"\r\n")
    assert write(read(data, "f")) == data != SMALL


def test_records_come_one_by_one_and_the_rest_is_not_read_ahead() -> None:
    stream = BytesIO(SMALL)
    reader = FundReader(stream, "f")
    assert reader.count == 5
    assert next(iter(reader)).line == 86
    assert stream.tell() == sum(len(line_of(SMALL, number)) + 2 for number in range(1, 87))


RECORD = line_of(SMALL, 86)


def changed(field: str, new: bytes, at: int = 0) -> bytes:
    """The file with bytes of one field of its first record overwritten."""
    layout = LAYOUTS[FileType.TRADE_APPLICATIONS]
    first = sum(each.width for each in layout.fields[: layout.places[field]])
    return with_bytes(SMALL, 86, first + at, new)


MALFORMED = {
    "wrong mark": (with_line(SMALL, 1, b"OFDCFIDX"), "line 1, identity"),
    "unknown version": (with_line(SMALL, 2, b"19  "), "line 2, version"),
    "a newer version": (with_line(SMALL, 2, b"22  "), "line 2, version"),
    "short header line": (with_line(SMALL, 3, b"996"), "line 3, creator: 3 bytes, 9 are expected"),
    "long header line": (with_line(SMALL, 4, b"H0" + b" " * 8), "line 4, receiver: longer than 9"),
    "date with a letter": (with_line(SMALL, 5, b"2017O427"), "line 5, date"),
    "unknown type": (with_line(SMALL, 7, b"99"), "line 7, file type"),
    "field count with a letter": (with_line(SMALL, 10, b"07x"), "line 10, field count"),
    "no fields": (with_line(SMALL, 10, b"000"), "line 10, field count"),
    "one field fewer than counted": (with_line(SMALL, 84, None), "line 84, 00000005: no field of type 03"),
    "one field more than counted": (with_line(SMALL, 84, b"SpecifyFee\r\nBroker"), "line 85, record count"),
    "unknown field": (with_line(SMALL, 20, b"Business"), "line 20, Business: no field of type 03"),
    "a field of another type": (with_line(SMALL, 84, b"ReturnCode"), "line 84, ReturnCode: no field of type 03"),
    "a field twice": (with_line(SMALL, 84, b"SpecifyRateFee"), "line 84, SpecifyRateFee: the field is named twice"),
    "fields out of order": (
        with_line(with_line(SMALL, 83, line_of(SMALL, 84)), 84, line_of(SMALL, 83)),
        "line 84, SpecifyRateFee: out of order",
    ),
    "a blank field name": (with_line(SMALL, 11, b""), "line 11, field name"),
    "a padded field name": (with_line(SMALL, 11, b"AppSheetSerialNo "), "line 11, field name"),
    "a needed field missing": (
        with_line(with_line(SMALL, 12, None), 10, b"073"),
        "line 83, FundCode: type 03 needs this field",
    ),
    "record count with a letter": (with_line(SMALL, 85, b"0000000x"), "line 85, record count"),
    "too many records counted": (with_line(SMALL, 85, b"99999999"), "line 85, record count"),
    "more counted than there": (with_line(SMALL, 85, b"00000006"), "line 91: OFDCFEND comes too early: record 6 of 6"),
    "fewer counted than there": (with_line(SMALL, 85, b"00000004"), "line 90: OFDCFEND is expected"),
    "a record too short": (with_line(SMALL, 87, RECORD[:-1]), "line 87: 664 bytes, 665 are expected"),
    "a record too long": (with_line(SMALL, 87, RECORD + b" "), "line 87: longer than 665 bytes"),
    "a letter in a number": (
        changed("ApplicationAmount", b"00000000000001x0"),
        "line 86, ApplicationAmount: something else than digits",
    ),
    "a number not padded": (changed("ApplicationAmount", b"             100"), "line 86, ApplicationAmount"),
    "a negative number": (changed("ApplicationAmount", b"-000000000000100"), "line 86, ApplicationAmount"),
    "a letter in a date": (changed("TransactionDate", b"2017042x"), "line 86, TransactionDate: something else"),
    "half a character": (changed("Specification", b"\xbb", 59), "line 86, Specification: not GB18030"),
    "no GB18030": (changed("Specification", b"\xff"), "line 86, Specification: not GB18030"),
    "a control character": (changed("Specification", b"\x1b"), "line 86: control character"),
    "LF without CR": (SMALL.replace(b"\r\n", b"\n"), "line 1, identity: the line ends with LF alone"),
    "an empty file": (b"", "line 1, identity: the file ends here"),
    "cut in the header": (SMALL[:60], "line 8, sender: the file ends here"),
    "cut in a record": (SMALL[: SMALL.index(RECORD) + 300], "line 86: the file ends here"),
    "cut before the end mark": (SMALL[: SMALL.index(b"OFDCFEND")], "line 91: the file ends without OFDCFEND"),
    "half an end mark": (SMALL.removesuffix(b"END\r\n"), "line 91: OFDCFEND is expected"),
    "something behind the end": (SMALL + b"\r\n", "line 91: something stands behind OFDCFEND"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_get_an_error_with_line_and_field(name: str) -> None:
    data, place = MALFORMED[name]
    assert data != SMALL
    message = refusal(lambda: read(data, "orders.txt"))
    assert message.startswith(f"orders.txt, {place}"), message


def test_mutants_are_refused_or_come_out_as_they_went_in() -> None:
    random = Random(1)
    refused = 0
    for _ in range(1_500):
        data = mutate_bytes(random, SMALL, [SMALL, b"OFDCFEND\r\n", "计划".encode("gb18030"), b"\r\n"])
        outcome = outcome_of(data)
        refused += isinstance(outcome, str)
        assert isinstance(outcome, str) or write(outcome) == data
    assert 500 < refused < 1_500


def test_changed_bytes_of_a_record_are_refused_or_come_out_as_they_went_in() -> None:
    """Changes that keep every line's length, so that they reach the fields."""
    random = Random(2)
    first, taken = SMALL.index(RECORD), 0
    for _ in range(3_000):
        data = bytearray(SMALL)
        for _ in range(random.choice((1, 1, 2, 4))):
            data[first + random.randrange(665)] = random.randrange(0x20, 0x100)
        outcome = outcome_of(bytes(data))
        taken += isinstance(outcome, FundFile)
        assert "line 86" in outcome if isinstance(outcome, str) else write(outcome) == data
    assert 300 < taken < 2_700


def test_fields_may_be_spelled_in_any_case_and_optional_ones_left_out() -> None:
    layout = LAYOUTS[FileType.TRADE_APPLICATIONS].only(
        [field.name for field in LAYOUTS[FileType.TRADE_APPLICATIONS].fields if field.name != "Broker"]
    )
    header = dataclasses.replace(
        new_header(FileType.TRADE_APPLICATIONS, creator="996", receiver="H0", date="20170427"),
        names=tuple(field.name.upper() for field in layout.fields),
    )
    record = make_record(layout, {"AppSheetSerialNo": "1", "ApplicationAmount": 5})
    data = write(FundFile("f", header, layout, [record]))
    again = read(data, "f")
    assert again.records[0].values == record.values
    assert (again.records[0].text("Broker"), again.records[0].number("ApplicationAmount")) == ("", 5)
    assert write(again) == data


@pytest.mark.parametrize("file_type", FileType)
def test_each_required_field_is_missed(file_type: FileType) -> None:
    whole = LAYOUTS[file_type]
    for missing in whole.required:
        layout = whole.only([field.name for field in whole.fields if field.name != missing])
        header = new_header(file_type, creator="996", receiver="H0", date="20170427")
        header = dataclasses.replace(header, names=tuple(field.name for field in layout.fields))
        data = write(FundFile("f", header, layout, []))
        assert f"{missing}: type {file_type} needs this field" in refusal(lambda data=data: read(data, "f"))  # type: ignore[misc]
    expected = {"01": 10, "02": 8, "03": 10, "04": 12, "05": 7}
    assert len(whole.required) == expected[file_type]


def test_a_name_of_the_standards_form_says_what_the_header_says(tmp_path: Path) -> None:
    for name in ("OFD_996_H0_20170427_03.TXT", "ofd_996_h0_20170427_03_001.txt", "orders.txt", "OFD_996.txt"):
        (tmp_path / name).write_bytes(SMALL)
        assert len(read_path(tmp_path / name).records) == 5
    for name, place in (
        ("OFD_997_H0_20170427_03.TXT", "line 3, creator"),
        ("OFD_996_H1_20170427_03.TXT", "line 4, receiver"),
        ("OFD_996_H0_20170428_03.TXT", "line 5, date"),
        ("OFD_996_H0_20170427_04.TXT", "line 7, file type"),
    ):
        path = tmp_path / name
        path.write_bytes(SMALL)
        assert place in refusal(lambda path=path: read_path(path))  # type: ignore[misc]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"missing\.txt") as caught:
        read_path(tmp_path / "missing.txt")
    assert caught.value.code == "file_error"


UNWRITABLE: list[tuple[str, str | int, str]] = [
    ("FundCode", "0001981", "7 bytes, 6 fit"),
    ("Specification", "基" * 31, "62 bytes, 60 fit"),
    ("Specification", "two\r\nlines", "control character"),
    ("Specification", "a ", "space at the end"),
    ("Specification", "\ud800", "GB18030 has not"),
    ("ApplicationAmount", 10**16, "17 digits, 16 fit"),
    ("ApplicationAmount", -1, "negative"),
    ("ApplicationAmount", "5", "something else than digits"),
    ("TransactionDate", "2017-4-2", "something else than digits"),
    ("Broker", 5, "a number in a field of text"),
]


@pytest.mark.parametrize(("field", "value", "reason"), UNWRITABLE)
def test_what_does_not_fit_is_refused_and_never_cut(field: str, value: str | int, reason: str) -> None:
    header = new_header(FileType.TRADE_APPLICATIONS, creator="996", receiver="H0", date="20170427")
    record = make_record(LAYOUTS[FileType.TRADE_APPLICATIONS], {field: value})
    message = refusal(lambda: write(new_file(header, [record], "f")))
    assert message.startswith(f"f, line 86, {field}: ")
    assert reason in message


def test_a_header_that_does_not_fit_is_refused() -> None:
    header = new_header(FileType.TRADE_APPLICATIONS, creator="9" * 10, receiver="H0", date="20170427")
    assert "line 3, creator" in refusal(lambda: write(new_file(header, [], "f")))
    assert "no field Broken" in refusal(lambda: make_record(LAYOUTS[FileType.HOLDINGS], {"Broken": 1}))


@pytest.mark.parametrize("file_type", FileType)
def test_files_of_each_type_come_out_as_they_went_in(file_type: FileType) -> None:
    values = {
        field.name: 10**field.width - 1 if field.kind is Kind.NUMBER else "7" * field.width
        for field in LAYOUTS[file_type].fields
    }
    header = new_header(file_type, creator="996", receiver="H0", date="20170427")
    file = new_file(header, [make_record(LAYOUTS[file_type], values), make_record(LAYOUTS[file_type], {})], "f")
    data = write(file)
    assert len(line_of(data, len(header.names) + 12)) == LAYOUTS[file_type].record_bytes
    again = read(data, "f")
    assert [record.values for record in again.records] == [record.values for record in file.records]
    assert write(again) == data


def test_layouts_have_the_widths_that_were_found() -> None:
    assert {layout.file_type.value: (len(layout.fields), layout.record_bytes) for layout in LAYOUTS.values()} == {
        "01": (84, 1456),
        "02": (27, 465),
        "03": (74, 665),
        "04": (116, 1170),
        "05": (20, 191),
    }
    assert all(field.decimals == 0 or field.kind is Kind.NUMBER for field in FIELDS.values())
    assert {field for layout in LAYOUTS.values() for field in layout.fields} == set(FIELDS.values())


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert write(orders_file(3)) == write(orders_file(3)) != write(orders_file(4))
