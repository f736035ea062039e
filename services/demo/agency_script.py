"""What the agency demo sends: a file's orders, their accounts, and people whose orders must end otherwise. Pure.

Everything follows from the file and a seed, serials too: so the same demo on a kept network sends the same again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import msgspec

from consensus.ledger.errors import LocalError
from services.agency.ofd.files import FundFile
from services.agency.ofd.mapping import applications_of
from services.agency.ofd.synthetic import investor_of
from services.agency.orders import Application, Code, Investor
from services.demo.agency_facts import CONFIRMED, DROPPED, REJECTED

ALLOTTED = "ALLOTTED"
INTERFACE, FOREIGN_INTERFACE = "C-FUNDS", "D-FUNDS"
PRODUCT, RISKY, NEW, FOREIGN = "000198", "C00002", "C00003", "D00001"
"""Of issuer-c: R1, R4, and R2 in initial subscription; and one of an issuer without an agreement."""
AMOUNT_MAX = 10_000_000_00
"""What the negotiated terms allow an order of :data:`PRODUCT`, 1/100 CNY."""
KINDS = [Code.SUBSCRIPTION.value, Code.REDEMPTION.value, Code.CONVERSION.value]
CURRENCY = "156"
BOUGHT = 1_000_00
"""What the persons of the story buy for, 1/100 CNY, and as many 1/100 units at a net asset value of 1."""


@dataclass(frozen=True, slots=True)
class Order:
    """An order and how it must end: state and reason word."""

    application: Application
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Script:
    """What is sent, in the order in which it is.

    Args:
        source: where the file is from, for people.
        file: as it was read; ``applications`` are its orders.
        interfaces: product → interface id, for reading it.
        profiles: TA account → investor, for the accounts where the bank has another profile than the issuer.
        accounts: account applications, one for each TA account.
        people: orders of single persons, sent as one window.
        later: what they do with what they got.
    """

    source: str
    file: FundFile
    interfaces: Mapping[str, str]
    applications: Sequence[Application]
    profiles: dict[str, Investor]
    accounts: Sequence[Application]
    people: Sequence[Order]
    later: Sequence[Order]

    @property
    def wanted(self) -> dict[str, tuple[str, str]]:
        """How each order must end: serial → (state, reason)."""
        creator = self.file.header.creator
        own = {
            item.serial: (CONFIRMED, "") if item.distributor == creator else (DROPPED, "foreign_distributor")
            for item in self.applications
        }
        accounts = {item.serial: (CONFIRMED, "") for item in self.accounts}
        return own | accounts | {o.application.serial: (o.state, o.reason) for o in (*self.people, *self.later)}


def make_script(file: FundFile, source: str, *, seed: int) -> Script:
    """Decide what is sent beside a file of orders of :data:`PRODUCT`.

    Raises:
        LocalError: ``bad_fund_file``.
    """
    interfaces = {PRODUCT: INTERFACE, RISKY: INTERFACE, NEW: INTERFACE}
    applications = playable(file)
    first = {item.ta_account: item for item in reversed(applications)}
    profiles = {account: investor_of(seed, account, on=applications[0].date) for account in sorted(first)}
    cast = _cast(applications[0], seed)
    profiles |= {person.account: person.at_issuer for person in cast.values() if person.at_issuer}
    accounts = [
        _account(seed, applications[0], account, first[account].transaction_account if account in first else account)
        for account in profiles
    ]
    accounts = [replace_investor(item, profiles[item.ta_account]) for item in accounts]
    at_bank = {person.account: person.at_bank for person in cast.values() if person.at_bank}
    return Script(
        source=source,
        file=file,
        interfaces=interfaces,
        applications=applications,
        profiles=at_bank,
        accounts=accounts,
        people=_people(applications[0], cast, seed),
        later=_later(applications[0], cast, seed),
    )


def playable(file: FundFile) -> list[Application]:
    """Return a file's orders, which must be subscriptions of :data:`PRODUCT` that nothing speaks against.

    Raises:
        LocalError: ``bad_fund_file``.
    """
    applications = applications_of(file, {PRODUCT: INTERFACE})
    if not applications:
        raise LocalError("bad_fund_file", f"{file.name} holds no order")
    serials = set[str]()
    for item in applications:
        kind = (item.code, item.product, item.currency)
        if kind != (Code.SUBSCRIPTION, PRODUCT, CURRENCY) or not 0 < item.amount <= AMOUNT_MAX or not item.ta_account:
            wanted = f"subscriptions (022) of {PRODUCT} in CNY, each of an account and up to {AMOUNT_MAX // 100:,}"
            raise LocalError("bad_fund_file", f"{file.name}: order {item.serial} cannot be played: wanted are {wanted}")
        if item.serial in serials:
            raise LocalError("bad_fund_file", f"{file.name}: the serial {item.serial} stands twice")
        serials.add(item.serial)
    return applications


def replace_investor(application: Application, investor: Investor) -> Application:
    """Return an account application about somebody."""
    return msgspec.structs.replace(application, investor=investor)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody of the story: TA account, profile at issuer and bank; no profile is nobody's user."""

    account: str
    at_issuer: Investor | None
    at_bank: Investor | None


