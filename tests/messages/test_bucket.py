"""The pace, for every clock and every delay."""

from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from services.messages.bucket import NS_PER_S, Bucket
from tests.messages.pace import fastest_window

RATES = st.one_of(
    st.integers(1, 1_000_000).map(float),
    st.floats(0.001, 1_000_000, allow_nan=False, allow_infinity=False),
)


@given(
    rate_per_s=RATES,
    start_ns=st.integers(0, 10**18),
    steps=st.lists(
        # How long after it might have gone it does go, and how long it is on its way.
        st.tuples(st.integers(0, 3 * NS_PER_S), st.one_of(st.just(0), st.integers(0, 10 * NS_PER_S))),
        max_size=60,
    ),
)
@example(rate_per_s=3.0, start_ns=0, steps=[(0, 0)] * 50)
@example(rate_per_s=7.0, start_ns=0, steps=[(0, 10**9), *([(0, 0)] * 50)])
def test_no_window_holds_more_than_the_rate_and_one(
    rate_per_s: float, start_ns: int, steps: list[tuple[int, int]]
) -> None:
    bucket = Bucket(rate_per_s, start_ns=start_ns)
    received = [start_ns]
    for late_ns, way_ns in steps:
        sent_ns = bucket.ready_ns() + late_ns
        received.append(sent_ns + way_ns)
        bucket.take(received[-1])
    assert fastest_window(received, rate_per_s) is None


@given(rate_per_s=RATES)
def test_the_rate_is_reached_to_a_nanosecond_a_delivery(rate_per_s: float) -> None:
    bucket = Bucket(rate_per_s, start_ns=0)
    assert 0 <= bucket.interval_ns - NS_PER_S / Fraction(rate_per_s) < 1


def test_a_receipt_that_is_told_late_does_not_turn_the_clock_back() -> None:
    bucket = Bucket(1_000.0, start_ns=0)
    bucket.take(5_000_000)
    bucket.take(4_000_000)
    assert bucket.ready_ns() == 6_000_000


def test_a_restart_is_no_second_burst() -> None:
    assert Bucket(50.0, start_ns=7).ready_ns() == 20_000_007


def test_windows_are_judged_rightly() -> None:
    assert fastest_window([0, 10**9, 2 * 10**9], 1.0) is None
    assert fastest_window([0, 10**9, 2 * 10**9 - 1], 1.0) == (0, 2)
    assert fastest_window([0, 0], 1_000.0) == (0, 1)
    assert fastest_window([], 1.0) is None
