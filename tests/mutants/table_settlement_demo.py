"""Mutants of how the settlement demo judges, and of its benchmark's goals."""

from tests.mutants.mutant import Mutant

_FACTS = "services/demo/settlement_facts.py"
_TEST = "pytest tests/demo/test_settlement.py::"
_NAMED = _TEST + "test_what_is_not_as_it_must_be_is_named"

MUTANTS = (
    Mutant(
        "demo believes the event system",
        _FACTS,
        "        return (end.lien, end.lien_units, end.is_paid, end.paid) == (LIFTED, deal.units, True, deal.price)",
        "        return end.is_paid and end.paid == deal.price",
        "a trade counts as settled although the buyer's units are not free",
        _NAMED,
    ),
    Mutant(
        "demo forgets held money",
        _FACTS,
        "    if end is None or end.is_held:",
        "    if end is None:",
        "money stays held for a cancelled trade and nobody says so",
        _NAMED,
    ),
    Mutant(
        "demo counts no supply",
        _FACTS,
        " and facts.supply[0] == facts.supply[1]",
        "",
        "units appear out of nothing and the card says conserved",
        _NAMED,
    ),
    Mutant(
        "demo counts parties alone",
        _FACTS,
        "    return bool(after) and expected == {name: holding.total for name, holding in after.items()}",
        "    return bool(after) and sum(expected.values()) == sum(holding.total for holding in after.values())",
        "units or money go to somebody else and the card says conserved",
        _NAMED,
    ),
    Mutant(
        "bench turns its goals round",
        "bench/goals.py",
        "        is_met = figure <= self.bound if self.is_most else figure >= self.bound",
        "        is_met = figure <= self.bound",
        "a slow system reaches its goals",
        "pytest tests/bench/test_settlement.py::test_goals_are_judged_where_their_rows_were_measured",
    ),
)
