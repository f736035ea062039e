"""Payments by codes while everything is killed: ``python -m tests.network.payee_faults --rounds 10 --seed 1``.

In each round orders are paid, each by several payers at once and through both platforms, while platforms, account
system, environments and a node die. In the end each order is paid once, by one of them, and the money is conserved.
"""

import argparse
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

import trio

from cli.payee_trial import PayeeTrial, payee_trial
from services.client.errors import Refused
from services.demo.agency_till import patiently
from services.demo.payee_gather import balances, moved
from services.demo.payee_network import ACCOUNTS, BANK, BANK_ENVIRONMENT, ISSUER_ENVIRONMENT, OTHER, P, Q
from services.demo.payee_till import Till, clock_ms, open_till
from services.demo.settlement_facts import moved_so
from services.payee.interfaces import Acquiring, Payment
from services.payee.merchants import Merchant
from tests.network.support import pass_time

PROGRAMS = (P, Q, ACCOUNTS, BANK_ENVIRONMENT, ISSUER_ENVIRONMENT)
PAYERS = ("user-b", "user-e")
PAYEES = {P: "merchant-m", Q: "shop"}
EXPIRY_MS = 600_000
PAUSE_MS_MAX = 300


@dataclass
class Faults:
    """Orders that are paid, and what became of them."""

    till: Till
    trial: PayeeTrial
    merchant: Merchant
    random: Random
    paid: list[Payment] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Orders that were told to be taken by the other platform, or by the other payer."""
    killed: list[str] = field(default_factory=list)

    async def play(self, orders: int, kills: int) -> None:
        """Have orders paid while some of the system die one after the other."""
        async with trio.open_nursery() as nursery:
            for number in range(orders):
                nursery.start_soon(self._pay_from_all_sides, 100 + number)
            for _ in range(kills):
                await pass_time(self.random.randrange(PAUSE_MS_MAX))
                await self._kill(self.random.choice((*PROGRAMS, BANK)))

    async def _pay_from_all_sides(self, amount: int) -> None:
        """Pay one order by two payers through two platforms, twice each."""
        order = f"o-{secrets.token_hex(6)}"
        until_ms = clock_ms() + EXPIRY_MS
        code = self.till.code(self.merchant, amount=amount, currency="CNY", order=order, expires_ms=until_ms).text
        async with trio.open_nursery() as nursery:
            for payer in PAYERS:
                for server in PAYEES:
                    for _ in range(2):
                        nursery.start_soon(self._pay, server, code, payer, order)

    async def _pay(self, server: str, code: str, payer: str, order: str) -> None:
        try:
            payment = await patiently(partial(self.till.pay, server, code, first=self._node(), payer=payer))
        except Refused as error:
            if error.code != "order_conflict":
                raise
            self.lost.append(order)
            return
        if (payment.state, payment.code) == ("REFUSED", "order_conflict"):
            self.lost.append(order)
        else:
            self.paid.append(payment)

    def _node(self) -> str:
        return self.random.choice((BANK, OTHER))

    async def _kill(self, name: str) -> None:
        self.killed.append(name)
        if name == BANK:
            await self.trial.kill(name)
            await self.trial.start(name)
        else:
            await self.trial.kill_program(name)
            await self.trial.start_program(name)

    async def faults(self, orders: int, before: dict[str, object]) -> list[str]:
        """Return what is wrong, once everything is answered."""
        found = [f"{item.order} is {item.state} {item.code}" for item in self.paid if item.state != "PAID"]
        terms = {item.event: (item.payer, item.payee, item.amount) for item in self.paid}
        if len(terms) != orders:
            found.append(f"{len(terms)} orders are paid, not {orders}")
        said = Counter((item.event, item.payer, item.payee, item.amount) for item in self.paid)
        if len(said) != len(terms):
            found.append("an order was told to be paid on two terms")
        posted = await moved(self.till)
        if {event: posted[event] for event in terms} != {event: amount for event, (_, _, amount) in terms.items()}:
            found.append("postings differ from what payers were told")
        if not moved_so(terms.values(), before, await balances(self.till)):  # type: ignore[arg-type]
            found.append("money is not conserved")
        for server in PAYEES:
            status = await self.till.status(server)
            if status.unfinished:
                found.append(f"{server} has {status.unfinished} payments open")
        return found


async def play(trial: PayeeTrial, *, seed: int, orders: int, kills: int, rounds: int = 1) -> tuple[Faults, list[str]]:
    """Play rounds on a running network; return what was seen, and what is wrong."""
    doors = await trial.open_payee()
    async with open_till(trial, doors) as till:
        merchant = await till.new_merchant(f"faults-{secrets.token_hex(4)}")
        for server, account in PAYEES.items():
            await till.add(server, merchant, Acquiring(account=account, name="Tea", currency="CNY"))
        before = await balances(till)
        faults = Faults(till, trial, merchant, Random(seed))
        for _ in range(rounds):
            await faults.play(orders, kills)
        return faults, await faults.faults(orders * rounds, dict(before))


async def _run(rounds: int, seed: int, orders: int, kills: int) -> list[str]:
    async with payee_trial() as trial:
        seen, wrong = await play(trial, seed=seed, orders=orders, kills=kills, rounds=rounds)
    print(f"{len(seen.paid)} answers of payment, {len(seen.lost)} of conflict; killed: {dict(Counter(seen.killed))}")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.network.payee_faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--kills", type=int, default=8)
    options = parser.parse_args(arguments)
    wrong = trio.run(_run, options.rounds, options.seed, options.orders, options.kills)
    print("\n".join(wrong) or "held")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
