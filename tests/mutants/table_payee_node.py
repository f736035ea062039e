"""Mutants of proven states and of a node's side of payees: what a proof vouches for, and who may answer."""

from tests.mutants.mutant import Mutant

_STATES = "consensus/ledger/states.py"
_PROOFS = "node/proofs.py"
_PAYEES = "node/payees.py"
_LINK = "node/environment.py"
_PROVEN = "pytest tests/ledger/test_states.py::"
_ASKED = "pytest tests/node/test_environment.py::"

MUTANTS = (
    Mutant(
        "verified head vouches for all",
        _STATES,
        "if head not in self._heads:",
        "if not self._heads:",
        "after its first honest head a client takes one that nobody certified",
        _PROVEN + "test_a_verified_head_vouches_for_no_other_bytes",
    ),
    Mutant(
        "head without its way from genesis",
        _STATES,
        "head = sha256(way + _head_codec",
        "head = sha256(_head_codec",
        "a head that was verified once is taken under set changes that do not lead to it",
        _PROVEN + "test_a_verified_head_needs_its_own_way_from_genesis",
    ),
    Mutant(
        "key without entry is absent",
        _STATES,
        "        if key not in self._values:\n"
        '            raise PeerError("not_proven", f"nothing is proven about {key}")\n'
        "        return self._values[key]",
        "        return self._values.get(key)",
        "a node that leaves a record out has proven that there is none",
        _PROVEN + "test_nothing_is_said_of_a_key_without_entry",
    ),
    Mutant(
        "key with two entries",
        _STATES,
        "one.key >= next_one.key",
        "one.key > next_one.key",
        "a proof has two spellings",
        _PROVEN + "test_keys_ascend_and_none_stands_twice",
    ),
    Mutant(
        "states' paths unchecked",
        _STATES,
        "            check_state_proof_untrusted(header.sealed_root, entry.key.encode(), entry.value, entry.path)\n",
        "            entry.key.encode()\n",
        "a lying node names any payee",
        _PROVEN + "test_a_value_holds_at_its_own_key_under_its_own_head",
    ),
    Mutant(
        "states without set changes",
        _PROOFS,
        "            for first in firsts[known:]:",
        "            for first in firsts[known:0]:",
        "once a member was replaced nothing is proven any more",
        "pytest tests/node/test_set_changes.py::"
        "test_states_are_proven_across_set_changes_by_a_maker_that_has_seen_them_come",
    ),
    Mutant(
        "states while a block is written",
        _PAYEES,
        "        await self._settled()\n",
        "",
        "values and nodes of the next state are handed out under the old head",
        _ASKED + "test_nothing_is_proven_while_a_block_is_being_written",
    ),
    Mutant(
        "candidates of the newest state",
        _PAYEES,
        "data = self._chain.state.sealed.get(key.encode())",
        "data = self._chain.state.get(key.encode())",
        "keys are looked for in one state and proven in another",
        _ASKED + "test_candidates_are_those_of_the_seal",
    ),
    Mutant(
        "answer of one disallowed meanwhile",
        _PAYEES,
        "        data = await session.ask(AskResolve(query, states))\n        self._check(session)\n",
        "        data = await session.ask(AskResolve(query, states))\n",
        "what was disallowed answers on for as long as its asks are under way",
        _ASKED + "test_an_answer_counts_by_what_is_allowed_when_it_comes",
    ),
    Mutant(
        "environment before its registration is proven",
        _PAYEES,
        "            for state in (self._chain.state, self._chain.state.sealed):\n",
        "            for state in (self._chain.state,):\n",
        "a client takes a node for a liar, whose environment has just been registered",
        _ASKED + "test_an_environment_answers_once_its_registration_is_proven",
    ),
    Mutant(
        "answer to another query",
        _PAYEES,
        "if (answer.query, answer.environment) != (query_hash(body), name):",
        "if answer.environment != name:",
        "answers in another order reach who did not ask for them",
        _ASKED + "test_answers_in_another_order_are_nobodys",
    ),
    Mutant(
        "environment of any user",
        _LINK,
        "if user != expected:",
        "if user < 0:",
        "whoever can put a socket there answers for the environment",
        _ASKED + "test_an_environment_of_another_user",
    ),
    Mutant(
        "quote of any key",
        _LINK,
        "if quote.nonce != nonce or not key.verifies(",
        "if quote.nonce != nonce and not key.verifies(",
        "a program without the environment's key passes for it",
        _ASKED + "test_a_quote_must_be_fresh_signed_and_what_the_chain_says",
    ),
    Mutant(
        "quote that the chain contradicts",
        _LINK,
        "if said != (found.exchange_key, found.signing_key, found.measurement):",
        "if not said:",
        "other code answers under a registered environment's name",
        _ASKED + "test_a_quote_must_be_fresh_signed_and_what_the_chain_says",
    ),
    Mutant(
        "withdrawn environment answers",
        _LINK,
        'if found.status != "ACTIVE":',
        "if not found.status:",
        "what its organisation has withdrawn goes on",
        _ASKED + "test_only_what_the_chain_allows_answers",
    ),
    Mutant(
        "disallowed measurement answers",
        _LINK,
        'if allowed is None or allowed.status != "ALLOWED":',
        "if allowed is None:",
        "the allow-list only grows",
        _ASKED + "test_only_what_the_chain_allows_answers",
    ),
    Mutant(
        "frames without limit",
        _LINK,
        "if length > TOLD_BYTES_MAX:",
        "if length < 0:",
        "an environment fills the node's memory",
        _ASKED + "test_a_hostile_environment_costs_its_own_answer",
    ),
    Mutant(
        "asks without limit",
        _LINK,
        "if self.waiting >= ASKS_MAX or",
        "if",
        "queries pile up in a node whose environment is slow",
        _ASKED + "test_only_so_many_wait",
    ),
    Mutant(
        "environment's own codes",
        _LINK,
        "if item.told.code in TOLD_CODES:",
        "if item.told.code:",
        "an environment lets a client believe that the node has failed",
        _ASKED + "test_a_hostile_environment_costs_its_own_answer",
    ),
    Mutant(
        "who gave up takes the next answer",
        _LINK,
        "                    item = self._sent.popleft()\n                    item.told = told\n",
        "                    item = self._sent.pop()\n                    item.told = told\n",
        "answers reach asks in another order than they went out",
        _ASKED + "test_asks_go_out_in_order_over_one_connection",
    ),
)
