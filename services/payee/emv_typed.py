"""A payload's standard fields by their names and types; None stands for a field that is absent or has no such value.

Pure.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from services.payee import emv, emv_fields
from services.payee.emv import Field, Payload
from services.payee.emv_fields import Currency

E = TypeVar("E", bound=StrEnum)


class Initiation(StrEnum):
    """How often a code is for use (01)."""

    STATIC = "11"
    DYNAMIC = "12"


class Tip(StrEnum):
    """What is added to the amount (55)."""

    ASKED = "01"
    FIXED = "02"
    PERCENT = "03"


@dataclass(frozen=True, slots=True)
class Account:
    """A merchant account of a network (02–25), or of the scheme that a template's GUID names (26–51).

    ``scheme`` is "" for one that is not known here; ``parts`` are a template's.
    """

    tag: str
    scheme: str
    guid: str
    value: str
    parts: tuple[Field, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Additional:
    """Additional data (62); ``***`` is what the payer is asked for."""

    bill_number: str | None
    mobile_number: str | None
    store_label: str | None
    loyalty_number: str | None
    reference_label: str | None
    customer_label: str | None
    terminal_label: str | None
    purpose: str | None
    asked_of_payer: str | None
    tax_number: str | None
    channel: str | None
    systems: tuple[Field, ...]
    """Templates of payment systems (62-50 to 62-99)."""


@dataclass(frozen=True, slots=True)
class LocalNames:
    """Name and city in the merchant's own language (64)."""

    language: str | None
    name: str | None
    city: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """All standard fields; amounts are in 1/100 of the currency and exact, ``fee_percent`` is as it is spelt."""

    initiation: Initiation | None
    accounts: tuple[Account, ...]
    category: str | None
    currency: Currency | None
    amount: int | None
    tip: Tip | None
    fee: int | None
    fee_percent: str | None
    country: str | None
    name: str | None
    city: str | None
    postal_code: str | None
    additional: Additional
    local: LocalNames | None
    reserved: tuple[Field, ...]
    """65–79."""
    unreserved: tuple[Field, ...]
    """80–99."""


def typed(payload: Payload) -> Typed:
    """Return a payload's fields by their names."""
    currency = payload.currency
    local = payload.get("64")
    return Typed(
        initiation=_choice(Initiation, payload.value("01")),
        accounts=tuple(_account(field) for field in payload.fields if field.number in emv.ACCOUNTS),
        category=payload.value("52"),
        currency=currency,
        amount=_amount(payload.value("54"), currency),
        tip=_choice(Tip, payload.value("55")),
        fee=_amount(payload.value("56"), currency),
        fee_percent=payload.value("57"),
        country=payload.value("58"),
        name=payload.value("59"),
        city=payload.value("60"),
        postal_code=payload.value("61"),
        additional=_additional(payload.get("62")),
        local=None if local is None else LocalNames(*(local.part(tag) for tag in ("00", "01", "02"))),
        reserved=tuple(field for field in payload.fields if field.number in emv.RESERVED),
        unreserved=tuple(field for field in payload.fields if field.number in emv.UNRESERVED),
    )


def _choice(kind: type[E], value: str | None) -> E | None:
    return next((choice for choice in kind if choice == value), None)


def _amount(text: str | None, currency: Currency | None) -> int | None:
    return None if text is None or currency is None else emv_fields.amount_of(text, currency)


def _account(field: Field) -> Account:
    is_template = field.number in emv.ACCOUNT_TEMPLATES
    scheme = emv_fields.scheme_of(field.guid) if is_template else emv_fields.network_of(field.number)
    return Account(field.tag, scheme, field.guid, field.value, field.parts)


def _additional(field: Field | None) -> Additional:
    parts = {part.tag: part.value for part in field.parts} if field is not None else {}
    return Additional(
        bill_number=parts.get("01"),
        mobile_number=parts.get("02"),
        store_label=parts.get("03"),
        loyalty_number=parts.get("04"),
        reference_label=parts.get("05"),
        customer_label=parts.get("06"),
        terminal_label=parts.get("07"),
        purpose=parts.get("08"),
        asked_of_payer=parts.get("09"),
        tax_number=parts.get("10"),
        channel=parts.get("11"),
        systems=tuple(part for part in field.parts if part.number in emv.SYSTEM_TEMPLATES) if field else (),
    )
