"""The issuer's books: users, what they hold, what was confirmed. An overlay, written at once or not at all. Pure.

Each entry has a name of its kind and parts. :class:`Books` reads entries through a function that it is given, keeps
what changes to itself, and tells it all at the end: so one package is one write.

Invariants, kept here for every change:

- **H1** No holding is below zero: whoever debits more has broken a rule of the caller's, InvariantError.
- **H2** For each product units in − units out = the sum of its holdings and of what is under way between distributors.
- **H3** A user's ``in_use`` counts the holdings above zero, the transfers under way, and the initial subscriptions that
  wait for their allotment: an account with any is not closed.
"""

from collections.abc import Callable
from typing import TypeAlias, TypeVar

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import InvariantError
from services.agency.orders import Confirmation, Investor

UNITS_MAX = 10**16 - 1
"""Most units that one holding has, in 1/100: the width of a file's field."""
TOTAL_MAX = 2**62
"""Most units of a product that are ever confirmed in."""
ENTRY_BYTES_MAX = 256 * 1024
REGISTRATIONS_MAX = 64
"""Distributors of one user."""
TRANSACTION_ACCOUNTS_MAX = 64
"""Transaction accounts of one user at one distributor."""


class AtDistributor(Record, frozen=True):
    """A user's accounts at a distributor, for which ``bank`` speaks."""

    distributor: str
    bank: str
    transaction_accounts: list[str]


class UserEntry(Record, frozen=True, tag="user"):
    """A holder's account; a closed one stays, so that its number is not given again."""

    ta_account: str
    investor: Investor
    is_open: bool
    registrations: list[AtDistributor]
    in_use: int

    def at(self, distributor: str) -> AtDistributor | None:
        """Return the registration at a distributor, or None."""
        return next((item for item in self.registrations if item.distributor == distributor), None)


class HoldingEntry(Record, frozen=True, tag="holding"):
    """Units in custody of a distributor; ``to`` names the one to which they are on their way, else ""."""

    ta_account: str
    product: str
    distributor: str
    to: str
    units: int


class TotalEntry(Record, frozen=True, tag="total"):
    """All units of a product that were ever confirmed in and out."""

    product: str
    units_in: int
    units_out: int


class TakenEntry(Record, frozen=True, tag="taken"):
    """An application that was answered: the hash of its bytes, and the newest confirmation of it."""

    bank: str
    distributor: str
    serial: str
    digest: bytes
    confirmation: Confirmation


class SpeakerEntry(Record, frozen=True, tag="speaker"):
    """The bank that speaks for a distributor: the first that registered a user with it."""

    distributor: str
    bank: str


class PersonEntry(Record, frozen=True, tag="person"):
    """The account that the issuer made for the owner of a certificate."""

    ta_account: str


class RatioEntry(Record, frozen=True, tag="ratio"):
    """The allotment of a product's initial subscriptions, in basis points."""

    product: str
    ratio_basis_points: int


class NumbersEntry(Record, frozen=True, tag="numbers"):
    """Counts since the beginning: numbers given to confirmations and accounts, and what became of applications."""

    packages: int
    confirmations: int
    made_accounts: int
    users: int
    accepted: int
    rejected: int
    reasons: dict[str, int]


Entry: TypeAlias = (
    UserEntry | HoldingEntry | TotalEntry | TakenEntry | SpeakerEntry | PersonEntry | RatioEntry | NumbersEntry
)
entry_codec: RecordCodec[Entry] = RecordCodec(Entry, bytes_max=ENTRY_BYTES_MAX)

Name: TypeAlias = tuple[str, ...]
"""Of an entry: its kind and what it is about. No two entries have the same."""

E = TypeVar("E", bound=Record)


