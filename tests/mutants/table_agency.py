"""Mutants of agency sale on the chain: who opens and revokes, whose signatures count, what an anchor proves."""

from tests.mutants.mutant import Mutant

_COOPERATION = "contracts/domain/cooperation.py"
_EVIDENCE = "contracts/domain/evidence.py"
_PARTIES = "pytest tests/contracts/domain/test_cooperation.py::"
_TERMS = "pytest tests/contracts/domain/test_cooperation_terms.py::"
_ANCHORS = "pytest tests/contracts/domain/test_evidence.py::"

MUTANTS = (
    # -- parties, agreements, channels --------------------------------------------------------------------
    Mutant(
        "agreement without its issuers",
        _COOPERATION,
        "        for signer in (bank, *issuers):\n            party =",
        "        for signer in (bank,):\n            party =",
        "a bank opens channels with issuers that agreed to nothing",
        _PARTIES + "test_an_agreement_with_one_signature_altered_is_none",
    ),
    Mutant(
        "agreement used by another bank",
        _COOPERATION,
        "        bank = _acting(context, SALES_ROLE)\n",
        "        _acting(context, SALES_ROLE)\n        bank = sorted(signatures)[0]\n",
        "one bank applies in the name of another",
        _PARTIES + "test_another_bank_cannot_use_an_agreement",
    ),
    Mutant(
        "anyone opens channels",
        _COOPERATION,
        "        _acting(context, PERMISSION_ROLE)\n        record = _pending_application(context, application)\n"
        "        context.require(context.time_ms >=",
        "        record = _pending_application(context, application)\n        context.require(context.time_ms >=",
        "banks open their own channels",
        _PARTIES + "test_nobody_else_opens_or_refuses",
    ),
    Mutant(
        "reopened under the old epoch",
        _COOPERATION,
        'epoch = 1 if old is None else old["epoch"] + 1',
        'epoch = 1 if old is None else old["epoch"]',
        "what was sent before a revocation is taken after it",
        _PARTIES + "test_epochs_never_fall",
    ),
    Mutant(
        "old agreement reopens",
        _COOPERATION,
        'is_newer = record["validFromMs"] + REOPEN_SLACK_MS',
        'is_newer = record["validUntilMs"] + REOPEN_SLACK_MS',
        "an agreement signed earlier is a way round a revocation",
        _PARTIES + "test_an_agreement_from_before_a_revocation_does_not_open_the_channel_again",
    ),
    Mutant(
        "revocation forgotten in the next epoch",
        _COOPERATION,
        'context.state.get(f"revoked/{bank}/{issuer}") or 0',
        '0 if old is None or old["status"] == OPEN else old["revokedMs"]',
        "a second agreement from before a revocation prolongs the channel that was opened anew",
        _PARTIES + "test_a_revocation_is_remembered_when_the_channel_was_opened_anew",
    ),
    Mutant(
        "grace until the agreement ends",
        _COOPERATION,
        'min(record["graceUntilMs"], context.time_ms + grace_ms)',
        'record["graceUntilMs"]',
        "a revoked channel goes on carrying confirmations",
        _PARTIES + "test_either_party_revokes_and_nobody_else",
    ),
    Mutant(
        "node moves under an open channel",
        _COOPERATION,
        'if old is not None and old["node"] != node:',
        'if old is None and node == "":',
        "an epoch goes on at a node that knows nothing of its messages",
        _PARTIES + "test_an_epoch_belongs_to_one_pair_of_nodes",
    ),
    Mutant(
        "replaced business key counts for ever",
        _COOPERATION,
        "if item[1] >= oldest]",
        "if item[1] >= 0]",
        "what a stolen key signs counts long after it was replaced",
        _PARTIES + "test_what_a_replaced_key_signed_counts_for_a_while",
    ),
    Mutant(
        "business key replaced at will",
        _COOPERATION,
        "is_often = len(recent) >= KEYS_REPLACED_MAX",
        "is_often, recent = False, recent[: KEYS_REPLACED_MAX - 1]",
        "an issuer disowns its answer before the bank has anchored it",
        _PARTIES + "test_a_party_cannot_disown_what_it_signed_by_replacing_its_key_again_and_again",
    ),
    Mutant(
        "replaced business key comes back",
        _COOPERATION,
        'context.require(is_new, "key_used"',
        'context.require(True, "key_used"',
        "a key is given to two parties, or a stolen one is put in force again",
        _PARTIES + "test_replaced_keys_are_remembered_and_never_come_back",
    ),
    # -- terms --------------------------------------------------------------------------------------------
    Mutant(
        "terms with one signature",
        _COOPERATION,
        "        for signer in (bank, issuer):\n            signature:",
        '        for signer in (record["proposer"],):\n            signature:',
        "one side changes the terms",
        _TERMS + "test_terms_take_both_signatures_and_the_permission_desk",
    ),
    Mutant(
        "void proposal is enacted",
        _COOPERATION,
        'following: bool = record["version"] == newest + 1',
        'following: bool = record["version"] > 0',
        "older terms overwrite what was agreed later",
        _TERMS + "test_of_two_proposals_for_one_version_the_first_enacted_wins",
    ),
    Mutant(
        "older terms come back",
        _COOPERATION,
        'if found is not None and found["effectiveMs"] <= context.time_ms:',
        'if found is not None and found["effectiveMs"] <= context.time_ms < found["expiresMs"]:',
        "terms that were replaced are in force again when the newer ones end",
        _TERMS + "test_the_newest_version_that_has_begun_is_in_force",
    ),
    # -- anchors ------------------------------------------------------------------------------------------
    Mutant(
        "outcome without the issuer",
        _EVIDENCE,
        "is_bare = not outcome_root and not previous and not round_number",
        "is_bare = True",
        "a bank puts confirmations on the chain that nobody gave",
        _ANCHORS + "test_a_claim_says_what_was_signed_and_no_more",
    ),
    Mutant(
        "bank's signature not checked",
        _EVIDENCE,
        'bank_key = _signer(context, signers["bankKeys"], orders_signature, Purpose.ORDERS, payload)',
        'bank_key = signers["bankKeys"][0]',
        "an issuer invents orders of a bank",
        _ANCHORS + "test_no_signature_counts_for_anything_else",
    ),
    Mutant(
        "anchor of an epoch to come",
        _EVIDENCE,
        'context.require(epoch <= signers["epoch"],',
        "context.require(True,",
        "evidence stands of a channel that never was",
        _ANCHORS + "test_there_must_be_a_channel_and_an_epoch",
    ),
    Mutant(
        "claim replaces what both signed",
        _EVIDENCE,
        'known["status"] == MUTUAL or not is_mutual',
        'known["status"] != MUTUAL and not is_mutual',
        "either side weakens what both have signed",
        _ANCHORS + "test_the_same_again_has_the_first_result",
    ),
    Mutant(
        "contradiction not marked",
        _EVIDENCE,
        "    return bool(others)",
        "    return False",
        "an issuer shows one answer to the bank and another to the chain, and nobody is told",
        _ANCHORS + "test_two_outcomes_of_one_package_contradict_each_other",
    ),
    Mutant(
        "allotment takes the claim away",
        _EVIDENCE,
        "if status == MUTUAL and not round_number and",
        "if status == MUTUAL and",
        "a bank's claim of a package vanishes before the package is anchored",
        _ANCHORS + "test_the_allotment_is_a_round_of_its_own",
    ),
    Mutant(
        "log of anchors not chained",
        _EVIDENCE,
        'context.hash(log["head"], entry)',
        "context.hash(EMPTY_HEAD, entry)",
        "an anchor can be left out of a channel's log",
        _ANCHORS + "test_the_log_shows_that_nothing_was_left_out",
    ),
    Mutant(
        "salt of any length",
        "consensus/ledger/cooperation.py",
        "    if len(salt) != SALT_BYTES:",
        "    if not SALT_BYTES:",
        "a disclosed order is read as another one, its first bytes counted to the salt",
        "pytest tests/ledger/test_cooperation.py::test_a_salt_cannot_borrow_from_what_follows",
    ),
)
