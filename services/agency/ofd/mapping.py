"""What the records of fund files mean: applications and confirmations. Pure.

A record's own fields become attributes of an :class:`Application`; whatever else it says goes to ``fields`` by name:
text without its padding, a number as its digits, nothing where it is blank or zero. So a record of a file comes out of
its application as it was, but for numbers that were blank, which come out as zeros.

What no field of JR/T 0017-2012 holds is agreed here: ``ClientRiskRate`` is ``0`` to ``5`` (0 the lowest class inside
C1), or ``A`` to ``F`` for the same of a professional investor; ``ErrorDetail`` is the word of a rejection's reason. The
interface id, the terms' version and the special warning stand in no file: the sales end knows them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import msgspec

from consensus.ledger.errors import LocalError
from services.agency.ofd.codes import reason_of
from services.agency.ofd.files import FundFile, Header, Record, Value, fault, make_record, new_header
from services.agency.ofd.layout import FIELDS, LAYOUTS, FileType, Kind
from services.agency.ofd.lines import is_digits
from services.agency.ofd.writer import new_file
from services.agency.orders import ACCOUNT_CODES, Application, Code, Confirmation, Investor

NO_INTERFACE: Final = "-"
"""Interface id of an application for a product that nobody has registered; it is dropped as ``unknown_product``."""

T = TypeVar("T")

_RISK_CLASSES: Final = "012345"
_PROFESSIONAL_CLASSES: Final = "ABCDEF"

_TEXTS: Final = {
    "AppSheetSerialNo": "serial",
    "BusinessCode": "code",
    "FundCode": "product",
    "CodeOfTargetFund": "target_product",
    "TAAccountID": "ta_account",
    "TransactionAccountID": "transaction_account",
    "DistributorCode": "distributor",
    "TargetDistributorCode": "target_distributor",
    "CurrencyType": "currency",
}
_NUMBERS: Final = {"ApplicationAmount": "amount", "ApplicationVol": "volume"}
_TIMES: Final = {"TransactionDate": "date", "TransactionTime": "time"}
_APPLICATION: Final = {*_TEXTS, *_NUMBERS, *_TIMES}
_INVESTOR: Final = {
    "InvestorName": "name",
    "CertificateType": "certificate_type",
    "CertificateNo": "certificate_number",
    "InvestorsBirthday": "birth_date",
    "ClientRiskRate": "risk_class",
    "IndividualOrInstitution": "is_institution",
}
_FIELD_OF: Final = {attribute: field for table in (_TEXTS, _NUMBERS, _TIMES) for field, attribute in table.items()}
_PLACE = re.compile(r"\$\[(\d+)\]")


def applications_of(file: FundFile, interfaces: Mapping[str, str], *, account_interface: str = "") -> list[Application]:
    """Return the applications of a file of type 01 or 03, in its order.

    ``interfaces`` says the issuer's interface id of each product, ``account_interface`` that of account applications.

    Raises:
        LocalError: ``bad_fund_file`` for another type and for a record that is no application.
    """
    name, records = file.name, file.records
    match file.header.file_type:
        case FileType.ACCOUNT_APPLICATIONS:
            return [application_of(record, interface=account_interface, name=name) for record in records]
        case FileType.TRADE_APPLICATIONS:
            return [
                application_of(record, interface=interfaces.get(record.text("FundCode"), NO_INTERFACE), name=name)
                for record in records
            ]
        case _:
            raise fault(name, 7, "file type", f"{file.header.file_type} holds no applications")


def application_of(
    record: Record, *, interface: str, terms_version: int = 0, is_warned: bool = False, name: str = "record"
) -> Application:
    """Return the application that a record of type 01 or 03 makes; ``name`` is the file's, for errors.

    Raises:
        LocalError: ``bad_fund_file``.
    """
    is_account = "InvestorName" in record.places
    values: dict[str, object] = {attribute: record.text(field) for field, attribute in _TEXTS.items()}
    values |= {attribute: record.number(field) for field, attribute in _NUMBERS.items()}
    values["date"] = _date(record, "TransactionDate", name)
    values["time"] = _time(record, "TransactionTime", name)
    values["investor"] = _investor(record, name) if is_account and record.text("InvestorName") else None
    own = _APPLICATION | _INVESTOR.keys() if values["investor"] is not None else _APPLICATION
    values["fields"] = {
        field: str(value)
        for field, value in zip(record.places, record.values, strict=True)
        if value and field not in own
    }
    values |= {"interface": interface, "terms_version": terms_version, "is_warned": is_warned}
    return _made(Application, values, record.line, name)


def record_of(application: Application) -> Record:
    """Return the record of an application: of type 01 for an account application, else of type 03.

    Raises:
        LocalError: ``bad_fund_file`` where it says what the type has no field for; the writer refuses what is too wide.
    """
    is_account = application.code in ACCOUNT_CODES
    layout = LAYOUTS[FileType.ACCOUNT_APPLICATIONS if is_account else FileType.TRADE_APPLICATIONS]
    own = _own_values(application)
    twice = own.keys() & application.fields.keys()
    if twice:
        raise LocalError("bad_fund_file", f"application {application.serial}: {min(twice)} is said twice")
    places = layout.places
    said = {field: value for field, value in own.items() if value or field in places}
    return make_record(layout, said | _other_values(application))


def confirmation_record(application: Application, confirmation: Confirmation) -> Record:
    """Return the record of type 04, or of 02 for an account application, that tells a distributor the outcome.

    It echoes what the application said, as far as the type has the fields.
    """
    is_account = application.code in ACCOUNT_CODES
    layout = LAYOUTS[FileType.ACCOUNT_CONFIRMATIONS if is_account else FileType.TRADE_CONFIRMATIONS]
    values = {
        **_other_values(application),
        **_own_values(application),
        "BusinessCode": confirmation.code,
        "TASerialNO": confirmation.ta_serial,
        "TAAccountID": confirmation.ta_account or None,
        "ReturnCode": confirmation.return_code,
        "ErrorDetail": confirmation.reason or None,
        "TransactionCfmDate": _digits(confirmation.date, 8),
        "ConfirmedAmount": confirmation.amount,
        "Charge": confirmation.charge,
        **_confirmed_units(application, confirmation),
        "BusinessFinishFlag": "1" if confirmation.is_final else "0",
        "FromTAFlag": "0",
        "DownLoaddate": _digits(confirmation.date, 8),
    }
    places = layout.places
    return make_record(layout, {field: value for field, value in values.items() if field in places})


def confirmation_of(record: Record, name: str = "record") -> Confirmation:
    """Return the confirmation that a record of type 02 or 04 makes.

    Raises:
        LocalError: ``bad_fund_file``.
    """
    code = record.text("ReturnCode")
    is_conversion = record.text("BusinessCode") == Code.CONVERSION.confirmation
    values: dict[str, object] = {
        "serial": record.text("AppSheetSerialNo"),
        "code": record.text("BusinessCode"),
        "ta_serial": record.text("TASerialNO"),
        "ta_account": record.text("TAAccountID"),
        "return_code": code,
        "reason": record.text("ErrorDetail") or reason_of(code),
        "amount": record.number("ConfirmedAmount"),
        "volume": record.number("CfmVolOfTargetFund" if is_conversion else "ConfirmedVol"),
        "nav": record.number("TargetNAV" if is_conversion else "NAV"),
        "charge": record.number("Charge"),
        "date": _date(record, "TransactionCfmDate", name),
        "is_final": "BusinessFinishFlag" not in record.places or record.text("BusinessFinishFlag") == "1",
    }
    return _made(Confirmation, values, record.line, name)


def application_file(header: Header, applications: Iterable[Application], name: str = "") -> FundFile:
    """Return the file of applications that are all of the header's type, with all its fields.

    Raises:
        LocalError: ``bad_fund_file``.
    """
    records = []
    for application in applications:
        is_account = header.file_type is FileType.ACCOUNT_APPLICATIONS
        if (application.code in ACCOUNT_CODES) != is_account:
            code, file_type = application.code, header.file_type
            raise LocalError("bad_fund_file", f"application {application.serial}: {code} stands in no {file_type}")
        records.append(record_of(application))
    return new_file(header, records, name)


def confirmation_file(
    received: Header, outcomes: Iterable[tuple[Application, Confirmation]], *, date: str, name: str = ""
) -> FundFile:
    """Return the file that answers one of applications: type 04 to a 03, type 02 to an 01, the other way round.

    ``date`` is YYYYMMDD of the confirmation.

    Raises:
        LocalError: ``bad_fund_file`` for a file of another type.
    """
    match received.file_type:
        case FileType.ACCOUNT_APPLICATIONS:
            file_type = FileType.ACCOUNT_CONFIRMATIONS
        case FileType.TRADE_APPLICATIONS:
            file_type = FileType.TRADE_CONFIRMATIONS
        case _:
            raise LocalError("bad_fund_file", f"nothing answers a file of type {received.file_type}")
    header = new_header(file_type, creator=received.receiver, receiver=received.creator, date=date)
    return new_file(header, [confirmation_record(*outcome) for outcome in outcomes], name)


def _confirmed_units(application: Application, confirmation: Confirmation) -> dict[str, Value]:
    """Return confirmed units and net asset value; those of a conversion's target have fields of their own."""
    if confirmation.code != Code.CONVERSION.confirmation:
        return {"ConfirmedVol": confirmation.volume, "NAV": confirmation.nav}
    return {
        "ConfirmedVol": application.volume if confirmation.is_accepted else 0,
        "CfmVolOfTargetFund": confirmation.volume,
        "TargetNAV": confirmation.nav,
    }


