"""What a service party agrees to: the terms for what a payer wishes, signed and kept before they are given. Pure."""

from consensus.ledger.errors import HansaError
from consensus.ledger.streams import Mode, Terms, terms_fault
from services.client.errors import Refused
from services.stream.service_config import StreamServiceFile
from services.stream.service_interface import OfferWanted, Tariff, bytes_of_hex

MODES = {"service-first": Mode.SERVICE_FIRST, "payment-first": Mode.PAYMENT_FIRST}


def tariff(file: StreamServiceFile) -> Tariff:
    """Return what the service party agrees to, as it is shown."""
    return Tariff(
        unit=file.unit,
        what=file.what,
        price=file.price,
        step_max=file.step_max,
        deposit_min=file.deposit_min,
        deposit_max=file.deposit_max,
        fine_min=file.fine_min,
        credit_max=file.credit_max,
        modes=list(file.modes),
        window_ms=file.window_ms,
        validity_ms=file.validity_ms,
        margin_ms=file.margin_ms,
        step_ms=file.step_ms,
    )


def terms_for(file: StreamServiceFile, service: bytes, wanted: OfferWanted, now_ms: int) -> Terms:
    """Return the terms for a payer's wishes.

    Raises:
        Refused: ``bad_offer`` with what would be taken.
    """
    payer = bytes_of_hex(wanted.payer)
    if not file.deposit_min <= wanted.deposit <= file.deposit_max:
        raise _bad(f"a deposit is {file.deposit_min} to {file.deposit_max} {file.unit}")
    if wanted.fine < file.fine_min:
        raise _bad(f"the fine is {file.fine_min} {file.unit} at the least")
    if wanted.credit > file.credit_max:
        raise _bad(f"the credit is {file.credit_max} {file.unit} at the most")
    if wanted.fine + file.price > wanted.deposit:
        raise _bad(f"the deposit pays the fine and one {file.what} at the least: {wanted.fine + file.price}")
    if wanted.mode not in file.modes:
        raise _bad(f"it is {' or '.join(file.modes)}")
    if 0 < wanted.amount_max < file.price:
        raise _bad(f"the agreed amount pays one {file.what} at the least: {file.price} {file.unit}")
    terms = Terms(
        payer=payer,
        service=service,
        number=wanted.number,
        what=file.what,
        unit=file.unit,
        deposit=wanted.deposit,
        fine=wanted.fine,
        price=file.price,
        step_max=file.step_max,
        credit=wanted.credit,
        mode=int(MODES[wanted.mode]),
        count_max=wanted.count_max,
        amount_max=wanted.amount_max,
        duration_ms_max=wanted.duration_ms_max,
        window_ms=file.window_ms,
        validity_ms=file.validity_ms,
        margin_ms=file.margin_ms,
        step_ms=file.step_ms,
        offer_until_ms=now_ms + file.offer_ms,
    )
    if fault := terms_fault(terms):
        raise _bad(fault)
    return terms


def _bad(message: str) -> HansaError:
    return Refused("bad_offer", message)
