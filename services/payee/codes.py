"""Payee codes: an identity, and for one order its terms, in an EMVCo payload beside whatever else stands there.

Our template stands in the first free number of 26–51: ``00`` our GUID, ``01`` the identity, ``02`` the
code's part of a split key, where the merchant has one (:mod:`services.payee.split`).

A *static* code (01 = "11") is for many payments. A *dynamic* one (01 = "12") is for one order: amount (54),
currency (53), order (62-05), expiry and the merchant's signature. The signature needs two templates of our GUID, side
by side in the first free numbers of 80–99, 80 and 81 unless somebody has them::

    80  00 GUID   01 expiry, UTC seconds (a static code has none)   02 first half of the signature
    81  00 GUID   01 second half; halves are 32 bytes in base64url without padding

It is the merchant's for ``Purpose.PAYEE_CODE``, over ``tagged_hash("payee-code", …)`` of the payload's characters
without 80-02, template 81 and field 63: so it covers other schemes' templates, names and amounts as well. A code with
a signature must verify; a dynamic one without is refused. What an *unsigned* code says beside the identity anybody
can have printed, and the reference label of a static code is no order.

Pure.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from typing import Final

import msgspec

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ChainId, Hash, tagged_hash
from consensus.ledger.keys import SIGNATURE_BYTES, PrivateKey, PublicKey, Purpose
from services.payee import emv, emv_fields
from services.payee.emv import Field, Payload, make_field, make_template, shown
from services.payee.emv_fields import FIELDS, GUID
from services.payee.emv_typed import Initiation, Typed, typed
from services.payee.identity import identity_of, identity_text
from services.payee.interfaces import CODE_PART_BYTES, OrderId

EXPIRY_SECONDS_MAX = 253_402_300_799
"""The end of the year 9999."""

_HALF_BYTES = SIGNATURE_BYTES // 2
_ORDER_PATH = ("62", "05")
_DEFAULTS: Final = {"52": "0000", "58": "CN", "59": "MERCHANT", "60": "NA"}
_DEFAULT_CURRENCY: Final = "CNY"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTerms:
    """What a code shall say beside the identity; with ``order`` it is dynamic, for one payment.

    ``amount`` is in 1/100 of ``currency`` (ISO 4217 letters, CNY where nothing says another). ``expires_ms`` is UTC,
    cut to whole seconds, and belongs to an order. Name (25 characters), city (15), country (two letters) and category
    (ISO 18245, four digits) are for the payer's eyes and other schemes; each has a default.
    """

    amount: int | None = None
    currency: str | None = None
    order: str | None = None
    expires_ms: int | None = None
    name: str | None = None
    city: str | None = None
    country: str | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCode:
    """What a code says, before anybody has verified it.

    ``amount`` is in 1/100 of ``currency``, None where the payer chooses it, and without any tip or fee (55–57);
    ``currency`` is None where the payload names none that is known here. ``order`` and ``expires_ms`` (UTC) are a
    signed dynamic code's. ``key_part`` is the code's part of a split key.
    """

    identity: bytes
    is_dynamic: bool
    amount: int | None
    currency: str | None
    order: str | None
    expires_ms: int | None
    key_part: bytes | None
    signature: bytes | None
    payload: Payload

    @property
    def is_signed(self) -> bool:
        """Whether it bears a signature, right or wrong."""
        return self.signature is not None

    @property
    def text(self) -> str:
        """The characters of the code, as an image holds them."""
        return self.payload.build()


# -- reading ---------------------------------------------------------------------------------------------


def read_code(payload: Payload) -> ReadCode:
    """Read our part of a payload that anyone may have made; nothing of it is verified yet.

    Raises:
        PeerError: ``no_identity`` for a payload without our template, ``duplicate_identity`` for one with two,
            ``bad_code`` for one that breaks the rules of this module.
    """
    ours = payload.templates(emv.ACCOUNT_TEMPLATES, GUID)
    if not ours:
        raise PeerError("no_identity", f"the payload has no template of {GUID} in 26–51")
    if len(ours) > 1:
        raise PeerError("duplicate_identity", f"the payload has {len(ours)} templates of {GUID}")
    identity, key_part = _read_identity(ours[0])
    signing = _signing_templates(payload)
    fields = typed(payload)
    is_dynamic = fields.initiation is Initiation.DYNAMIC
    amount = _read_amount(payload, fields)
    code = ReadCode(
        identity=identity,
        is_dynamic=is_dynamic,
        amount=amount,
        currency=None if fields.currency is None else fields.currency.letters,
        order=fields.additional.reference_label if is_dynamic and signing else None,
        expires_ms=_read_expiry(signing[0]) if signing else None,
        key_part=key_part,
        signature=_read_signature(*signing) if signing else None,
        payload=payload,
    )
    if is_dynamic and code.is_signed:
        _check_dynamic(code)
    elif code.expires_ms is not None:
        raise PeerError("bad_code", "a static code has no expiry")
    return code


def verify_code(code: ReadCode, merchant_key: bytes, chain_id: ChainId, now_ms: int) -> None:
    """Check a code against its merchant's key as the chain has it (33 bytes, compressed).

    A static code without a signature passes: it says no more than an identity.

    Raises:
        PeerError: ``bad_crc``; ``code_unsigned`` for a dynamic code without a signature; ``bad_code`` where the
            signature is not the merchant's over this code on this chain; ``code_expired``; ``bad_key``.
    """
    if not code.payload.has_right_crc:
        raise PeerError("bad_crc", "the code's CRC is wrong")
    if code.signature is None:
        if code.is_dynamic:
            raise PeerError("code_unsigned", "a code for one payment bears no signature of its merchant")
        return
    payload_hash = _signed_hash(code.payload)
    if not PublicKey.load_untrusted(merchant_key).verifies(code.signature, Purpose.PAYEE_CODE, chain_id, payload_hash):
        raise PeerError(
            "bad_code", "the code's signature is not its merchant's: it was altered, or is of another chain"
        )
    if code.expires_ms is not None and now_ms >= code.expires_ms:
        raise PeerError("code_expired", f"the code was valid until {code.expires_ms // 1000} (UTC seconds)")


def _read_identity(template: Field) -> tuple[bytes, bytes | None]:
    if [part.tag for part in template.parts] not in (["00", "01"], ["00", "01", "02"]):
        raise PeerError("bad_code", f"template {template.tag} has parts 00, 01 and perhaps 02, in this order")
    try:
        identity = identity_of(template.part("01") or "")
    except LocalError as error:
        raise PeerError("bad_code", error.message) from None
    text = template.part("02")
    return identity, None if text is None else key_part_of(text)


def _signing_templates(payload: Payload) -> tuple[Field, Field] | None:
    """Return the two templates of a signature; each code has one spelling, so place and parts are fixed."""
    found = payload.templates(emv.UNRESERVED, GUID)
    if not found:
        return None
    if len(found) != 2:
        raise PeerError("bad_code", f"a signature has two templates of {GUID} in 80–99, not {len(found)}")
    first, second = found
    places = [place for place, field in enumerate(payload.fields) if field in found]
    if places[1] != places[0] + 1 or second.number != first.number + 1 or second.guid != first.guid:
        raise PeerError("bad_code", "the two templates of a signature stand side by side, with one GUID")
    if [part.tag for part in first.parts] not in (["00", "02"], ["00", "01", "02"]):
        raise PeerError("bad_code", f"template {first.tag} has parts 00, perhaps 01, and 02, in this order")
    if [part.tag for part in second.parts] != ["00", "01"]:
        raise PeerError("bad_code", f"template {second.tag} has parts 00 and 01, in this order")
    return first, second


def _read_expiry(template: Field) -> int | None:
    text = template.part("01")
    if text is None:
        return None
    if not emv_fields.is_digits(text) or text[0] == "0" or len(text) > 12 or int(text) > EXPIRY_SECONDS_MAX:
        raise PeerError("bad_code", f"an expiry is UTC seconds, not {shown(text)}")
    return int(text) * 1_000


def _read_signature(first: Field, second: Field) -> bytes:
    return _half_of(first.part("02") or "") + _half_of(second.part("01") or "")


def key_part_of(text: str) -> bytes:
    """Return a code's part of a split key; ``PeerError`` ``bad_code`` for a text that is none."""
    return _bytes_of(text, CODE_PART_BYTES, "a part of a split key")


