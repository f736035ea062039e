"""EMVCo merchant-presented payloads: parsed strictly into fields, built back to the same characters.

A payload is a row of fields, each two digits of tag, two digits of length *in characters*, and as many characters of
value. ``00`` comes first and says "01", ``63`` comes last: CRC-16/CCITT-FALSE over the UTF-8 bytes of all that stands
before its value. Templates (26–51, 62, 64, 80–99) hold fields in their value. What breaks this is an *error* with its
position; what the standard wants beside it – mandatory fields, ascending order, forms of values, 512 characters – is a
*finding*: printed codes in use lack it.

Source: EMV QR Code Specification for Payment Systems, Merchant-Presented Mode, version 1.1. Pure.
"""

import dataclasses
from binascii import crc_hqx
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from consensus.ledger.errors import LocalError, PeerError
from services.payee import emv_fields
from services.payee.emv_fields import ADDITIONAL, FIELDS, GUID_KIND, LANGUAGE, Currency, Kind

CHARACTERS_MAX = 4_296
"""The most that a QR code holds of anything but bare digits (version 40, level L)."""
CHARACTERS_RECOMMENDED_MAX = 512
VALUE_CHARACTERS_MAX = 99
SHOWN_CHARACTERS_MAX = 24
"""How much of a foreign text a message repeats."""

CRC_TAG = "63"
ACCOUNTS = range(2, 52)
"""Tags of merchant account information; in 26–51 it is a template that names its scheme by a GUID."""
ACCOUNT_TEMPLATES = range(26, 52)
RESERVED = range(65, 80)
UNRESERVED = range(80, 100)
"""Templates for whoever likes; they name their owner by a GUID."""
SYSTEM_TEMPLATES = range(50, 100)
"""Parts of 62 that payment systems fill: templates, though codes in use have plain text there too."""

_CRC_START = 0xFFFF
_STRICT_TEMPLATES = {f"{number}" for number in (*ACCOUNT_TEMPLATES, 62, 64, *UNRESERVED)}


class PayloadError(PeerError):
    """These characters are no payload; ``position`` is of the first that cannot stand there, from 0 on."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__("bad_payload", f"at character {position}: {message}")
        self.position = position


@dataclass(frozen=True, slots=True)
class Field:
    """One field: tag, value as it stands there, and the fields in it where it is a template.

    ``position`` is where its tag stands in the payload, from 0 on; fields that were made anew have -1.
    """

    tag: str
    value: str
    parts: tuple["Field", ...] = ()
    position: int = dataclasses.field(default=-1, compare=False)

    @property
    def number(self) -> int:
        """The tag as a number, 0 to 99."""
        return int(self.tag)

    @property
    def guid(self) -> str:
        """Part 00 of a template, "" where there is none."""
        return self.part("00") or ""

    def part(self, tag: str) -> str | None:
        """Return the value of a part of a template."""
        return next((part.value for part in self.parts if part.tag == tag), None)

    def is_of(self, guid: str) -> bool:
        """Tell whether this template's GUID is this one, in whatever case."""
        return bool(guid) and self.guid.lower() == guid.lower()

    def build(self) -> str:
        """Return the characters of the field."""
        return f"{self.tag}{len(self.value):02d}{self.value}"


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload: its fields in their order without 63, and what 63 says."""

    fields: tuple[Field, ...]
    crc: str

    @classmethod
    def of(cls, fields: Iterable[Field]) -> "Payload":
        """Make a payload of these fields with the CRC that they have.

        Raises:
            LocalError: ``too_large`` for more than a QR code can hold.
        """
        made = cls(tuple(fields), "")
        made = replace(made, crc=made.right_crc)
        if len(made.build()) > CHARACTERS_MAX:
            raise LocalError("too_large", f"a code holds at most {CHARACTERS_MAX} characters")
        return made

    @property
    def right_crc(self) -> str:
        """The CRC that these fields have: four characters, 0-9 and A-F."""
        return crc_of(self._without_crc())

    @property
    def has_right_crc(self) -> bool:
        """Whether 63 says what it must."""
        return self.crc == self.right_crc

    def build(self) -> str:
        """Return the payload's characters, with 63 as it stands."""
        return self._without_crc() + self.crc

    def get(self, tag: str) -> Field | None:
        """Return the field of this tag."""
        return next((field for field in self.fields if field.tag == tag), None)

    def value(self, tag: str, part: str | None = None) -> str | None:
        """Return the value of a field, or of a part of it."""
        found = self.get(tag)
        if found is None:
            return None
        return found.value if part is None else found.part(part)

    @property
    def currency(self) -> Currency | None:
        """The currency of its amounts, None where 53 names none that is known here."""
        return emv_fields.currency_by_number(self.value("53") or "")

    def templates(self, numbers: range, guid: str) -> tuple[Field, ...]:
        """Return the templates of this GUID among these tags, in their order."""
        return tuple(field for field in self.fields if field.number in numbers and field.is_of(guid))

    def _without_crc(self) -> str:
        return "".join(field.build() for field in self.fields) + CRC_TAG + "04"


