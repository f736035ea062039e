"""Mutants of the issuer's side: what it takes, how it judges and books, and what survives its death."""

from tests.mutants.mutant import Mutant

_UNITS = "services/agency/units.py"
_RULES = "services/agency/qualification.py"
_MACHINE = "services/agency/issuer_machine.py"
_STORE = "services/agency/issuer_store.py"
_END = "services/agency/issuer.py"
_NODE = "services/agency/issuer_node.py"
_TEST = "pytest tests/agency/test_"
_BOOKS = f"{_TEST}holdings.py::test_units_are_conserved_whatever_is_applied_for"

MUTANTS = (
    Mutant(
        "issuer rounds units up",
        _UNITS,
        "net * NAV_SCALE // nav",
        "-(-net * NAV_SCALE // nav)",
        "a buyer gets units that others paid for",
        f"{_TEST}units.py::test_nobody_gets_units_that_were_not_paid_for",
    ),
    Mutant(
        "issuer believes a date ahead",
        _RULES,
        "min(application.date, today)",
        "application.date",
        "a minor buys with an application of next year",
        f"{_TEST}qualification.py::test_a_date_ahead_makes_nobody_older",
    ),
    Mutant(
        "issuer warns the lowest class",
        _RULES,
        "    if investor.risk_class == 0 and risk > 1:",
        "    if investor.risk_class == 0 and risk > 1 and not is_warned:",
        "the lowest class buys above R1 after a warning",
        f"{_TEST}qualification.py::test_suitability_over_all_classes_and_risks",
    ),
    Mutant(
        "issuer takes any terms before",
        _RULES,
        '    return "" if was_in_force else "stale_terms"',
        '    return ""',
        "an order is judged by terms that were over when it was given",
        f"{_TEST}qualification.py::test_terms_that_changed_in_flight",
    ),
    Mutant(
        "issuer answers an order twice",
        _MACHINE,
        "            if taken.digest == digest:",
        "            if taken.digest != digest:",
        "an order sent again is rejected instead of answered the same",
        f"{_TEST}holdings.py::test_an_order_is_answered_once",
    ),
    Mutant(
        "issuer allots twice",
        _MACHINE,
        "        if taken.confirmation.is_final:\n            return taken.confirmation\n",
        "",
        "an initial subscription in two packages is booked twice",
        f"{_TEST}holdings.py::test_an_initial_subscription_that_came_in_two_packages_is_allotted_once",
    ),
    Mutant(
        "issuer forgets what was converted",
        _MACHINE,
        "        self._books.count(product.product, units_out=converted.units_out)\n",
        "",
        "units in minus units out are no more what is held",
        _BOOKS,
    ),
    Mutant(
        "issuer lets any bank speak",
        _MACHINE,
        "if not application.distributor.strip() or (speaker != self._bank and (speaker or not is_account)):",
        "if not application.distributor.strip():",
        "a bank trades under another bank's code",
        f"{_TEST}holdings.py::test_whose_order_it_is",
    ),
    Mutant(
        "issuer end forgets an answer on its way",
        _STORE,
        "                _unsent_write(item),\n",
        "",
        "an answer that was booked before a crash is never sent",
        f"{_TEST}issuer.py::test_killed_at_every_write_it_gives_the_same_answers_and_books_once",
    ),
    Mutant(
        "issuer end books a package again",
        _END,
        "            if self._store.kept(package.root) is not None:",
        "            if self._store.position >= arrived.position:",
        "a package that is offered again is booked again",
        f"{_TEST}issuer.py::test_the_same_store_under_a_new_program_gives_the_same_answer",
    ),
    Mutant(
        "gateway asks nothing of the chain's answer",
        _NODE,
        "        if any(anchor.answer_signature for anchor in anchors):",
        "        if len(anchors) > len(package.applications):",
        "a package that was lost and comes back is answered a second time",
        f"{_TEST}issuer_node.py::test_what_the_chain_says_was_answered_does_not_go_to_the_issuer_end_again",
    ),
    Mutant(
        "gateway takes any allotment",
        _NODE,
        "        if answer.places != waiting_places(first[0].confirmations):",
        "        if not answer.places:",
        "a second answer changes what the first one settled",
        f"{_TEST}issuer_node.py::test_one_answer_counts_and_goes_out_again_to_who_asks",
    ),
    Mutant(
        "gateway takes packages of an epoch that is over",
        _NODE,
        "or not package.epoch == origin.epoch == channel.epoch:",
        "or package.epoch < 1:",
        "orders signed before a revocation are taken after the reopening",
        f"{_TEST}issuer_node.py::test_what_can_never_be_taken_is_refused_as_a_whole",
    ),
)
