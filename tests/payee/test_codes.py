"""Codes: an identity beside other schemes' data, and an order that its merchant signed (S3.1, S3.13)."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
import segno
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ChainId, tagged_hash
from consensus.ledger.keys import GROUP_ORDER, PrivateKey, Purpose
from services.payee import emv
from services.payee.codes import CodeTerms, ReadCode, make_code, read_code, verify_code
from services.payee.emv import Field, Payload, make_field, make_template
from services.payee.emv_fields import GUID
from services.payee.emv_rows import describe
from tests.payee.test_emv import samples, sealed

KEY, OTHER_KEY = PrivateKey.from_secret(7), PrivateKey.from_secret(8)
CHAIN, OTHER_CHAIN = ChainId(bytes([1] * 32)), ChainId(bytes([2] * 32))
IDENTITY = bytes(range(16))
EXPIRES_MS = 1_800_000_000_000
NOW_MS = EXPIRES_MS - 1
ORDER = CodeTerms(amount=12_50, order="A-17", expires_ms=EXPIRES_MS, name="TEA HOUSE", city="SHANGHAI")

OUR_TEMPLATE = "26490015org.hansa.payee012600041061050r3gg28a1c60t3gf"
STATIC_TEXT = "000201" + "010211" + OUR_TEMPLATE + "52040000" + "53031565802CN" + "5908MERCHANT" + "6002NA" + "6304C31C"
DYNAMIC_TEXT = (
    "000201" + "010212" + OUR_TEMPLATE + "52040000" + "5303156"
    "540512.50" + "5802CN" + "5909TEA HOUSE" + "6008SHANGHAI" + "62080504A-17"
    "80800015org.hansa.payee011018000000000243"
)


def static(key: PrivateKey | None = None) -> ReadCode:
    return make_code(IDENTITY, chain_id=CHAIN, key=key)


def dynamic() -> ReadCode:
    return make_code(IDENTITY, ORDER, chain_id=CHAIN, key=KEY)


def accept(text: str, key: PrivateKey = KEY, chain_id: ChainId = CHAIN, now_ms: int = NOW_MS) -> ReadCode:
    """Read and verify as a platform does."""
    code = read_code(emv.parse(text))
    verify_code(code, key.public.compressed, chain_id, now_ms)
    return code


def refusal(text: str, key: PrivateKey = KEY, chain_id: ChainId = CHAIN, now_ms: int = NOW_MS) -> str:
    """Return the code of the error that a code meets."""
    with pytest.raises(PeerError) as refused:
        accept(text, key, chain_id, now_ms)
    return refused.value.code


def mended(text: str) -> str:
    """Give an altered code the CRC of what it says now."""
    return sealed(text[:-8])


# -- what is made ----------------------------------------------------------------------------------------


def test_a_static_code_says_an_identity() -> None:
    code = static()
    assert code.text == STATIC_TEXT
    assert accept(STATIC_TEXT) == code
    assert (code.identity, code.is_dynamic, code.is_signed, code.order, code.amount) == (
        IDENTITY,
        False,
        False,
        None,
        None,
    )
    assert code.currency == "CNY"
    assert emv.findings(code.payload) == []


def test_a_dynamic_code_says_an_order_and_what_its_signature_covers() -> None:
    code = dynamic()
    assert accept(code.text) == code
    assert (code.is_dynamic, code.is_signed, code.identity) == (True, True, IDENTITY)
    assert (code.order, code.amount, code.currency, code.expires_ms) == ("A-17", 12_50, "CNY", EXPIRES_MS)
    assert emv.findings(code.payload) == []
    rest = code.text.removeprefix(DYNAMIC_TEXT[:-4])
    assert code.text == DYNAMIC_TEXT[:-4] + rest
    assert rest[:4] == "0243"
    first, rest = rest[4:47], rest[47:]
    assert rest[:27] == "81660015org.hansa.payee0143"
    signature = urlsafe_b64decode(first + "=") + urlsafe_b64decode(rest[27:70] + "=")
    # without 80-02, template 81 and field 63, by the characters
    signed = DYNAMIC_TEXT.replace("8080", "8033")[:-4]
    assert KEY.public.verifies(signature, Purpose.PAYEE_CODE, CHAIN, tagged_hash("payee-code", signed.encode()))


def test_a_static_code_may_be_signed_and_then_must_verify() -> None:
    code = static(KEY)
    assert accept(code.text, now_ms=10**15) == code
    assert (code.is_signed, code.is_dynamic, code.expires_ms) == (True, False, None)
    assert refusal(code.text, key=OTHER_KEY) == "bad_code"
    assert refusal(mended(code.text.replace("MERCHANT", "MERCHANX"))) == "bad_code"


def test_a_code_expires_and_is_of_one_key_and_one_chain() -> None:
    text = dynamic().text
    assert refusal(text, now_ms=EXPIRES_MS) == "code_expired"
    assert refusal(text, key=OTHER_KEY) == "bad_code"
    assert refusal(text, chain_id=OTHER_CHAIN) == "bad_code"
    # whoever altered it learns nothing of its time
    assert refusal(text, key=OTHER_KEY, now_ms=EXPIRES_MS) == "bad_code"


def test_a_code_whose_crc_is_wrong_is_not_verified() -> None:
    code = read_code(emv.parse_unchecked(dynamic().text[:-4] + "0000"))
    with pytest.raises(PeerError) as refused:
        verify_code(code, KEY.public.compressed, CHAIN, NOW_MS)
    assert refused.value.code == "bad_crc"


def test_terms_are_spelt_in_the_payload() -> None:
    terms = CodeTerms(amount=70_000, currency="JPY", name="A", city="B", country="JP", category="5814")
    payload = make_code(IDENTITY, terms, chain_id=CHAIN).payload
    assert [payload.value(tag) for tag in ("53", "54", "52", "58", "59", "60")] == [
        "392",
        "700",
        "5814",
        "JP",
        "A",
        "B",
    ]


@pytest.mark.parametrize(
    ("terms", "has_key", "code"),
    [
        (replace(ORDER, amount=None), True, "bad_amount"),
        (replace(ORDER, amount=0), True, "bad_amount"),
        (replace(ORDER, amount=-1), True, "bad_amount"),
        (replace(ORDER, amount=10**15), True, "bad_amount"),
        (replace(ORDER, amount=50, currency="JPY"), True, "bad_amount"),
        (replace(ORDER, currency="XYZ"), True, "unknown_currency"),
        (replace(ORDER, expires_ms=None), True, "bad_expiry"),
        (replace(ORDER, expires_ms=999), True, "bad_expiry"),
        (replace(ORDER, expires_ms=10**15), True, "bad_expiry"),
        (CodeTerms(expires_ms=EXPIRES_MS), True, "bad_expiry"),
        (replace(ORDER, order="x" * 26), True, "bad_order"),
        (replace(ORDER, order="a b"), True, "bad_order"),
        (replace(ORDER, order=""), True, "bad_order"),
        (replace(ORDER, order="A-1\n"), True, "bad_order"),
        (ORDER, False, "code_unsigned"),
        (CodeTerms(name="x" * 26), False, "bad_field"),
        (CodeTerms(name=""), False, "bad_field"),
        (CodeTerms(name="茶馆"), False, "bad_field"),
        (CodeTerms(city="x" * 16), False, "bad_field"),
        (CodeTerms(country="CHN"), False, "bad_field"),
        (CodeTerms(category="12a4"), False, "bad_field"),
    ],
)
def test_terms_that_no_code_can_have_are_refused(terms: CodeTerms, has_key: bool, code: str) -> None:
    with pytest.raises(LocalError) as refused:
        make_code(IDENTITY, terms, chain_id=CHAIN, key=KEY if has_key else None)
    assert refused.value.code == code


def test_the_largest_dynamic_code_fits_an_image_comfortably() -> None:
    """Level M; version 14 has 73 modules a side: 0.4 mm each where it is printed 3 cm wide."""
    terms = CodeTerms(amount=10**12 - 1, order="x" * 25, expires_ms=EXPIRES_MS, name="x" * 25, city="x" * 15)
    largest = make_code(IDENTITY, terms, chain_id=CHAIN, key=KEY)
    sizes = {code: segno.make_qr(code.text, error="m").version for code in (static(), dynamic(), largest)}
    assert list(sizes.values()) == [7, 13, 14]
    assert [len(code.text) for code in sizes] == [112, 294, 346]


# -- beside other schemes --------------------------------------------------------------------------------


def test_every_shared_payload_becomes_a_static_code_and_keeps_its_characters() -> None:
    for name, text in samples().items():
        before = emv.parse_unchecked(text)
        if before.value("01") == "12" or not before.has_right_crc:
            continue
        for key in (None, KEY):
            code = make_code(IDENTITY, chain_id=CHAIN, key=key, into=before)
            assert accept(code.text).identity == IDENTITY, name
            added = {
                *code.payload.templates(emv.ACCOUNT_TEMPLATES, GUID),
                *code.payload.templates(emv.UNRESERVED, GUID),
            }
            assert len(added) == (1 if key is None else 3)
            assert tuple(field for field in code.payload.fields if field not in added) == before.fields, name


def test_every_shared_payload_becomes_a_dynamic_code_that_covers_all_of_it() -> None:
    for name, text in samples().items():
        before = emv.parse_unchecked(text)
        label = before.value("62", "05")
        terms = CodeTerms(
            order="A-17" if label is None or "/" in label else label,
            amount=None if before.get("54") else 5_00,
            expires_ms=EXPIRES_MS,
        )
        if name == "fps-odoo":  # its label can be no order of ours
            with pytest.raises(LocalError) as refused:
                make_code(IDENTITY, terms, chain_id=CHAIN, key=KEY, into=before)
            assert refused.value.code == "payload_conflict"
            continue
        code = accept(make_code(IDENTITY, terms, chain_id=CHAIN, key=KEY, into=before).text)
        assert code.order == terms.order, name
        for field in before.fields:
            if field.tag not in ("00", "01", "62"):
                assert code.payload.get(field.tag) == field
                changed = [
                    Field(field.tag, ("0" if field.value[-1] != "0" else "1").rjust(len(field.value), "0"))
                    if other.tag == field.tag
                    else other
                    for other in code.payload.fields
                ]
                with pytest.raises(PeerError):
                    accept(Payload.of(changed).build())


def test_a_signature_stands_beside_templates_of_others() -> None:
    before = emv.parse(samples()["mvallim-C659"])
    assert before.get("80") is not None
    code = make_code(IDENTITY, chain_id=CHAIN, key=KEY, into=before)
    assert [field.tag for field in code.payload.templates(emv.UNRESERVED, GUID)] == ["81", "82"]
    taken = Payload.of([*before.fields, *(make_template(f"{n}", [make_field("00", "x")]) for n in range(82, 100, 2))])
    with pytest.raises(LocalError) as refused:
        make_code(IDENTITY, chain_id=CHAIN, key=KEY, into=taken)
    assert refused.value.code == "no_free_template"


@pytest.mark.parametrize(
    ("name", "terms", "code"),
    [
        ("promptpay-amt", CodeTerms(), "bad_order"),
        ("promptpay-amt", replace(ORDER, amount=4_23, name=None, city=None), "payload_conflict"),
        ("promptpay-amt", replace(ORDER, amount=4_22, currency="CNY", name=None, city=None), "payload_conflict"),
        ("paynow-lee", CodeTerms(name="OTHER"), "payload_conflict"),
        ("paynow-lee", CodeTerms(city="OTHER"), "payload_conflict"),
        ("mvallim-C659", replace(ORDER, amount=23_72, name=None, city=None), "payload_conflict"),
    ],
)
def test_what_another_scheme_says_is_not_changed(name: str, terms: CodeTerms, code: str) -> None:
    with pytest.raises(LocalError) as refused:
        make_code(IDENTITY, terms, chain_id=CHAIN, key=KEY, into=emv.parse(samples()[name]))
    assert refused.value.code == code


def test_another_amount_is_not_put_over_the_one_that_stands_there() -> None:
    into = emv.parse(sealed(STATIC_TEXT.replace(OUR_TEMPLATE, "")[:-8] + "62070703T-1"))
    into = emv.insert(into, make_field("54", "7.00"))
    made = make_code(IDENTITY, CodeTerms(amount=7_00), chain_id=CHAIN, into=into)
    assert made.payload.value("54") == "7.00"
    with pytest.raises(LocalError) as refused:
        make_code(IDENTITY, CodeTerms(amount=8_00), chain_id=CHAIN, into=into)
    assert refused.value.code == "payload_conflict"


def test_a_code_gets_no_second_identity() -> None:
    with pytest.raises(LocalError) as refused:
        make_code(bytes(16), chain_id=CHAIN, into=static().payload)
    assert refused.value.code == "duplicate_identity"
    twice = emv.add_template(static().payload, [make_field("00", GUID.upper()), make_field("01", "0" * 26)])
    assert refusal(twice.build()) == "duplicate_identity"


def test_a_payload_whose_amount_is_none_does_not_become_a_code() -> None:
    into = Payload.of(field for field in static().payload.fields if not field.is_of(GUID))
    with pytest.raises(PeerError) as refused:
        make_code(IDENTITY, chain_id=CHAIN, into=emv.insert(into, make_field("54", "0.00")))
    assert refused.value.code == "bad_code"


def test_a_payload_without_our_template_has_no_identity() -> None:
    for name, text in samples().items():
        with pytest.raises(PeerError) as refused:
            read_code(emv.parse_unchecked(text))
        assert refused.value.code == "no_identity", name


def test_our_identifier_is_known_in_any_case() -> None:
    text = STATIC_TEXT.replace("org.hansa.payee", "ORG.Hansa.Payee")
    assert accept(mended(text)).identity == IDENTITY


def test_a_reference_label_of_a_static_code_is_no_order() -> None:
    code = make_code(IDENTITY, chain_id=CHAIN, key=KEY, into=emv.parse(samples()["mvallim-C659"]))
    assert code.payload.value("62", "05") == "abcde"
    assert code.order is None


def test_the_codes_part_of_a_split_key_is_read() -> None:
    base, part = emv.parse(samples()["paynow-lee"]), bytes(range(16))
    made = make_code(IDENTITY, chain_id=CHAIN, into=base, key_part=part)
    assert read_code(emv.parse(made.text)).key_part == part
    assert static().key_part is None
    for text in ("part", "A" * 21, "A" * 21 + "B", "A" * 23, "A" * 21 + "=", "Ä" * 22):
        ours = [make_field("00", GUID), make_field("01", "0" * 26), make_field("02", text)]
        with pytest.raises(PeerError) as caught:
            read_code(emv.add_template(base, ours))
        assert caught.value.code == "bad_code", text


# -- our part, broken ------------------------------------------------------------------------------------


def with_ours(*parts: tuple[str, str]) -> str:
    """A static code whose account template holds these parts."""
    made = make_template("26", [Field(tag, value) for tag, value in parts])
    return emv.insert(static().payload, made).build()


def with_signature(
    first: list[tuple[str, str]], second: list[tuple[str, str]], tags: tuple[str, str] = ("80", "81")
) -> str:
    """A static code with these templates where a signature stands."""
    payload = static().payload
    for tag, parts in zip(tags, (first, second), strict=True):
        if parts:
            payload = emv.insert(payload, make_template(tag, [Field(*part) for part in parts]))
    return payload.build()


OUR_GUID, SECOND_IDENTITY, HALF = ("00", GUID), ("01", "0" * 26), "A" * 43


@pytest.mark.parametrize(
    "text",
    [
        with_ours(OUR_GUID),
        with_ours(OUR_GUID, ("01", "0" * 25)),
        with_ours(OUR_GUID, ("01", "0" * 27)),
        with_ours(OUR_GUID, ("01", "8" + "0" * 25)),
        with_ours(OUR_GUID, ("01", "A" * 26)),
        with_ours(OUR_GUID, ("01", "٣" * 26)),
        with_ours(SECOND_IDENTITY, OUR_GUID),
        with_ours(OUR_GUID, ("02", "x"), SECOND_IDENTITY),
        with_ours(OUR_GUID, SECOND_IDENTITY, ("03", "x")),
        with_signature([OUR_GUID, ("02", HALF)], []),
        with_signature([OUR_GUID, ("02", HALF)], [OUR_GUID, ("01", HALF)], ("80", "82")),
        with_signature([OUR_GUID, ("02", HALF)], [("00", GUID.upper()), ("01", HALF)]),
        with_signature([OUR_GUID], [OUR_GUID, ("01", HALF)]),
        with_signature([OUR_GUID, ("01", "18")], [OUR_GUID, ("01", HALF)]),
        with_signature([OUR_GUID, ("02", HALF), ("03", "x")], [OUR_GUID, ("01", HALF)]),
        with_signature([OUR_GUID, ("02", HALF), ("01", "18")], [OUR_GUID, ("01", HALF)]),
        with_signature([OUR_GUID, ("02", HALF)], [OUR_GUID, ("02", HALF)]),
        with_signature([OUR_GUID, ("02", HALF)], [OUR_GUID, ("01", HALF), ("02", "x")]),
        with_signature([OUR_GUID, ("01", "18"), ("02", HALF)], [OUR_GUID, ("01", HALF)]),  # static
        *(
            with_signature([OUR_GUID, ("02", half)], [OUR_GUID, ("01", HALF)])
            for half in (
                "A" * 42,
                "A" * 44,
                "A" * 42 + "B",
                "A" * 42 + "+",
                "A" * 42 + "=",
                "A" * 42 + "北",
                "A" * 42 + " ",
            )
        ),
        with_signature([OUR_GUID, ("02", HALF)], [OUR_GUID, ("01", HALF)]),  # r = s = 0
    ],
)
def test_our_part_has_one_form(text: str) -> None:
    assert refusal(text) == "bad_code"


@pytest.mark.parametrize("expiry", ["0", "01", "-1", "1e3", "٣", "253402300800", "9" * 13, "1 "])
def test_an_expiry_is_seconds(expiry: str) -> None:
    payload = dynamic().payload
    first = payload.get("80")
    assert first is not None
    parts = [make_field("01", expiry) if part.tag == "01" else part for part in first.parts]
    assert refusal(emv.insert(payload, make_template("80", parts)).build()) == "bad_code"


def sign_again(
    payload: Payload, key: PrivateKey = KEY, purpose: Purpose = Purpose.PAYEE_CODE, high: bool = False
) -> str:
    """Sign whatever a payload says, as a merchant with other software would."""
    first, second = payload.templates(emv.UNRESERVED, GUID)
    bare = make_template(first.tag, [part for part in first.parts if part.tag != "02"])
    signed = "".join((bare if field == first else field).build() for field in payload.fields if field != second)
    signature = key.sign(purpose, CHAIN, tagged_hash("payee-code", signed.encode()))
    if high:
        s = GROUP_ORDER - int.from_bytes(signature[32:], "big")
        signature = signature[:32] + s.to_bytes(32, "big")
    halves = [make_field("02", _text(signature[:32])), make_field("01", _text(signature[32:]))]
    made = {first.tag: make_template(first.tag, [*bare.parts, halves[0]])}
    made[second.tag] = make_template(second.tag, [second.parts[0], halves[1]])
    return Payload.of(made.get(field.tag, field) for field in payload.fields).build()


def _text(half: bytes) -> str:
    return urlsafe_b64encode(half).decode().rstrip("=")


def test_the_signature_is_for_codes_and_has_one_form() -> None:
    payload = dynamic().payload
    assert sign_again(payload) == dynamic().text
    assert refusal(sign_again(payload, purpose=Purpose.PAYEE_MERCHANT)) == "bad_code"
    assert refusal(sign_again(payload, high=True)) == "bad_code"


@pytest.mark.parametrize(
    ("tag", "value"), [("54", None), ("54", "0.00"), ("54", "12.505"), ("53", "999"), ("53", None)]
)
def test_even_its_merchant_cannot_sign_an_amount_that_is_none(tag: str, value: str | None) -> None:
    payload = dynamic().payload
    fields = [field for field in payload.fields if field.tag != tag]
    payload = Payload.of(fields) if value is None else emv.insert(payload, make_field(tag, value))
    assert refusal(sign_again(payload)) == "bad_code"


@pytest.mark.parametrize("label", [None, "***", "INV/1", "-1"])
def test_even_its_merchant_cannot_sign_an_order_that_is_none(label: str | None) -> None:
    payload = dynamic().payload
    if label is None:
        payload = Payload.of(field for field in payload.fields if field.tag != "62")
    else:
        payload = emv.insert_part(payload, "62", make_field("05", label))
    assert refusal(sign_again(payload)) == "bad_code"


def test_even_its_merchant_cannot_sign_an_order_without_expiry() -> None:
    payload = dynamic().payload
    first = payload.get("80")
    assert first is not None
    parts = [part for part in first.parts if part.tag != "01"]
    assert refusal(sign_again(emv.insert(payload, make_template("80", parts)))) == "bad_code"


# -- altered ---------------------------------------------------------------------------------------------


def assert_refused(altered: str, text: str) -> None:
    """An altered code is refused, and refused with its CRC mended as well; or it is the same code."""
    for candidate in (altered, mended(altered)):
        if candidate != text:
            assert refusal(candidate) in REFUSALS, candidate


REFUSALS = {
    *("bad_payload", "too_large", "bad_crc", "no_identity", "duplicate_identity", "bad_code", "code_unsigned"),
}


def test_every_bit_of_a_dynamic_code_flipped_is_refused() -> None:
    text = dynamic().text
    data = text.encode()
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        try:
            altered = emv.text_of(bytes(flipped))
        except PeerError:
            continue
        assert_refused(altered, text)


printable = st.characters(min_codepoint=32, max_codepoint=126)
orders = st.builds(
    CodeTerms,
    amount=st.integers(1, 10**12 - 1),
    currency=st.sampled_from(["CNY", "EUR", "SGD"]),
    order=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,24}", fullmatch=True),
    expires_ms=st.integers(1_000, 10**14),
    name=st.text(printable, min_size=1, max_size=25),
    city=st.text(printable, min_size=1, max_size=15),
    country=st.text(printable, min_size=2, max_size=2),
)


@given(st.binary(min_size=16, max_size=16), orders, st.data())
def test_any_order_is_read_as_it_was_made_and_no_bit_of_it_can_change(
    identity: bytes, terms: CodeTerms, data: st.DataObject
) -> None:
    text = make_code(identity, terms, chain_id=CHAIN, key=KEY).text
    code = accept(text, now_ms=0)
    assert (code.identity, code.order, code.amount, code.currency) == (
        identity,
        terms.order,
        terms.amount,
        terms.currency,
    )
    assert terms.expires_ms is not None
    assert code.expires_ms == terms.expires_ms // 1_000 * 1_000
    flipped = bytearray(text.encode())
    flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= 1 << data.draw(st.integers(0, 6))
    assert_refused(flipped.decode(), text)


def test_every_bit_of_a_static_code_flipped_is_refused() -> None:
    """Without a signature the CRC sees every single bit; mended, it is what anybody can print: another identity."""
    data = STATIC_TEXT.encode()
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(PeerError):
            accept(emv.text_of(bytes(flipped)))


@given(st.randoms(use_true_random=False))
def test_every_character_replaced_is_refused(random: Random) -> None:
    text = dynamic().text
    for place in random.sample(range(len(text)), 8):
        new = random.choice("0123456789ABCXYZabcxyz-_.*' 北\u200b\uff10")
        if new != text[place]:
            assert_refused(text[:place] + new + text[place + 1 :], text)


@given(st.randoms(use_true_random=False))
def test_two_characters_swapped_are_refused(random: Random) -> None:
    text = dynamic().text
    for _ in range(8):
        one, two = sorted(random.sample(range(len(text)), 2))
        swapped = text[:one] + text[two] + text[one + 1 : two] + text[one] + text[two + 1 :]
        assert_refused(swapped, text)


def test_every_field_dropped_repeated_or_moved_is_refused() -> None:
    code = dynamic()
    fields = code.payload.fields
    for place, field in enumerate(fields):
        rest = [*fields[:place], *fields[place + 1 :]]
        built = [other.build() for other in rest]
        assert_refused("".join(built) + code.text[-8:], code.text)
        for target in range(len(rest) + 1):
            moved = [*built[:target], field.build(), *built[target:]]
            assert_refused("".join(moved) + code.text[-8:], code.text)
            repeated = [*(other.build() for other in fields[:target]), field.build()]
            repeated += [other.build() for other in fields[target:]]
            assert_refused("".join(repeated) + code.text[-8:], code.text)


def test_a_signature_has_its_place_among_templates_of_others() -> None:
    others = [field for field in static().payload.fields if not field.is_of(GUID)]
    into = Payload.of([*others, make_template("95", [make_field("00", "org.example.xy")])])
    code = make_code(IDENTITY, replace(ORDER, name=None, city=None), chain_id=CHAIN, key=KEY, into=into)
    assert [field.tag for field in code.payload.fields[-3:]] == ["80", "81", "95"]
    *before, second, last = code.payload.fields
    assert refusal(Payload.of([*before, last, second]).build()) == "bad_code"


def test_every_part_dropped_repeated_or_moved_is_refused() -> None:
    code = dynamic()
    for field in code.payload.fields:
        for parts in altered_parts(field.parts):
            made = "".join(part.build() for part in parts)
            changed = f"{field.tag}{len(made):02d}{made}" if made else ""
            text = "".join(changed if other == field else other.build() for other in code.payload.fields)
            assert_refused(text + code.text[-8:], code.text)


def altered_parts(parts: tuple[Field, ...]) -> Iterator[list[Field]]:
    """Yield every way to drop, repeat or move one part."""
    for place, part in enumerate(parts):
        rest = [*parts[:place], *parts[place + 1 :]]
        yield rest
        yield from ([*rest[:target], part, *rest[target:]] for target in range(len(rest) + 1))
        yield from ([*parts[:target], part, *parts[target:]] for target in range(len(parts) + 1))


def test_whoever_takes_the_signature_off_has_no_order_left() -> None:
    code = dynamic()
    bare = Payload.of(field for field in code.payload.fields if field.number not in emv.UNRESERVED)
    assert refusal(bare.build()) == "code_unsigned"
    left = accept(emv.insert(bare, make_field("01", "11")).build())
    assert (left.is_dynamic, left.is_signed, left.order) == (False, False, None)


def test_halves_of_two_codes_are_no_signature() -> None:
    one, two = dynamic(), make_code(IDENTITY, replace(ORDER, order="A-18"), chain_id=CHAIN, key=KEY)
    for tag in ("80", "81"):
        other = two.payload.get(tag)
        assert other is not None
        assert refusal(emv.insert(one.payload, other).build()) == "bad_code"


# -- for people ------------------------------------------------------------------------------------------


def test_rows_name_our_parts() -> None:
    rows = {row.path: (row.name, row.value, row.note) for row in describe(dynamic().payload)}
    assert rows["26-00"] == ("identifier", GUID, "Hansa payee code")
    assert rows["26-01"] == ("identity", "00041061050r3gg28a1c60t3gf", "")
    assert rows["62-05"] == ("reference label", "A-17", "")
    assert rows["80"] == ("unreserved template", "", "signature of the merchant")
    assert rows["80-01"] == ("expiry, UTC seconds", "1800000000", "")
    assert rows["80-02"][0] == "signature, first half"
    assert rows["81-01"][0] == "signature, second half"
