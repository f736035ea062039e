"""Payloads: strict syntax with positions, the same characters back, findings apart from errors (S3.1)."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import HansaError, LocalError, PeerError
from services.payee import emv
from services.payee.emv import Payload, PayloadError, crc_of, make_field, make_template, parse, parse_unchecked
from services.payee.emv_fields import (
    CURRENCIES,
    GUID,
    Currency,
    amount_of,
    amount_text,
    currency_by_letters,
    currency_by_number,
)
from services.payee.emv_rows import describe
from services.payee.emv_typed import Account, Additional, Initiation, LocalNames, Tip, typed
from tests.conftest import data_folder

ECHO_CHARACTERS_MAX = 40
OURS = (make_field("00", GUID), make_field("01", "0" * 26))
BARE = "000201010211" + "26180014org.example.xy" + "52040000530315658" + "02CN5904SHOP6002NA"


def sealed(text: str) -> str:
    """Give a payload's fields their CRC."""
    return text + "6304" + crc_of(text + "6304")


def samples() -> dict[str, str]:
    """The shared payloads by name."""
    lines = (data_folder("qr") / "emv_payloads.tsv").read_text("utf-8").splitlines()
    return {name: payload for name, _, payload in (line.partition("\t") for line in lines)}


def refusal(call: Callable[..., object], *arguments: object) -> HansaError | None:
    """Return how the call is refused, or None."""
    try:
        call(*arguments)
    except HansaError as error:
        return error
    return None


# -- the shared payloads ---------------------------------------------------------------------------------


def test_every_shared_payload_is_built_back_to_the_same_characters() -> None:
    found = samples()
    assert len(found) == 14
    for name, text in found.items():
        assert parse_unchecked(text).build() == text, name
    wrong = {name for name, text in found.items() if not parse_unchecked(text).has_right_crc}
    assert wrong == {"fps-stale"}
    with pytest.raises(PeerError, match=r"84E1.*D1A3") as refused:
        parse(found["fps-stale"])
    assert refused.value.code == "bad_crc"
    for name in found.keys() - wrong:
        assert parse(found[name]).build() == found[name]


def test_what_shared_payloads_lack_is_found_and_no_error() -> None:
    """Three lack a field, one is long; of the five whose tags do not ascend, one merely has 63 last, as it must."""
    found = {
        name: [(finding.path, finding.word) for finding in emv.findings(parse_unchecked(text))]
        for name, text in samples().items()
    }
    promptpay = [("52", "missing"), ("59", "missing"), ("60", "missing"), ("53", "order")]
    assert {name: words for name, words in found.items() if words} == {
        "emv-spec-best-transport": [("54", "order")],
        "mvallim-C659": [("62-50", "no_template"), ("65", "unknown")],
        "sgqr-foodxyz": [("", "length")],
        "promptpay-mobile": promptpay,
        "promptpay-ewallet": promptpay,
        "promptpay-amt": promptpay,
    }


def test_our_template_goes_into_every_shared_payload_and_the_rest_stays() -> None:
    for name, text in samples().items():
        before = parse_unchecked(text)
        after = parse(emv.add_template(before, OURS).build())
        ours = after.templates(emv.ACCOUNT_TEMPLATES, GUID)
        assert [part.value for part in ours[0].parts] == [GUID, "0" * 26], name
        assert after.build()[:-4].replace(ours[0].build(), "", 1) == text[:-4], name
        assert ours[0].tag == emv.free_tag(before, emv.ACCOUNT_TEMPLATES)
    sgqr = emv.add_template(parse(samples()["sgqr-foodxyz"]), OURS)
    assert [field.tag for field in sgqr.fields if 36 <= field.number <= 52] == ["36", "37", "38", "51", "52"]


def test_lengths_count_characters_and_the_crc_counts_bytes() -> None:
    payload = parse(samples()["emv-spec-best-transport"])
    assert payload.value("64", "01") == "最佳运输"
    assert payload.value("64", "02") == "北京"
    assert crc_of("123456789") == "29B1"  # the check value of CRC-16/CCITT-FALSE
    assert emv.text_of(payload.build().encode()) == payload.build()


