"""The alarm clock of the pace: never early, also after a wait that was given up, with and without a timerfd."""

import time
from collections.abc import AsyncIterator

import pytest
import trio

from services.messages.timer import Timer, open_timer

MS = 1_000_000


@pytest.fixture(params=["timerfd", "trio"])
async def timer(request: pytest.FixtureRequest) -> AsyncIterator[Timer]:
    if request.param == "trio":
        yield Timer(-1)
        return
    with open_timer() as timer:
        yield timer


async def test_never_early(timer: Timer) -> None:
    for wait_ns in (MS // 3, 2 * MS + 500_000, 0, -MS, 20_000):
        moment_ns = time.monotonic_ns() + wait_ns
        await timer.wait_until(moment_ns)
        assert time.monotonic_ns() >= moment_ns


async def test_a_wait_that_was_given_up_shortens_no_other(timer: Timer) -> None:
    with trio.CancelScope() as given_up:
        given_up.cancel()  # takes effect where it would wait: the alarm is set by then
        await timer.wait_until(time.monotonic_ns() + 4 * MS)
    assert given_up.cancelled_caught
    moment_ns = time.monotonic_ns() + 12 * MS
    await timer.wait_until(moment_ns)
    assert time.monotonic_ns() >= moment_ns


async def test_a_moment_that_is_past_lets_others_run(timer: Timer) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await timer.wait_until(0)
    assert scope.cancelled_caught
