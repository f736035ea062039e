"""How far a peer's clock is: the estimate holds within its bounds, and no answer breaks anything."""

from contextlib import suppress
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import PeerError
from p2p.clock import ROUNDING_MS, SAMPLE_MS_MAX, WALL_MS_MAX, ClockOffset, ClockProbe
from p2p.frames import FrameKind, encode_frame
from p2p.network import Network
from p2p.session import SessionLimits
from tests.p2p.support import Certificates, Inbox, make_network
from tests.p2p.test_session import running

NOW_MS = 1_800_000_000_000


def measure(probe: ClockProbe, ahead_ms: int, *, at_ms: int, there_ms: int, back_ms: int) -> None:
    """Ask and be answered by a clock that is ahead of ours by so much."""
    question = probe.ask(now_ms=at_ms)
    answer = ClockProbe.answer_untrusted(question, wall_ms=NOW_MS + at_ms + there_ms + ahead_ms)
    now_ms = at_ms + there_ms + back_ms
    probe.answered_untrusted(answer, now_ms=now_ms, wall_ms=NOW_MS + now_ms)


@given(
    ahead_ms=st.integers(-(10**9), 10**9),
    there_ms=st.integers(0, 10_000),
    back_ms=st.integers(0, 10_000),
)
def test_the_offset_is_right_within_its_uncertainty(ahead_ms: int, there_ms: int, back_ms: int) -> None:
    probe = ClockProbe()
    assert probe.offset is None
    measure(probe, ahead_ms, at_ms=5, there_ms=there_ms, back_ms=back_ms)
    offset = probe.offset
    assert offset is not None
    assert abs(offset.ahead_ms - ahead_ms) <= offset.uncertainty_ms
    assert offset.uncertainty_ms <= (there_ms + back_ms) // 2 + 1 + ROUNDING_MS


def test_a_precise_answer_is_kept_until_it_is_old_or_contradicted() -> None:
    probe = ClockProbe()
    measure(probe, 100, at_ms=0, there_ms=1, back_ms=1)
    precise = probe.offset
    measure(probe, 100, at_ms=5_000, there_ms=800, back_ms=10)
    assert probe.offset == precise  # a loaded moment does not blur what is known
    measure(probe, 9_000, at_ms=10_000, there_ms=800, back_ms=10)
    assert probe.offset is not None
    assert abs(probe.offset.ahead_ms - 9_000) <= probe.offset.uncertainty_ms  # the clock was set
    held = probe.offset
    measure(probe, 9_000, at_ms=10_000 + SAMPLE_MS_MAX + 1_000, there_ms=2_000, back_ms=10)
    assert probe.offset != held


def test_late_and_foreign_answers_change_nothing() -> None:
    probe = ClockProbe()
    first = ClockProbe.answer_untrusted(probe.ask(now_ms=0), wall_ms=NOW_MS)
    question = probe.ask(now_ms=1)
    probe.answered_untrusted(first, now_ms=2, wall_ms=NOW_MS)
    assert probe.offset is None  # it answers a question that was given up
    probe.answered_untrusted(ClockProbe.answer_untrusted(question, wall_ms=7), now_ms=2, wall_ms=7)
    held = probe.offset
    probe.answered_untrusted(first, now_ms=3, wall_ms=NOW_MS)
    probe.answered_untrusted(first, now_ms=3, wall_ms=NOW_MS)
    assert probe.offset == held == ClockOffset(1, 1 + ROUNDING_MS)


@pytest.mark.parametrize("wall_ms", [-1, WALL_MS_MAX + 1, 2**63 - 1])
def test_a_time_beyond_all_bounds_is_malformed(wall_ms: int) -> None:
    probe = ClockProbe()
    question = probe.ask(now_ms=0)
    with pytest.raises(PeerError) as refusal:
        probe.answered_untrusted(ClockProbe.answer_untrusted(question, wall_ms=wall_ms), now_ms=1, wall_ms=NOW_MS)
    assert refusal.value.code == "malformed"
    probe.answered_untrusted(ClockProbe.answer_untrusted(question, wall_ms=WALL_MS_MAX), now_ms=1, wall_ms=0)
    assert probe.offset is not None


@given(st.binary(max_size=80))
def test_bytes_that_are_no_clock_frame_raise_peer_errors_alone(payload: bytes) -> None:
    probe = ClockProbe()
    for read in (
        lambda: ClockProbe.answer_untrusted(payload, wall_ms=NOW_MS),
        lambda: probe.answered_untrusted(payload, now_ms=0, wall_ms=0),
    ):
        with suppress(PeerError):
            read()


async def test_a_malformed_clock_frame_ends_the_session() -> None:
    async with running(SessionLimits()) as bench:
        await bench.peer.send_all(encode_frame(FrameKind.CLOCK_ANSWER, b"\xc1"))
        await bench.ended.wait()
    assert bench.blamed == ["malformed"]


async def test_two_nodes_learn_how_far_their_clocks_are_apart(tmp_path: Path, nursery: trio.Nursery) -> None:
    certificates = Certificates(tmp_path, "a", "b")
    inbox = Inbox()
    limits = SessionLimits(clock_ms=10)
    slow = make_network(certificates, "a", inbox, limits=limits, wall_ms=lambda: NOW_MS)
    port = await nursery.start(slow.run)
    fast = make_network(certificates, "b", inbox, peers={"a": port}, limits=limits, wall_ms=lambda: NOW_MS + 14_000)
    await nursery.start(fast.run)

    def seen(network: Network) -> ClockOffset | None:
        return next((peer.clock for peer in network.peers() if peer.connected), None)

    with trio.fail_after(30):
        while seen(slow) is None or seen(fast) is None:
            await trio.lowlevel.checkpoint()
    for network, ahead_ms in ((slow, 14_000), (fast, -14_000)):
        offset = seen(network)
        assert offset is not None
        assert abs(offset.ahead_ms - ahead_ms) <= offset.uncertainty_ms
        network.stop()
