"""Mutants of settlement's side of the chain: liens, the census of validators, the listener, the clerk."""

from tests.mutants.mutant import Mutant

_TOKENS = "contracts/domain/tokens.py"
_CENSUS = "services/settlement/census.py"
_LISTENER = "services/settlement/listener.py"
_CLERK = "services/settlement/clerk.py"
_LIENS = "pytest tests/contracts/domain/test_tokens.py::"
_ASKED = "pytest tests/settlement/test_census.py::"
_HEARD = "pytest tests/settlement/test_listener.py::"
_DONE = "pytest tests/settlement/test_clerk.py::"

MUTANTS = (
    # -- liens --------------------------------------------------------------------------------------------
    Mutant(
        "lien lifted by anyone",
        _TOKENS,
        'context.require(lien["agent"] == context.caller,',
        "context.require(True,",
        "a buyer frees what it has not paid",
        _LIENS + "test_what_is_delivered_is_the_buyers_and_out_of_its_hands",
    ),
    Mutant(
        "lien ended twice",
        _TOKENS,
        'context.require(lien["status"] == HELD,',
        "context.require(True,",
        "units are freed and given back: made of nothing",
        _LIENS + "test_a_lien_ends_once",
    ),
    Mutant(
        "event delivered twice",
        _TOKENS,
        "context.require(context.state.get(lien_key) is None,",
        "context.require(True,",
        "the second delivery of an event overwrites the first one's lien",
        _LIENS + "test_an_event_serves_each_seller_once",
    ),
    Mutant(
        "delivered units are free",
        _TOKENS,
        "context.state.put(to_key, [to_available, to_reserved + amount])",
        "context.state.put(to_key, [to_available + amount, to_reserved])",
        "the buyer spends what it has not paid",
        _LIENS + "test_what_is_delivered_is_the_buyers_and_out_of_its_hands",
    ),
    Mutant(
        "agent that is the seller",
        _TOKENS,
        "is_apart = seller != to and agent != seller and agent != to",
        "is_apart = seller != to and agent != to",
        "a seller takes back what was paid for",
        _LIENS + "test_a_delivery_needs_three_accounts",
    ),
    # -- the census ---------------------------------------------------------------------------------------
    Mutant(
        "absence at the last moment",
        _CENSUS,
        "if time_ms > body.valid_until_ms else None",
        "if time_ms >= body.valid_until_ms else None",
        "a delivery that the next block still holds is cancelled: the asset moves and nobody pays",
        _ASKED + "test_absence_needs_a_seal_past_the_validity",
    ),
    Mutant(
        "time of the head, not of the seal",
        _CENSUS,
        "        time_ms = await self._block_time(node, lane.height)",
        "        time_ms = lane.verified.time_ms",
        "what stands in blocks that are not sealed yet is taken for absent",
        _ASKED + "test_absence_needs_a_seal_past_the_validity",
    ),
    Mutant(
        "denial believed",
        _CENSUS,
        "if lane.value is not None and last_id_untrusted(lane.value) == transaction.id:",
        'if lane.value is None and transaction.id == b"":',
        "a node that denies a final transaction makes it absent",
        _ASKED + "test_a_node_that_denies_what_its_state_proves_lies",
    ),
    Mutant(
        "first answer of a name counts",
        _CENSUS,
        "best = min(answers, key=_rank, default=_SILENT)",
        "best = answers[0] if answers else _SILENT",
        "a liar under an honest validator's name takes its answer away",
        _ASKED + "test_a_validator_counts_once_whoever_claims_to_be_it",
    ),
    Mutant(
        "set of genesis for ever",
        _CENSUS,
        "if head.height > self._roll.height:",
        "if head.height < self._roll.height:",
        "validators that have left count, and new ones do not",
        _ASKED + "test_the_current_set_is_asked",
    ),
    Mutant(
        "node behind has an opinion",
        _CENSUS,
        'is_held = explained.stage == "queued" or not is_behind',
        "is_held = True",
        "nobody is told that too few validators can say anything",
        _ASKED + "test_what_waits_or_may_still_come_is_held",
    ),
    Mutant(
        "silent node asked each time",
        _CENSUS,
        "        self._let_rest(url)\n        return _SILENT",
        "        return _SILENT",
        "one silent node slows the scan of all events down (R63)",
        _ASKED + "test_r63_a_node_that_is_silent_is_left_in_peace_for_a_while",
    ),
    # -- the listener -------------------------------------------------------------------------------------
    Mutant(
        "receipts of anyone",
        _LISTENER,
        "if list_root(leaves) != header.receipts_root:",
        "if False:",
        "a node makes outcomes up",
        _HEARD + "test_r62_a_block_without_its_proof_is_read_elsewhere",
    ),
    Mutant(
        "block uncertified",
        _LISTENER,
        "    check_certified_untrusted(header, certificate, validators)\n",
        "",
        "a block that nobody decided is paid for (R62)",
        _HEARD + "test_r62_a_block_without_its_proof_is_read_elsewhere",
    ),
    Mutant(
        "lost race passed over",
        _LISTENER,
        "            if await self._apply(changes, place.cursor):",
        "            if await self._apply(changes, place.cursor) or True:",
        "an outcome is lost when somebody else changes its event at that moment",
        _HEARD + "test_a_lost_race_is_decided_anew",
    ),
    Mutant(
        "pages that are too large asked for again",
        "services/client/reader.py",
        'if error.code != "answer_too_large" or count == 1:',
        "if True:",
        "a listener that was away while blocks were full never catches up",
        _HEARD + "test_blocks_that_are_too_large_for_one_answer_are_read_in_smaller_pages",
    ),
    Mutant(
        "first block of any chain",
        _LISTENER,
        "if (header.chain_id, header.height) != (self._reader.chain_id, parent.height + 1):",
        "if header.height != parent.height + 1:",
        "one block of another chain, and this one is never followed again",
        _HEARD + "test_r84_a_first_block_of_another_chain_of_the_same_validators_is_not_taken",
    ),
    Mutant(
        "standing node followed for ever",
        _LISTENER,
        "        return ahead[0] if ahead else self._node",
        "        return self._node",
        "one node that stands still stops all settlement (R60)",
        _HEARD + "test_r60_a_node_that_stands_still_is_left",
    ),
    Mutant(
        "validators proven by any node",
        _LISTENER,
        "(await node.prove_block(parent.height + 1)).validators",
        "(await self._reader.prove_block(parent.height + 1)).validators",
        "a node that stands still where the validators change stops all settlement (R60)",
        _HEARD + "test_r60_a_node_that_stands_still_where_the_validators_change_is_left",
    ),
    Mutant(
        "claimed head believed",
        _LISTENER,
        "return start <= place.height < answer.head",
        "return place.height < answer.head",
        "a node that claims blocks it does not show stops all settlement (R61)",
        _HEARD + "test_r61_what_a_node_says_of_blocks_that_it_does_not_show_holds_up_nobody",
    ),
    Mutant(
        "any notice is progress",
        _LISTENER,
        "if self.height > height:",
        "if True:",
        "a node that only gives notices stops all settlement (R61)",
        _HEARD + "test_r61_what_a_node_says_of_blocks_that_it_does_not_show_holds_up_nobody",
    ),
    Mutant(
        "set followed by nobody",
        _LISTENER,
        "is_same = header.next_validators_hash == header.validators_hash",
        "is_same = True",
        "reading ends where the validators change",
        _HEARD + "test_a_changed_validator_set_is_followed",
    ),
    # -- the clerk ----------------------------------------------------------------------------------------
    Mutant(
        "refused lift forgotten",
        _CLERK,
        'ENDED = frozenset({"", "lien_closed"})',
        'ENDED = frozenset({"", "lien_closed", "unknown_lien"})',
        "nobody hears of a paid trade whose units are not free",
        _DONE + "test_a_lift_that_the_chain_refuses_is_kept_for_the_operator",
    ),
    Mutant(
        "ended lien tried again",
        _CLERK,
        'ENDED = frozenset({"", "lien_closed"})',
        'ENDED = frozenset({""})',
        "after a crash a lift that was done is taken for refused",
        _DONE + "test_a_lift_that_was_done_before_a_crash_is_done",
    ),
    Mutant(
        "late reversal",
        _CLERK,
        "if decision.may_reverse(trade)}",
        "if trade}",
        "the units of a paid trade are asked back",
        _DONE + "test_what_was_paid_meanwhile_is_not_reversed",
    ),
    Mutant(
        "reversal signed anew each time",
        _CLERK,
        "                if event.state is State.REGISTERED:\n                    return event\n",
        "",
        "each notice makes another reversal",
        _DONE + "test_doubled_notices_make_one_reversal",
    ),
)