# -- syntax ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 0, "begins with 00"),
        ("0", 0, "a tag has two digits"),
        ("0002", 2, "claims 2 characters, 0 are left"),
        ("00020", 2, "claims 2 characters, 1 are left"),
        ("010211000201", 0, "begins with 00"),
        ("000202" + BARE[6:], 4, "the payload format is 01"),
        ("00030016304ABCD", 4, "the payload format is 01"),
        (BARE, len(BARE), "ends with 63"),
        (sealed(BARE) + "6102AB", len(BARE), "ends with 63"),
        (BARE + "6303ABC", len(BARE) + 2, "4 characters"),
        (sealed(BARE + "0102AB"), len(BARE), "01 stands there twice"),
        (sealed(BARE + "6100"), len(BARE) + 2, "is empty"),
        (BARE + "61", len(BARE) + 2, "length of 61"),
        (BARE + "61x2AB", len(BARE) + 2, "length of 61"),
        (BARE + "6x02AB", len(BARE), "a tag has two digits"),
        (BARE + "6٣02AB", len(BARE), "a tag has two digits"),  # a digit, but not one of ours
        (BARE + "61+2AB", len(BARE) + 2, "length of 61"),
        (BARE + "6199AB", len(BARE) + 2, "claims 99 characters, 2 are left"),
        (sealed(BARE + "62080199AAAA"), len(BARE) + 6, "claims 99 characters, 4 are left"),
        (sealed(BARE + "6203010"), len(BARE) + 6, "length of 01"),
        (sealed(BARE + "62120102AA0102BB"), len(BARE) + 10, "01 stands there twice"),
        (sealed(BARE + "6404ABCD"), len(BARE) + 4, "a tag has two digits"),
        (sealed(BARE + "8004ABCD"), len(BARE) + 4, "a tag has two digits"),
        (sealed("0002012704ABCD"), 10, "a tag has two digits"),
        (sealed(BARE + "6102A\n"), len(BARE) + 5, "U+000A"),
        (sealed(BARE + "6102\x1b["), len(BARE) + 4, "U+001B"),
        (sealed(BARE + "6102A\x9b"), len(BARE) + 5, "U+009B"),
        (BARE + "6102A\ud800", len(BARE) + 5, "U+D800"),
    ],
)
def test_what_breaks_the_syntax_is_refused_with_its_position(text: str, position: int, words: str) -> None:
    with pytest.raises(PayloadError) as refused:
        parse_unchecked(text)
    assert (refused.value.code, refused.value.position) == ("bad_payload", position)
    assert words in refused.value.message
    assert f"at character {position}:" in refused.value.message


def test_a_payload_of_10_000_characters_is_refused_before_it_is_read() -> None:
    for text in ("0" * 10_000, sealed(BARE) * 100, "\0" * (emv.CHARACTERS_MAX + 1)):
        with pytest.raises(PeerError) as refused:
            parse_unchecked(text)
        assert refused.value.code == "too_large"
    with pytest.raises(PeerError) as refused:
        emv.text_of(b"\xff" * 20_000)
    assert refused.value.code == "too_large"


@pytest.mark.parametrize("text", [BARE + "6304" + "x" * 99, "00" + "99" + "x" * 99 + "6304ABCD"])
def test_messages_repeat_little_of_what_they_refuse(text: str) -> None:
    error = refusal(parse_unchecked, text)
    assert error is not None
    assert "x" * (ECHO_CHARACTERS_MAX + 1) not in error.message


def test_bytes_that_are_no_utf_8_are_refused_with_the_character() -> None:
    with pytest.raises(PayloadError) as refused:
        emv.text_of("0002北".encode() + b"\xff")
    assert refused.value.position == 5


def test_a_crc_in_small_letters_is_wrong() -> None:
    text = sealed(BARE)
    assert text[-4:] != text[-4:].lower()
    with pytest.raises(PeerError) as refused:
        parse(text[:-4] + text[-4:].lower())
    assert refused.value.code == "bad_crc"


text_values = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20)
part_lists = st.dictionaries(st.integers(0, 99), text_values, min_size=1, max_size=3)