def crc_of(text: str) -> str:
    """Return CRC-16/CCITT-FALSE of the text's UTF-8 bytes as four characters, 0-9 and A-F."""
    return f"{crc_hqx(text.encode('utf-8'), _CRC_START):04X}"


# -- parsing ---------------------------------------------------------------------------------------------


def text_of(data: bytes) -> str:
    """Return the text of a payload's bytes, as a QR code holds them.

    Raises:
        PeerError: ``too_large``; ``bad_payload`` for what is no UTF-8.
    """
    if len(data) > 4 * CHARACTERS_MAX:
        raise PeerError("too_large", f"{len(data)} bytes, a code holds at most {CHARACTERS_MAX} characters")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PayloadError(len(data[: error.start].decode("utf-8")), "what follows is no UTF-8") from None


def parse(text: str) -> Payload:
    """Parse a payload that anyone may have made, and check its CRC.

    Raises:
        PeerError: ``too_large`` above 4,296 characters, ``bad_payload`` (a :class:`PayloadError`) for what breaks the
            syntax, ``bad_crc``.
    """
    payload = parse_unchecked(text)
    if not payload.has_right_crc:
        raise PeerError("bad_crc", f"the CRC is {shown(payload.crc)}, {payload.right_crc} would be right")
    return payload


def parse_unchecked(text: str) -> Payload:
    """Parse a payload without a look at its CRC, to show what is in it: nothing else may be done with it.

    Raises:
        PeerError: as :func:`parse`, but never ``bad_crc``.
    """
    if len(text) > CHARACTERS_MAX:
        raise PeerError("too_large", f"{len(text)} characters, a code holds at most {CHARACTERS_MAX}")
    for position, character in enumerate(text):
        if character < " " or "\x7f" <= character <= "\x9f" or "\ud800" <= character <= "\udfff":
            raise PayloadError(position, f"U+{ord(character):04X} is no character of text")
    fields = tuple(_fields(text, 0, len(text)))
    if not fields or fields[0].tag != "00":
        raise PayloadError(0, "a payload begins with 00, the payload format")
    if fields[0].value != "01":
        raise PayloadError(4, f"the payload format is 01, not {shown(fields[0].value)}")
    if fields[-1].tag != CRC_TAG:
        misplaced = next((field.position for field in fields if field.tag == CRC_TAG), len(text))
        raise PayloadError(misplaced, "a payload ends with 63, the CRC")
    if len(fields[-1].value) != 4:
        raise PayloadError(fields[-1].position + 2, "the CRC has 4 characters")
    return Payload(tuple(_with_parts(text, field) for field in fields[:-1]), fields[-1].value)


def shown(text: str) -> str:
    """Return a foreign text as messages repeat it: quoted, short, with nothing that a terminal obeys."""
    cut = text[:SHOWN_CHARACTERS_MAX]
    return repr(cut) + ("…" if len(text) > len(cut) else "")


def _fields(text: str, start: int, end: int) -> Iterator[Field]:
    """Split the characters from ``start`` to ``end`` into fields, none of them twice."""
    tags = set()
    while start < end:
        tag, length = text[start : start + 2], text[start + 2 : start + 4]
        if end - start < 2 or not emv_fields.is_digits(tag):
            raise PayloadError(start, f"a tag has two digits, not {shown(tag)}")
        if end - start < 4 or not emv_fields.is_digits(length):
            raise PayloadError(start + 2, f"the length of {tag} has two digits")
        stop = start + 4 + int(length)
        if length == "00":
            raise PayloadError(start + 2, f"{tag} is empty: a length is 01 to 99")
        if stop > end:
            raise PayloadError(start + 2, f"{tag} claims {int(length)} characters, {end - start - 4} are left")
        if tag in tags:
            raise PayloadError(start, f"{tag} stands there twice")
        tags.add(tag)
        yield Field(tag, text[start + 4 : stop], position=start)
        start = stop


