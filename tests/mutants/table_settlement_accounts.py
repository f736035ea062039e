"""Mutants of the account system: what is paid twice, out of nothing, for the wrong terms, or torn by a crash."""

from tests.mutants.mutant import Mutant

_LEDGER = "services/accounts/ledger.py"
_STORE = "services/accounts/store.py"
_PAGES = "services/accounts/pages.py"
_LINK = "services/accounts/link.py"
_ASKING = "services/local/asking.py"
_RULES = "pytest tests/accounts/test_ledger.py::"
_CELL = _RULES + "test_a_cell_of_the_table"
_BOOKS = "pytest tests/accounts/test_store.py::"
_HTTP = "pytest tests/accounts/test_program.py::"

MUTANTS = (
    Mutant(
        "paid again",
        _LEDGER,
        "        if done_ms := _done_ms(standing, order.operation):\n            return done_ms",
        "        done_ms = _done_ms(standing, order.operation)\n"
        "        if done_ms and order.operation is not Operation.PAY:\n            return done_ms",
        "a repeated notice pays twice",
        _CELL,
    ),
    Mutant(
        "hold without a tombstone",
        _LEDGER,
        "                return self._stand(fresh, released_ms=self.time_ms, is_tombstone=True)",
        "                return self.time_ms",
        "a reserve that comes after its release holds money for ever",
        _CELL,
    ),
    Mutant(
        "released and paid",
        _LEDGER,
        "            case Operation.PAY:\n                if standing.released_ms:",
        "            case Operation.PAY:\n                if standing.released_ms and standing.is_tombstone:",
        "what was given up is paid out of what other trades hold",
        _CELL,
    ),
    Mutant(
        "paid and released",
        _LEDGER,
        "            case Operation.RELEASE:\n                if standing.paid_ms:",
        "            case Operation.RELEASE:\n                if standing.reversed_ms:",
        "a payment is followed by the release of what is held no more",
        _CELL,
    ),
    Mutant(
        "terms not compared",
        _LEDGER,
        "            *(standing.payer, standing.payee, standing.amount, standing.currency),",
        "            *(standing.payer, standing.payee, order.amount, standing.currency),",
        "an event is reserved with one amount and paid with another",
        _RULES + "test_an_event_has_one_set_of_terms",
    ),
    Mutant(
        "paid out of nothing",
        _LEDGER,
        "        if self._known(account).available < amount:",
        "        if self._known(account).available + self._known(account).held < amount:",
        "what is held for one trade pays for another",
        _RULES + "test_what_is_held_pays_for_nothing_else",
    ),
    Mutant(
        "frozen keeps the hold",
        _LEDGER,
        "            case Operation.RELEASE:\n                if standing.paid_ms:",
        "            case Operation.RELEASE:\n                self._check_accounts(order)\n"
        "                if standing.paid_ms:",
        "the money of a cancelled trade stays held while its account is frozen",
        _RULES + "test_a_frozen_account_neither_pays_nor_is_paid_but_gets_its_hold_back",
    ),
    Mutant(
        "payee not asked",
        _LEDGER,
        "        accounts = [self._known(name) for name in (order.payer, order.payee)]",
        "        accounts = [self._known(order.payer)]",
        "money goes to an account in another currency, or to nobody",
        _RULES + "test_what_is_refused_leaves_no_trace",
    ),
    Mutant(
        "negative parts",
        _LEDGER,
        "            if balance < 0:\n                raise",
        "            if balance < -(2**63):\n                raise",
        "a bug makes a balance negative and nobody notices",
        _RULES + "test_a_part_below_zero_is_a_bug_and_no_answer",
    ),
    Mutant(
        "deposit by amount alone",
        _STORE,
        '        if (entry.credit, entry.amount) != (f"{account}/available", amount):',
        "        if entry.amount != amount:",
        "a deposit's reference stands for two accounts",
        _BOOKS + "test_a_deposit_counts_once_for_its_reference",
    ),
    Mutant(
        "what stands is not kept",
        _STORE,
        "        connection.execute(_KEEP_STANDING, old)",
        "        _ = old",
        "the payment of a reserved event is forgotten, and paid again",
        _BOOKS + "test_histories_in_batches_are_as_the_second_account_system_says",
    ),
    Mutant(
        "pages by number alone",
        _STORE,
        "        query = query.where(sqlalchemy.tuple_(table.c.time_ms, table.c.number) > (after_ms, after))",
        "        query = query.where(table.c.number > after)",
        "after a clock that jumped a page leaves postings out",
        _BOOKS + "test_a_clock_that_jumps_hides_no_posting_and_none_comes_twice",
    ),
    Mutant(
        "answer lost before it is done",
        _PAGES,
        '        if self._panel.struck("down", operations):',
        '        if self._panel.struck("down", operations) or self._panel.struck("lose_answer", operations):',
        "the fault panel loses orders in the place of answers",
        _HTTP + "test_a_lost_answer_is_lost_after_the_order_was_done",
    ),
    Mutant(
        "disk failure is survived",
        _PAGES,
        "        self.failed.set()\n        return error_response",
        "        return error_response",
        "the account system goes on over a disk that has failed",
        _HTTP + "test_what_no_request_can_mend_ends_the_program",
    ),
    Mutant(
        "server errors are refusals",
        _ASKING,
        "        if status >= SERVER_ERRORS:",
        "        if status > 599:",
        "an order that may have been done is taken for refused",
        _HTTP + "test_a_database_that_is_away_is_no_refusal",
    ),
    Mutant(
        "answers not matched",
        _LINK,
        "[(answer.event, answer.operation) for answer in answers] != [(one.event, one.operation) for one in orders]:",
        "len(answers) != len(orders):",
        "another event's answer completes an event",
        "pytest tests/accounts/test_link.py::test_an_answer_that_is_none",
    ),
)
