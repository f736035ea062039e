"""Applications and confirmations, as bank and issuer exchange them. Pure.

Amounts are in 1/100 of the currency, volumes in 1/100 units, a net asset value in 1/10,000 of the currency a unit, as
in JR/T 0017; dates are YYYYMMDD, times HHMMSS. Orders are keyed by their TA account, since several of these may share a
transaction account. Codes are those of JR/T 0017 and GB/T 39595-2020: a confirmation's is its application's + 100.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from consensus.ledger.codec import Record, RecordCodec

APPLICATION_BYTES_MAX = 8 * 1024
AMOUNT_MAX = 10**16 - 1
"""16 digits, of which two are decimals."""

Text = Annotated[str, msgspec.Meta(max_length=120)]
Serial = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,24}\Z")]
Account = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{0,20}\Z")]
BusinessCode = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{3}\Z")]
Quantity = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX)]
Date = Annotated[int, msgspec.Meta(ge=0, le=99_991_231)]
Time = Annotated[int, msgspec.Meta(ge=0, le=235_959)]


class Code(StrEnum):
    """What an application asks for."""

    OPEN_ACCOUNT = "001"
    CLOSE_ACCOUNT = "002"
    CHANGE_ACCOUNT = "003"
    ADD_TRADING_ACCOUNT = "008"
    INITIAL_SUBSCRIPTION = "020"
    SUBSCRIPTION = "022"
    REDEMPTION = "024"
    CUSTODY_TRANSFER = "026"
    CUSTODY_TRANSFER_IN = "027"
    CUSTODY_TRANSFER_OUT = "028"
    CONVERSION = "036"

    @property
    def confirmation(self) -> str:
        """The code of the confirmation; an initial subscription's 120 acknowledges, and 130 allots later."""
        return f"{int(self.value) + 100:03d}"


ALLOTMENT = "130"
ACCOUNT_CODES = frozenset({Code.OPEN_ACCOUNT, Code.CLOSE_ACCOUNT, Code.CHANGE_ACCOUNT, Code.ADD_TRADING_ACCOUNT})
RETURN_OK = "0000"


class Investor(Record, frozen=True):
    """Whom an account application is about. Never on the chain; between bank and issuer alone.

    ``risk_class`` is 1…5 for C1–C5, 0 for the lowest class inside C1. ``is_professional`` is as the issuer defines it.
    """

    name: Text
    certificate_type: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Z]{1,2}\Z")]
    certificate_number: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]{1,30}\Z")]
    birth_date: Date
    risk_class: Annotated[int, msgspec.Meta(ge=0, le=5)]
    is_institution: bool = False
    is_professional: bool = False


class Application(Record, frozen=True):
    """One application (申请) as the bank sends it.

    Args:
        serial: AppSheetSerialNo, unique at the distributor.
        code: a :class:`Code`.
        interface: the issuer's interface id (接口标识) that it goes to.
        product: fund code; "" of an account application.
        target_product: of a conversion.
        ta_account: TAAccountID, the key of the holder; may be "" when an account is opened, then the issuer gives one.
        transaction_account: TransactionAccountID at the distributor.
        distributor: code of the selling institution; ``target_distributor`` of a custody transfer.
        amount: money applied for, 1/100 of the currency; 0 where ``volume`` says it.
        volume: units applied for, 1/100 units; 0 where ``amount`` says it.
        currency: CurrencyType of the standard, 156 for CNY.
        date: of the application; ``time`` of day.
        terms_version: of the terms that the bank judged it by; 0 of an account application.
        is_warned: the buyer was warned specially of a product above its class and confirmed it.
        investor: of an account application, else None.
        fields: what else a file's record said, by field name, without blanks; never interpreted.
    """

    serial: Serial
    code: BusinessCode
    interface: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,32}\Z")]
    product: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]{0,12}\Z")]
    target_product: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]{0,12}\Z")]
    ta_account: Account
    transaction_account: Account
    distributor: Annotated[str, msgspec.Meta(max_length=9)]
    target_distributor: Annotated[str, msgspec.Meta(max_length=9)]
    amount: Quantity
    volume: Quantity
    currency: Annotated[str, msgspec.Meta(max_length=3)]
    date: Date
    time: Time
    terms_version: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    is_warned: bool
    investor: Investor | None
    fields: Annotated[dict[str, Text], msgspec.Meta(max_length=80)]


class Confirmation(Record, frozen=True):
    """What the issuer confirms (确认) of one application; ``return_code`` other than 0000 rejects it.

    Args:
        serial: of the application.
        code: the application's + 100, or 130 for an allotment.
        ta_serial: TASerialNO, the issuer's own number.
        ta_account: the holder's; of an opened account the one it got.
        return_code: four digits as in the file; ``reason`` is the same as a word, "" when accepted.
        amount: confirmed money in 1/100 of the currency, before the charge on a subscription, after it on a redemption.
        volume: confirmed units, 1/100 units.
        nav: net asset value it was computed with, 1/10,000 of the currency a unit; 0 where none was.
        charge: in 1/100 of the currency.
        date: TransactionCfmDate.
        is_final: no further confirmation of the application follows.
    """

    serial: Serial
    code: BusinessCode
    ta_serial: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]{1,20}\Z")]
    ta_account: Account
    return_code: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Z]{4}\Z")]
    reason: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{0,40}\Z")]
    amount: Quantity
    volume: Quantity
    nav: Quantity
    charge: Quantity
    date: Date
    is_final: bool

    @property
    def is_accepted(self) -> bool:
        """Tell whether the application took effect."""
        return self.return_code == RETURN_OK


class Outcome(Record, frozen=True):
    """An application with its confirmation: the transaction data (第二交易数据) whose salted hash is the leaf."""

    application: Application
    confirmation: Confirmation


application_codec: RecordCodec[Application] = RecordCodec(Application, bytes_max=APPLICATION_BYTES_MAX)
outcome_codec: RecordCodec[Outcome] = RecordCodec(Outcome, bytes_max=2 * APPLICATION_BYTES_MAX)
