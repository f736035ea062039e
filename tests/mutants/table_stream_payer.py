"""Mutants of streams' payer and watcher: what is accepted, signed, sent, taken back; what is settled and claimed."""

from tests.mutants.mutant import Mutant

_OPENING = "services/stream/opening.py"
_PAYER = "services/stream/payer.py"
_STORE = "services/stream/payer_store.py"
_LINK = "services/stream/link.py"
_WATCHER = "services/stream/watcher.py"
_RULE = "services/stream/watchermachine.py"
_KEPT = "services/stream/watcher_store.py"
_PAID = "pytest tests/stream/test_payer.py::"
_LINKED = "pytest tests/stream/test_link.py::"
_WATCHED = "pytest tests/stream/test_watcher.py::"
_STEPS = _WATCHED + "test_what_follows_from_a_streams_record_and_its_lane"

MUTANTS = (
    Mutant(
        "anybody's offer",
        _OPENING,
        'if key.compressed.hex() != offer.service_key.removeprefix("0x"):',
        "if key is None:",
        "an offer of a stranger's key is taken for the service party's",
        _PAID + "test_an_offer_counts_when_it_is_the_service_partys_and_says_what_was_wished",
    ),
    Mutant(
        "offer at any price",
        _OPENING,
        '        f"price {terms.price}": terms.price <= accepted.price_max,\n',
        "",
        "a payer opens above the price that it accepts",
        _PAID + "test_an_offer_counts_when_it_is_the_service_partys_and_says_what_was_wished",
    ),
    Mutant(
        "number used by other terms",
        _OPENING,
        "    if record.terms_hash != terms_hash(terms):",
        "    if record.terms_hash == b'':",
        "a payer takes a stream with other terms for its own",
        _PAID + "test_opening_again_is_harmless_and_a_number_serves_once",
    ),
    Mutant(
        "iteration sent before it is kept",
        _PAYER,
        "                    self._store.keep(self._machine.owed)\n",
        "                    pass\n",
        "a payer that is killed signs a lower total than it has signed",
        _PAID + "test_what_is_sent_is_durable_before",
    ),
    Mutant(
        "consent of anybody",
        _PAYER,
        "if not key.verifies(signature, Purpose.STREAM_CLOSE, self._client.chain_id, close_hash(self._stream, due)):",
        "if key is None:",
        "a payer is made to pay for a close that the chain refuses",
        _PAID + "test_a_consent_to_close_that_is_not_the_service_partys_closes_nothing",
    ),
    Mutant(
        "two processes pay one stream",
        _STORE,
        "                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "                pass\n",
        "two processes sign totals of one stream, and one of them is too low",
        _PAID + "test_two_payments_of_one_stream_at_once_and_payments_with_another_key_are_refused",
    ),
    Mutant(
        "less signed than before",
        _STORE,
        "WHERE id = ? AND signed_due <= ?",
        "WHERE id = ? AND signed_due <= ? + 9999",
        "a payer forgets what it has signed",
        _PAID + "test_the_store_never_knows_less_than_was_signed",
    ),
    Mutant(
        "top-ups add up",
        _PAYER,
        'f"stream-top-up:{stream.hex()}:{deposit}:{attempt}"',
        'f"stream-top-up:{stream.hex()}:{deposit}:{attempt}:{id(fresh)}"',
        "a top-up that is asked for twice is paid twice",
        _PAID + "test_a_deposit_is_topped_up_to_a_total_once_however_often_it_is_asked_for",
    ),
    Mutant(
        "key of today",
        _PAYER,
        "        if record.payer_key != self._signer.key.public.compressed:",
        "        if len(record.payer_key) != len(self._signer.key.public.compressed):",
        "a payer signs with a key that its stream does not have",
        _PAID + "test_two_payments_of_one_stream_at_once_and_payments_with_another_key_are_refused",
    ),
    Mutant(
        "frames of any size",
        _LINK,
        "                if self._parts_bytes > FRAME_BYTES_MAX:",
        "                if self._parts_bytes < 0:",
        "a service party fills a payer's memory",
        _LINKED + "test_what_is_no_frame_ends_the_connection",
    ),
    Mutant(
        "events after the handshake lost",
        _LINK,
        "                    self._early = events[number + 1 :]",
        "                    self._early = events[len(events) :]",
        "what comes with the answer to the handshake is lost",
        _LINKED + "test_what_comes_together_with_the_answer_to_the_handshake_is_received",
    ),
    Mutant(
        "watcher settles too late",
        _RULE,
        "    return iteration.valid_until_ms - margin_ms // 2\n",
        "    return iteration.valid_until_ms\n",
        "an iteration expires while its watcher waits",
        _STEPS,
    ),
    Mutant(
        "watcher sees no withdrawal",
        _RULE,
        "if is_late or is_leaving or is_urgent else",
        "if is_late or is_urgent else",
        "a payer has its deposit back before its watcher moves",
        _WATCHED + "test_a_withdrawal_has_it_settled_in_time",
    ),
    Mutant(
        "watcher takes an own settlement for a burned number",
        _RULE,
        "    is_burned = last_id is not None and last_id != record.settled_by\n",
        "    is_burned = last_id is not None\n",
        "a watcher claims again and again what was settled",
        _STEPS,
    ),
    Mutant(
        "watcher leaves the fine",
        _RULE,
        "    fine = record.fine if is_burned and not record.is_fined else 0\n",
        "    fine = 0\n",
        "a number that was burned after a claim costs nothing",
        _STEPS,
    ),
    Mutant(
        "watcher takes any key",
        _WATCHER,
        "        if record.payer_key != checked.carried.payer_key:",
        "        if not record.payer_key:",
        "a stranger's iteration takes the place of the payer's",
        _WATCHED + "test_what_is_not_the_streams_is_not_taken",
    ),
    Mutant(
        "watcher keeps the last and not the greatest",
        _KEPT,
        "                if (entry.due, entry.valid_until_ms) <= (known.due, known.valid_until_ms):",
        "                if (entry.due, entry.valid_until_ms) == (known.due, known.valid_until_ms):",
        "an old iteration takes the place of the newest",
        _WATCHED + "test_only_the_greatest_iteration_is_kept_and_the_same_again_changes_nothing",
    ),
    Mutant(
        "greater iteration over with the smaller one",
        _KEPT,
        "            if known is not None and (known.due, known.valid_until_ms) > (entry.due, entry.valid_until_ms):",
        "            if known is not None and (known.due, known.valid_until_ms) < (entry.due, entry.valid_until_ms):",
        "what was given while another one settled is never claimed",
        _WATCHED + "test_what_came_of_an_iteration_does_not_end_a_greater_one",
    ),
    Mutant(
        "watcher waits for ever",
        _WATCHER,
        "        if until_ms > self._now_ms() + terms.validity_ms + terms.margin_ms // 2:",
        "        if until_ms < 0:",
        "a payer gives its own watcher an iteration that no node takes, and has its deposit back",
        _WATCHED + "test_an_iteration_that_could_not_settle_before_the_deposit_is_gone_is_not_taken",
    ),
)