@st.composite
def payloads(draw: st.DrawFn) -> Payload:
    """Draw a payload: any tags in any order, templates where they belong."""
    fields = [make_field("00", "01")]
    for number in draw(st.lists(st.integers(1, 99), unique=True, max_size=8)):
        tag = f"{number:02d}"
        if number in emv.ACCOUNT_TEMPLATES or number in emv.UNRESERVED or number in (62, 64):
            parts = draw(part_lists)
            fields.append(make_template(tag, [emv.Field(f"{part:02d}", value) for part, value in parts.items()]))
        elif number != 63:
            fields.append(emv.Field(tag, draw(text_values)))
    return Payload.of(fields)


@given(payloads())
def test_every_payload_that_is_built_is_parsed_to_the_same(payload: Payload) -> None:
    again = parse(payload.build())
    assert again.build() == payload.build()
    assert [(field.tag, field.value) for field in again.fields] == [(f.tag, f.value) for f in payload.fields]
    plain = {field.tag: field.parts for field in again.fields if field.tag != "62"}
    assert plain == {field.tag: field.parts for field in payload.fields if field.tag != "62"}
    assert [row.path for row in describe(again) if row.name and "-" not in row.path] == [
        *(field.tag for field in payload.fields),
        "63",
    ]


@given(st.randoms(use_true_random=False), st.data())
def test_whatever_is_accepted_is_built_back_and_no_message_repeats_much(random: Random, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(sorted(samples().values())))
    for _ in range(random.choice((1, 1, 2, 5))):
        start, end = sorted((random.randrange(len(text) + 1), random.randrange(len(text) + 1)))
        new = random.choice(("", "0", "62", "00", "99", "x" * 60, "\u202e", "北", text[start:end], text[:10]))
        end = random.choice((end, min(start + 2, len(text))))
        text = text[:start] + new + text[end:]
    refused = refusal(parse, text)
    if refused is not None and refused.code != "bad_crc":
        assert refused.code in {"bad_payload", "too_large"}
    else:
        payload = parse_unchecked(text)
        assert payload.build() == text
        assert payload.has_right_crc is (refused is None)
        assert all(row.value.isprintable() for row in describe(payload))
    message = refused.message if refused is not None else ""
    windows = range(len(text) - ECHO_CHARACTERS_MAX)
    assert not any(text[start : start + ECHO_CHARACTERS_MAX + 1] in message for start in windows)


# -- findings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "path", "word"),
    [
        ("0604ABCD", "06", "unknown"),
        ("2504ABCD", "25", "unknown"),
        ("6604ABCD", "66", "unknown"),
        ("27060102AB", "27", "no_guid"),
        ("81060102AB", "81", "no_guid"),
        ("5404-1.0", "54", "form"),
        ("54051,000", "54", "form"),
        ("54061.2345", "54", "form"),
        ("5402.5", "54", "form"),
        ("550204", "55", "form"),
        ("550202", "56", "missing"),
        ("550203", "57", "missing"),
        ("57011", "57", "missing"),
        ("6111ABCDEFGHIJK", "61", "form"),
        ("6211090312a1002", "62-09", ""),
        ("62081004北京西站", "62-10", "form"),
        ("62120602AB0502CD", "62-05", "order"),
        ("64060002zh", "64", "missing"),
        ("27370033" + "x" * 33, "27-00", "form"),
    ],
)
def test_what_a_payload_lacks_is_found_with_its_path(extra: str, path: str, word: str) -> None:
    if not word:
        extra = "62070903ABC"
        assert emv.findings(parse(sealed(BARE + extra))) == []
        return
    assert (path, word) in [(finding.path, finding.word) for finding in emv.findings(parse(sealed(BARE + extra)))]


def test_a_whole_payload_has_no_findings_and_each_field_is_missed() -> None:
    whole = parse(sealed(BARE))
    assert emv.findings(whole) == []
    for tag in ("26", "52", "53", "58", "59", "60"):
        lacking = Payload.of(field for field in whole.fields if field.tag != tag)
        assert [finding.word for finding in emv.findings(lacking)] == ["missing"]
    with_old_point = parse(sealed(BARE.replace("010211", "010213")))
    assert [(finding.path, finding.word) for finding in emv.findings(with_old_point)] == [("01", "form")]
    assert emv.findings(parse(sealed(BARE.replace("SHOP", "北京商店"))))[0].path == "59"


