"""Mutants of a stream's service party: what it believes, when it tells, what it lets a stranger do."""

from tests.mutants.mutant import Mutant

_DESK = "services/stream/desk.py"
_STORE = "services/stream/store.py"
_OUTLET = "services/stream/outlet.py"
_TEST = "pytest tests/stream/test_service.py::"
_KEPT = "pytest tests/stream/test_store.py::"

MUTANTS = (
    Mutant(
        "stream taken up with other terms",
        _DESK,
        "await self._store.offer(record.terms_hash)",
        "terms",
        "what was opened on other terms than were offered is supplied",
        _TEST + "test_r88_nothing_is_supplied_before_the_chain_shows_the_deposit",
    ),
    Mutant(
        "acknowledged before it is durable",
        _OUTLET,
        "        while self._waiting and self._waiting[0][0] <= self._store.durable:",
        "        while self._waiting:",
        "a power cut takes back what was told to be stored",
        _TEST + "test_what_is_acknowledged_is_on_the_disk",
    ),
    Mutant(
        "answered before the newest of what it tells is durable",
        _OUTLET,
        "        await self._store.until(max((group for group, _ in self._waiting), default=0))",
        "        await self._store.until(self._waiting[-1][0] if self._waiting else 0)",
        "a request that is refused in part is answered by nothing",
        _TEST + "test_a_frame_is_answered_whole_once_its_last_word_is_durable",
    ),
    Mutant(
        "group durable before it is written",
        _STORE,
        "        await self._database.write(partial(_save, rows))\n        self.durable = group\n",
        "        self.durable = group\n        await self._database.write(partial(_save, rows))\n",
        "a group that fails was told of",
        _KEPT + "test_a_group_that_cannot_be_written_is_never_durable",
    ),
    Mutant(
        "hello by anybody",
        _DESK,
        "                if said.nonce != nonce or not is_own:",
        "                if said.nonce != nonce:",
        "a stranger hears how a stream stands",
        _TEST + "test_hello_is_signed_by_the_payer_over_this_connections_challenge",
    ),
    Mutant(
        "hello over any nonce",
        _DESK,
        "                if said.nonce != nonce or not is_own:",
        "                if not is_own:",
        "a Hello of another connection is repeated",
        _TEST + "test_hello_is_signed_by_the_payer_over_this_connections_challenge",
    ),
    Mutant(
        "nonce not given",
        _DESK,
        "                    self.challenges.take(said.nonce)\n",
        "",
        "a request's Hello may be repeated for ever",
        _TEST + "test_a_nonce_of_a_request_serves_once",
    ),
    Mutant(
        "close by anybody",
        _DESK,
        "                if not live.key.verifies(said.signature, Purpose.STREAM_CLOSE,",
        "                if not payload and live.key.verifies(said.signature, Purpose.STREAM_CLOSE,",
        "a stranger ends a stream",
        _TEST + "test_the_payer_closes_and_one_transaction_settles",
    ),
    Mutant(
        "meter allowed what is not durable",
        _DESK,
        "            await self._store.until(group)\n            if allowed",
        "            if allowed",
        "units are supplied for an iteration that a power cut takes back",
        _TEST + "test_the_meter_is_allowed_nothing_before_the_group_is_durable",
    ),
    Mutant(
        "meter not held to what it was allowed",
        _DESK,
        "                if not live.kept.units <= reading.units <= allowed:",
        "                if not live.kept.units <= reading.units:",
        "the payer is asked for what was never allowed",
        _TEST + "test_a_meter_that_lies_ends_the_stream",
    ),
    Mutant(
        "offer not kept",
        "services/stream/owner.py",
        "        await self._store.keep_offer(terms, now_ms)\n",
        "",
        "who opens by an offer is not known",
        _TEST + "test_an_offer_is_kept_signed_and_within_the_tariff",
    ),
    Mutant(
        "tariff's greatest deposit",
        "services/stream/offering.py",
        "    if not file.deposit_min <= wanted.deposit <= file.deposit_max:",
        "    if not file.deposit_min <= wanted.deposit:",
        "offers beyond the tariff",
        _TEST + "test_an_offer_is_kept_signed_and_within_the_tariff",
    ),
    Mutant(
        "open offers forgotten",
        _STORE,
        "        old = select(offers.c.hash).where(offers.c.until_ms < now_ms).order_by(offers.c.until_ms)",
        "        old = select(offers.c.hash).order_by(offers.c.until_ms)",
        "a flood of offers drives out one that its payer is about to open by",
        _KEPT + "test_offers_make_room_once_their_time_has_passed",
    ),
)