def _with_parts(text: str, field: Field) -> Field:
    if field.tag not in _STRICT_TEMPLATES:
        return field
    start = field.position + 4
    parts = tuple(_fields(text, start, start + len(field.value)))
    if field.tag == "62":
        parts = tuple(_with_system_parts(text, part) for part in parts)
    return replace(field, parts=parts)


def _with_system_parts(text: str, part: Field) -> Field:
    if part.number not in SYSTEM_TEMPLATES:
        return part
    start = part.position + 4
    try:
        return replace(part, parts=tuple(_fields(text, start, start + len(part.value))))
    except PayloadError:
        return part  # plain text; the findings say so


# -- making ----------------------------------------------------------------------------------------------


def make_field(tag: str, value: str) -> Field:
    """Make a field without parts.

    Raises:
        LocalError: ``too_large`` for a value above 99 characters, ``bad_field`` for one that is empty or no text.
    """
    if not value or not value.isprintable():
        raise LocalError("bad_field", f"field {tag} cannot hold {shown(value)}")
    return _with_room(Field(tag, value))


def make_template(tag: str, parts: Sequence[Field]) -> Field:
    """Make a template of these parts.

    Raises:
        LocalError: ``too_large``.
    """
    return _with_room(Field(tag, "".join(part.build() for part in parts), tuple(parts)))


def add_template(payload: Payload, parts: Sequence[Field]) -> Payload:
    """Put a template into the first free number of 26–51, leave everything else as it is, and renew the CRC.

    Raises:
        LocalError: ``no_free_template``; ``too_large``.
    """
    return insert(payload, make_template(free_tag(payload, ACCOUNT_TEMPLATES), parts))


def free_tag(payload: Payload, numbers: range, *, after: int = -1) -> str:
    """Return the first of these tags that the payload does not have.

    Raises:
        LocalError: ``no_free_template``.
    """
    taken = {field.number for field in payload.fields}
    for number in numbers:
        if number > after and number not in taken:
            return f"{number:02d}"
    raise LocalError("no_free_template", f"all numbers of {numbers[0]} to {numbers[-1]} are taken")


def insert(payload: Payload, added: Field) -> Payload:
    """Put a field behind the last one with a smaller tag, or in the place of the one with its tag; renew the CRC.

    In a payload that is not in order, "behind the last one with a smaller tag" counts for merchant accounts only
    among merchant accounts, so that they stay together.
    """
    if payload.get(added.tag) is not None:
        return Payload.of(added if field.tag == added.tag else field for field in payload.fields)
    head = ("00", "01")
    before = [field for field in payload.fields if field.tag < added.tag]
    if added.number in ACCOUNTS:
        before = [field for field in before if field.tag in head or field.number in ACCOUNTS]
    place = payload.fields.index(before[-1]) + 1 if before else 0
    return Payload.of((*payload.fields[:place], added, *payload.fields[place:]))


def insert_part(payload: Payload, tag: str, part: Field) -> Payload:
    """Put a part into a template, which is made where it is missing, by the rule of :func:`insert`."""
    template = payload.get(tag) or Field(tag, "")
    parts = [kept for kept in template.parts if kept.tag != part.tag]
    place = next((index for index, kept in enumerate(template.parts) if kept.tag >= part.tag), len(parts))
    return insert(payload, make_template(tag, [*parts[:place], part, *parts[place:]]))


def _with_room(made: Field) -> Field:
    if len(made.value) > VALUE_CHARACTERS_MAX:
        raise LocalError(
            "too_large", f"{made.tag} would have {len(made.value)} characters, {VALUE_CHARACTERS_MAX} is most"
        )
    return made