def _own_values(application: Application) -> dict[str, Value]:
    """Return what an application's attributes say, by field."""
    values: dict[str, Value] = {field: str(getattr(application, name)) or None for field, name in _TEXTS.items()}
    values |= {field: int(getattr(application, name)) for field, name in _NUMBERS.items()}
    values |= {"TransactionDate": _digits(application.date, 8), "TransactionTime": f"{application.time:06d}"}
    investor = application.investor
    if investor is not None:
        classes = _PROFESSIONAL_CLASSES if investor.is_professional else _RISK_CLASSES
        values |= {
            "InvestorName": investor.name,
            "CertificateType": investor.certificate_type,
            "CertificateNo": investor.certificate_number,
            "InvestorsBirthday": _digits(investor.birth_date, 8),
            "ClientRiskRate": classes[investor.risk_class],
            "IndividualOrInstitution": "0" if investor.is_institution else "1",
        }
    return values


def _other_values(application: Application) -> dict[str, Value]:
    """Return what an application's ``fields`` say, numbers as such."""
    values: dict[str, Value] = {}
    for name, text in application.fields.items():
        field = FIELDS.get(name)
        if field is None or (field.kind is Kind.NUMBER and not (text.isascii() and text.isdigit())):
            raise LocalError("bad_fund_file", f"application {application.serial}: {name} is no field, or no number")
        values[name] = int(text) if field.kind is Kind.NUMBER else text
    return values


