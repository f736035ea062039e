"""The rate, at the consumer: the real program, a real socket, the consumer's own clock, every window there is."""

import os
from fractions import Fraction
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bench.center_rate import (
    TOKEN,
    RateFigure,
    center_process,
    largest_kept,
    measure_one,
    worst_excess,
)
from services.messages.link import LinkSubscription, open_link
from services.messages.port import Settlement, Verdict
from services.messages.store import NewMessage

MS = 1_000_000
PATIENCE_S = 60.0


def test_a_gap_of_one_interval_is_the_closest_that_is_kept() -> None:
    assert worst_excess([0, 2 * MS, 4 * MS], 500) == 0
    assert worst_excess([0, 2 * MS, 4 * MS - 1], 500) == Fraction(1, 2 * MS)
    assert worst_excess([0, 5 * MS, 6 * MS, 10 * MS], 500) == Fraction(1, 2)
    assert worst_excess([0], 500) < 0


@given(st.lists(st.integers(0, 30), min_size=2, max_size=12), st.sampled_from([1.0, 0.3, 7.0]))
def test_the_worst_window_is_the_worst_of_all(gaps_s: list[int], rate_per_s: float) -> None:
    moments, now = [], 0
    for gap_s in gaps_s:
        moments.append(now := now + gap_s * 1_000 * MS)
    rate = Fraction(rate_per_s)
    every = [
        last - first - rate * Fraction(moments[last] - moments[first], 1_000 * MS)
        for first in range(len(moments))
        for last in range(first + 1, len(moments))
    ]
    assert worst_excess(moments, rate_per_s) == max(every)


def test_a_rate_that_is_not_reached_is_not_called_kept() -> None:
    figures = [
        RateFigure(50, 49.5, 100, Fraction(0)),
        RateFigure(500, 450, 100, Fraction(-1)),
        RateFigure(900, 899, 100, Fraction(1, 9)),
    ]
    assert largest_kept(figures) == 50
    assert largest_kept(figures, 0.9) == 500


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(("rate_per_s", "deliveries"), [(50, 60), (500, 600), (1_000_000, 4_000)])
async def test_no_window_holds_more_than_the_rate(tmp_path: Path, rate_per_s: float, deliveries: int) -> None:
    with trio.fail_after(PATIENCE_S):
        async with center_process(tmp_path, rate_per_s) as center:
            figure = await measure_one(center.address, rate_per_s, deliveries)
    assert figure.deliveries == deliveries
    assert figure.is_kept, f"{float(figure.excess)} deliveries too many in a window"
    assert figure.reached_per_s >= min(rate_per_s / 5, 100), "a pace, not a standstill"


@pytest.mark.slow
@pytest.mark.network
async def test_all_consumers_share_one_rate(tmp_path: Path) -> None:
    """Three of them, one of which leaves in the middle; all that they receive keeps the rate together."""
    rate_per_s, count = 200.0, 150
    subscriptions: list[LinkSubscription] = []
    ended: set[str] = set()
    with trio.fail_after(PATIENCE_S):
        async with (
            center_process(tmp_path, rate_per_s) as center,
            open_link(center.address, token=TOKEN, name="test") as link,
            trio.open_nursery() as nursery,
        ):

            async def consume(name: str, messages_max: int) -> None:
                async with link.consume(name, window=4) as subscription:
                    assert isinstance(subscription, LinkSubscription)
                    subscriptions.append(subscription)
                    for _ in range(messages_max):
                        delivery = await anext(subscription)
                        verdict = Settlement(delivery.sequence, delivery.fence, Verdict.DONE)
                        if (await subscription.settle([verdict]))[0]:
                            ended.add(delivery.key)
                        if len(ended) == count:
                            nursery.cancel_scope.cancel()

            await link.publish([NewMessage(f"m{number}", f"lane{number}", os.urandom(64)) for number in range(count)])
            for name, messages_max in (("one", count), ("two", count), ("three", 10)):
                nursery.start_soon(consume, name, messages_max)
    assert len(ended) == count
    times = sorted(moment for subscription in subscriptions for moment in subscription.received_ns)
    assert len(times) >= count
    assert worst_excess(times, rate_per_s) <= 0
    assert sum(bool(subscription.received_ns) for subscription in subscriptions) > 1
