"""Which trades the settlement demo plays, and how each must end. Pure: a seed decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from services.accounts.port import AMOUNT_MAX
from services.demo.settlement_network import ISSUER
from services.settlement.states import Outcome, State

SELLERS = (ISSUER, "issuer-c", "issuer-f", "shop")
BUYERS = ("user-b", "wallet-p", "merchant-m", "issuer-d")
FROZEN = "user-e"
"""Whose money account the bank freezes in the middle."""
EMPTY = "wallet-q"
"""Sells what it does not have."""
UNITS_MAX = 20
PRICE_CENTS_MAX = 50_000_00
FAILED_PER_KIND = 3
ALONE = 7
"""So many trades are made one after the other, to see how long one takes."""
REPEATS = 20
"""How often one and the same trade is asked for at once."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a trade must end; ``code`` says why it was cancelled."""

    state: State
    outcome: Outcome = Outcome.NONE
    code: str = ""


PAID = Wanted(State.COMPLETED, Outcome.PAID)
REVERSED = Wanted(State.COMPLETED, Outcome.REVERSED)
NO_FUNDS = Wanted(State.CANCELLED, code="insufficient_funds")
"""Of money at the account system, or of units on the chain: both say so in this word."""


@dataclass(frozen=True, slots=True)
class Deal:
    """A trade as it is asked for: names of identities, units in smallest ones, the price of all in 1/100 CNY."""

    event: str
    seller: str
    buyer: str
    units: int
    price: int
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Script:
    """The trades by the act they belong to.

    Args:
        alone: one after the other, nothing happens meanwhile.
        plain: the same, all at once.
        rounds: one list for each accident that is played.
        poor: the buyer's money is not there.
        empty: the seller's units are not there: the chain refuses.
        frozen: the buyer's account is frozen before it pays; an operator takes the units back.
        thawed: the same, and the account is freed again.
        silent: relay and scan are off; then the scan runs alone.
        repeated: asked for many times at once.
    """

    alone: Sequence[Deal]
    plain: Sequence[Deal]
    rounds: Sequence[Sequence[Deal]]
    poor: Sequence[Deal]
    empty: Sequence[Deal]
    frozen: Sequence[Deal]
    thawed: Sequence[Deal]
    silent: Sequence[Deal]
    repeated: Deal

    @property
    def deals(self) -> list[Deal]:
        """All of them."""
        accidents = [deal for deals in self.rounds for deal in deals]
        failing = [*self.poor, *self.empty, *self.frozen, *self.thawed]
        return [*self.alone, *self.plain, *accidents, *failing, *self.silent, self.repeated]


def make_script(run: str, *, trades: int, accidents: int, seed: int) -> Script:
    """Draw a script.

    Args:
        run: begins every event's id, so that no other run has it.
        trades: how many end as they should; those of the failing kinds come on top.
        accidents: how many rounds there are.
        seed: decides parties, units and prices.
    """
    random = Random(seed)

    def draw(part: str, count: int, wanted: Wanted = PAID, **fixed: object) -> list[Deal]:
        return [_deal(random, f"{run}-{part}-{at}", wanted, fixed) for at in range(count)]

    share = max(1, (trades - ALONE - 1) // (accidents + 3))
    return Script(
        alone=draw("alone", ALONE),
        plain=draw("plain", max(1, trades - ALONE - 1 - share * (accidents + 1))),
        rounds=[draw(f"round{at}", share) for at in range(accidents)],
        poor=draw("poor", FAILED_PER_KIND, NO_FUNDS, price=AMOUNT_MAX),
        empty=draw("empty", FAILED_PER_KIND, NO_FUNDS, seller=EMPTY),
        frozen=draw("frozen", FAILED_PER_KIND, REVERSED, buyer=FROZEN),
        thawed=draw("thawed", FAILED_PER_KIND, PAID, buyer=FROZEN),
        silent=draw("silent", share),
        repeated=draw("same", 1)[0],
    )


def _deal(random: Random, event: str, wanted: Wanted, fixed: dict[str, object]) -> Deal:
    drawn: dict[str, object] = {
        "seller": random.choice(SELLERS),
        "buyer": random.choice(BUYERS),
        "units": random.randint(1, UNITS_MAX),
        "price": random.randint(1, PRICE_CENTS_MAX),
    }
    return Deal(event=event, wanted=wanted, **(drawn | fixed))  # type: ignore[arg-type]
