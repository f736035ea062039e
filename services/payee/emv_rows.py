"""A payload as rows for people: every field and part by its path, its name, its value, and what there is to say of it.

Pure. Values are shown with nothing in them that a terminal obeys.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from services.payee import emv, emv_fields
from services.payee.emv import Field, Payload
from services.payee.emv_fields import GUID


@dataclass(frozen=True, slots=True)
class Row:
    """One field or part; ``path`` is as ``54`` or ``62-05``, and ``note`` may be empty."""

    path: str
    name: str
    value: str
    note: str


_SCHEMES_DATA = "data of the scheme"
_ACCOUNT_PARTS = {"01": "identity", "02": "part of a split key"}
_FIRST_PARTS = {"01": "expiry, UTC seconds", "02": "signature, first half"}
_SECOND_PARTS = {"01": "signature, second half"}


def describe(payload: Payload) -> list[Row]:
    """Return the rows of a payload in its order, the CRC last; findings stand in the notes, or in rows of their own.

    A finding about what is not there has a row with an empty value, behind the others.
    """
    notes: dict[str, list[str]] = {}
    for finding in emv.findings(payload):
        notes.setdefault(finding.path, []).append(finding.message)
    rows = [row for field in payload.fields for row in _field_rows(payload, field)]
    crc_note = "right" if payload.has_right_crc else f"WRONG: {payload.right_crc} would be right"
    rows.append(Row(emv.CRC_TAG, emv_fields.FIELDS[emv.CRC_TAG].name, printable(payload.crc), crc_note))
    paths = {row.path for row in rows}
    noted = [Row(row.path, row.name, row.value, _joined(row.note, notes.get(row.path, []))) for row in rows]
    lacking = [Row(path, "", "", _joined("", messages)) for path, messages in notes.items() if path not in paths]
    return noted + lacking


def printable(text: str) -> str:
    r"""Return a foreign text with what cannot be seen spelt out, as ``\u202e``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _joined(note: str, more: list[str]) -> str:
    return "; ".join([note, *more] if note else more)


def _field_rows(payload: Payload, field: Field) -> Iterator[Row]:
    yield Row(field.tag, _name_of(field), "" if field.parts else printable(field.value), _note_of(payload, field))
    for part in field.parts:
        path = f"{field.tag}-{part.tag}"
        kind = emv.kind_of(field.tag, part.tag)
        name = kind.name if kind is not None else _part_name(payload, field, part)
        note = "the payer enters it" if field.tag == "62" and part.value == emv_fields.ENTERED_BY_PAYER else ""
        if part.tag == "00" and field.tag not in ("62", "64"):
            note = emv_fields.scheme_of(part.value)
        yield Row(path, name, "" if part.parts else printable(part.value), note)
        for inner in part.parts:
            is_guid = inner.tag == "00"
            scheme = emv_fields.scheme_of(inner.value) if is_guid else ""
            yield Row(f"{path}-{inner.tag}", "identifier" if is_guid else _SCHEMES_DATA, printable(inner.value), scheme)


def _name_of(field: Field) -> str:
    number = field.number
    if field.tag in emv_fields.FIELDS:
        return emv_fields.FIELDS[field.tag].name
    if number in emv.ACCOUNTS:
        return "merchant account"
    return "unreserved template" if number in emv.UNRESERVED else "reserved"


def _note_of(payload: Payload, field: Field) -> str:
    match field.tag:
        case "01":
            return emv_fields.INITIATIONS.get(field.value, "")
        case "53":
            return payload.currency.letters if payload.currency is not None else ""
        case "55":
            return emv_fields.TIPS.get(field.value, "")
        case _ if field.number in emv.ACCOUNTS and field.number not in emv.ACCOUNT_TEMPLATES:
            return emv_fields.network_of(field.number)
        case _ if field.number in emv.UNRESERVED and field.is_of(GUID):
            return "signature of the merchant"
        case _:
            return ""


def _part_name(payload: Payload, field: Field, part: Field) -> str:
    if field.tag == "62":
        return "template of a payment system" if part.number in emv.SYSTEM_TEMPLATES else "reserved"
    if field.tag == "64":
        return "reserved"
    if not field.is_of(GUID):
        return _SCHEMES_DATA
    if field.number in emv.ACCOUNT_TEMPLATES:
        return _ACCOUNT_PARTS.get(part.tag, "")
    is_first = payload.templates(emv.UNRESERVED, GUID)[0] == field
    return (_FIRST_PARTS if is_first else _SECOND_PARTS).get(part.tag, "")
