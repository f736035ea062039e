"""Mutants of fund files: what a file may say, what a record means, what is written."""

from tests.mutants.mutant import Mutant

_READER = "services/agency/ofd/reader.py"
_LINES = "services/agency/ofd/lines.py"
_WRITER = "services/agency/ofd/writer.py"
_MAPPING = "services/agency/ofd/mapping.py"
_ISO = "services/agency/iso20022.py"
_MALFORMED = "pytest tests/agency/ofd/test_reader.py::test_malformed_files_get_an_error_with_line_and_field"
_UNFIT = "pytest tests/agency/ofd/test_reader.py::test_what_does_not_fit_is_refused_and_never_cut"
_ROUND = "pytest tests/agency/ofd/test_mapping.py::"

MUTANTS = (
    Mutant(
        "fund file with fields in any order",
        _READER,
        "            if chosen and place < chosen[-1]:",
        "            if False:",
        "a file whose columns are swapped is read as orders of other amounts",
        _MALFORMED,
    ),
    Mutant(
        "fund file with more records than counted",
        _LINES,
        "        if raw.removesuffix(LINE_END) != mark:",
        "        if not raw:",
        "orders behind the counted ones are dropped without a word",
        _MALFORMED,
    ),
    Mutant(
        "fund file with letters in numbers",
        _READER,
        '    if raw.strip(b" "):\n        raise BadValueError("something else than digits in a number")',
        "",
        "an amount that cannot be read counts as none",
        _MALFORMED,
    ),
    Mutant(
        "text cut to its field",
        _WRITER,
        '    if len(raw) > width:\n        raise ValueError(f"{len(raw)} bytes, {width} fit")\n'
        "    return raw.ljust(width)",
        "    return raw[:width].ljust(width)",
        "a distributor reads half a word, or half a character",
        _UNFIT,
    ),
    Mutant(
        "application loses what else it said",
        _MAPPING,
        "        if value and field not in own",
        "        if value and field in ()",
        "what a record said beside the order is not told to the issuer, nor in the confirmation",
        _ROUND + "test_trade_applications_come_back_from_their_file",
    ),
    Mutant(
        "allotment not final",
        _MAPPING,
        '"1" if confirmation.is_final else "0"',
        '"1"',
        "a bank takes an acknowledged initial subscription for an allotted one",
        _ROUND + "test_confirmations_come_back_from_their_file",
    ),
    Mutant(
        "message for a rejection",
        _ISO,
        "    return confirmation.is_accepted and not is_acknowledgement and confirmation.nav > 0",
        "    return not is_acknowledgement and confirmation.nav > 0",
        "a rejected order is reported as executed",
        "pytest tests/agency/test_iso20022.py::test_what_executed_nothing_has_no_confirmation",
    ),
)
