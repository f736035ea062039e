"""Mutants of how payee codes are set up, and of how their demo judges."""

from tests.mutants.mutant import Mutant

_FACTS = "services/demo/payee_facts.py"
_NAMED = "pytest tests/demo/test_payee.py::test_what_is_not_as_it_must_be_is_named"
_SETUP = "services/payee/setup.py"
_TEST = "pytest tests/payee/test_setup.py::"

MUTANTS = (
    Mutant(
        "disks that were not read",
        _FACTS,
        "\n        and facts.nodes <= facts.controls,",
        ",",
        "secrets are not found since nothing was looked through, and the card says so with pride",
        _NAMED,
    ),
    Mutant(
        "postings not compared",
        _FACTS,
        "    return dict(wanted) == dict(facts.moved) and len(wanted) == len(facts.payments)",
        "    return len(wanted) == len(facts.payments)",
        "an order that the account system paid twice counts as paid once",
        _NAMED,
    ),
    Mutant(
        "platforms not believed to differ",
        _FACTS,
        "        and facts.standings == facts.chain\n",
        "",
        "a record that was rolled back on the chain is not noticed",
        _NAMED,
    ),
    Mutant(
        "disallowed is allowed again",
        _SETUP,
        "    if [item.measurement for item in msgspec.convert(found, list[_Listed])] == [measurement]:\n",
        "    if False:\n",
        "what the permission authority struck off comes back with the next start",
        _TEST + "test_what_people_changed_stays",
    ),
    Mutant(
        "keys put aside at every set-up",
        _SETUP,
        "not in (None, measurement) and",
        "is not None and",
        "each start makes another environment, which nobody trusts yet",
        _TEST + "test_keys_that_other_code_has_sealed_are_put_aside",
    ),
    Mutant(
        "user left out of a node's file",
        _SETUP,
        "    if file.user:\n",
        "    if False:\n",
        "a node does not look whether the right user runs its environment",
        _TEST + "test_each_node_is_told_of_its_environment",
    ),
    Mutant(
        "a node's file written over",
        _SETUP,
        "        if not path.exists():\n",
        "        if True:\n",
        "what an operator told a node is forgotten with the next start",
        _TEST + "test_what_people_changed_stays",
    ),
)
