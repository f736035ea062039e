"""Mutants of payee codes: what a payload's syntax lets through, and what a merchant's signature covers."""

from tests.mutants.mutant import Mutant

_EMV = "services/payee/emv.py"
_FIELDS = "services/payee/emv_fields.py"
_CODES = "services/payee/codes.py"
_EMV_TEST = "pytest tests/payee/test_emv.py::"
_CODES_TEST = "pytest tests/payee/test_codes.py::"

MUTANTS = (
    # -- payloads ------------------------------------------------------------------------------------------------
    Mutant(
        "a payload's field twice",
        _EMV,
        "        if tag in tags:\n",
        "        if tag in ():\n",
        "what one reader takes from the first, another takes from the second",
        _EMV_TEST + "test_what_breaks_the_syntax_is_refused_with_its_position",
    ),
    Mutant(
        "a CRC that is not checked",
        _EMV,
        "    if not payload.has_right_crc:\n",
        "    if False:\n",
        "a code that was misread is used",
        _EMV_TEST + "test_a_crc_in_small_letters_is_wrong",
    ),
    Mutant(
        "a payload of any length",
        _EMV,
        "    if len(text) > CHARACTERS_MAX:\n",
        "    if len(text) > 1_000_000:\n",
        "whoever sends a payload has it read however long it is",
        _EMV_TEST + "test_a_payload_of_10_000_characters_is_refused_before_it_is_read",
    ),
    Mutant(
        "control characters in a payload",
        _EMV,
        'if character < " " or ',
        'if character < "" or ',
        "a printed code moves the cursor of who looks at it",
        _EMV_TEST + "test_what_breaks_the_syntax_is_refused_with_its_position",
    ),
    Mutant(
        "digits of other alphabets",
        _FIELDS,
        "    return text.isascii() and text.isdigit()\n",
        "    return text.isdigit()\n",
        "one payload has several spellings",
        _EMV_TEST + "test_what_breaks_the_syntax_is_refused_with_its_position",
    ),
    Mutant(
        "a message that repeats its input",
        _EMV,
        "    cut = text[:SHOWN_CHARACTERS_MAX]\n",
        "    cut = text\n",
        "errors carry what they refuse into logs",
        _EMV_TEST + "test_messages_repeat_little_of_what_they_refuse",
    ),
    Mutant(
        "our template behind everything",
        _EMV,
        "    place = payload.fields.index(before[-1]) + 1 if before else 0\n",
        "    place = len(payload.fields)\n",
        "a payload in order is out of order once our template is in it",
        _EMV_TEST + "test_inserting_leaves_the_others_in_their_order",
    ),
    Mutant(
        "thousandths of a currency dropped",
        _FIELDS,
        ' or fraction[2:].strip("0"):\n',
        ":\n",
        "less is paid than the code says",
        _EMV_TEST + "test_amounts_are_exact",
    ),
    # -- codes ---------------------------------------------------------------------------------------------------
    Mutant(
        "a signature over our own fields only",
        _CODES,
        "for field in payload.fields if field not in second]",
        'for field in payload.fields if field not in second and field.tag != "59"]',
        "whoever holds a code puts another shop's name on it",
        _CODES_TEST + "test_every_character_replaced_is_refused",
    ),
    Mutant(
        "an order without a signature",
        _CODES,
        "        if code.is_dynamic:\n            raise",
        "        if False:\n            raise",
        "whoever takes the signature off a code chooses its amount",
        _CODES_TEST + "test_whoever_takes_the_signature_off_has_no_order_left",
    ),
    Mutant(
        "an unsigned order is read",
        _CODES,
        "if is_dynamic and signing else None",
        "if is_dynamic or not signing else None",
        "another scheme's reference label is paid as an order of ours",
        _CODES_TEST + "test_whoever_takes_the_signature_off_has_no_order_left",
    ),
    Mutant(
        "a code that never expires",
        _CODES,
        "if code.expires_ms is not None and now_ms >= code.expires_ms:",
        "if code.expires_ms is not None and now_ms > code.expires_ms:",
        "a code is paid when its time is over",
        _CODES_TEST + "test_a_code_expires_and_is_of_one_key_and_one_chain",
    ),
    Mutant(
        "several spellings of a signature",
        _CODES,
        "if len(found) != count or _text_of(found) != text:",
        "if len(found) != count:",
        "one signed code has several texts",
        _CODES_TEST + "test_every_bit_of_a_dynamic_code_flipped_is_refused",
    ),
    Mutant(
        "a signature's second half anywhere",
        _CODES,
        "if places[1] != places[0] + 1 or ",
        "if ",
        "one signed code has several texts",
        _CODES_TEST + "test_a_signature_has_its_place_among_templates_of_others",
    ),
    Mutant(
        "two identities in a code",
        _CODES,
        "    if len(ours) > 1:\n",
        "    if len(ours) > 2:\n",
        "two payers of the same code pay two merchants",
        _CODES_TEST + "test_a_code_gets_no_second_identity",
    ),
    Mutant(
        "a code for any chain",
        _CODES,
        "verifies(code.signature, Purpose.PAYEE_CODE, chain_id, payload_hash)",
        "verifies(code.signature, Purpose.PAYEE_CODE, ChainId(bytes([1] * 32)), payload_hash)",
        "a code of one chain is good on another",
        _CODES_TEST + "test_a_code_expires_and_is_of_one_key_and_one_chain",
    ),
    Mutant(
        "another scheme's amount replaced",
        _CODES,
        "    if payload.value(tag) != value:\n",
        "    if False:\n",
        "a code says two amounts, one to each scheme's readers",
        _CODES_TEST + "test_another_amount_is_not_put_over_the_one_that_stands_there",
    ),
)
