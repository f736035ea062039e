"""Mutants of private channels: what is kept before it is sent, what is taken, what a revocation ends."""

from tests.mutants.mutant import Mutant

_MACHINE = "p2p/private/channel_machine.py"
_WRITE = """\
        if writes:
            await self._store.write(writes)
        before = self.log.last
        self.log.written()
"""
_SEND = """\
        for count, (name, channel, item) in enumerate(sends, start=1):
            self._send(name, channel, item)
            await _rest(count)
"""
_TEST = "pytest tests/p2p/private/test_channel_machine.py::test_"
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
        "channel takes a repeated message for a fault",
        _MACHINE,
        "        if message.number <= state.received:",
        "        if message.number < state.received:",
        "a message sent again after a lost receipt is taken for a fault",
        _TEST + "a_repeated_message_is_acknowledged_again_and_not_delivered_again",
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
        _TEST + "a_full_inbox_leaves_messages_and_asks_for_them_when_there_is_room",
    ),
    Mutant(
        "channel stays silent about a new epoch",
        _MACHINE,
        "self._owes_open = self._owes_open or opened.is_asking",
        "pass",
        "who read of a new epoch first and was not heard then never gets the other's messages",
        _TEST + "a_new_epoch_within_a_session_is_opened_by_asking",
    ),
    Mutant(
        "channel takes any signature",
        "p2p/private/records.py",
        "if not public.verifies(record.signature, _purpose(record), chain_id, _signed_hash(record)):",
        "if False:",
        "who has a partner's TLS key speaks for its channel too",
        _TEST + "records_of_strangers_and_other_chains_are_refused",
    ),
    Mutant(
        "channel takes any direction",
        _MACHINE,
        "if record.to_bank != (self._facts.is_bank if is_theirs else self._sends_to_bank):",
        "if False:",
        "what one side said passes for what the other did",
        _TEST + "our_own_records_reflected_are_refused",
    ),
    Mutant(
        "channel takes any epoch",
        _MACHINE,
        "            if message.epoch > state.epoch or self._peer_epoch == state.epoch:\n",
        "            if False:\n",
        "messages recorded before a revocation are left aside without a word (R79, R81)",
        _TEST + "r79_messages_of_an_epoch_that_ended_are_refused_by_whoever_is_in_the_next",
    ),
    Mutant(
        "channel takes any message before",
        _MACHINE,
        "        if message.previous != state.received_head:",
        "        if False:",
        "two histories of one channel pass for one",
        _TEST + "r81_a_message_that_belongs_elsewhere_is_refused_though_its_signature_holds",
    ),
    Mutant(
        "channel sends before it writes",
        "p2p/private/writer.py",
        _WRITE + _SEND,
        _SEND + "        await trio.sleep(0.1)\n" + _WRITE,
        "a receipt is out for a message that the disk then refuses",
        "pytest tests/p2p/private/test_network.py::test_a_disk_that_refuses_ends_the_node_before_anything_is_said",
    ),
    Mutant(
        "anyone gets a private session",
        "p2p/private/network.py",
        "        if identity.name not in self._partners():\n",
        "        if False:\n",
        "members without a channel get private sessions",
        "pytest tests/p2p/private/test_network.py::test_without_a_channel_there_is_no_session",
    ),
    Mutant(
        "partners that are shut out stay",
        "p2p/private/network.py",
        "            if not is_admitted(session.identity):",
        "            if False:",
        "a member whose certificate is revoked keeps its private session",
        "pytest tests/p2p/private/test_network.py::test_a_member_that_is_shut_out_loses_its_private_session",
    ),
    Mutant(
        "shut out only before the handshake",
        "p2p/network.py",
        "        elif self._is_admitted(done.identity):\n",
        "        else:\n            await self._private.serve(done, address)\n        if False:\n",
        "who holds its last word back until it is revoked keeps a private session for as long as it likes",
        "pytest tests/p2p/private/test_network.py::"
        "test_a_member_that_is_shut_out_within_the_handshake_gets_no_private_session",
    ),
    Mutant(
        "an epoch that ended opens again",
        _MACHINE,
        "            self._update(is_refused=True)",
        "            pass",
        "a node that reads its chain anew looks for messages that it gave up, and its channels end with a bug",
        _TEST + "a_node_that_reads_the_chain_anew_sends_nothing_more_in_an_epoch_that_it_saw_end",
    ),
    Mutant(
        "a flood is taken in one go",
        "p2p/private/writer.py",
        "    if count % STRETCH_EVENTS_MAX == 0:",
        "    if False:",
        "a partner's flood stops the node's consensus (R78)",
        "pytest tests/p2p/private/test_network.py::test_a_flood_of_events_leaves_time_for_whatever_else_the_node_does",
    ),
)
