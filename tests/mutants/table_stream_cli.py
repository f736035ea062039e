"""Mutants of streams' commands and of iterations in files."""

from tests.mutants.mutant import Mutant

_FILES = "pytest tests/cli/test_stream.py::"
_PAYER = "pytest tests/cli/test_stream_payer.py::"

MUTANTS = (
    Mutant(
        "anybody's key in an iteration's file",
        "cli/stream_iteration.py",
        "    if keys.get(checked.carried.terms.payer) == checked.carried.payer_key.hex():",
        "    if checked.carried.payer_key.hex() in keys.values() or keys:",
        "a file whose key nobody vouches for is said to be signed by the payer",
        _FILES + "test_an_iteration_is_verified_offline",
    ),
    Mutant(
        "terms of another stream in a file",
        "services/stream/iteration_file.py",
        "    if _hex(carried.stream) != file.stream:",
        "    if False:",
        "a file shows one stream's iteration under another's name and price",
        _FILES + "test_terms_of_another_stream",
    ),
    Mutant(
        "a file of another chain",
        "services/stream/iteration_file.py",
        "    if chain_id != genesis.chain_id():",
        "    if len(chain_id) != len(genesis.chain_id()):",
        "a file says of another chain's iteration that it is this one's",
        _FILES + "test_an_iteration_of_another_chain",
    ),
    Mutant(
        "supplied for nothing is not at stake",
        "cli/stream_live.py",
        "        ahead = seen.signed_due - terms.price * seen.units",
        "        ahead = seen.signed_due - seen.stored_due",
        "who pays does not see what it owes or has paid ahead",
        _FILES + "test_what_is_at_stake",
    ),
    Mutant(
        "any price is accepted",
        "cli/stream_open.py",
        "    accepted = ANYTHING if wish.price is None else replace(ANYTHING, price_max=wish.price)",
        "    accepted = ANYTHING",
        "a payer that names the most it pays is charged more",
        _PAYER + "test_what_a_payer_does_not_accept",
    ),
    Mutant(
        "a deposit that is not back",
        "cli/stream_pay.py",
        "    is_back = record is not None and record.status == CLOSED",
        "    is_back = record is not None",
        "scripts take a stream whose deposit is still bound for done",
        _PAYER + "test_who_does_not_answer",
    ),
    Mutant(
        "Ctrl-C leaves the stream open",
        "cli/stream_pay.py",
        "            stopping.set()\n            break",
        "            raise KeyboardInterrupt",
        "whoever leaves waits for the window to have its deposit back",
        _PAYER + "test_ctrl_c_ends_a_stream_together",
    ),
    Mutant(
        "a withdrawal is done once it is asked for",
        "cli/stream_close.py",
        '    data = {"stream": f"0x{key.hex()}", "withdrawn": not left_ms,',
        '    data = {"stream": f"0x{key.hex()}", "withdrawn": True,',
        "who asked for the deposit never takes it",
        _PAYER + "test_a_deposit_comes_back_alone",
    ),
)
