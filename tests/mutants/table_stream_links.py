"""Mutants of streams' meters and of the private channel as a payer's way."""

from tests.mutants.mutant import Mutant

_METER = "services/stream/meter.py"
_CHARGING = "services/stream/charging.py"
_PRIVATE = "services/stream/private.py"
_METER_TEST = "pytest tests/stream/test_meter.py::"
_PRIVATE_TEST = "pytest tests/stream/test_private.py::"

MUTANTS = (
    Mutant(
        "a car that takes what nobody allowed",
        _METER,
        "min(pulse.units, max(allowed_units, units))",
        "pulse.units",
        "the service party supplies more than the one step that it may lose",
        _METER_TEST + "test_nothing_is_supplied_that_is_not_allowed",
    ),
    Mutant(
        "a count that is told before it is kept",
        _METER,
        "            await trio.to_thread.run_sync(self._save, stream, supplied)\n",
        "",
        "after a restart the same units are supplied once more",
        _METER_TEST + "test_streams_are_counted_apart_and_through_a_restart",
    ),
    Mutant(
        "a meter that is believed",
        _METER,
        "if not 0 <= answer.units <= allowed_units:",
        "if not 0 <= answer.units:",
        "a payer is asked for units that were never allowed",
        _METER_TEST + "test_what_no_meter_may_say",
    ),
    Mutant(
        "a meter that forgets what is less than a unit",
        _CHARGING,
        "        rest_mj %= UNIT_MJ\n",
        "        rest_mj = 0\n",
        "the car gets more than it pays for",
        _METER_TEST + "test_a_session_is_what_a_car_could_do",
    ),
    Mutant(
        "a frame taken twice",
        _PRIVATE,
        "        if number == self._received:\n",
        "        if number <= self._received:\n",
        "an old iteration that the channel brings again is a wrong amount and ends its stream",
        _PRIVATE_TEST + "test_what_comes_again_is_passed_over",
    ),
    Mutant(
        "a frame missing unseen",
        _PRIVATE,
        "        return number < self._received\n",
        "        return True\n",
        "the session goes on and its payer waits for an answer for ever",
        _PRIVATE_TEST + "test_a_frame_that_is_missing_ends_the_session",
    ),
    Mutant(
        "a session that outlives its service party",
        _PRIVATE,
        "                await self._door.send(channel, Gone(envelope.session))\n",
        "                pass\n",
        "after a restart the payer's frames go nowhere, and it is not told",
        _PRIVATE_TEST + "test_a_service_party_that_was_restarted_knows_no_older_session",
    ),
    Mutant(
        "another program's message lost",
        _PRIVATE,
        "        ours = list(takewhile(_is_ours, items))\n",
        "        ours = items\n",
        "a payer's program has the node forget a package of orders",
        _PRIVATE_TEST + "test_a_payer_leaves_what_is_another_programs",
    ),
)