# -- making ----------------------------------------------------------------------------------------------


def test_a_full_payload_and_too_long_values_are_refused() -> None:
    payload = parse(sealed(BARE))
    for _ in range(25):
        payload = emv.add_template(payload, OURS)
    with pytest.raises(LocalError) as refused:
        emv.add_template(payload, OURS)
    assert refused.value.code == "no_free_template"
    for value, code in (("x" * 100, "too_large"), ("", "bad_field"), ("a\nb", "bad_field"), ("\ud800", "bad_field")):
        with pytest.raises(LocalError) as refused:
            make_field("59", value)
        assert refused.value.code == code
    full = Payload.of([make_field("00", "01")])
    with pytest.raises(LocalError) as refused:
        Payload.of([*full.fields, *(make_field(f"{number:02d}", "x" * 99) for number in range(2, 52))])
    assert refused.value.code == "too_large"


@given(payloads(), st.integers(2, 99).filter(lambda number: number != 63))
def test_inserting_leaves_the_others_in_their_order(payload: Payload, number: int) -> None:
    tag = f"{number:02d}"
    after = emv.insert(payload, make_field(tag, "new"))
    assert [field for field in after.fields if field.tag != tag] == [f for f in payload.fields if f.tag != tag]
    assert after.value(tag) == "new"
    assert after.fields[0].tag == "00"
    before = [field.tag for field in payload.fields]
    if before == sorted(before):
        assert [field.tag for field in after.fields] == sorted({*before, tag})


def test_parts_go_into_a_template_in_their_order() -> None:
    payload = parse(sealed(BARE + "62120302AB0902CD"))
    assert emv.insert_part(payload, "62", make_field("05", "A-1")).value("62") == "0302AB0503A-10902CD"
    assert emv.insert_part(payload, "62", make_field("09", "X")).value("62") == "0302AB0901X"
    assert emv.insert_part(parse(sealed(BARE)), "62", make_field("05", "A-1")).value("62") == "0503A-1"


# -- by name ---------------------------------------------------------------------------------------------


def test_standard_fields_have_names_and_types() -> None:
    fields = typed(parse(samples()["mvallim-C659"]))
    assert (fields.initiation, fields.tip, fields.category) == (Initiation.STATIC, Tip.FIXED, "4111")
    assert (fields.currency, fields.amount, fields.fee) == (currency_by_letters("CNY"), 23_72, 500_00)
    assert (fields.country, fields.name, fields.city) == ("CN", "BEST TRANSPORT", "BEIJING")
    assert (fields.postal_code, fields.fee_percent) == ("1234567", None)
    assert fields.local == LocalNames("ZH", "北京", "最佳运输")
    assert fields.accounts == (Account("02", "Visa", "", "0004hoge0104abcd", ()),)
    assert [field.tag for field in (*fields.reserved, *fields.unreserved)] == ["65", "80"]
    assert [part.value for part in fields.additional.systems] == ["ijkl"]
    values = [getattr(fields.additional, name) for name in Additional.__slots__[:-1]]
    assert values == ["12345", "67890", "09876", "54321", "abcde", "fghij", "klmno", "pqres", "tuv", "abcd", None]


def test_what_stands_nowhere_has_no_value() -> None:
    fields = typed(parse(samples()["promptpay-mobile"]))
    assert (fields.name, fields.city, fields.category, fields.amount, fields.local) == (None, None, None, None, None)
    assert fields.additional.reference_label is None
    assert [(account.tag, account.scheme) for account in fields.accounts] == [("29", "PromptPay")]
    odd = typed(parse(sealed(BARE.replace("010211", "010213") + "5404x.yz" + "550204")))
    assert (odd.initiation, odd.amount, odd.tip) == (None, None, None)


