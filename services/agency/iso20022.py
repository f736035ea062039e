"""An order and its confirmation as ISO 20022 messages for investment funds. Pure.

======================  =====================  ==============================================
what                    message                root element
======================  =====================  ==============================================
020, 022 application    setr.010.001.04        ``SbcptOrdr``     SubscriptionOrderV04
130, 122 confirmation   setr.012.001.05        ``SbcptOrdrConf`` SubscriptionOrderConfirmationV05
024 application         setr.004.001.04        ``RedOrdr``       RedemptionOrderV04
124 confirmation        setr.006.001.05        ``RedOrdrConf``   RedemptionOrderConfirmationV05
======================  =====================  ==============================================

Elements stand in the order of the message definitions, mandatory ones all, of the optional ones those that an order
says. References reconcile: ``OrdrRef`` is the application's serial in both, ``DealRef`` the issuer's own serial. An
amount before the charge is gross, after it net. A rejection, or an initial subscription that only was acknowledged,
executes nothing and so has no confirmation here; neither have account applications, conversions and transfers.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from consensus.ledger.errors import LocalError
from services.agency.orders import ALLOTMENT, Application, Code, Confirmation

NAMESPACE: Final = "urn:iso:std:iso:20022:tech:xsd:"
SUBSCRIPTION_ORDER: Final = "setr.010.001.04"
SUBSCRIPTION_CONFIRMATION: Final = "setr.012.001.05"
REDEMPTION_ORDER: Final = "setr.004.001.04"
REDEMPTION_CONFIRMATION: Final = "setr.006.001.05"
REFERENCE_CHARACTERS_MAX: Final = 35

_SUBSCRIPTIONS = frozenset({Code.INITIAL_SUBSCRIPTION, Code.SUBSCRIPTION})
_CURRENCIES: Final = {"156": "CNY", "344": "HKD", "840": "USD", "978": "EUR", "826": "GBP"}
"""ISO 4217 numeric codes, as CurrencyType has them, of currencies with two decimals."""
_OFFSET = "+08:00"
"""Dates and times of applications are Chinese ones."""


def messages_of(
    application: Application, confirmations: Iterable[Confirmation], *, created_ms: int
) -> dict[str, bytes]:
    """Return the order and each confirmation that executed something, as messages by file name.

    An order's message has the application's serial as its id, a confirmation's the issuer's serial.

    Raises:
        LocalError: ``no_iso_message``.
    """
    order_id = application.serial
    order = order_message(application, message_id=order_id, created_ms=created_ms)
    is_subscription = _is_subscription(application)
    kind = SUBSCRIPTION_ORDER if is_subscription else REDEMPTION_ORDER
    messages = {f"{kind}-{order_id}.xml": order}
    kind = SUBSCRIPTION_CONFIRMATION if is_subscription else REDEMPTION_CONFIRMATION
    for confirmation in confirmations:
        if has_executed(confirmation):
            own_id = confirmation.ta_serial
            messages[f"{kind}-{own_id}.xml"] = confirmation_message(
                application, confirmation, message_id=own_id, order_message_id=order_id, created_ms=created_ms
            )
    return messages


def has_executed(confirmation: Confirmation) -> bool:
    """Tell whether a confirmation executed something: a rejection and an acknowledgement (120) did not."""
    is_acknowledgement = confirmation.code == Code.INITIAL_SUBSCRIPTION.confirmation
    return confirmation.is_accepted and not is_acknowledgement and confirmation.nav > 0


def order_message(application: Application, *, message_id: str, created_ms: int) -> bytes:
    """Return setr.010 or setr.004 of an application, UTF-8 with an XML declaration.

    Args:
        application: a subscription or redemption.
        message_id: of the sender, 1 to 35 characters, unique at it.
        created_ms: when the message is made, ms since 1970 UTC.

    Raises:
        LocalError: ``no_iso_message`` for another kind, an unknown currency, or text that XML cannot hold.
    """
    if _is_subscription(application):
        document, root = _document(SUBSCRIPTION_ORDER, "SbcptOrdr")
        quantity = "AmtOrUnits"
    else:
        document, root = _document(REDEMPTION_ORDER, "RedOrdr")
        quantity = "AmtOrUnitsOrPctg"
    _message_id(root, message_id, created_ms)
    orders = ET.SubElement(root, "MltplOrdrDtls")
    _text(orders, "OrdrDtTm", _moment(application.date, application.time))
    _account(orders, application)
    order = ET.SubElement(orders, "IndvOrdrDtls")
    _text(order, "OrdrRef", application.serial)
    _instrument(order, application.product)
    amount = ET.SubElement(order, quantity)
    if application.volume:
        _text(amount, "UnitsNb", _decimal(application.volume, 2))
    else:
        _money(amount, "GrssAmt", application.amount, application)
    _text(order, "PhysDlvryInd", "false")
    _distributor(order, application)
    return _bytes(document)


def confirmation_message(
    application: Application,
    confirmation: Confirmation,
    *,
    message_id: str,
    order_message_id: str,
    created_ms: int,
) -> bytes:
    """Return setr.012 or setr.006 of a confirmation that executed something.

    Args:
        application: that it confirms.
        confirmation: accepted, with the net asset value that it was computed with.
        message_id: of the issuer, 1 to 35 characters; ``order_message_id`` that of the order's message.
        order_message_id: the message that it answers.
        created_ms: when the message is made, ms since 1970 UTC.

    Raises:
        LocalError: ``no_iso_message`` as above, and for what executed nothing.
    """
    is_subscription = _is_subscription(application)
    if not has_executed(confirmation):
        raise LocalError("no_iso_message", f"order {application.serial}: nothing was executed")
    if is_subscription:
        document, root = _document(SUBSCRIPTION_CONFIRMATION, "SbcptOrdrConf")
        gross, net = confirmation.amount, confirmation.amount - confirmation.charge
    else:
        document, root = _document(REDEMPTION_CONFIRMATION, "RedOrdrConf")
        gross, net = confirmation.amount + confirmation.charge, confirmation.amount
    if net < 0:
        raise LocalError("no_iso_message", f"order {application.serial}: the charge is more than the amount")
    _message_id(root, message_id, created_ms)
    _text(ET.SubElement(root, "RltdRef"), "Ref", order_message_id)
    executions = ET.SubElement(root, "MltplExctnDtls")
    _text(executions, "OrdrDtTm", _moment(application.date, application.time))
    _account(executions, application, confirmation.ta_account)
    execution = ET.SubElement(executions, "IndvExctnDtls")
    _text(execution, "OrdrRef", application.serial)
    _text(execution, "DealRef", confirmation.ta_serial)
    _instrument(execution, application.product)
    _text(execution, "UnitsNb", _decimal(confirmation.volume, 2))
    _money(execution, "NetAmt", net, application)
    _money(execution, "GrssAmt", gross, application)
    _text(ET.SubElement(execution, "TradDtTm"), "Dt", _day(confirmation.date))
    price = ET.SubElement(execution, "DealgPricDtls")
    _text(ET.SubElement(price, "Tp"), "Cd", "NAVL")
    _money(ET.SubElement(price, "Val"), "Amt", confirmation.nav, application, decimals=4)
    _money(execution, "SttlmAmt", confirmation.amount, application)
    _text(execution, "PrtlyExctdInd", "true" if _is_partly(application, confirmation) else "false")
    _text(execution, "CumDvddInd", "false")
    _money(ET.SubElement(execution, "TxOvrhd"), "TtlFees", confirmation.charge, application)
    _text(execution, "PhysDlvryInd", "false")
    _distributor(execution, application)
    return _bytes(document)


def _is_subscription(application: Application) -> bool:
    if application.code in _SUBSCRIPTIONS:
        return True
    if application.code == Code.REDEMPTION:
        return False
    raise LocalError("no_iso_message", f"order {application.serial}: {application.code} has no message here")


def _is_partly(application: Application, confirmation: Confirmation) -> bool:
    """Tell whether less was executed than was applied for; an allotment can give less."""
    if application.code == Code.REDEMPTION:
        return confirmation.volume < application.volume
    return confirmation.code == ALLOTMENT and confirmation.amount < application.amount


def _document(message: str, name: str) -> tuple[ET.Element, ET.Element]:
    document = ET.Element("Document", xmlns=NAMESPACE + message)
    return document, ET.SubElement(document, name)


def _text(parent: ET.Element, name: str, text: str) -> None:
    """Append an element with text that XML 1.0 can hold and a reader gives back as it was."""
    if not all(_is_character(character) for character in text):
        raise LocalError("no_iso_message", f"{name}: a character that XML cannot hold")
    ET.SubElement(parent, name).text = text


def _is_character(character: str) -> bool:
    code = ord(character)
    return 0x20 <= code < 0xD800 or 0xE000 <= code < 0xFFFE or code >= 0x1_0000


def _message_id(root: ET.Element, message_id: str, created_ms: int) -> None:
    if not 1 <= len(message_id) <= REFERENCE_CHARACTERS_MAX:
        raise LocalError("no_iso_message", f"message id {message_id!r}: 1 to {REFERENCE_CHARACTERS_MAX} characters")
    parent = ET.SubElement(root, "MsgId")
    _text(parent, "Id", message_id)
    seconds, ms = divmod(created_ms, 1000)
    _text(parent, "CreDtTm", f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ms:03d}Z")


def _account(parent: ET.Element, application: Application, ta_account: str = "") -> None:
    """Append the holder's account; several TA accounts may share the transaction account, a sub-account here."""
    account = ET.SubElement(parent, "InvstmtAcctDtls")
    main = ta_account or application.ta_account or application.transaction_account
    if not main:
        raise LocalError("no_iso_message", f"order {application.serial}: no account")
    _text(account, "AcctId", main)
    if application.transaction_account:
        _text(ET.SubElement(account, "SubAcctDtls"), "Id", application.transaction_account)


