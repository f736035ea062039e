"""Mutants of how the stream demo judges, and of set-up."""

from tests.mutants.mutant import Mutant

_FACTS = "services/demo/stream_facts.py"
_SETUP = "services/stream/setup.py"
_NAMED = "pytest tests/demo/test_stream.py::test_what_is_not_as_it_must_be_is_named"
_SET_UP = "pytest tests/stream/test_setup.py::"

MUTANTS = (
    Mutant(
        "stream demo counts the payer's loss alone",
        _FACTS,
        "max(item.service_lost, item.payer_lost) <= item.step_max",
        "item.payer_lost <= item.step_max",
        "a service party is never paid for what it supplied and the card says that nobody lost",
        _NAMED,
    ),
    Mutant(
        "stream demo lets every iteration be uploaded",
        _FACTS,
        "        and all(item.uploads == 1 for item in sessions if not item.is_burned),",
        "        and all(item.uploads for item in sessions if not item.is_burned),",
        "each payment reaches the chain by itself and the card says one",
        _NAMED,
    ),
    Mutant(
        "stream demo fines anybody",
        _FACTS,
        "        and all(item.record.is_fined == item.is_burned for item in sessions),",
        "        and all(item.record.is_fined or not item.is_burned for item in sessions),",
        "a payer that has burned nothing is fined and the card says well",
        _NAMED,
    ),
    Mutant(
        "stream demo forgets deposits of closed streams",
        _FACTS,
        "    left = 0 if record.status == CLOSED else record.deposit - record.taken - session.fine",
        "    left = session.escrow if record.status == CLOSED else record.deposit - record.taken - session.fine",
        "a closed stream keeps its payer's deposit and nobody says so",
        _NAMED,
    ),
    Mutant(
        "set-up of streams overwrites",
        _SETUP,
        "    file = existing(home, StreamServiceFile) or StreamServiceFile(",
        "    file = StreamServiceFile(",
        "a tariff that an operator wrote is lost when the network comes up again",
        _SET_UP + "test_what_an_operator_wrote_stays_and_what_is_asked_for_changes",
    ),
    Mutant(
        "set-up of streams touches the chain first",
        _SETUP,
        "    await _issue(client, issuer, done)\n    _write(service_home, service, done)",
        "    _write(service_home, service, done)\n    await _issue(client, issuer, done)",
        "folders stand of a network that could not be set up",
        _SET_UP + "test_nothing_is_made_where_it_cannot_stand",
    ),
)
