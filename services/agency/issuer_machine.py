"""What the issuer end decides: from a package to its confirmations and the changes of the books. Pure.

The same books, package, products and day make the same confirmations, byte for byte. Rules:

- **I1** An application that was answered before is answered the same, and nothing is booked again; another one with
  its serial at its distributor is rejected, ``duplicate_serial``. A serial counts within a bank.
- **I2** A distributor's code belongs to the bank that first registered a user with it; nobody else trades, registers
  or learns anything under it (``foreign_distributor``).
- **I3** An order's holder is registered at its distributor by its bank: else ``unknown_user`` where the bank has
  registered no such user, ``unknown_account`` where it has at another distributor, ``account_closed`` for a closed one.
- **I4** Every order is judged again by :func:`services.agency.qualification.unqualified`.
- **I5** Units stand in custody of a distributor. 022 adds, 024 takes, 036 takes of one product and adds to another;
  026 moves to another distributor of the same holder, 028 lets go towards it and 027 takes what is on its way.
- **I6** 020 is acknowledged (120, not final) until its product is allotted: 130 in the answer of round 1, which comes
  when every product that its package has waiting is allotted. Afterwards no 020 of the product is taken.
- **I7** 001 opens an account under the number applied for, or under one that the issuer makes; 002 closes one that
  nothing keeps in use and no other distributor has; 003 replaces the profile; 008 adds a distributor's accounts for
  somebody who shows the certificate of the account.

A confirmed conversion has the money that passed, the target's NAV and the units of the target.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import assert_never

from consensus.ledger.errors import InvariantError
from services.agency.holdings import (
    REGISTRATIONS_MAX,
    TRANSACTION_ACCOUNTS_MAX,
    AtDistributor,
    Books,
    NumbersEntry,
    TakenEntry,
    UserEntry,
)
from services.agency.interfaces import ProductTerms
from services.agency.ofd.codes import return_code
from services.agency.orders import (
    ACCOUNT_CODES,
    ALLOTMENT,
    AMOUNT_MAX,
    RETURN_OK,
    Application,
    Code,
    Confirmation,
    Investor,
    application_codec,
)
from services.agency.packages import Package
from services.agency.qualification import KINDS, is_proven, unqualified
from services.agency.units import BASIS_POINTS, PAR_NAV, buy, convert, sell

MADE_ACCOUNT = "98"
"""What the accounts that the issuer makes begin with; ten digits follow."""

Products = Mapping[str, ProductTerms | None]


@dataclass(frozen=True, slots=True)
class Booked:
    """What an accepted application comes to; see :class:`services.agency.orders.Confirmation`."""

    amount: int = 0
    volume: int = 0
    nav: int = 0
    charge: int = 0
    ta_account: str = ""


Decision = Booked | str
"""What was booked, or the reason word of the rejection."""


@dataclass(slots=True)
class _Tally:
    """Numbers that a package uses up; they go into the books once."""

    numbers: NumbersEntry
    packages: int = 0
    confirmations: int = 0
    made_accounts: int = 0
    users: int = 0
    accepted: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def total(self) -> NumbersEntry:
        """Return the counts with what was used up."""
        reasons = dict(self.numbers.reasons)
        for reason, count in self.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
        return NumbersEntry(
            self.numbers.packages + self.packages,
            self.numbers.confirmations + self.confirmations,
            self.numbers.made_accounts + self.made_accounts,
            self.numbers.users + self.users,
            self.numbers.accepted + self.accepted,
            self.numbers.rejected + sum(self.reasons.values()),
            dict(sorted(reasons.items())),
        )


class Desk:
    """One package, or one allotment, at the issuer end: decides and books into ``books``."""

    def __init__(self, books: Books, bank: str, products: Products, *, today: int) -> None:
        """Take the books, the bank whose package it is, its products by code as they stand, and the day YYYYMMDD."""
        self._books = books
        self._bank = bank
        self._products = products
        self._today = today
        self._tally = _Tally(books.numbers())

    def confirm(self, package: Package) -> list[Confirmation]:
        """Return the confirmations of round 0, one for each application in its place, and book them."""
        self._tally.packages += 1
        confirmations = [self._confirm(application) for application in package.applications]
        self._books.put_numbers(self._tally.total())
        return confirmations

    def allot(self, package: Package, places: Iterable[int]) -> list[Confirmation]:
        """Return the confirmations of round 1 for the applications at ``places``, and book them."""
        confirmations = [self._allot(package.applications[place]) for place in places]
        self._books.put_numbers(self._tally.total())
        return confirmations

    def _confirm(self, application: Application) -> Confirmation:
        digest = digest_of(application)
        taken = self._books.taken(self._bank, application.distributor, application.serial)
        if taken is not None:
            if taken.digest == digest:
                return taken.confirmation
            return self._confirmation(application, "duplicate_serial")
        decision = self._decide(application)
        is_open = application.code == Code.INITIAL_SUBSCRIPTION and isinstance(decision, Booked)
        confirmation = self._confirmation(application, decision, is_final=not is_open)
        # A foreign distributor's serial is nobody's, so that none is taken away from whom the code belongs to later.
        if decision != "foreign_distributor":
            self._take(application, digest, confirmation)
        return confirmation

    def _allot(self, application: Application) -> Confirmation:
        taken = self._books.taken(self._bank, application.distributor, application.serial)
        if taken is None:
            raise InvariantError("an initial subscription is allotted that was never acknowledged")
        if taken.confirmation.is_final:
            return taken.confirmation
        decision = self._allotted(application)
        confirmation = self._confirmation(application, decision, code=ALLOTMENT)
        self._take(application, taken.digest, confirmation)
        return confirmation

    def _take(self, application: Application, digest: bytes, confirmation: Confirmation) -> None:
        self._books.put_taken(TakenEntry(self._bank, application.distributor, application.serial, digest, confirmation))

    def _confirmation(
        self, application: Application, decision: Decision, *, code: str = "", is_final: bool = True
    ) -> Confirmation:
        booked, reason = (decision, "") if isinstance(decision, Booked) else (Booked(), decision)
        self._tally.confirmations += 1
        if reason:
            self._tally.reasons[reason] = self._tally.reasons.get(reason, 0) + 1
        elif is_final:
            self._tally.accepted += 1
        number = self._tally.numbers.confirmations + self._tally.confirmations
        return Confirmation(
            serial=application.serial,
            code=code or f"{int(application.code) + 100:03d}"[-3:],
            ta_serial=f"{self._today:08d}{number:012d}",
            ta_account=booked.ta_account or application.ta_account,
            return_code=return_code(reason) if reason else RETURN_OK,
            reason=reason,
            amount=booked.amount,
            volume=booked.volume,
            nav=booked.nav,
            charge=booked.charge,
            date=self._today,
            is_final=is_final,
        )

    def _decide(self, application: Application) -> Decision:
        speaker = self._books.speaker(application.distributor)
        is_account = application.code in ACCOUNT_CODES
        if not application.distributor.strip() or (speaker != self._bank and (speaker or not is_account)):
            return "foreign_distributor"
        if application.code not in KINDS:
            return "not_supported"
        code = Code(application.code)
        return self._account(application, code) if is_account else self._order(application, code)

    def _account(self, application: Application, code: Code) -> Decision:
        investor = application.investor
        if code is not Code.CLOSE_ACCOUNT and (investor is None or not is_proven(investor, self._today)):
            return "identity_missing"
        user = self._books.user(application.ta_account) if application.ta_account else None
        match code:
            case Code.OPEN_ACCOUNT:
                return self._open(application)
            case Code.ADD_TRADING_ACCOUNT:
                return self._join(application, user)
            case _:
                pass
        if user is None or (own := user.at(application.distributor)) is None or own.bank != self._bank:
            return "unknown_account"
        if not user.is_open:
            return "account_closed"
        if code is Code.CHANGE_ACCOUNT and investor is not None:
            self._books.put_user(UserEntry(user.ta_account, investor, True, user.registrations, user.in_use))
            return Booked(ta_account=user.ta_account)
        if user.in_use or len(user.registrations) > 1:
            return "account_in_use"
        self._books.put_user(UserEntry(user.ta_account, user.investor, False, user.registrations, 0))
        self._tally.users -= 1
        return Booked(ta_account=user.ta_account)

    def _open(self, application: Application) -> Decision:
        investor = application.investor
        if investor is None:
            raise InvariantError("an account is opened for nobody")
        ta_account = application.ta_account
        if not ta_account:
            if self._books.made_account(investor):
                return "account_exists"
            ta_account = _free_account(self._books, self._tally)
            self._books.put_made_account(investor, ta_account)
        elif self._books.user(ta_account) is not None:
            return "account_exists"
        registration = AtDistributor(application.distributor, self._bank, [application.transaction_account])
        self._books.put_user(UserEntry(ta_account, investor, True, [registration], 0))
        self._claim(application.distributor)
        self._tally.users += 1
        return Booked(ta_account=ta_account)

    def _join(self, application: Application, user: UserEntry | None) -> Decision:
        """Add an account at a distributor; who does not show the certificate learns nothing of the account."""
        investor = application.investor
        if user is None or investor is None or _person(investor) != _person(user.investor):
            return "unknown_account"
        if not user.is_open:
            return "account_closed"
        own = user.at(application.distributor)
        accounts = own.transaction_accounts if own else []
        if application.transaction_account in accounts:
            return "account_exists"
        if len(accounts) >= TRANSACTION_ACCOUNTS_MAX or (not own and len(user.registrations) >= REGISTRATIONS_MAX):
            return "not_supported"
        registration = AtDistributor(application.distributor, self._bank, [*accounts, application.transaction_account])
        others = [item for item in user.registrations if item.distributor != application.distributor]
        self._books.put_user(UserEntry(user.ta_account, user.investor, True, [*others, registration], user.in_use))
        self._claim(application.distributor)
        return Booked(ta_account=user.ta_account)

    def _claim(self, distributor: str) -> None:
        if not self._books.speaker(distributor):
            self._books.put_speaker(distributor, self._bank)

    def _order(self, application: Application, code: Code) -> Decision:
        user = self._books.user(application.ta_account)
        if user is not None and not any(item.bank == self._bank for item in user.registrations):
            user = None
        if user is not None and not user.is_open:
            return "account_closed"
        product = self._products.get(application.product)
        target = self._products.get(application.target_product) if code is Code.CONVERSION else None
        reason = unqualified(application, user.investor if user else None, product, target, today=self._today)
        if reason:
            return reason
        if user is None or product is None:
            return "unknown_user"
        if user.at(application.distributor) is None:
            return "unknown_account"
        match code:
            case Code.INITIAL_SUBSCRIPTION:
                return self._acknowledge(application, user)
            case Code.SUBSCRIPTION:
                return self._buy(application, user, product, application.amount, product.nav)
            case Code.REDEMPTION:
                return self._sell(application, user, product)
            case Code.CONVERSION:
                return self._convert(application, user, product, target)
            case Code.CUSTODY_TRANSFER | Code.CUSTODY_TRANSFER_OUT | Code.CUSTODY_TRANSFER_IN:
                return self._transfer(application, user, code)
            case Code.OPEN_ACCOUNT | Code.CLOSE_ACCOUNT | Code.CHANGE_ACCOUNT | Code.ADD_TRADING_ACCOUNT:
                raise InvariantError("an account application is no order")
            case _:
                assert_never(code)

    def _acknowledge(self, application: Application, user: UserEntry) -> Decision:
        if self._books.ratio(application.product) is not None:
            return "product_closed"
        self._books.use(user, 1)
        return Booked(amount=application.amount)

    def _allotted(self, application: Application) -> Decision:
        user = self._books.user(application.ta_account)
        ratio = self._books.ratio(application.product)
        if user is None or not user.is_open or ratio is None:
            raise InvariantError("what waits for an allotment keeps its account open and has a ratio")
        user = self._books.use(user, -1)
        product = self._products.get(application.product)
        if product is None:
            return "unknown_product"
        return self._buy(application, user, product, application.amount * ratio // BASIS_POINTS, product.nav or PAR_NAV)

    def _buy(self, application: Application, user: UserEntry, product: ProductTerms, money: int, nav: int) -> Decision:
        if nav < 1:
            return "no_price"
        bought = buy(money, nav=nav, charge_basis_points=product.charge_basis_points)
        if bought.units == 0:
            return "amount_too_small"
        return self._credit(application, user, product.product, bought.units) or Booked(
            money, bought.units, nav, bought.charge
        )

    def _credit(self, application: Application, user: UserEntry, product: str, units: int) -> str:
        if not self._books.has_room(user.ta_account, product, application.distributor, units):
            return "amount_too_large"
        self._books.move(user, product, application.distributor, units)
        self._books.count(product, units_in=units)
        return ""

    def _sell(self, application: Application, user: UserEntry, product: ProductTerms) -> Decision:
        if product.nav < 1:
            return "no_price"
        if application.volume > self._books.units(user.ta_account, product.product, application.distributor):
            return "insufficient_units"
        sold = sell(application.volume, nav=product.nav, charge_basis_points=product.charge_basis_points)
        if sold.money == 0:
            return "amount_too_small"
        if sold.money + sold.charge > AMOUNT_MAX:
            return "amount_too_large"
        self._books.move(user, product.product, application.distributor, -sold.units)
        self._books.count(product.product, units_out=sold.units)
        return Booked(sold.money, sold.units, product.nav, sold.charge)

    def _convert(
        self, application: Application, user: UserEntry, product: ProductTerms, target: ProductTerms | None
    ) -> Decision:
        if target is None or product.nav < 1 or target.nav < 1:
            return "no_price"
        if application.volume > self._books.units(user.ta_account, product.product, application.distributor):
            return "insufficient_units"
        converted = convert(
            application.volume,
            nav_out=product.nav,
            nav_in=target.nav,
            charge_basis_points=target.charge_basis_points,
        )
        if converted.units_in == 0:
            return "amount_too_small"
        if converted.money > AMOUNT_MAX:
            return "amount_too_large"
        if reason := self._credit(application, user, target.product, converted.units_in):
            return reason
        user = self._books.user(user.ta_account) or user
        self._books.move(user, product.product, application.distributor, -converted.units_out)
        self._books.count(product.product, units_out=converted.units_out)
        return Booked(converted.money, converted.units_in, target.nav, converted.charge)

    def _transfer(self, application: Application, user: UserEntry, code: Code) -> Decision:
        """Move units between distributors of one holder: at once (026), on their way (028), or from there (027)."""
        here, there, units = application.distributor, application.target_distributor, application.volume
        if here == there or user.at(there) is None:
            return "bad_target"
        product = application.product
        match code:
            case Code.CUSTODY_TRANSFER:
                source, destination = (here, ""), (there, "")
            case Code.CUSTODY_TRANSFER_OUT:
                source, destination = (here, ""), (here, there)
            case _:
                source, destination = (there, here), (here, "")
        if units > self._books.units(user.ta_account, product, *source):
            return "insufficient_units"
        if not self._books.has_room(user.ta_account, product, destination[0], units, destination[1]):
            return "amount_too_large"
        user = self._books.move(user, product, source[0], -units, source[1])
        self._books.move(user, product, destination[0], units, destination[1])
        return Booked(volume=units)


def digest_of(application: Application) -> bytes:
    """Return what tells one application from another, 32 bytes."""
    return sha256(application_codec.encode(application)).digest()


def products_of(package: Package) -> list[str]:
    """Return the codes of all products that a package's orders name, ascending."""
    orders = [item for item in package.applications if item.code not in ACCOUNT_CODES]
    codes = {item.product for item in orders} | {item.target_product for item in orders if item.code == Code.CONVERSION}
    return sorted(codes - {""})


def _person(investor: Investor) -> tuple[str, str]:
    return investor.certificate_type, investor.certificate_number


def _free_account(books: Books, tally: _Tally) -> str:
    """Return the next account of our own making that nobody has applied for by its number."""
    while True:
        tally.made_accounts += 1
        number = tally.numbers.made_accounts + tally.made_accounts
        if books.user(ta_account := f"{MADE_ACCOUNT}{number:010d}") is None:
            return ta_account
