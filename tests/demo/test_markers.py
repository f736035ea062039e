"""Whatever spelling a marker has somewhere, it is found, and nothing else is."""

import json
from base64 import b64encode, urlsafe_b64encode

import msgspec
import pytest

from services.demo.agency_markers import find, forms_of

NAME = "王小明-x7Kq93LmZt0aP4"
TEXT = "Zq81LmXx20PwRt57"


@pytest.mark.parametrize("marker", [NAME, TEXT])
@pytest.mark.parametrize("lead", range(4))
def test_a_text_is_found_in_every_spelling(marker: str, lead: int) -> None:
    raw = b"\xf1" * lead + marker.encode() + b"\xf2" * 3
    chinese = b"\xf1" * lead + marker.encode("gb18030") + b"\xf2"
    spellings = [raw, raw.hex().encode(), raw.hex().upper().encode(), b64encode(raw), urlsafe_b64encode(raw), chinese]
    spellings += [chinese.hex().encode(), b64encode(chinese), json.dumps({"n": marker}).encode()]
    spellings += [json.dumps({"n": marker}, ensure_ascii=False).encode(), marker.encode("utf-16-le")]
    forms = {"it": forms_of(marker)}
    assert [data for data in spellings if find(forms, [("here", data)]) != {"it": ["here"]}] == []
    assert find(forms, [("here", raw[:-9]), ("there", b64encode(raw[:-9]))]) == {}


def test_a_number_is_found_as_digits_and_bytes() -> None:
    forms = {"it": forms_of(4_711_008_150_937_221)}
    assert find(forms, [("a", msgspec.msgpack.encode([4_711_008_150_937_221])), ("b", b"x4711008150937221,")]) == {
        "it": ["a", "b"]
    }
    assert forms_of(1_000) == frozenset()


def test_bytes_are_found() -> None:
    salt = bytes(range(200, 232))
    forms = {"salt": forms_of(salt)}
    places = [("raw", b"\0" + salt), ("hex", salt.hex().encode()), ("json", msgspec.json.encode({"s": b"\0" + salt}))]
    assert find(forms, places) == {"salt": ["raw", "hex", "json"]}
