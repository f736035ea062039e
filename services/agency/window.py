"""A time window of orders: what of it is sent, and why the rest is not. Pure.

Rules, the first that fails is the reason:

- **W1** An order of another distributor than the file's creator, or than the bank, is ``foreign_distributor``. Its
  serial counts among that distributor's alone, so it takes none of ours away.
- **W2** A serial that the bank has taken before, or that stands twice in the window, is ``duplicate_serial``.
- **W3** An account application says whom it is about, else ``identity_missing``; the issuer judges the rest.
- **W4** Everything else by :func:`services.agency.qualification.unqualified`, with the terms in force, whose version
  the order then carries, and the profile that the bank has of the issuer's user.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from services.agency.interfaces import ProductTerms
from services.agency.orders import ACCOUNT_CODES, Application, Investor
from services.agency.qualification import unqualified

FOREIGN = "foreign_distributor"
DUPLICATE = "duplicate_serial"

Products = Mapping[str, ProductTerms | None]
FindProfile = Callable[[str, str], Investor | None]
"""TA account and issuer → profile."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An order in the window, and what its source says of who wrote it."""

    application: Application
    creator: str


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """Why an order is not sent, "" where it is, then with the version of the terms that it was judged by."""

    reason: str
    terms_version: int


def judge(
    entries: Sequence[Entry],
    *,
    products: Products,
    find_profile: FindProfile,
    is_known: Callable[[str], bool],
    distributor: str,
    today: int,
) -> list[Verdict]:
    """Return the verdict on each order of a window, in its place.

    Args:
        entries: the window.
        products: every product that :func:`products_of` names; None for one that the chain does not have.
        find_profile: the bank's profiles.
        is_known: whether a serial was taken before this window.
        distributor: the bank's own code, "" where it has none.
        today: YYYYMMDD.
    """
    seen = set[str]()
    verdicts: list[Verdict] = []
    for entry in entries:
        application = entry.application
        if any(code and application.distributor != code for code in (entry.creator, distributor)):
            verdicts.append(Verdict(FOREIGN, 0))
            continue
        if application.serial in seen or is_known(application.serial):
            verdicts.append(Verdict(DUPLICATE, 0))
            continue
        seen.add(application.serial)
        verdicts.append(_judge_one(application, products, find_profile, today))
    return verdicts


def products_of(applications: Sequence[Application]) -> list[str]:
    """Return the products whose terms a window needs, each once."""
    wanted = dict.fromkeys(item.product for item in applications)
    wanted |= dict.fromkeys(item.target_product for item in applications)
    return [product for product in wanted if product]


def _judge_one(application: Application, products: Products, find_profile: FindProfile, today: int) -> Verdict:
    if application.code in ACCOUNT_CODES:
        return Verdict("" if application.investor is not None else "identity_missing", 0)
    product = products.get(application.product)
    target = products.get(application.target_product)
    if product is None or product.terms is None:
        return Verdict(unqualified(application, None, product, target, today=today), 0)
    version = product.terms.version
    profile = find_profile(application.ta_account, product.issuer)
    judged = msgspec.structs.replace(application, terms_version=version)
    return Verdict(unqualified(judged, profile, product, target, today=today), version)
