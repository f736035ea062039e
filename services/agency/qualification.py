"""Whether an application may be taken: one rule for both ends. Pure.

The bank's sales end applies it before it sends, with the profile that it has; the issuer end applies it again with its
own. Each returns a reason word of :mod:`services.agency.ofd.codes`, "" where all is well. The first that fails, in this
order, is the reason:

- **Q1** The product is on the chain, and the application goes to its interface (``unknown_product``,
  ``wrong_interface``). A conversion's target is another product of that issuer (``bad_target``).
- **Q2** There are terms in force (``no_terms``), they allow the kind (``kind_forbidden``), and the application was
  judged by them. Terms that changed in flight: one judged by the version just before is taken where that was in force
  at its date and time, which are China's (UTC+8), else it is ``stale_terms``.
- **Q3** The holder is a registered user where the terms ask for it (``unknown_user``) and proven to be somebody where
  they ask for that, or for an age or a class (``identity_missing``).
- **Q4** Who acquires (020, 022, 036) has the age: full years from the date of birth at the application's date, but no
  later than today, so that a date ahead makes nobody older (``minor``). Born on 29 February counts from 1 March in
  other years. An institution has no age.
- **Q5** Who acquires fits the product's risk: class Cn takes R1…Rn. The lowest class inside C1 takes R1 alone, whatever
  else is said (``lowest_class``). A professional investor takes all. Others above their class only after a special
  warning that they confirmed (``risk_mismatch``).
- **Q6** The product is open to who acquires; nobody is kept from leaving (``product_closed``).
- **Q7** Currency and quantities: money for 020 and 022, units for all others, above zero (``wrong_currency``,
  ``amount_missing``); money within the terms' bounds (``amount_too_small``, ``amount_too_large``).

A conversion must be allowed by the terms of both products, and what either asks of the holder (Q3 to Q5) is asked; the
risk (Q5) and Q6 are the target's, everything else goes by the product that is given up.
"""

from collections.abc import Sequence

from consensus.ledger.errors import LocalError
from services.agency.interfaces import ProductTerms, Terms
from services.agency.orders import ACCOUNT_CODES, Application, Code, Investor

KINDS = frozenset(Code)
"""What may be applied for."""

ACQUIRING = frozenset({Code.INITIAL_SUBSCRIPTION, Code.SUBSCRIPTION, Code.CONVERSION})
BY_MONEY = frozenset({Code.INITIAL_SUBSCRIPTION, Code.SUBSCRIPTION})
CURRENCIES = {"CNY": "156", "HKD": "344", "USD": "840", "EUR": "978"}
"""A product may name its currency by letters (ISO 4217); applications have its number."""
UTC_OFFSET_MS = 8 * 3_600_000
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def unqualified(
    application: Application,
    investor: Investor | None,
    product: ProductTerms | None,
    target: ProductTerms | None,
    *,
    today: int,
) -> str:
    """Return why an order may not be taken, "" where it may.

    Args:
        application: of any kind but an account's: for those there are no terms, and the answer is "".
        investor: the holder's profile at who asks; None where the holder is not registered.
        product: the application's, with the terms in force for its bank; None where the chain has none.
        target: of a conversion.
        today: YYYYMMDD.
    """
    if application.code in ACCOUNT_CODES:
        return ""
    if application.code not in KINDS:
        return "not_supported"
    if product is None:
        return "unknown_product"
    if application.interface != product.interface:
        return "wrong_interface"
    is_conversion = application.code == Code.CONVERSION
    if is_conversion and (reason := _bad_target(application, product, target)):
        return reason
    acquired = target if is_conversion and target is not None else product
    terms = product.terms
    if terms is None:
        return "no_terms"
    return (
        _by_terms(application, product, terms)
        or _by_person(application, investor, terms, acquired, today)
        or _by_quantity(application, product, terms, acquired)
    )


def age_on(birth_date: int, date: int) -> int:
    """Return full years from one YYYYMMDD to another; who is born on 29 February counts from 1 March in other years."""
    return date // 10_000 - birth_date // 10_000 - (date % 10_000 < birth_date % 10_000)


def risk_reason(investor: Investor, risk: int, *, is_warned: bool) -> str:
    """Return why a product of this risk (1…5) does not suit the investor (Q5), "" where it does."""
    if investor.risk_class == 0 and risk > 1:
        return "lowest_class"
    if investor.is_professional or risk <= max(investor.risk_class, 1) or is_warned:
        return ""
    return "risk_mismatch"


def is_date(date: int) -> bool:
    """Tell whether YYYYMMDD is a day of the calendar."""
    year, month, day = date // 10_000, date // 100 % 100, date % 100
    if year < 1 or not 1 <= month <= 12:
        return False
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return 1 <= day <= MONTH_DAYS[month - 1] + (month == 2 and is_leap)