def key_part_text(part: bytes) -> str:
    """Return a code's part of a split key as codes have it: 22 characters."""
    return _text_of(part)


def _half_of(text: str) -> bytes:
    return _bytes_of(text, _HALF_BYTES, "half a signature")


def _bytes_of(text: str, count: int, what: str) -> bytes:
    try:
        found = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (Base64Error, UnicodeEncodeError):
        found = b""
    if len(found) != count or _text_of(found) != text:  # several spellings decode to the same bytes
        raise PeerError("bad_code", f"{what} is {count} bytes in base64url without padding")
    return found


def _text_of(content: bytes) -> str:
    return urlsafe_b64encode(content).decode("ascii").rstrip("=")


def _read_amount(payload: Payload, fields: Typed) -> int | None:
    text = payload.value("54")
    if text is not None and fields.currency is None:
        raise PeerError("bad_code", "the code has an amount in a currency that is not known here")
    if text is not None and fields.amount is None:
        raise PeerError("bad_code", f"{shown(text)} is no amount that can be paid in the code's currency")
    return fields.amount


def _check_dynamic(code: ReadCode) -> None:
    if code.amount is None:
        raise PeerError("bad_code", "a code for one payment has an amount (54)")
    if code.order is None or not is_order(code.order):
        raise PeerError("bad_code", "a code for one payment has an order (62-05): 1 to 25 of A-Z a-z 0-9 . _ -")
    if code.expires_ms is None:
        raise PeerError("bad_code", "a code for one payment has an expiry")