# -- amounts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "letters", "amount"),
    [
        *(("12.50", "CNY", 1250), ("12.5", "CNY", 1250), ("12.", "CNY", 1200), ("12", "CNY", 1200)),
        *(("0.01", "CNY", 1), ("007", "CNY", 700), ("9999999999.99", "CNY", 999_999_999_999)),
        *(("100", "JPY", 10_000), ("100.", "JPY", None), ("100.0", "JPY", None)),
        *(("1.230", "KWD", 123), ("1.234", "KWD", None), ("1.23", "KWD", 123)),
        *(("0", "CNY", None), ("0.00", "CNY", None), ("", "CNY", None), (".5", "CNY", None), ("-1", "CNY", None)),
        *(("1e3", "CNY", None), ("1,00", "CNY", None), (" 1", "CNY", None), ("1.005", "CNY", None)),
        *(("1.2.3", "CNY", None), ("٣", "CNY", None), ("1.٣", "CNY", None), ("10000000000.00", "CNY", None)),
    ],
)
def test_amounts_are_exact(text: str, letters: str, amount: int | None) -> None:
    assert amount_of(text, currency_by_letters(letters)) == amount


@given(st.integers(-5, 10**13), st.sampled_from(CURRENCIES))
def test_every_amount_is_spelt_so_that_it_is_read_the_same(amount: int, currency: Currency) -> None:
    refused = refusal(amount_text, amount, currency)
    if refused is not None:
        assert refused.code == "bad_amount"
        assert amount <= 0 or amount >= 10**8 or amount % 100
        return
    text = amount_text(amount, currency)
    assert amount_of(text, currency) == amount
    payload = Payload.of([*parse(sealed(BARE)).fields[:4], make_field("53", currency.number), make_field("54", text)])
    assert {finding.word for finding in emv.findings(payload)} == {"missing"}


def test_currencies_have_one_number_and_one_name() -> None:
    assert len({currency.number for currency in CURRENCIES}) == len(CURRENCIES) > 90
    for currency in CURRENCIES:
        assert currency_by_number(currency.number) is currency_by_letters(currency.letters)
    assert currency_by_number("999") is None
    with pytest.raises(LocalError) as refused:
        currency_by_letters("cny")
    assert refused.value.code == "unknown_currency"


# -- for people ------------------------------------------------------------------------------------------


def test_rows_name_every_field() -> None:
    rows = {row.path: (row.name, row.value, row.note) for row in describe(parse(samples()["sgqr-foodxyz"]))}
    assert rows["02"] == ("merchant account", "4761360000000*17", "Visa")
    assert rows["15"] == ("merchant account", "2500034400010344500034453110001", "UnionPay")
    assert rows["36"] == ("merchant account", "", "")
    assert rows["36-00"] == ("identifier", "SG.PAYNOW", "PayNow")
    assert rows["36-04"] == ("data of the scheme", "20991231", "")
    assert rows["53"] == ("currency", "702", "SGD")
    assert rows["62-01"] == ("bill number", "1234567R", "")
    assert rows["62-50-00"] == ("identifier", "SG.COM.DASH.WWW", "Dash")
    assert rows["63"] == ("CRC", "5E8D", "right")
    assert rows[""] == ("", "", "1069 characters, 512 are recommended at most")
    rows = {row.path: (row.name, row.value, row.note) for row in describe(parse_unchecked(samples()["fps-stale"]))}
    assert rows["63"] == ("CRC", "84E1", "WRONG: D1A3 would be right")
    rows = {row.path: (row.name, row.value, row.note) for row in describe(parse(samples()["emv-spec-best-transport"]))}
    assert rows["54"] == ("amount", "23.72", "54 stands behind a field with a larger tag")
    assert rows["55"] == ("tip or fee", "01", "the payer is asked for a tip")
    assert rows["62-06"] == ("customer label", "***", "the payer enters it")
    assert rows["64-01"] == ("name in it", "最佳运输", "")
    assert rows["01"] == ("point of initiation", "12", "dynamic: for one payment")


def test_rows_hold_nothing_that_turns_text_around() -> None:
    payload = replace(parse(sealed(BARE)), crc="\u202e\u200bA")
    assert describe(payload)[-1].value == r"\u202e\u200bA"
