"""What must hold at the end of the payee demo, judged on facts alone. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.demo.settlement_facts import Holding, moved_so

PAID = "PAID"


@dataclass(frozen=True, slots=True)
class Standing:
    """A platform's record of the merchant: the account that it pays to, its version, its key's epoch, its status."""

    account: str
    version: int
    epoch: int
    status: str


@dataclass(frozen=True, slots=True)
class Paid:
    """A payment that a payer was told of; amount in 1/100 of the currency, simulated."""

    event: str
    server: str
    payer: str
    payee: str
    amount: int
    state: str


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a client was shown of each platform's record, and what it had to be: platform → in the clear."""

    title: str
    shown: Mapping[str, bool]
    wanted: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Accident:
    """What was done to the system, and how often it answered all the same."""

    name: str
    answered: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the invariants look at.

    Args:
        printed: the characters of the merchant's one print; ``prints`` what payers read from photos of it.
        payments: those that payers were told of; ``moved`` what the account system's postings moved, by event.
        standings: records as the story left them; ``chain`` as the chain proves them, ``own`` as platforms open them.
        changes: changes of the merchant and its records, as the story counts them and as the chain does.
        money_before, money_after: accounts of the account system by id.
        answers: what bad input was answered with, and what it had to be: name → (got, wanted).
        repeated: how many answers one order asked for at once had, how many events, how many that were the first.
        is_again_the_same: whether an order that was asked for again later was told as the payment of before.
        candidates: what mode B showed.
        accidents: what was done.
        isolation: what each node says of its environment's isolation.
        leaks: secrets that were found, and where; ``markers`` so many were looked for.
        controls: whose disks show the merchant's identity, which is no secret: those of all ``nodes`` must.
        seals: each node's newest sealed state.
    """

    printed: str
    prints: Sequence[str]
    payments: Sequence[Paid]
    moved: Mapping[str, int]
    standings: Mapping[str, Standing]
    chain: Mapping[str, Standing]
    own: Mapping[str, Standing]
    changes: tuple[int, int]
    money_before: Mapping[str, Holding]
    money_after: Mapping[str, Holding]
    answers: Mapping[str, tuple[str, str]]
    repeated: tuple[int, int, int]
    is_again_the_same: bool
    candidates: Sequence[Candidates]
    accidents: Sequence[Accident]
    isolation: Mapping[str, str]
    leaks: Mapping[str, Sequence[str]]
    markers: int
    controls: frozenset[str]
    nodes: frozenset[str]
    seals: Mapping[str, tuple[int, bytes]]


def judge(facts: Facts, *, isolation: str) -> dict[str, bool]:
    """Return for every invariant whether it holds; ``isolation`` is what every environment must say of itself."""
    answered, events, first = facts.repeated
    servers = {payment.server for payment in facts.payments}
    return {
        "one_print_serves_all_platforms": set(facts.prints) == {facts.printed} and len(servers) > 1,
        "every_payment_paid": bool(facts.payments) and all(item.state == PAID for item in facts.payments),
        "an_order_is_paid_once": answered > 1 == events == first and facts.is_again_the_same and _paid_once(facts),
        "money_conserved": moved_so(
            [(item.payer, item.payee, item.amount) for item in facts.payments], facts.money_before, facts.money_after
        ),
        "records_are_what_both_signed": bool(facts.standings)
        and facts.standings == facts.chain
        and facts.own == {name: item for name, item in facts.standings.items() if item.status == "ACTIVE"},
        "every_change_is_on_the_chain": facts.changes[0] == facts.changes[1],
        "bad_input_refused": bool(facts.answers) and all(got == wanted for got, wanted in facts.answers.values()),
        "others_see_what_the_merchant_allows": bool(facts.candidates)
        and all(item.shown == item.wanted for item in facts.candidates),
        "answered_whatever_died": bool(facts.accidents) and all(item.answered for item in facts.accidents),
        "environments_say_what_they_are": bool(facts.isolation) and set(facts.isolation.values()) == {isolation},
        "nothing_in_the_clear_on_any_disk": not facts.leaks
        and facts.markers > 0 < len(facts.nodes)
        and facts.nodes <= facts.controls,
        "state_roots_agree": len(set(facts.seals.values())) == 1,
    }


def _paid_once(facts: Facts) -> bool:
    """Tell whether the account system moved for each payment its amount once, and nothing else."""
    wanted: Counter[str] = Counter()
    for item in facts.payments:
        wanted[item.event] += item.amount
    return dict(wanted) == dict(facts.moved) and len(wanted) == len(facts.payments)