def is_proven(investor: Investor, today: int) -> bool:
    """Tell whether a profile says who somebody is: a name, a certificate's number, and a person's date of birth."""
    is_named = bool(investor.name.strip()) and bool(investor.certificate_number.strip("0- "))
    is_born = is_date(investor.birth_date) and investor.birth_date <= today
    return is_named and (investor.is_institution or is_born)


def time_ms(date: int, time: int) -> int:
    """Return an application's date YYYYMMDD and time HHMMSS, in China, as ms UTC.

    Raises:
        LocalError: ``bad_date``.
    """
    hours, minutes, seconds = time // 10_000, time // 100 % 100, time % 100
    if not is_date(date) or hours > 23 or minutes > 59 or seconds > 59:
        raise LocalError("bad_date", f"{date:08d} {time:06d} is no date and time")
    days = _day_number(date) - _day_number(1970_01_01)
    return (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1_000 - UTC_OFFSET_MS


def date_of(time_ms_utc: int) -> int:
    """Return the day in China, YYYYMMDD, that it is at a time in ms UTC."""
    days = (time_ms_utc + UTC_OFFSET_MS) // 86_400_000
    # Days from 1 March of the year 0, whose leap day is a year's last: so no month's length needs a table.
    shifted = days + 719_468
    era, day_of_era = divmod(shifted, 146_097)
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9
    year = year_of_era + era * 400 + (month <= 2)
    return year * 10_000 + month * 100 + day


def judged_by(application: Application, versions: Sequence[Terms]) -> Terms | None:
    """Return the terms among these that an application names, or None."""
    return next((terms for terms in versions if terms.version == application.terms_version), None)


def _day_number(date: int) -> int:
    year, month, day = date // 10_000, date // 100 % 100, date % 100
    year, shifted_month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    return year * 365 + year // 4 - year // 100 + year // 400 + (153 * shifted_month + 2) // 5 + day - 1


def _bad_target(application: Application, product: ProductTerms, target: ProductTerms | None) -> str:
    is_other = application.target_product != application.product
    if target is None or not is_other or target.issuer != product.issuer or _currency(target) != _currency(product):
        return "bad_target"
    if target.terms is None:
        return "no_terms"
    return "" if application.code in target.terms.kinds else "kind_forbidden"


def _by_terms(application: Application, product: ProductTerms, terms: Terms) -> str:
    if application.code not in terms.kinds:
        return "kind_forbidden"
    if application.terms_version == terms.version:
        return ""
    before = product.terms_before
    if before is None or judged_by(application, [before]) is None or application.code not in before.kinds:
        return "stale_terms"
    try:
        moment_ms = time_ms(application.date, application.time)
    except LocalError:
        return "bad_date"
    was_in_force = before.effective_ms <= moment_ms < min(terms.effective_ms, before.expires_ms)
    return "" if was_in_force else "stale_terms"


def _by_person(
    application: Application, investor: Investor | None, terms: Terms, acquired: ProductTerms, today: int
) -> str:
    asked = [terms, acquired.terms or terms]
    is_acquired = application.code in ACQUIRING
    age_min = max(item.age_min for item in asked) if is_acquired else 0
    needs_risk = is_acquired and any(item.needs_risk_match for item in asked)
    needs_identity = age_min > 0 or any(item.needs_identity for item in asked)
    if investor is None:
        if any(item.needs_registration for item in asked):
            return "unknown_user"
        return "identity_missing" if needs_identity or needs_risk else ""
    if needs_identity and not is_proven(investor, today):
        return "identity_missing"
    if age_min and not investor.is_institution:
        if not is_date(application.date):
            return "bad_date"
        if age_on(investor.birth_date, min(application.date, today)) < age_min:
            return "minor"
    return risk_reason(investor, acquired.risk, is_warned=application.is_warned) if needs_risk else ""


def _by_quantity(application: Application, product: ProductTerms, terms: Terms, acquired: ProductTerms) -> str:
    if application.code in ACQUIRING and not acquired.is_open:
        return "product_closed"
    if application.currency != _currency(product):
        return "wrong_currency"
    if application.code not in BY_MONEY:
        return "" if application.volume > 0 else "amount_missing"
    if application.amount == 0:
        return "amount_missing"
    if application.amount < terms.amount_min:
        return "amount_too_small"
    if terms.amount_max and application.amount > terms.amount_max:
        return "amount_too_large"
    return ""


def _currency(product: ProductTerms) -> str:
    return CURRENCIES.get(product.currency, product.currency)
