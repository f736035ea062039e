"""A second account system, written from the port's table and in another way, to compare the product with.

It keeps nothing but the list of what was done, and works everything out of it.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from services.accounts import port
from services.accounts.port import Operation, Order

TABLE = {
    cells[0]: dict(zip(Operation, cells[1:], strict=True))
    for line in (port.__doc__ or "").splitlines()
    if line.startswith("| ")
    and "---" not in line
    and (cells := [cell.strip().replace("``", "") for cell in line.strip("| ").split(" | ")])[0] != "before"
}
"""What the port says is done: by what was before, and by operation, in its words."""


@dataclass
class Model:
    """Accounts (currency by id), who is frozen, deposits, and every order that took effect."""

    currencies: dict[str, str] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    deposits: list[tuple[str, int]] = field(default_factory=list)
    done: list[Order] = field(default_factory=list)

    def before(self, event: str) -> str:
        """Return the table's row for an event."""
        names = {Operation.RESERVE: "reserved", Operation.PAY: "paid", Operation.RELEASE: "released"}
        operations = [order.operation for order in self.done if order.event == event]
        return {**names, Operation.REVERSE: "reversed"}[operations[-1]] if operations else "nothing"

    def run(self, order: Order) -> str:
        """Return "done", "same" or a code, and remember what was done."""
        earlier = [known for known in self.done if known.event == order.event]
        terms = {(known.payer, known.payee, known.amount, known.currency) for known in earlier}
        if terms and terms != {(order.payer, order.payee, order.amount, order.currency)}:
            return "operation_conflict"
        cell = self.cell(order)
        if not cell.startswith("done"):
            return cell
        if cell not in ("done: tombstone", "done: available again"):
            if not {order.payer, order.payee} <= set(self.currencies):
                return "unknown_account"
            if {self.currencies[name] for name in (order.payer, order.payee)} != {order.currency}:
                return "wrong_currency"
            if {order.payer, order.payee} & self.frozen:
                return "account_frozen"
        source = order.payee if cell == "done: back to the payer" else order.payer
        needs_funds = cell in ("done: held", "done: paid out of what is available", "done: back to the payer")
        if needs_funds and self.balances()[source, "available"] < order.amount:
            return "insufficient_funds"
        self.done.append(order)
        return "done"

    def cell(self, order: Order) -> str:
        """Return what the table says of an order: "same", a code, or its words for what is done."""
        words = TABLE[self.before(order.event)][order.operation]
        if words == "as paid":
            words = TABLE["paid"][order.operation]
        was_done = any((known.event, known.operation) == (order.event, order.operation) for known in self.done)
        first, _, rest = words.partition(", or ")
        if rest:
            words = "the same answer" if was_done else first
        return "same" if words == "the same answer" else words

    def balances(self) -> Counter[tuple[str, str]]:
        """Work out all balances from the beginning; ``("WORLD", CURRENCY)`` is what came from outside."""
        balances: Counter[tuple[str, str]] = Counter()
        for name, amount in self.deposits:
            balances["WORLD", self.currencies[name]] -= amount
            balances[name, "available"] += amount
        held = set()
        for order in self.done:
            match order.operation:
                case Operation.RESERVE:
                    moves = ((order.payer, "available"), (order.payer, "held"))
                    held.add(order.event)
                case Operation.PAY:
                    moves = ((order.payer, "held" if order.event in held else "available"), (order.payee, "available"))
                case Operation.RELEASE if order.event not in held:
                    continue
                case Operation.RELEASE:
                    moves = ((order.payer, "held"), (order.payer, "available"))
                case Operation.REVERSE:
                    moves = ((order.payee, "available"), (order.payer, "available"))
            balances[moves[0]] -= order.amount
            balances[moves[1]] += order.amount
        return balances


def code_of(words: str) -> str:
    """Return the code that a cell is, "" for what is done."""
    return words if re.fullmatch(r"[a-z]+_?[a-z_]*", words) and words not in ("done", "same") else ""
