"""Mutants of what looks back on settlement, and of what feeds it: the report of a day, the bridge from agency sale."""

from tests.mutants.mutant import Mutant

_DAY = "services/settlement/day.py"
_REPORT = "services/settlement/reconcile.py"
_RULES = "services/settlement/reconciling.py"
_BRIDGE = "services/settlement/bridge.py"
_STORE = "services/settlement/bridge_store.py"
_FEED = "services/agency/issuer.py"
_REPORTED = "pytest tests/settlement/test_reconcile.py::"
_BRIDGED = "pytest tests/settlement/test_bridge.py::"
_CONFIRMED = "pytest tests/agency/test_issuer.py::"

MUTANTS = (
    # -- the report of a day ------------------------------------------------------------------------------
    Mutant(
        "receipts of a day believed",
        _DAY,
        "if list_root(leaves) != header.receipts_root:",
        "if False:",
        "a node leaves deliveries out of the report",
        _REPORTED + "test_a_node_that_leaves_something_out_is_found_out",
    ),
    Mutant(
        "blocks of a day not chained",
        _DAY,
        "(parent and header.parent_hash != parent)",
        "False",
        "a node puts blocks of its own between certified ones",
        _REPORTED + "test_a_node_that_leaves_something_out_is_found_out",
    ),
    Mutant(
        "last block of a day not certified",
        _DAY,
        "if parent != verified.block_hash:",
        "if False:",
        "a node makes up the end of a day",
        _REPORTED + "test_a_node_that_leaves_something_out_is_found_out",
    ),
    Mutant(
        "other agents' deliveries reconciled",
        _REPORT,
        "if event.name == DELIVERED and data.agent != self._agent:",
        "if False:",
        "what is none of our business is a break",
        _REPORTED + "test_each_break_of_a_day_is_found_and_nothing_else",
    ),
    Mutant(
        "proofs overwritten by a chosen id",
        _REPORT,
        'stem += f"~{seller.hex()}"',
        'stem += f"-{seller.hex()}"',
        "a stranger's delivery takes the place of another event's proof",
        _REPORTED + "test_each_proof_has_a_file_of_its_own_whatever_ids_are_chosen",
    ),
    Mutant(
        "units free unpaid pass",
        _RULES,
        "if own.status == LIFTED:",
        "if False:",
        "a buyer has units free without having paid, and the report waits",
        _REPORTED + "test_what_is_young_is_open_but_for_units_that_are_free_unpaid",
    ),
    Mutant(
        "paid twice passes",
        _RULES,
        "if posted > amount:",
        "if False:",
        "a payment that was posted twice is not seen",
        _REPORTED + "test_what_differs_from_the_terms",
    ),
    # -- the bridge from agency sale ----------------------------------------------------------------------
    Mutant(
        "package in a sale's id",
        _BRIDGE,
        'self._pseudonym("sale", item.bank, item.distributor, item.serial)',
        'self._pseudonym("sale", answer.root.hex(), item.bank, item.distributor, item.serial)',
        "an application that comes again in another package is paid again",
        _BRIDGED + "test_purchases_are_settled_each_once_and_nobody_is_named",
    ),
    Mutant(
        "position before its sales",
        _STORE,
        '"INSERT OR IGNORE INTO sale VALUES (?, ?, ?, ?, ?, ?, 0)",\n                [',
        '"INSERT OR IGNORE INTO sale VALUES (?, ?, ?, ?, ?, ?, 0)",\n                []\n                and [',
        "what was confirmed is never settled",
        _BRIDGED + "test_purchases_are_settled_each_once_and_nobody_is_named",
    ),
    Mutant(
        "units issued at every start",
        _BRIDGE,
        'lane = one_shot_lane(f"bridge-issue:{issue.id}:{attempt}")',
        'lane = one_shot_lane(f"bridge-issue:{issue.id}:{attempt}:{id(self)}")',
        "a bridge that is killed issues units that nobody bought",
        _BRIDGED + "test_killed_at_every_step_it_settles_each_purchase_once",
    ),
    Mutant(
        "failed sale tried under its old event",
        _BRIDGE,
        "attempt=sale.attempt + (name in over)",
        "attempt=sale.attempt",
        "a sale that was refused once can never be settled",
        _BRIDGED + "test_a_purchase_that_is_not_paid_fails_and_is_tried_again_on_demand",
    ),
    Mutant(
        "rejected orders are purchases",
        _FEED,
        "confirmation.is_accepted and confirmation.is_final",
        "confirmation.is_final",
        "an order that the issuer rejected is paid",
        _CONFIRMED + "test_what_was_bought_is_read_answer_by_answer_also_by_who_waits_for_it",
    ),
)
