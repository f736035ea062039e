"""Mutants of settlement's set-up and command line."""

from tests.mutants.mutant import Mutant

_SETUP = "pytest tests/settlement/test_setup.py::"
_CLI = "pytest tests/cli/test_settle.py::"

MUTANTS = (
    Mutant(
        "another database in passing",
        "services/settlement/setup.py",
        "    if plan.database == events.database or not was_used or plan.may_leave_events:",
        "    if plan.database == events.database or was_used or plan.may_leave_events:",
        "open trades stay behind in a database that nobody looks at any more",
        _SETUP + "test_what_people_wrote_stays_and_what_is_asked_for_changes",
    ),
    Mutant(
        "password in a file for all",
        "services/local/urls.py",
        "    if has_password(name):",
        "    if not has_password(name):",
        "whoever reads service.toml reads the database",
        _SETUP + "test_a_password_in_a_file_that_others_may_read_is_refused",
    ),
    Mutant(
        "password shown",
        "services/local/urls.py",
        "place.rpartition('@')[2]}",
        "place}",
        "set-up prints the database's password",
        _SETUP + "test_what_people_wrote_stays_and_what_is_asked_for_changes",
    ),
    Mutant(
        "money at opening alone",
        "services/accounts/opening.py",
        "        for name in people:\n",
        "        for name in new:\n",
        "an account whose opening was interrupted never gets its money",
        _SETUP + "test_everybody_gets_money_once",
    ),
    Mutant(
        "roles not looked at",
        "services/settlement/setup.py",
        "    if missing := [role for role in (ADMIN_ROLE, ISSUER_ROLE) if role not in roles]:",
        "    if missing := [role for role in () if role not in roles]:",
        "a set-up that the chain refuses leaves a key behind",
        _SETUP + "test_who_may_not_do_it_is_refused_before_anything_is_written",
    ),
    Mutant(
        "half a yuan",
        "cli/settle_place.py",
        """(found[2] or "").ljust(2, "0")""",
        """(found[2] or "").rjust(2, "0")""",
        "a price of 12.5 is 12.05",
        _CLI + "test_amounts_are_read_as_they_are_written",
    ),
    Mutant(
        "cancelled and content",
        "cli/settle_events.py",
        """    if event.state == "CANCELLED" or event.is_flagged:""",
        "    if event.is_flagged:",
        "a script takes a cancelled trade for one that goes on",
        _CLI + "test_a_trades_end_is_said_in_words_and_by_the_exit_code",
    ),
    Mutant(
        "chain's refusal in the accounts' words",
        "cli/settle_events.py",
        "    return (_CHAIN if height else _MONEY).get(",
        "    return _MONEY.get(",
        "a seller without units is told that the buyer has no money",
        _CLI + "test_a_trades_end_is_said_in_words_and_by_the_exit_code",
    ),
    Mutant(
        "operator's list by state",
        "cli/settle_events.py",
        """        "Need an operator": [row for row in rows if row["flagged"]],""",
        """        "Need an operator": [row for row in rows if row["flagged"] and row["state"] in open_states],""",
        "a cancelled trade whose units moved late is in nobody's list",
        _CLI + "test_a_list_shows_first_who_needs_an_operator",
    ),
)
