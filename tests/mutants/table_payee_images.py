"""Mutants of codes as images, of the merchant's side and of its commands."""

from tests.mutants.mutant import Mutant

_IMAGES = "pytest tests/payee/test_images.py::"
_MERCHANTS = "pytest tests/payee/test_merchants.py::"
_CLI = "pytest tests/cli/test_payee_code.py::"

MUTANTS = (
    Mutant(
        "a file's word on its size",
        "services/payee/images.py",
        "            if image.width * image.height > PIXELS_MAX:",
        "            if image.width * image.height < 0:",
        "a small file unpacks to as much memory as it likes",
        _IMAGES + "test_an_image_that_claims_too_many_pixels_is_never_unpacked",
    ),
    Mutant(
        "far away",
        "services/payee/images.py",
        "    if not found and image.width * image.height <= _ENLARGED_PIXELS_MAX:",
        "    if not found and image.width * image.height < 0:",
        "a code that is small in a photo is not found",
        _IMAGES + "test_photos_of_it_are_read",
    ),
    Mutant(
        "first of several",
        "services/payee/images.py",
        "    if len(found) > 1:",
        "    if len(found) > 9:",
        "of two codes on a wall the payer gets one by chance",
        _IMAGES + "test_several_codes_are_counted_and_the_same_one_twice_is_one",
    ),
    Mutant(
        "light letters",
        "services/payee/images.py",
        """    blocks = " ▄▀█" if is_colored else "█▀▄ \"""",
        """    blocks = "█▀▄ " if is_colored else " ▄▀█\"""",
        "a terminal shows the code inverted, which not every phone reads",
        _IMAGES + "test_what_a_terminal_shows_is_a_code",
    ),
    Mutant(
        "no quiet zone",
        "services/payee/images.py",
        "BORDER_MODULES = 4\nTERMINAL",
        "BORDER_MODULES = 0\nTERMINAL",
        "a printed code runs into what stands beside it",
        _IMAGES + "test_a_symbol_corrects_errors_and_has_its_quiet_zone",
    ),
    Mutant(
        "weak correction",
        "services/payee/images.py",
        """_symbol(payload, "m"), io""",
        """_symbol(payload, "l"), io""",
        "a scratch makes a printed code unreadable",
        _IMAGES + "test_every_image_bears_at_least_15_percent_of_damage",
    ),
    Mutant(
        "the lower byte",
        "services/payee/images.py",
        """            if image.mode.startswith("I"):""",
        """            if image.mode.startswith("none"):""",
        "a scan with 16 bits a pixel is white all over",
        _IMAGES + "test_photos_of_it_are_read",
    ),
    Mutant(
        "signing between two keys",
        "services/payee/merchants.py",
        "        if self.has_next(entry.name):\n            message",
        "        if not self.has_next(entry.name):\n            message",
        "a code is signed with a key that the chain has replaced",
        _MERCHANTS + "test_an_interrupted_change_of_key_goes_on_and_nothing_is_signed_meanwhile",
    ),
    Mutant(
        "registered twice",
        "services/payee/merchants.py",
        "    found = await merchant_state(client, merchant.identity)\n    if found is None:",
        "    found = await merchant_state(client, merchant.identity)\n    if found is None or found.changes:",
        "a registration whose answer was lost ends with an error for ever",
        _MERCHANTS + "test_an_interrupted_registration_goes_on",
    ),
    Mutant(
        "a merchant of every hash",
        "services/payee/merchants.py",
        "        if _is_identity(name):",
        "        if not name:",
        "a folder's NAME is taken for the identity of somebody else",
        _MERCHANTS + "test_what_can_be_no_name_is_refused_before_anything_is_made",
    ),
    Mutant(
        "key put in place unasked",
        "services/payee/merchants.py",
        "    new_key, number = new.key.public.compressed, found.key_number + 1\n",
        "    new_key, number = new.key.public.compressed, found.key_number + 1\n    store.take_next(entry.name)\n",
        "a merchant whose change of key fails has a key that the chain does not know",
        _MERCHANTS + "test_an_interrupted_change_of_key_goes_on_and_nothing_is_signed_meanwhile",
    ),
    Mutant(
        "dead on arrival",
        "cli/payee_code.py",
        "        if expires_s <= now_s:",
        "        if expires_s < 0:",
        "a code is printed that has expired already",
        _CLI + "test_odd_values_are_wrong_usage",
    ),
    Mutant(
        "altered and content",
        "cli/payee_code.py",
        """("right", "unsigned", "foreign", "not_checked")""",
        """("right", "unsigned", "foreign", "not_checked", "bad_code")""",
        "a script takes an altered code for a good one",
        _CLI + "test_merchants_and_the_check_of_their_codes_on_a_chain",
    ),
)
