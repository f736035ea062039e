"""Mutants of the split key: what opens with one part, shows itself to an environment, or is lost without need."""

from tests.mutants.mutant import Mutant

_SPLIT = "services/payee/split.py"
_RECORDS = "services/payee/records.py"
_STORE = "services/payee/platform_store.py"
_OFFERS = "services/payee/offers.py"
_PAYER = "services/payee/payer.py"
_RESOLVER = "services/payee/resolver.py"
_TEST = "pytest tests/payee/test_split.py::"

MUTANTS = (
    Mutant(
        "a key without the code's part",
        _SPLIT,
        "derived(code_part + part, info,",
        "derived(part, info,",
        "the platform's vault alone opens a split record",
        _TEST + "test_one_part_alone_or_of_something_else_opens_nothing",
    ),
    Mutant(
        "a key without the platform's part",
        _SPLIT,
        "derived(code_part + part, info,",
        "derived(code_part, info,",
        "whoever has the printed code opens a split record that an environment read",
        _TEST + "test_one_part_alone_or_of_something_else_opens_nothing",
    ),
    Mutant(
        "a split key for every platform",
        _SPLIT,
        'info = encode(["payee-split", identity, server])',
        'info = encode(["payee-split", identity])',
        "what one platform sealed opens as another's",
        _TEST + "test_one_part_alone_or_of_something_else_opens_nothing",
    ),
    Mutant(
        "a split key for every identity",
        _SPLIT,
        'info = encode(["payee-split", identity, server])',
        'info = encode(["payee-split", server])',
        "what was sealed for one merchant opens as another's",
        _TEST + "test_one_part_alone_or_of_something_else_opens_nothing",
    ),
    Mutant(
        "parts of any length",
        _SPLIT,
        "    if (len(code_part), len(part)) != (CODE_PART_BYTES, PART_BYTES):",
        "    if False:",
        "where one part ends and the other begins is the platform's choice",
        _TEST + "test_one_part_alone_or_of_something_else_opens_nothing",
    ),
    Mutant(
        "a seal that commits to nothing",
        _SPLIT,
        "        if not hmac.compare_digest(check, sealed.split[:CHECK_BYTES]):",
        "        if False:",
        "a platform shows the merchant one content and pays by another",
        _TEST + "test_what_is_sealed_commits_to_its_parts",
    ),
    Mutant(
        "split in name alone",
        _RECORDS,
        "                plaintext = msgspec.json.encode(self._sealed(params, identity, part))",
        "                pass",
        "an environment reads what the split key is to keep from it",
        _TEST + "test_an_environment_and_the_chain_have_nothing_in_the_clear",
    ),
    Mutant(
        "one part for all",
        _RECORDS,
        "                part = secrets.token_bytes(PART_BYTES)",
        '                part = self._server.encode().ljust(PART_BYTES, b"0")',
        "a part that was given for one merchant opens all the others'",
        _TEST + "test_an_environment_and_the_chain_have_nothing_in_the_clear",
    ),
    Mutant(
        "an update without the split key",
        _RECORDS,
        "        if is_split and not params.code_part:",
        "        if False:",
        "an option that was forgotten shows a record to environments",
        _TEST + "test_a_split_record_is_updated_rotated_and_removed",
    ),
    Mutant(
        "a part that goes with its draft",
        _RECORDS,
        "drop_draft(identity, kept=params.commitment)",
        "drop_draft(identity)",
        "no payer opens the record any more",
        _TEST + "test_an_environment_and_the_chain_have_nothing_in_the_clear",
    ),
    Mutant(
        "parts for ever",
        _STORE,
        "for name in parts if name != _PART + identity + kept]",
        "for name in parts if False]",
        "what was replaced or removed can still be opened",
        _TEST + "test_a_split_record_is_updated_rotated_and_removed",
    ),
    Mutant(
        "a lost part is not missed",
        _RECORDS,
        "        return isinstance(said, SplitAcquiring) and self._store.part(identity, record.commitment) is None",
        "        return False",
        "a platform does not learn that it cannot pay a merchant any more",
        _TEST + "test_without_the_platforms_part_a_record_is_lost",
    ),
    Mutant(
        "signed unseen",
        _OFFERS,
        "identity=identity_of(draft.identity), server=draft.server\n",
        'identity=identity_of(draft.identity), server="wallet-p"\n',
        "a merchant sees the content of one platform and signs it for another",
        _TEST + "test_the_merchant_sees_what_it_signs",
    ),
    Mutant(
        "a part for show",
        _OFFERS,
        "    if isinstance(said, SplitAcquiring) is not bool(draft.part):",
        "    if False:",
        "a platform that was asked for a split key has a record signed that environments read",
        "pytest tests/cli/test_payee_split.py::test_a_platform_that_splits_nothing_gets_no_signature",
    ),
    Mutant(
        "somebody else's code",
        "cli/payee_records.py",
        "        if identity_text(read.identity) != identity:",
        "        if False:",
        "a record is sealed with a part that no code of its merchant has",
        "pytest tests/cli/test_payee_split.py::test_both_sign_a_split_record_on_machines_of_their_own",
    ),
    Mutant(
        "a part in place of another",
        "services/payee/merchants.py",
        "        if is_split is not (entry.key_part is not None):",
        "        if False:",
        "a merchant is made without the part that was asked for, and nobody says so",
        _TEST + "test_a_merchant_has_its_part_from_the_beginning_or_never",
    ),
    Mutant(
        "split, and so not there",
        _RESOLVER,
        "            return Candidate(served.server, served.version, None, split)",
        "            return Candidate(served.server, served.version, None)",
        "a payer with the right code is told that the platform has no record",
        _TEST + "test_a_split_code_is_resolved_and_paid",
    ),
    Mutant(
        "a part of nobody's is enough",
        _PAYER,
        "        if looked.target.split is not None and acquiring is None:",
        "        if False:",
        "who lacks the code's part is told that the platform has no record",
        _TEST + "test_a_split_code_is_resolved_and_paid",
    ),
)
