"""What must hold at the end of the agency demo, judged on facts alone. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consensus.ledger.cooperation import PACKAGE_ORDERS_MAX
from services.agency.orders import Application

CONFIRMED, REJECTED, DROPPED = "CONFIRMED", "REJECTED", "DROPPED"
MUTUAL = "MUTUAL"


@dataclass(frozen=True, slots=True)
class End:
    """How an order ended at the bank.

    ``reason`` is "" where it took effect; ``amount`` and ``units`` are confirmed ones in 1/100; ``root`` of its
    package, empty where it was dropped before it was sent; ``height`` of the block that anchors it, 0 for none.
    """

    state: str
    reason: str
    amount: int
    units: int
    root: bytes
    height: int


@dataclass(frozen=True, slots=True)
class Anchored:
    """An anchor on the chain: of a package with ``count`` orders, by what signatures it holds."""

    issuer: str
    root: bytes
    round_number: int
    count: int
    status: str


@dataclass(frozen=True, slots=True)
class Units:
    """What the issuer confirmed in and out of a product, and the sum of all holdings; 1/100 units."""

    confirmed_in: int
    confirmed_out: int
    held: int


@dataclass(frozen=True, slots=True)
class Crash:
    """A program or node that was killed, and how many orders ended after it came back."""

    name: str
    ended_after: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the invariants look at.

    Args:
        applications: the file's orders by serial.
        wanted: how each order, of the file and beside it, must end: serial → (state, reason).
        ends: how it ended at the sales end; None where it still waits or is not known.
        repeated: the ends of the file's orders after the same file was sent once more.
        repeated_packages: how many packages that brought about.
        answers: what bad input was answered with, and what it had to be: name → (got, wanted).
        written: the type-04 file as it was read back: serial → (reason, confirmed amount).
        confirmed: what the issuer end says it confirmed: accepted and rejected orders.
        expected_confirmed: the same as the sales end has it.
        anchors: all anchors on the chain.
        packages: package roots → issuer, as the orders name them.
        units: product → units at the issuer end.
        expected_units: the same out of the bank's records.
        channels: channel → status on the chain.
        agreed: the channels that agreements with both signatures name.
        terms: versions in force before and after they were negotiated.
        disclosed: what the offline check said of a disclosed order, and of one with a changed field.
        leaks: markers that stand in what nodes that are no party have left → where.
        marker_count: how many markers were looked for.
        control_count: how many of them the same look finds in what the bank's own socket says.
        crashes: what was killed.
        ended_without_permission: orders that ended while the permission node and its desk were down.
        joined: an application made meanwhile: its status then, and after they came back.
        seals: each node's newest sealed state.
    """

    applications: Mapping[str, Application]
    wanted: Mapping[str, tuple[str, str]]
    ends: Mapping[str, End | None]
    repeated: Mapping[str, End | None]
    repeated_packages: int
    answers: Mapping[str, tuple[str, str]]
    written: Mapping[str, tuple[str, int]]
    confirmed: tuple[int, int]
    expected_confirmed: tuple[int, int]
    anchors: Sequence[Anchored]
    packages: Mapping[bytes, str]
    units: Mapping[str, Units]
    expected_units: Mapping[str, int]
    channels: Mapping[str, str]
    agreed: frozenset[str]
    terms: tuple[int, int]
    disclosed: tuple[str, str]
    leaks: Mapping[str, Sequence[str]]
    marker_count: int
    control_count: int
    crashes: Sequence[Crash]
    ended_without_permission: int
    joined: tuple[str, str]
    seals: Mapping[str, tuple[int, bytes]]

    @property
    def sums(self) -> dict[str, tuple[int, int]]:
        """Number and applied amount of the file's orders by how they ended: confirmed, rejected, dropped, open."""
        found = dict.fromkeys((CONFIRMED, REJECTED, DROPPED, ""), (0, 0))
        for serial, application in self.applications.items():
            end = self.ends.get(serial)
            state = end.state if end else ""
            count, amount = found.get(state, (0, 0))
            found[state] = (count + 1, amount + application.amount)
        return found

    @property
    def total(self) -> int:
        """Applied amount of the file in 1/100."""
        return sum(application.amount for application in self.applications.values())


