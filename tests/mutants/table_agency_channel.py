"""Mutants of private channels: what is kept before it is sent, what is taken, what a revocation ends."""

from tests.mutants.mutant import Mutant

_MACHINE = "p2p/private/channel_machine.py"
_STATEFUL = "pytest tests/p2p/private/test_channel_stateful.py::test_sides_agree_whatever_happens_to_them"

MUTANTS = (
    Mutant(
        "channel forgets the epoch before",
        _MACHINE,
        "        if state.received:\n            last = (state.epoch, state.received, state.received_head)\n",
        "",
        "a message that was taken before a revocation is told as never taken",
        _STATEFUL,
    ),
    Mutant(
        "channel forgets what it tried",
        _MACHINE,
        "self._update(attempted=max(state.attempted, self._next - 1))",
        "self._update(attempted=max(state.attempted, self._next - 2))",
        "what a session had already got is given up without the peer's word",
        _STATEFUL,
    ),
    Mutant(
        "channel takes a repeated message again",
        _MACHINE,
        "        if message.number <= state.received:",
        "        if message.number < state.received:",
        "a message sent again after a lost receipt is taken for a fault",
        _STATEFUL,
    ),
    Mutant(
        "channel takes orders in the grace time",
        _MACHINE,
        "if phase is Phase.CLOSED or (phase is Phase.GRACE and not facts.is_bank):",
        "if phase is Phase.CLOSED:",
        "orders arrive after the revocation, and the bank never learns where they ended",
        _STATEFUL,
    ),
    Mutant(
        "channel sends before it is opened",
        _MACHINE,
        "if not (self._is_up and is_open and self._peer_epoch == state.epoch) or state.is_refused:",
        "if not (self._is_up and is_open) or state.is_refused:",
        "an epoch's messages go to a peer that has not told where it stands",
        _STATEFUL,
    ),
    Mutant(
        "channel goes on with lost room",
        _MACHINE,
        "self._owes_open = self._owes_open or (has_room and not self._has_room and self._is_skipping)",
        "self._owes_open = self._owes_open",
        "a full inbox stops its channel for ever",
        _STATEFUL,
    ),
    Mutant(
        "channel stays silent about a new epoch",
        _MACHINE,
        "self._owes_open = self._owes_open or opened.is_asking",
        "pass",
        "who read of a new epoch first and was not heard then never gets the other's messages",
        _STATEFUL,
    ),
)