def is_order(text: str) -> bool:
    """Tell whether this can name an order."""
    try:
        msgspec.convert(text, OrderId)
    except msgspec.ValidationError:
        return False
    return True


def _signed_hash(payload: Payload) -> Hash:
    """Return what the merchant signs; of a payload that is to be signed, the first template has no 02 yet."""
    first, *second = payload.templates(emv.UNRESERVED, GUID)
    bare = make_template(first.tag, [part for part in first.parts if part.tag != "02"])
    kept = [bare if field == first else field for field in payload.fields if field not in second]
    return tagged_hash("payee-code", "".join(field.build() for field in kept).encode())


# -- making ----------------------------------------------------------------------------------------------


def make_code(
    identity: bytes,
    terms: CodeTerms | None = None,
    *,
    chain_id: ChainId,
    key: PrivateKey | None = None,
    into: Payload | None = None,
    key_part: bytes | None = None,
) -> ReadCode:
    """Make a code; ``into`` another scheme's payload, of which everything stays that the terms do not add to.

    A dynamic code needs the merchant's key; a static one is signed where there is one. Every code of a merchant with a
    split key needs the merchant's ``key_part``.

    Raises:
        LocalError: ``bad_identity``; ``code_unsigned``, ``bad_order``, ``bad_amount``, ``unknown_currency``,
            ``bad_expiry``, ``bad_field`` for what the terms cannot be; ``duplicate_identity`` where ``into`` has an
            identity already, ``payload_conflict`` where it says something else than the terms; ``no_free_template``;
            ``too_large``.
        PeerError: ``bad_code`` where ``into`` has an amount that nobody can pay.
    """
    terms = terms or CodeTerms()
    if into is not None and into.templates(range(100), GUID):
        raise LocalError("duplicate_identity", "the payload is a payee code already")
    payload = _described(into or _empty(terms), terms)
    payload = _with_terms(payload, terms, has_key=key is not None)
    parts = [make_field("00", GUID), make_field("01", identity_text(identity))]
    if key_part is not None:
        parts.append(make_field("02", key_part_text(key_part)))
    payload = emv.add_template(payload, parts)
    if key is not None:
        payload = _signed(payload, terms, key, chain_id)
    return read_code(payload)


def _empty(terms: CodeTerms) -> Payload:
    currency = emv_fields.currency_by_letters(terms.currency or _DEFAULT_CURRENCY)
    values = {"00": "01", "01": Initiation.STATIC, "53": currency.number, **_DEFAULTS}
    given = {"52": terms.category, "58": terms.country, "59": terms.name, "60": terms.city}
    values |= {tag: value for tag, value in given.items() if value is not None}
    return Payload.of(make_field(tag, value) for tag, value in sorted(values.items()))


