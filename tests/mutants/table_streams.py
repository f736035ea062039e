"""Mutants of streams on the chain: what settles, when a claim pays, who is fined, when a deposit goes back."""

from tests.mutants.mutant import Mutant

_CONTRACT = "contracts/domain/streams.py"
_TOKENS = "contracts/domain/tokens.py"
_RUNTIME = "contracts/runtime/contract.py"
_LEDGER = "consensus/ledger/streams.py"
_OPEN = "pytest tests/contracts/domain/test_streams.py::"
_CLAIM = "pytest tests/contracts/domain/test_streams_claim.py::"
_CLOSE = "pytest tests/contracts/domain/test_streams_close.py::"
_ESCROW = "pytest tests/contracts/domain/test_tokens_escrow.py::"
_READ = "pytest tests/contracts/runtime/test_reading_transactions.py::"
_STATEMENTS = "pytest tests/ledger/test_streams.py::"

MUTANTS = (
    Mutant(
        "stream opened without the offer",
        _CONTRACT,
        '        context.require(is_signed, "bad_signature", "not the service party\'s over these terms")\n',
        "",
        "a payer gives itself a price",
        _OPEN + "test_an_offer_is_signed_by_the_service_party_for_this_purpose_and_chain",
    ),
    Mutant(
        "stream born burned",
        _CONTRACT,
        "is_free = context.lane_name != lane and context.lane(payer, lane) is None",
        "is_free = True",
        "a stream opens whose number can settle nothing",
        _OPEN + "test_no_stream_opens_on_a_number_that_is_used",
    ),
    Mutant(
        "window without an outage",
        _CONTRACT,
        "least_ms = validity_ms + margin_ms + OUTAGE_MS",
        "least_ms = validity_ms + margin_ms",
        "a payer withdraws in the first block after an outage, before anybody could claim",
        _OPEN + "test_terms_that_nobody_should_agree_on_are_refused_and_said_to_be_so",
    ),
    Mutant(
        "settled outside its lane",
        _CONTRACT,
        'is_own = context.via == "" and context.lane_name == _lane(context, stream)',
        'is_own = context.via == ""',
        "a payer settles a small total elsewhere and the lane's record says nothing of it",
        _OPEN + "test_a_stream_settles_in_its_own_lane_alone",
    ),
    Mutant(
        "settled through another contract",
        _CONTRACT,
        'is_own = context.via == "" and context.lane_name == _lane(context, stream)',
        "is_own = context.lane_name == _lane(context, stream)",
        "a contract settles streams of whoever calls it",
        _OPEN + "test_no_contract_settles_for_the_payer",
    ),
    Mutant(
        "settlement fails after a claim",
        _CONTRACT,
        'amount: int = max(due - record["paid"], 0)\n        from_deposit = _pay_from_balance(',
        'amount: int = due - record["paid"]\n        context.require(amount > 0, "nothing_due")\n'
        "        from_deposit = _pay_from_balance(",
        "a service party claims first, sees an old iteration fail, and takes the fine",
        _OPEN + "test_a_claim_that_came_first_makes_no_settlement_fail",
    ),
    Mutant(
        "shortfall out of the fine",
        _CONTRACT,
        '    left = record["deposit"] - record["fine"] - record["taken"]\n    context.require',
        '    left = record["deposit"] - record["taken"]\n    context.require',
        "nothing is left to be fined with",
        _OPEN + "test_what_neither_balance_nor_deposit_holds_fails_and_moves_nothing",
    ),
    Mutant(
        "claim while it may settle",
        _CONTRACT,
        'is_over = context.time_ms > iteration["validUntilMs"]',
        'is_over = context.time_ms >= iteration["validUntilMs"]',
        "in one block an iteration both settles and is claimed",
        _CLAIM + "test_an_unused_number_pays_without_a_fine_once_the_iteration_has_expired",
    ),
    Mutant(
        "fined for an old iteration",
        _CONTRACT,
        'is_burned = lane.last_id != record["settledBy"]',
        'is_burned = lane.last_id != iteration["id"]',
        "a payer is fined since somebody uploaded an iteration that was not the last",
        _CLAIM + "test_an_old_iteration_uploaded_costs_a_claim_of_the_difference_and_no_fine",
    ),
    Mutant(
        "fined by the lane's status",
        _CONTRACT,
        'is_burned = lane.last_id != record["settledBy"]',
        "is_burned = lane.status != 0",
        "a payer that spends its number on something that succeeds is not fined",
        _CLAIM + "test_a_number_used_for_anything_else_pays_the_due_and_the_fine_once",
    ),
    Mutant(
        "fined twice",
        _CONTRACT,
        'fine: int = record["fine"] if is_burned and not record["isFined"] else 0',
        'fine: int = record["fine"] if is_burned else 0',
        "each further claim takes another fine",
        _CLAIM + "test_a_larger_claim_pays_the_difference_whatever_comes_first",
    ),
    Mutant(
        "claims add up",
        _CONTRACT,
        'amount: int = max(min(due, record["deposit"] - record["fine"]) - record["paid"], 0)',
        'amount: int = max(min(due, record["deposit"] - record["fine"]) - record["taken"], 0)',
        "what was settled out of the balance is claimed once more",
        _CLAIM + "test_an_old_iteration_uploaded_costs_a_claim_of_the_difference_and_no_fine",
    ),
    Mutant(
        "claim by the key in force",
        _CONTRACT,
        'iteration = context.transaction(raw, record["payerKey"])',
        'iteration = context.transaction(raw, _account_key(context, record["payer"]))',
        "a payer that changes its key owes nothing",
        _CLAIM + "test_iterations_count_by_the_key_of_the_opening",
    ),
    Mutant(
        "claim in any lane",
        _CONTRACT,
        'is_ours = iteration["sender"] == record["payer"] and iteration["lane"] == lane_name',
        'is_ours = iteration["sender"] == record["payer"]',
        "what cannot settle a stream is claimed of it",
        _CLAIM + "test_only_this_streams_iterations_are_claimed",
    ),
    Mutant(
        "true is a total",
        _CONTRACT,
        "if not isinstance(due, int) or isinstance(due, bool) or arguments",
        "if not isinstance(due, int) or arguments",
        "a claim pays for what can never settle",
        _CLAIM + "test_only_this_streams_iterations_are_claimed",
    ),
    Mutant(
        "withdrawn at once",
        _CONTRACT,
        '        context.require(context.uptime_ms >= at, "window_open"',
        '        context.require(context.uptime_ms + 1 >= at, "window_open"',
        "a window ends before its time",
        _CLOSE + "test_a_deposit_goes_back_after_the_window_and_not_before",
    ),
    Mutant(
        "window in time",
        _CONTRACT,
        '        context.require(context.uptime_ms >= at, "window_open"',
        '        context.require(context.time_ms - record["openedAtMs"] >= record["windowMs"], "window_open"',
        "a window passes while the chain stands still",
        _CLOSE + "test_a_window_counts_uptime_and_not_time",
    ),
    Mutant(
        "window begins anew",
        _CONTRACT,
        "        if at == 0:\n            at = context.uptime_ms",
        "        if at >= 0:\n            at = context.uptime_ms",
        "who asks twice waits twice",
        _CLOSE + "test_asking_again_begins_no_new_window",
    ),
    Mutant(
        "closed by one",
        _CONTRACT,
        'key = _account_key(context, record["service"]) if is_payer else record["payerKey"]',
        'key = record["payerKey"] if is_payer else record["payerKey"]',
        "a payer closes with its own word and takes the deposit back",
        _CLOSE + "test_a_close_needs_the_other_side",
    ),
    Mutant(
        "closed streams move",
        _CONTRACT,
        '    context.require(record["status"] == OPEN, "stream_closed", "it moves no more")\n',
        "",
        "a closed stream is withdrawn and claimed again",
        _CLOSE + "test_a_closed_stream_never_moves_again",
    ),
    Mutant(
        "fine given back",
        _CONTRACT,
        'rest: int = record["deposit"] - record["taken"] - (record["fine"] if record["isFined"] else 0)',
        'rest: int = record["deposit"] - record["taken"]',
        "no stream closes after its payer was fined",
        _CLOSE + "test_a_close_after_the_fine_gives_back_the_rest_without_it",
    ),
    Mutant(
        "escrow of another contract",
        _TOKENS,
        "        place = _escrow_key(unit, context.via, key)\n        held: int = context.state.get(place) or 0\n",
        '        place = _escrow_key(unit, "vault", key)\n        held: int = context.state.get(place) or 0\n',
        "one contract pays with what another holds",
        _ESCROW + "test_a_contract_pays_what_it_holds_itself_under_that_key_and_no_more",
    ),
    Mutant(
        "transaction of another chain read",
        _RUNTIME,
        '        self.require(body.chain_id == self.chain_id, "bad_transaction", "of another chain")\n',
        "",
        "what was signed on one chain is claimed on another (R84)",
        _READ + "test_what_is_no_transaction_of_this_chain_and_key",
    ),
    Mutant(
        "transaction read unsigned",
        _RUNTIME,
        '        self.require(transaction.signed_by(key), "bad_transaction", "not signed with this key")\n',
        "",
        "anybody writes the iterations that it claims",
        _READ + "test_what_is_no_transaction_of_this_chain_and_key",
    ),
    Mutant(
        "iteration over true",
        _LEDGER,
        "    if isinstance(due, bool) or not 0 < due <= AMOUNT_MAX:\n",
        "    if not 0 < due <= AMOUNT_MAX:\n",
        "a service party supplies for an iteration that fails on the chain",
        _STATEMENTS + "test_whatever_is_no_iteration_of_the_stream_is_refused",
    ),
)