def _investor(record: Record, name: str) -> Investor:
    rate = record.text("ClientRiskRate")
    risk_class = (_PROFESSIONAL_CLASSES if rate in _PROFESSIONAL_CLASSES else _RISK_CLASSES).find(rate or "-")
    if risk_class < 0:
        raise fault(name, record.line, "ClientRiskRate", "0 to 5, or A to F of a professional investor, is expected")
    person = record.text("IndividualOrInstitution")
    if person not in ("0", "1"):
        raise fault(name, record.line, "IndividualOrInstitution", "0 or 1 is expected")
    values: dict[str, object] = {
        "name": record.text("InvestorName"),
        "certificate_type": record.text("CertificateType"),
        "certificate_number": record.text("CertificateNo"),
        "birth_date": _date(record, "InvestorsBirthday", name),
        "risk_class": risk_class,
        "is_institution": person == "0",
        "is_professional": rate in _PROFESSIONAL_CLASSES,
    }
    return _made(Investor, values, record.line, name)


def _made(kind: type[T], values: Mapping[str, object], line: int, name: str) -> T:
    """Return a checked structure of these values; its first bad one names the field of the file."""
    attributes = kind.__struct_fields__  # type: ignore[attr-defined]
    try:
        return msgspec.convert([values[attribute] for attribute in attributes], kind)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        attribute = str(attributes[int(place[1])]) if place else ""
        by_attribute = _FIELD_OF | {attribute: field for field, attribute in _INVESTOR.items()}
        reason = str(error).split(" - at ")[0]
        raise fault(name, line, by_attribute.get(attribute, attribute), reason) from None


def _digits(value: int, width: int) -> str | None:
    """Return a date as its digits; None, which leaves the field blank, of 0."""
    return f"{value:0{width}d}" if value else None


def _date(record: Record, field: str, name: str) -> int:
    """Return a date as YYYYMMDD, 0 where the field is blank."""
    text = record.text(field)
    if not text:
        return 0
    if not is_digits(text, 8) or not _is_date(int(text[:4]), int(text[4:6]), int(text[6:])):
        raise fault(name, record.line, field, f"{text} is no date")
    return int(text)


def _time(record: Record, field: str, name: str) -> int:
    text = record.text(field)
    if not text:
        return 0
    if not is_digits(text, 6) or not (int(text[:2]) < 24 and int(text[2:4]) < 60 and int(text[4:]) < 60):
        raise fault(name, record.line, field, f"{text} is no time of day")
    return int(text)


def _is_date(year: int, month: int, day: int) -> bool:
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    lengths = (31, 29 if is_leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    return year > 0 and 1 <= month <= 12 and 1 <= day <= lengths[month - 1]
