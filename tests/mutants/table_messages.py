"""Mutants of the message centre's queue: what is durable, order, leases, pace."""

from tests.mutants.mutant import Mutant

_QUEUE = "pytest tests/messages/test_queue.py::"
_MACHINE = "pytest tests/messages/test_queue_machine.py::"
_STORES = "pytest tests/messages/test_stores.py::"
_EMBEDDED = "pytest tests/messages/test_embedded.py::"
_BUCKET = "pytest tests/messages/test_bucket.py::"

MUTANTS = (
    # -- the store ----------------------------------------------------------------------------------------
    Mutant(
        "message store without fence",
        "services/messages/embedded.py",
        "            if epoch != self.epoch:",
        "            if epoch < self.epoch:",
        "two owners change one store",
        _STORES + "test_an_owner_that_was_followed_by_another_changes_nothing",
    ),
    Mutant(
        "message store without lock",
        "services/messages/embedded.py",
        "        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "a second centre starts on the folder of the first",
        _EMBEDDED + "test_a_folder_has_one_owner_at_a_time",
    ),
    Mutant(
        "counts of a failed write",
        "services/messages/embedded.py",
        "            self._next_sequence, self._counts, self._waiting_bytes = before\n",
        "",
        "messages that a full disk refused are counted, and their places are left out",
        _EMBEDDED + "test_a_full_disk_is_told_and_nothing_is_half_done",
    ),
    Mutant(
        "damage not looked for",
        "services/messages/embedded.py",
        "PRAGMA quick_check(1)",
        "SELECT 'ok'",
        "a damaged store is opened",
        _EMBEDDED + "test_a_damaged_page_is_found_at_the_start",
    ),
    Mutant(
        "places given twice",
        "services/messages/embedded.py",
        '"UPDATE meta SET last_sequence = ?", (self._next_sequence - 1,)',
        '"UPDATE meta SET last_sequence = ?", (0,)',
        "a message gets the place of one that was forgotten",
        _STORES + "test_a_forgotten_key_is_new_and_gets_a_place_of_its_own",
    ),
    # -- the order ----------------------------------------------------------------------------------------
    Mutant(
        "late verdict counts",
        "services/messages/queuemachine.py",
        "lease is None or lease.fence != settlement.fence or lease.is_settling",
        "lease is None or lease.is_settling",
        "who lost its lease ends what another one works on",
        _MACHINE + "test_an_expired_lease_goes_out_again_and_uses_up_no_attempt",
    ),
    Mutant(
        "fences begin anew",
        "services/messages/queuemachine.py",
        "self._fence = epoch << _FENCE_BITS",
        "self._fence = 0",
        "a verdict on a delivery of before the restart counts",
        _MACHINE + "test_fences_of_a_later_owner_are_above_all_of_an_earlier_one",
    ),
    Mutant(
        "parked message blocks its lane",
        "services/messages/queuemachine.py",
        "            if change.is_parked:\n                self._leave_lane(message)",
        "            if not change.is_parked:\n                pass",
        "what a parked message waits for never comes",
        _MACHINE + "test_a_parked_message_lets_its_lane_pass_and_comes_back_behind_it",
    ),
    Mutant(
        "retry passed in strict order",
        "services/messages/queuemachine.py",
        "if self._rules.is_strict and self._delayed_count:",
        "if self._rules.is_strict and self._delayed_count < 0:",
        "strict order is none after a RETRY",
        _MACHINE + "test_in_strict_order_a_retry_takes_back_everything_later",
    ),
    Mutant(
        "two consumers in strict order",
        "services/messages/queuemachine.py",
        "return not self._rules.is_strict or not self._leases or holder.unsettled > 0",
        "return True",
        "two consumers overtake each other",
        _MACHINE + "test_strict_order_knows_no_lanes_and_one_consumer",
    ),
    Mutant(
        "settled lease expires",
        "services/messages/queuemachine.py",
        "            if not lease.is_settling:\n                expired.append(lease)",
        "            expired.append(lease)",
        "a message goes out again while its end is being written",
        _MACHINE + "test_nothing_follows_from_a_verdict_before_it_is_durable",
    ),
    # -- the pace -----------------------------------------------------------------------------------------
    Mutant(
        "pace rounded down",
        "services/messages/bucket.py",
        "-(-NS_PER_S * denominator // numerator)",
        "NS_PER_S * denominator // numerator",
        "a rate is exceeded by a nanosecond a delivery",
        _BUCKET + "test_no_window_holds_more_than_the_rate_and_one",
    ),
    Mutant(
        "pace counted from sending",
        "services/messages/dispatch.py",
        "        self._bucket.take(now_ns if at_ns is None else min(max(at_ns, self._on_way[2]), now_ns))",
        "        self._bucket.take(self._on_way[2])",
        "a slow delivery is followed by a quick one, and the window is too full",
        _QUEUE + "test_the_pace_counts_from_receipts",
    ),
    Mutant(
        "receipts of the past believed",
        "services/messages/dispatch.py",
        "min(max(at_ns, self._on_way[2]), now_ns)",
        "min(at_ns, now_ns)",
        "a consumer sets its own pace",
        _QUEUE + "test_a_wrong_time_of_receipt_is_brought_back_to_what_can_be",
    ),
    # -- the queue ----------------------------------------------------------------------------------------
    Mutant(
        "full store takes more",
        "services/messages/queue.py",
        "self._machine.waiting_count + self._pending_count + len(messages) > settings.waiting_max",
        "self._machine.waiting_count + len(messages) > settings.waiting_max",
        "what many publish at once is more than may wait",
        _QUEUE + "test_what_waits_is_bounded_in_count",
    ),
    Mutant(
        "start reads one page",
        "services/messages/queue.py",
        "            after = entries[-1].sequence",
        "            after = 1 << 62",
        "a long backlog is half forgotten after a restart",
        _QUEUE + "test_a_long_backlog_is_read_in_pages_at_the_start",
    ),
    Mutant(
        "handed to nobody",
        "services/messages/queue.py",
        "self._dispatcher.want_no_more(self, handed)",
        "self._dispatcher.want_no_more(self, None)",
        "nothing is delivered any more after a consumer gave up in the wrong moment",
        _QUEUE + "test_what_is_handed_to_who_gives_up_in_that_moment_goes_out_anew",
    ),
)