# -- findings --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """What a payload lacks by the standard though it can be read; ``path`` is as ``54`` or ``62-05``, "" for all of it.

    Words: ``missing``, ``order``, ``length``, ``form`` (a value that its field cannot have), ``unknown`` (a tag that
    nobody has), ``no_guid``, ``no_template``.
    """

    path: str
    word: str
    message: str


def findings(payload: Payload) -> list[Finding]:
    """Return what the standard wants of a payload and it lacks, field by field."""
    found = list(_missing(payload))
    length = len(payload.build())
    if length > CHARACTERS_RECOMMENDED_MAX:
        found.append(
            Finding("", "length", f"{length} characters, {CHARACTERS_RECOMMENDED_MAX} are recommended at most")
        )
    if (path := _disorder(payload.fields)) is not None:
        found.append(Finding(path, "order", f"{path} stands behind a field with a larger tag"))
    for field in payload.fields:
        found.extend(_field_findings(payload, field))
    return found


def kind_of(tag: str, part: str | None = None) -> Kind | None:
    """Return what the standard says of a field, or of a part of one; None where it leaves it to others."""
    if part is None:
        return FIELDS.get(tag)
    if tag == "62":
        return ADDITIONAL.get(part)
    if tag == "64":
        return LANGUAGE.get(part)
    return GUID_KIND if part == "00" else None


def _missing(payload: Payload) -> Iterator[Finding]:
    if not any(field.number in ACCOUNTS for field in payload.fields):
        yield Finding("", "missing", "no merchant account information (02–51)")
    for tag in emv_fields.MANDATORY:
        if payload.get(tag) is None:
            yield Finding(tag, "missing", f"no {FIELDS[tag].name} ({tag})")
    for tip, tag in (("02", "56"), ("03", "57")):
        if (payload.value("55") == tip) != (payload.get(tag) is not None):
            yield Finding(tag, "missing", f"{FIELDS[tag].name} ({tag}) and 55 = {tip} belong together")


def _disorder(fields: Sequence[Field]) -> str | None:
    largest = ""
    for field in fields:
        if field.tag < largest:
            return field.tag
        largest = field.tag
    return None


def _field_findings(payload: Payload, field: Field) -> Iterator[Finding]:
    tag, number = field.tag, field.number
    if fault := _form_fault(payload, field):
        yield Finding(tag, "form", fault)
    if number in ACCOUNTS and number not in ACCOUNT_TEMPLATES and not emv_fields.network_of(number):
        yield Finding(tag, "unknown", "this account number belongs to no network")
    if number in RESERVED:
        yield Finding(tag, "unknown", "reserved, without a meaning yet")
    if (number in ACCOUNT_TEMPLATES or number in UNRESERVED) and not field.guid:
        yield Finding(tag, "no_guid", "a template without the identifier of its scheme")
    if (disorder := _disorder(field.parts)) is not None:
        yield Finding(f"{tag}-{disorder}", "order", f"{tag}-{disorder} stands behind a part with a larger tag")
    if tag == "64" and (lacking := [LANGUAGE[part].name for part in ("00", "01") if field.part(part) is None]):
        yield Finding(tag, "missing", f"no {' and no '.join(lacking)}")
    for part in field.parts:
        kind = kind_of(tag, part.tag)
        if kind is not None and part.value != emv_fields.ENTERED_BY_PAYER and (fault := kind.fault(part.value)):
            yield Finding(f"{tag}-{part.tag}", "form", fault)
        if tag == "62" and part.number in SYSTEM_TEMPLATES and not part.guid:
            yield Finding(f"{tag}-{part.tag}", "no_template", "text where a payment system's template is expected")


def _form_fault(payload: Payload, field: Field) -> str:
    kind = FIELDS.get(field.tag)
    if kind is None:
        return ""
    if fault := kind.fault(field.value):
        return fault
    match field.tag:
        case "01" if field.value not in emv_fields.INITIATIONS:
            return "a point of initiation is 11 or 12"
        case "55" if field.value not in emv_fields.TIPS:
            return "a tip or fee is 01, 02 or 03"
        case "54" | "56":
            return _amount_fault(payload, field.value)
        case _:
            return ""


def _amount_fault(payload: Payload, value: str) -> str:
    whole, _, fraction = value.partition(".")
    if not emv_fields.is_digits(whole) or (fraction and not emv_fields.is_digits(fraction)):
        return "an amount has digits, and a point where it has decimals"
    currency = payload.currency
    if currency is not None and len(fraction) > currency.decimals:
        return f"{currency.letters} has {currency.decimals} decimals"
    return ""
