"""What the fields of an EMVCo merchant-presented payload are called and may hold: tables, and amounts of currencies.

Source: EMV QR Code Specification for Payment Systems, Merchant-Presented Mode, version 1.1, tables 3.2 to 3.8;
ISO 4217 for currencies. Pure.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from consensus.ledger.errors import LocalError

GUID: Final = "org.hansa.payee"
"""Names our own templates; compared without regard to case, as all of these are."""
AMOUNT_CHARACTERS_MAX = 13


class Form(StrEnum):
    """Which characters a field is made of."""

    DIGITS = "digits"
    PRINTABLE = "printable ASCII characters"
    TEXT = "characters"


@dataclass(frozen=True, slots=True)
class Kind:
    """A standard field: its name, and how many of which characters it has."""

    name: str
    form: Form
    least: int
    most: int

    def fault(self, value: str) -> str:
        """Say why this cannot be such a field's value, or nothing."""
        fits = self.least <= len(value) <= self.most
        if not fits or (self.form is Form.DIGITS and not is_digits(value)) or not _is_printable(self.form, value):
            count = str(self.most) if self.least == self.most else f"{self.least} to {self.most}"
            return f"{self.name} has {count} {self.form}"
        return ""


FIELDS: dict[str, Kind] = {
    "00": Kind("payload format", Form.DIGITS, 2, 2),
    "01": Kind("point of initiation", Form.DIGITS, 2, 2),
    "52": Kind("merchant category", Form.DIGITS, 4, 4),
    "53": Kind("currency", Form.DIGITS, 3, 3),
    "54": Kind("amount", Form.PRINTABLE, 1, AMOUNT_CHARACTERS_MAX),
    "55": Kind("tip or fee", Form.DIGITS, 2, 2),
    "56": Kind("fixed fee", Form.PRINTABLE, 1, AMOUNT_CHARACTERS_MAX),
    "57": Kind("fee in percent", Form.PRINTABLE, 1, 5),
    "58": Kind("country", Form.PRINTABLE, 2, 2),
    "59": Kind("merchant name", Form.PRINTABLE, 1, 25),
    "60": Kind("merchant city", Form.PRINTABLE, 1, 15),
    "61": Kind("postal code", Form.PRINTABLE, 1, 10),
    "62": Kind("additional data", Form.TEXT, 1, 99),
    "63": Kind("CRC", Form.PRINTABLE, 4, 4),
    "64": Kind("local language", Form.TEXT, 1, 99),
}
MANDATORY = ("52", "53", "58", "59", "60")
"""Beside 00, 63 and one merchant account, without which nothing is a payload or a code for anybody."""

ADDITIONAL: dict[str, Kind] = {
    "01": Kind("bill number", Form.PRINTABLE, 1, 25),
    "02": Kind("mobile number", Form.PRINTABLE, 1, 25),
    "03": Kind("store label", Form.PRINTABLE, 1, 25),
    "04": Kind("loyalty number", Form.PRINTABLE, 1, 25),
    "05": Kind("reference label", Form.PRINTABLE, 1, 25),
    "06": Kind("customer label", Form.PRINTABLE, 1, 25),
    "07": Kind("terminal label", Form.PRINTABLE, 1, 25),
    "08": Kind("purpose", Form.PRINTABLE, 1, 25),
    "09": Kind("asked of the payer", Form.PRINTABLE, 1, 3),
    "10": Kind("tax number", Form.PRINTABLE, 1, 20),
    "11": Kind("merchant channel", Form.PRINTABLE, 3, 3),
}
"""Parts of 62; 12–49 are reserved, 50–99 are templates of payment systems."""

LANGUAGE: dict[str, Kind] = {
    "00": Kind("language", Form.PRINTABLE, 2, 2),
    "01": Kind("name in it", Form.TEXT, 1, 25),
    "02": Kind("city in it", Form.TEXT, 1, 15),
}
"""Parts of 64."""

GUID_KIND = Kind("identifier", Form.PRINTABLE, 1, 32)
"""Part 00 of templates 26–51 and 80–99."""

INITIATIONS = {"11": "static: the same code for many payments", "12": "dynamic: for one payment"}
TIPS = {"01": "the payer is asked for a tip", "02": "a fixed fee is added", "03": "a fee in percent is added"}
ENTERED_BY_PAYER = "***"
"""What a part of 62 holds that the payer is asked for."""

_NETWORKS = (
    (range(2, 4), "Visa"),
    (range(4, 6), "Mastercard"),
    (range(9, 11), "Discover"),
    (range(11, 13), "American Express"),
    (range(13, 15), "JCB"),
    (range(15, 17), "UnionPay"),
)
SCHEMES = {
    GUID: "Hansa payee code",
    "a000000677010111": "PromptPay",
    "com.alipay": "Alipay",
    "com.dbs": "DBS",
    "com.grab": "Grab",
    "com.myfave": "Fave",
    "com.qq.weixin.pay": "WeChat Pay",
    "hk.com.hkicl": "FPS",
    "sg.airpay": "AirPay",
    "sg.com.dash.www": "Dash",
    "sg.com.ezlink": "EZ-Link",
    "sg.com.nets": "NETS",
    "sg.com.ocbc": "OCBC",
    "sg.com.uob": "UOB",
    "sg.paynow": "PayNow",
    "sg.sgqr": "SGQR",
}
"""Schemes by the GUID of their template, in lower case."""