def judge(facts: Facts) -> dict[str, bool]:
    """Return for every invariant whether it holds."""
    return {
        "every_order_ended_as_it_must": _ended(facts),
        "money_reconciles": _money_reconciles(facts),
        "records_are_the_confirmations": facts.confirmed == facts.expected_confirmed and sum(facts.confirmed) > 0,
        "type_04_file_says_the_same": _written(facts),
        "the_same_file_changes_nothing": _repeated(facts),
        "units_conserved": _units_conserved(facts),
        "anchored_with_both_signatures": _anchored(facts),
        "a_package_takes_one_anchor": _packed(facts),
        "disclosure_verified_offline": facts.disclosed[0] == MUTUAL and facts.disclosed[1] not in ("", MUTUAL),
        "channels_follow_agreements": bool(facts.agreed) and facts.agreed == _open(facts),
        "terms_changed_together": facts.terms[1] == facts.terms[0] + 1,
        "bad_input_refused": bool(facts.answers) and all(got == wanted for got, wanted in facts.answers.values()),
        "nobody_else_learned_it": not facts.leaks and facts.control_count == facts.marker_count > 0,
        "trade_goes_on_without_permission": facts.ended_without_permission > 0,
        "joins_wait_for_permission": facts.joined == ("PENDING", "OPENED"),
        "killed_programs_returned": bool(facts.crashes) and all(crash.ended_after for crash in facts.crashes),
        "state_roots_agree": len(set(facts.seals.values())) == 1,
    }


def _ended(facts: Facts) -> bool:
    """Tell whether every order ended, once, in the state and with the reason that it must."""
    ends = {serial: (end.state, end.reason) if end else None for serial, end in facts.ends.items()}
    return bool(facts.wanted) and ends == dict(facts.wanted) and facts.applications.keys() <= ends.keys()


def _money_reconciles(facts: Facts) -> bool:
    """Tell whether the file's amount is what took effect, was rejected and was dropped, as confirmations have it."""
    sums = facts.sums
    applied = sum(amount for _, amount in sums.values())
    confirmed = sum(end.amount for serial in facts.applications if (end := facts.ends.get(serial)) is not None)
    written = sum(amount for _, amount in facts.written.values())
    return applied == facts.total > 0 and sums[""] == (0, 0) and confirmed == sums[CONFIRMED][1] == written


def _written(facts: Facts) -> bool:
    """Tell whether the type-04 file has each order of the file that was answered, with its reason."""
    answered = {
        serial: (end.reason, end.amount)
        for serial in facts.applications
        if (end := facts.ends.get(serial)) is not None and end.state != DROPPED
    }
    return bool(answered) and dict(facts.written) == answered


def _repeated(facts: Facts) -> bool:
    ends = {serial: facts.ends.get(serial) for serial in facts.applications}
    return dict(facts.repeated) == ends and facts.repeated_packages == 0


def _units_conserved(facts: Facts) -> bool:
    """Tell whether units held are those that came in less those that went out, as the bank's records have it."""
    held = {product: units.held for product, units in facts.units.items()}
    return (
        bool(held)
        and held == dict(facts.expected_units)
        and all(units.confirmed_in - units.confirmed_out == units.held for units in facts.units.values())
    )


def _anchored(facts: Facts) -> bool:
    """Tell whether every package stands on the chain, answered, and its orders' records name the block."""
    mutual = {anchor.root for anchor in facts.anchors if anchor.status == MUTUAL and anchor.round_number == 0}
    sent = [end for end in facts.ends.values() if end and end.root]
    return bool(sent) and all(end.root in mutual and end.height > 0 for end in sent) and facts.packages.keys() <= mutual


def _packed(facts: Facts) -> bool:
    """Tell whether each package has one anchor a round, and the file's orders share as few packages as they can."""
    places = Counter((anchor.issuer, anchor.root, anchor.round_number) for anchor in facts.anchors)
    sent = [end for serial in facts.applications if (end := facts.ends.get(serial)) and end.root]
    roots = {end.root for end in sent}
    return max(places.values(), default=0) == 1 and len(roots) == -(-len(sent) // PACKAGE_ORDERS_MAX)


def _open(facts: Facts) -> frozenset[str]:
    return frozenset(name for name, status in facts.channels.items() if status == "OPEN")