def _cast(order: Application, seed: int) -> dict[str, Person]:
    base = Investor("holder", "0", "0", 1985_03_01, 3)

    def person(name: str, *, bank: Investor | None = None, **changes: object) -> Person:
        account = f"{name}-{seed}"[:12]
        certificate = f"{int(sha256(account.encode()).hexdigest()[:15], 16) % 10**18:018d}"
        changes = {"name": f"holder {name}", "certificate_number": certificate, **changes}
        profile = msgspec.structs.replace(base, **changes)
        return Person(account, profile, bank and msgspec.structs.replace(bank, certificate_number=certificate))

    minor = (order.date // 10_000 - 17) * 10_000 + 1_01
    return {
        "adult": person("adult"),
        "minor": person("minor", birth_date=minor),
        # The bank has another date of birth of this one: the issuer does not take its word.
        "pretender": person("pretender", birth_date=minor, bank=base),
        "lowest": person("lowest", risk_class=0),
        "cautious": person("cautious", risk_class=2),
        "stranger": Person(f"stranger-{seed}"[:12], None, None),
    }


def _people(order: Application, cast: Mapping[str, Person], seed: int) -> list[Order]:
    make = _Maker(order, seed, "P")
    return [
        make(cast["adult"], "022", PRODUCT, amount=BOUGHT),
        make(cast["adult"], "020", NEW, amount=50 * BOUGHT, state=ALLOTTED),
        make(cast["adult"], "022", RISKY, amount=BOUGHT, is_warned=True),
        make(cast["minor"], "022", PRODUCT, amount=BOUGHT, state=DROPPED, reason="minor"),
        make(cast["pretender"], "022", PRODUCT, amount=BOUGHT, state=REJECTED, reason="minor"),
        make(cast["lowest"], "022", RISKY, amount=BOUGHT, is_warned=True, state=DROPPED, reason="lowest_class"),
        make(cast["cautious"], "022", RISKY, amount=BOUGHT, state=DROPPED, reason="risk_mismatch"),
        make(cast["stranger"], "022", PRODUCT, amount=BOUGHT, state=DROPPED, reason="unknown_user"),
        make(cast["adult"], "026", PRODUCT, volume=BOUGHT, state=DROPPED, reason="kind_forbidden"),
        make(cast["adult"], "022", PRODUCT, amount=AMOUNT_MAX + 1, state=DROPPED, reason="amount_too_large"),
        make(cast["adult"], "022", FOREIGN, amount=BOUGHT, state=DROPPED, reason="unknown_product"),
    ]


def _later(order: Application, cast: Mapping[str, Person], seed: int) -> list[Order]:
    make = _Maker(order, seed, "L")
    adult_ = cast["adult"]
    return [
        make(adult_, "024", PRODUCT, volume=BOUGHT // 4),
        make(adult_, "024", PRODUCT, volume=BOUGHT, state=REJECTED, reason="insufficient_units"),
        make(adult_, "036", PRODUCT, volume=BOUGHT // 4, target=RISKY, is_warned=True),
        make(adult_, "036", PRODUCT, volume=BOUGHT // 4, target=RISKY, state=DROPPED, reason="risk_mismatch"),
    ]


class _Maker:
    """Makes orders like one of the file's, with serials of their own."""

    def __init__(self, order: Application, seed: int, prefix: str) -> None:
        self._order = order
        self._prefix = f"{prefix}{seed}-"
        self._count = 0

    def __call__(
        self,
        person: Person,
        code: str,
        product: str,
        *,
        amount: int = 0,
        volume: int = 0,
        target: str = "",
        is_warned: bool = False,
        state: str = CONFIRMED,
        reason: str = "",
    ) -> Order:
        self._count += 1
        made = msgspec.structs.replace(
            self._order,
            serial=f"{self._prefix}{self._count:04d}",
            code=code,
            interface=FOREIGN_INTERFACE if product == FOREIGN else INTERFACE,
            product=product,
            target_product=target,
            ta_account=person.account,
            transaction_account=person.account[:17],
            amount=amount,
            volume=volume,
            currency=CURRENCY,
            is_warned=is_warned,
            fields={},
        )
        return Order(made, state, reason)


def _account(seed: int, order: Application, account: str, transaction_account: str) -> Application:
    """Return the application that opens an account; its serial is told from the account."""
    return msgspec.structs.replace(
        order,
        serial=f"A{seed}-{sha256(account.encode()).hexdigest()[:16]}",
        code=Code.OPEN_ACCOUNT.value,
        interface=INTERFACE,
        product="",
        ta_account=account,
        transaction_account=transaction_account[:17],
        amount=0,
        currency="",
        fields={},
    )