def _instrument(parent: ET.Element, product: str) -> None:
    """Append the fund by its code, which is a Chinese domestic one."""
    if not product:
        raise LocalError("no_iso_message", "no product")
    other = ET.SubElement(ET.SubElement(ET.SubElement(parent, "FinInstrmDtls"), "Id"), "OthrPrtryId")
    _text(other, "Id", product)
    _text(ET.SubElement(other, "IdSrc"), "Dmst", "CN")


def _distributor(parent: ET.Element, application: Application) -> None:
    if application.distributor:
        party = ET.SubElement(parent, "RltdPtyDtls")
        identity = ET.SubElement(ET.SubElement(ET.SubElement(party, "Id"), "Pty"), "PrtryId")
        _text(identity, "Id", application.distributor)
        _text(ET.SubElement(party, "Role"), "Cd", "DIST")


def _money(parent: ET.Element, name: str, value: int, application: Application, *, decimals: int = 2) -> None:
    currency = _CURRENCIES.get(application.currency)
    if currency is None:
        raise LocalError("no_iso_message", f"order {application.serial}: currency {application.currency or 'missing'}")
    ET.SubElement(parent, name, Ccy=currency).text = _decimal(value, decimals)


def _decimal(value: int, decimals: int) -> str:
    digits = f"{value:0{decimals + 1}d}"
    return f"{digits[:-decimals]}.{digits[-decimals:]}"


def _day(date: int) -> str:
    return f"{date // 10_000:04d}-{date // 100 % 100:02d}-{date % 100:02d}"


def _moment(date: int, time: int) -> str:
    return f"{_day(date)}T{time // 10_000:02d}:{time // 100 % 100:02d}:{time % 100:02d}{_OFFSET}"


def _bytes(document: ET.Element) -> bytes:
    ET.indent(document)
    text = ET.tostring(document, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'.encode()