def is_digits(text: str) -> bool:
    """Tell whether these are digits 0 to 9 and nothing else; Unicode has others."""
    return text.isascii() and text.isdigit()


def network_of(number: int) -> str:
    """Return the network that a merchant account in 02–25 is of, "" for a number that nobody has."""
    return next((name for numbers, name in _NETWORKS if number in numbers), "")


def scheme_of(guid: str) -> str:
    """Return the scheme that a GUID names, "" for one that is not known here."""
    return SCHEMES.get(guid.lower(), "")


# -- currencies and amounts ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Currency:
    """A currency of ISO 4217; ``decimals`` is how many digits its amounts have behind the point."""

    letters: str
    number: str
    decimals: int


_BY_DECIMALS = {
    0: "BIF108 CLP152 DJF262 GNF324 ISK352 JPY392 KMF174 KRW410 PYG600 RWF646 UGX800 VND704 VUV548 XAF950 XOF952 "
    "XPF953",
    2: "AED784 AMD051 ARS032 AUD036 AZN944 BDT050 BND096 BOB068 BRL986 BYN933 CAD124 CHF756 CNY156 COP170 CRC188 "
    "CZK203 DKK208 DOP214 DZD012 EGP818 ETB230 EUR978 GBP826 GEL981 GHS936 GTQ320 HKD344 HNL340 HUF348 IDR360 ILS376 "
    "INR356 JMD388 KES404 KGS417 KHR116 KZT398 LAK418 LKR144 MAD504 MMK104 MNT496 MOP446 MUR480 MXN484 MYR458 NGN566 "
    "NOK578 NPR524 NZD554 PAB590 PEN604 PHP608 PKR586 PLN985 QAR634 RON946 RSD941 RUB643 SAR682 SEK752 SGD702 THB764 "
    "TJS972 TRY949 TTD780 TWD901 TZS834 UAH980 USD840 UYU858 UZS860 ZAR710",
    3: "BHD048 IQD368 JOD400 KWD414 LYD434 OMR512 TND788",
}
CURRENCIES = tuple(
    Currency(item[:3], item[3:], decimals) for decimals, items in _BY_DECIMALS.items() for item in items.split()
)
_BY_NUMBER = {currency.number: currency for currency in CURRENCIES}
_BY_LETTERS = {currency.letters: currency for currency in CURRENCIES}


def currency_by_number(number: str) -> Currency | None:
    """Return the currency that field 53 names, or None for one that is not in the table."""
    return _BY_NUMBER.get(number)


def currency_by_letters(letters: str) -> Currency:
    """Return the currency of these three capital letters.

    Raises:
        LocalError: ``unknown_currency``.
    """
    if letters not in _BY_LETTERS:
        raise LocalError("unknown_currency", f"no currency that codes can name: {letters[:8]!r}")
    return _BY_LETTERS[letters]


def amount_text(amount: int, currency: Currency) -> str:
    """Spell an amount, in 1/100 of the currency, as field 54 has it: ``12.50``, or ``1250`` where it has no decimals.

    Raises:
        LocalError: ``bad_amount`` for one that is not positive, has more digits than the currency or no room.
    """
    unit = 10 ** max(2 - currency.decimals, 0)
    if amount <= 0 or amount % unit:
        raise LocalError("bad_amount", f"{currency.letters} has no such amount: {amount} hundredths")
    whole, hundredths = divmod(amount, 100)
    text = f"{whole}.{hundredths:02d}{'0' * (currency.decimals - 2)}" if currency.decimals else str(whole)
    if len(text) > AMOUNT_CHARACTERS_MAX:
        raise LocalError("bad_amount", f"a code has room for {AMOUNT_CHARACTERS_MAX} characters of amount")
    return text


def amount_of(text: str, currency: Currency) -> int | None:
    """Return what field 54 says, in 1/100 of the currency; exact, and None where these are no such amount.

    Digits, then at most a point and as many digits as the currency has decimals; never zero.
    """
    whole, point, fraction = text.partition(".")
    if not is_digits(whole) or len(text) > AMOUNT_CHARACTERS_MAX or (fraction and not is_digits(fraction)):
        return None
    if (point and not currency.decimals) or len(fraction) > currency.decimals or fraction[2:].strip("0"):
        return None
    return int(whole) * 100 + int(fraction[:2].ljust(2, "0")) or None


def _is_printable(form: Form, value: str) -> bool:
    return form is Form.TEXT or all(" " <= character <= "~" for character in value)
