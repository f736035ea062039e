"""Mutants of the rights system: who may relay what, quota and history, and what becomes of an event."""

from tests.mutants.mutant import Mutant

_CONTRACT = "pytest tests/contracts/domain/test_rights.py::"
_RELAYED = "pytest tests/contracts/domain/test_rights_relayed.py::"
_HISTORY = "pytest tests/rights/test_history.py::"
_SERVER = "pytest tests/rights/test_server.py::"
_SUBMISSION = "pytest tests/client/test_submission.py::"
_PACKING = "pytest tests/rights/test_server_packing.py::"
_STOP = "pytest tests/rights/test_business_stop.py::"
_QUEUE = "pytest tests/messages/test_queue.py::"

MUTANTS = (
    # -- the contract -------------------------------------------------------------------------------------
    Mutant(
        "appointment not checked",
        "contracts/domain/rights.py",
        "context.require(context.caller in rights_servers,",
        "context.require(True,",
        "any account relays a server's events",
        _RELAYED + "test_only_appointed_rights_servers_apply",
    ),
    Mutant(
        "key that was left out counts",
        "contracts/domain/rights.py",
        "context.require(signer in event_keys,",
        "context.require(signer is not None,",
        "what a stolen event key signed counts after the key was left out",
        _RELAYED + "test_what_a_key_signed_counts_no_more_when_it_is_left_out",
    ),
    Mutant(
        "event not under its root",
        "contracts/domain/rights.py",
        "context.require(context.is_under(root, leaf, index, count, path),",
        "context.require(True,",
        "a rights server invents events",
        _RELAYED + "test_a_rights_server_invents_nothing",
    ),
    Mutant(
        "quota by one",
        "contracts/domain/rights.py",
        "    if share > left:",
        "    if share > left + 1:",
        "a campaign grants more than its quota",
        _CONTRACT + "test_create_refuses",
    ),
    Mutant(
        "repeat with other arguments",
        "contracts/domain/rights.py",
        "                first_arguments == arguments,",
        "                True,",
        "an event's name is used for another amount and nobody is told",
        _CONTRACT + "test_a_repeat_returns_the_first_result_and_changes_nothing",
    ),
    Mutant(
        "debt forgotten",
        "contracts/domain/rights.py",
        'changes["debt"] = refunded - taken',
        'changes["debt"] = 0',
        "what was spent before its order was returned is never paid",
        _CONTRACT + "test_refund_claws_back_and_a_shortfall_is_netted_against_later_grants",
    ),
    # -- the history --------------------------------------------------------------------------------------
    Mutant(
        "history not chained",
        "contracts/domain/rights.py",
        "context.hash(head, entry)",
        "context.hash(EMPTY_HEAD, entry)",
        "entries can be left out of a history",
        _CONTRACT + "test_the_history_shows_that_nothing_was_left_out",
    ),
    Mutant(
        "history's head not compared",
        "services/rights/history.py",
        "    if head != held.head:",
        "    if head == bytes():",
        "a history file with other entries of the same sum is believed",
        _HISTORY + "test_amounts_moved_between_entries_are_found_although_the_sum_holds",
    ),
    # -- the rights server --------------------------------------------------------------------------------
    Mutant(
        "settled under the old fence",
        "services/rights/relay.py",
        "        self._held[delivery.sequence] = delivery\n",
        "        self._held.setdefault(delivery.sequence, delivery)\n",
        "what was delivered again is never settled",
        _SERVER + "test_a_lease_that_runs_out_meanwhile_is_settled_under_the_new_one",
    ),
    Mutant(
        "several lanes in strict order",
        "services/rights/relay.py",
        "return 1 if (await self._center.stats()).is_strict else self._limits.lanes",
        "return self._limits.lanes if (await self._center.stats()).is_strict else 1",
        "events that were delivered in one order are done in another",
        _SERVER + "test_one_order_over_all_events_is_kept",
    ),
    Mutant(
        "forged signature stands in the way",
        "services/rights/packing.py",
        "        claim = (signed.server, signed.root, signed.signature)",
        '        claim = (signed.server, signed.root, b"")',
        "whoever forges a signature first keeps a whole batch off the chain",
        _PACKING + "test_a_forged_signature_of_a_root_stands_in_nobodys_way",
    ),
    Mutant(
        "signed anew while it is valid",
        "services/client/submission.py",
        "is_valid = self._now_ms() <= transaction.body.valid_until_ms",
        "is_valid = False",
        "an outcome that is not known yet is met with another transaction",
        _SUBMISSION + "test_while_the_outcome_is_unknown_the_identical_bytes_are_sent_again",
    ),
    Mutant(
        "early claw-back is refused",
        "services/rights/verdicts.py",
        '"unknown_order": (Verdict.PARK, State.DEAD),',
        '"unknown_order": REFUSED,',
        "a cancellation that overtakes its order is lost",
        _SERVER + "test_a_cancellation_before_its_order_is_parked_until_the_order_comes",
    ),
    # -- business server and message centre ---------------------------------------------------------------
    Mutant(
        "failed write is answered",
        "services/messages/queue.py",
        "        if not ticket.is_done:",
        "        if False:",
        "events are taken that no store has",
        _QUEUE + "test_a_store_that_fails_ends_the_queue_and_tells_callers_that_nothing_is_known",
    ),
    Mutant(
        "reading goes on after the last answer",
        "services/local/web.py",
        "            self._reading.cancel()",
        "            pass",
        "a request behind the last one holds up the end of the business server",
        _STOP + "test_a_request_behind_the_last_one_does_not_hold_up_the_end",
    ),
)
