"""Mutants of the bank's programs: packages, answers, anchors, disclosure, the window of orders."""

from tests.mutants.mutant import Mutant

_GATEWAY = "services/agency/gateway.py"
_SALES_NODE = "services/agency/sales_node.py"
_ANCHORING = "services/agency/anchoring.py"
_DISCLOSURE = "services/agency/disclosure.py"
_SALES = "services/agency/sales.py"
_TRADES = "pytest tests/agency/test_gateway.py::"
_KILLS = "pytest tests/agency/test_gateway_kills.py::test_killed_at_every_write"
_DISCLOSED = "pytest tests/agency/test_disclosure.py::"
_RECORDS = "pytest tests/agency/test_sales.py::"

MUTANTS = (
    Mutant(
        "batch forgotten",
        _SALES_NODE,
        "            changes.keep_batch(params.batch, msgspec.json.encode(result))\n",
        "",
        "who hands a batch in again buys twice",
        _TRADES + "test_the_same_batch_again_has_the_first_result_also_after_a_restart",
    ),
    Mutant(
        "sold through a revoked channel",
        _SALES_NODE,
        'if channel.status != "OPEN":',
        'if channel.status == "":',
        "a bank goes on selling for who has revoked",
        _TRADES + "test_nothing_is_sold_through_a_revoked_channel_and_what_is_under_way_is_told",
    ),
    Mutant(
        "answer on another channel",
        _SALES_NODE,
        "        if (package.bank, package.issuer) != (origin.bank, origin.issuer):\n"
        '            raise PeerError("wrong_channel", "the answer is',
        '        if package.bank != origin.bank:\n            raise PeerError("wrong_channel", "the answer is',
        "one issuer delivers what another signed",
        _TRADES + "test_forged_and_misplaced_answers_are_dropped_with_an_alarm",
    ),
    Mutant(
        "second answer replaces the first",
        _SALES_NODE,
        "            if others:\n",
        "            if not changes.writes:\n",
        "an issuer changes its confirmations afterwards",
        _TRADES + "test_two_answers_to_one_package_are_both_evidence_and_the_first_counts",
    ),
    Mutant(
        "keys read once for ever",
        _GATEWAY,
        "        for is_newest in (False, True):\n            signers = await self.chain",
        "        for is_newest in (False,):\n            signers = await self.chain",
        "answers signed by an issuer's new key are dropped",
        _TRADES + "test_an_issuer_s_new_key_is_read_from_the_chain",
    ),
    Mutant(
        "full outbox loses packages",
        _GATEWAY,
        "                    if not await self._is_final(origin, error.code):\n",
        '                    if error.code == "":\n',
        "what a node cannot take now is given up",
        _TRADES + "test_a_full_outbox_keeps_packages_waiting_and_loses_none",
    ),
    Mutant(
        "late answers are not asked for",
        _SALES_NODE,
        "if item.connected}",
        "if item.waiting}",
        "an answer lost on its way keeps its orders pending for ever",
        _TRADES + "test_a_late_answer_is_asked_for_and_a_package_never_assumed_to_have_failed",
    ),
    Mutant(
        "way out not durable",
        _SALES_NODE,
        '        gateway.post_kept(changes, package.bank, package.issuer, package.root.hex(), b"p" + package.root)\n',
        '        gateway.post_kept(Changes(), package.bank, package.issuer, package.root.hex(), b"p" + package.root)\n',
        "a package is kept and never sent",
        _KILLS,
    ),
    Mutant(
        "anchoring not durable",
        _SALES_NODE,
        "            changes.set_job(_anchor_job(package, answer))\n",
        "",
        "an answered package never gets to the chain",
        _KILLS,
    ),
    Mutant(
        "issuer trusts its bank to anchor",
        _ANCHORING,
        "        due = self._store.jobs_due(now_ms, ANCHORS_PER_TRANSACTION_MAX)\n",
        "        due = self._store.jobs_due(0, ANCHORS_PER_TRANSACTION_MAX)\n",
        "a bank keeps evidence off the chain",
        _TRADES + "test_the_issuer_anchors_what_its_bank_has_not_and_the_bank_s_own_adds_nothing",
    ),
    Mutant(
        "anchor given up",
        _ANCHORING,
        "        if code not in _FINAL:\n",
        "        if code in _FINAL:\n",
        "evidence is lost for a slip in a gateway's settings",
        "pytest tests/agency/test_anchoring.py::test_no_anchor_is_given_up_that_may_succeed_later",
    ),
    Mutant(
        "one anchor a transaction",
        _ANCHORING,
        "ANCHORS_PER_TRANSACTION_MAX = 64",
        "ANCHORS_PER_TRANSACTION_MAX = 1",
        "many packages cost the chain as many transactions",
        "pytest tests/agency/test_anchoring.py::test_packages_that_wait_together_share_a_transaction",
    ),
    Mutant(
        "own package taken back unchecked",
        _SALES_NODE,
        "            await gateway.check_signed(origin, check, is_bank_key=True)\n",
        "            del check\n",
        "an issuer makes up orders that a bank lost",
        _TRADES + "test_a_backup_is_taken_back_and_a_forged_one_is_not",
    ),
    Mutant(
        "disclosure without the order's path",
        _DISCLOSURE,
        '        raise PeerError("bad_path", "salt and application do not lead to the orders\' root")\n',
        "        pass\n",
        "another order passes for the one that was signed",
        _DISCLOSED + "test_either_side_discloses_one_order_and_anybody_checks_it",
    ),
    Mutant(
        "disclosure held against the anchor's count",
        _DISCLOSURE,
        "    if not leaf_is_under(root, leaf, _list_proof(disclosure.path)):\n",
        "    is_whole = disclosure.path.count == anchor.count\n"
        "    if not is_whole or not leaf_is_under(root, leaf, _list_proof(disclosure.path)):\n",
        "a bank that signs a wrong number of orders keeps its issuer from proving any of them",
        _DISCLOSED + "test_what_one_side_signs_beside_the_truth_keeps_no_order_from_being_proven",
    ),
    Mutant(
        "disclosure without the outcome's path",
        _DISCLOSURE,
        '        raise PeerError("bad_path", "application and confirmation do not lead to the outcomes\' root")\n',
        "        pass\n",
        "another confirmation passes for the one that was signed",
        _DISCLOSED + "test_either_side_discloses_one_order_and_anybody_checks_it",
    ),
    Mutant(
        "claim passes for both signatures",
        _DISCLOSURE,
        "        status=anchor.status,\n",
        '        status="MUTUAL",\n',
        "one side's word counts as an agreement",
        _DISCLOSED + "test_a_claim_is_told_from_what_both_signed",
    ),
    Mutant(
        "plan not kept",
        _SALES,
        "            await self._store.keep_plan(plan)\n",
        "",
        "a sales end that dies while it submits buys twice",
        _RECORDS + "test_it_may_die_at_every_write",
    ),
    Mutant(
        "serial counts twice",
        "services/agency/window.py",
        "if application.serial in seen or is_known(application.serial):",
        "if application.serial in seen:",
        "an order in two files is bought twice",
        _RECORDS + "test_the_same_source_changes_nothing_and_a_serial_counts_once",
    ),
    Mutant(
        "foreign orders sold",
        "services/agency/window.py",
        "            verdicts.append(Verdict(FOREIGN, 0))\n",
        "            verdicts.append(_judge_one(application, products, find_profile, today))\n",
        "a file brings orders of another distributor",
        _RECORDS + "test_each_order_has_one_record_with_its_reason",
    ),
)