def _described(payload: Payload, terms: CodeTerms) -> Payload:
    given = {"52": terms.category, "58": terms.country, "59": terms.name, "60": terms.city}
    for tag, value in given.items():
        if value is not None:
            if fault := FIELDS[tag].fault(value):
                raise LocalError("bad_field", f"{fault}, not {shown(value)}")
            payload = _with(payload, tag, value)
    return payload


def _with_terms(payload: Payload, terms: CodeTerms, *, has_key: bool) -> Payload:
    if terms.currency is not None:
        payload = _with(payload, "53", emv_fields.currency_by_letters(terms.currency).number)
    if terms.amount is not None:
        currency = payload.currency or emv_fields.currency_by_letters(_DEFAULT_CURRENCY)
        payload = _with(payload, "53", currency.number)
        payload = _with_amount(payload, terms.amount, currency)
    if terms.order is None:
        if terms.expires_ms is not None:
            raise LocalError("bad_expiry", "only a code for one order expires")
        if typed(payload).initiation is Initiation.DYNAMIC:
            raise LocalError("bad_order", "the payload is for one payment: it needs an order and an expiry")
        return payload
    if not is_order(terms.order):
        raise LocalError("bad_order", f"an order is 1 to 25 of A-Z a-z 0-9 . _ -, not {shown(terms.order)}")
    if payload.get("54") is None:
        raise LocalError("bad_amount", "a code for one order needs an amount")
    if terms.expires_ms is None or not 1 <= terms.expires_ms // 1_000 <= EXPIRY_SECONDS_MAX:
        raise LocalError("bad_expiry", "a code for one order needs an expiry, before the year 10000")
    if not has_key:
        raise LocalError("code_unsigned", "a code for one order needs the merchant's key")
    payload = emv.insert(payload, make_field("01", Initiation.DYNAMIC))
    tag, part = _ORDER_PATH
    if payload.value(tag, part) not in (None, terms.order):
        raise LocalError("payload_conflict", f"the payload has another {tag}-{part}, the reference label")
    return emv.insert_part(payload, tag, make_field(part, terms.order))


def _with(payload: Payload, tag: str, value: str) -> Payload:
    """Add a field, unless the payload has it and says the same."""
    if payload.get(tag) is None:
        return emv.insert(payload, make_field(tag, value))
    if payload.value(tag) != value:
        raise LocalError("payload_conflict", f"the payload has another {FIELDS[tag].name} ({tag})")
    return payload


def _with_amount(payload: Payload, amount: int, currency: emv_fields.Currency) -> Payload:
    present = payload.value("54")
    if present is not None and emv_fields.amount_of(present, currency) == amount:
        return payload  # spelt in another way perhaps
    return _with(payload, "54", emv_fields.amount_text(amount, currency))


def _signed(payload: Payload, terms: CodeTerms, key: PrivateKey, chain_id: ChainId) -> Payload:
    """Add the two templates of a signature."""
    guid = make_field("00", GUID)
    expiry = [] if terms.expires_ms is None else [make_field("01", str(terms.expires_ms // 1_000))]
    tag = _free_pair(payload)
    unsigned = emv.insert(payload, make_template(tag, [guid, *expiry]))
    signature = key.sign(Purpose.PAYEE_CODE, chain_id, _signed_hash(unsigned))
    halves = _text_of(signature[:_HALF_BYTES]), _text_of(signature[_HALF_BYTES:])
    first = make_template(tag, [guid, *expiry, make_field("02", halves[0])])
    second = make_template(f"{int(tag) + 1:02d}", [guid, make_field("01", halves[1])])
    place = next(index for index, field in enumerate(unsigned.fields) if field.tag == tag)
    return Payload.of((*unsigned.fields[:place], first, second, *unsigned.fields[place + 1 :]))


def _free_pair(payload: Payload) -> str:
    taken = {field.number for field in payload.fields}
    for number in emv.UNRESERVED[:-1]:
        if not {number, number + 1} & taken:
            return f"{number:02d}"
    raise LocalError("no_free_template", "no two numbers of 80–99 side by side are free for the signature")