class Books:
    """Entries as they stand after the changes so far."""

    def __init__(self, read: Callable[[Name], Entry | None]) -> None:
        """Take what returns the entry that is kept under a name, None where there is none."""
        self._read = read
        self._seen: dict[Name, Entry | None] = {}
        self._changed: dict[Name, Entry] = {}

    def changes(self) -> dict[Name, Entry]:
        """Return the entries that are new or changed, by their names."""
        return self._changed

    def user(self, ta_account: str) -> UserEntry | None:
        """Return a holder's account, open or closed, or None."""
        return self._get(UserEntry, "user", ta_account)

    def put_user(self, user: UserEntry) -> None:
        """Keep a holder's account."""
        self._put(user, "user", user.ta_account)

    def units(self, ta_account: str, product: str, distributor: str, to: str = "") -> int:
        """Return the units that a holder has at a distributor, or on their way from there ``to`` another, in 1/100."""
        entry = self._get(HoldingEntry, "holding", ta_account, product, distributor, to)
        return entry.units if entry else 0

    def move(self, user: UserEntry, product: str, distributor: str, units: int, to: str = "") -> UserEntry:
        """Add units to a holding, or take them where ``units`` is negative; returns the user as it stands then.

        The totals do not change: see :meth:`count`.

        Raises:
            InvariantError: there would be less than nothing (H1).
        """
        before = self.units(user.ta_account, product, distributor, to)
        after = before + units
        if after < 0 or not user.is_open:
            raise InvariantError(f"a holding of {before} cannot change by {units}")
        entry = HoldingEntry(user.ta_account, product, distributor, to, after)
        self._put(entry, "holding", user.ta_account, product, distributor, to)
        return self.use(user, (after > 0) - (before > 0))

    def use(self, user: UserEntry, change: int) -> UserEntry:
        """Count that one thing more, or less, keeps an account in use; returns the user as it stands then."""
        if not change:
            return user
        used = UserEntry(user.ta_account, user.investor, user.is_open, user.registrations, user.in_use + change)
        if used.in_use < 0:
            raise InvariantError("less than nothing keeps an account in use")
        self.put_user(used)
        return used

    def has_room(self, ta_account: str, product: str, distributor: str, units: int, to: str = "") -> bool:
        """Tell whether so many units may be added to a holding."""
        total = self.total(product)
        holding = self.units(ta_account, product, distributor, to)
        return holding + units <= UNITS_MAX and total.units_in + units <= TOTAL_MAX

    def total(self, product: str) -> TotalEntry:
        """Return what was confirmed of a product in all."""
        return self._get(TotalEntry, "total", product) or TotalEntry(product, 0, 0)

    def count(self, product: str, *, units_in: int = 0, units_out: int = 0) -> None:
        """Count units that came to be or ceased to be (H2)."""
        total = self.total(product)
        self._put(TotalEntry(product, total.units_in + units_in, total.units_out + units_out), "total", product)

    def taken(self, bank: str, distributor: str, serial: str) -> TakenEntry | None:
        """Return how an application was answered, or None."""
        return self._get(TakenEntry, "taken", bank, distributor, serial)

    def put_taken(self, taken: TakenEntry) -> None:
        """Keep how an application was answered."""
        self._put(taken, "taken", taken.bank, taken.distributor, taken.serial)

    def speaker(self, distributor: str) -> str:
        """Return the bank that speaks for a distributor, "" for none yet."""
        entry = self._get(SpeakerEntry, "speaker", distributor)
        return entry.bank if entry else ""

    def put_speaker(self, distributor: str, bank: str) -> None:
        """Keep which bank speaks for a distributor."""
        self._put(SpeakerEntry(distributor, bank), "speaker", distributor)

    def made_account(self, investor: Investor) -> str:
        """Return the account that the issuer made for whoever has this certificate, "" for none."""
        entry = self._get(PersonEntry, "person", investor.certificate_type, investor.certificate_number)
        return entry.ta_account if entry else ""

    def put_made_account(self, investor: Investor, ta_account: str) -> None:
        """Keep the account that the issuer made."""
        self._put(PersonEntry(ta_account), "person", investor.certificate_type, investor.certificate_number)

    def ratio(self, product: str) -> int | None:
        """Return the allotment of a product in basis points, None before there is one."""
        entry = self._get(RatioEntry, "ratio", product)
        return entry.ratio_basis_points if entry else None

    def put_ratio(self, product: str, ratio_basis_points: int) -> None:
        """Keep the allotment of a product."""
        self._put(RatioEntry(product, ratio_basis_points), "ratio", product)

    def numbers(self) -> NumbersEntry:
        """Return the counts."""
        return self._get(NumbersEntry, "numbers") or NumbersEntry(0, 0, 0, 0, 0, 0, {})

    def put_numbers(self, numbers: NumbersEntry) -> None:
        """Keep the counts."""
        self._put(numbers, "numbers")

    def _get(self, kind: type[E], *parts: str) -> E | None:
        if parts not in self._seen:
            self._seen[parts] = self._read(parts)
        entry = self._seen[parts]
        if entry is not None and not isinstance(entry, kind):
            raise InvariantError(f"a {parts[0]} entry is a {type(entry).__name__}")
        return entry

    def _put(self, entry: Entry, *parts: str) -> None:
        self._seen[parts] = self._changed[parts] = entry
