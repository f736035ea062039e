"""Mutants of the benchmark of payment streams: figures that would be better than what was done."""

from tests.mutants.mutant import Mutant

_TEST = "pytest tests/bench/test_stream.py::"

MUTANTS = (
    Mutant(
        "bench counts all iterations",
        "bench/stream_client.py",
        "        if self.begin_s <= now < self.end_s:",
        "        if True:",
        "what is stored before or after the time counts as a rate of it",
        _TEST + "test_what_is_stored_before_or_after_the_time_does_not_count",
    ),
    Mutant(
        "bench repeats its iterations",
        "bench/stream_client.py",
        "        self._signed += self._terms.price",
        "        self._signed = self._terms.price",
        "the same total is stored again and again, and counts as another payment each time",
        _TEST + "test_iterations_rise_by_one_price_whether_signed_before_or_when_they_go",
    ),
)
