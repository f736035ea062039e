"""How long things may take under faults, in simulated time; ``python -m tests.sim.liveness`` prints the figures."""

import pytest

from tests.sim.liveness import (
    HOUR_MS,
    OUTAGES,
    Outage,
    SilentKind,
    censored_blocks,
    flooded,
    healing_ms,
    percentile,
    silent_primary_ms,
    slow_primary,
)

REPLACED_MS_MAX = 2_000
HEALED_MS_MAX = 16_000
TAKEN_BLOCKS_MAX = 2
"""Beside the f turns of liars: the block under way when the transaction comes, and its own."""


@pytest.mark.parametrize("kind", ["crashed", "frozen", "pings only"])
@pytest.mark.parametrize("validators", [4, 7])
def test_r38_a_silent_primary_is_replaced_within_two_seconds(validators: int, kind: SilentKind) -> None:
    times_ms = [silent_primary_ms(seed, validators, kind) for seed in range(12)]
    assert percentile(times_ms, 990) <= REPLACED_MS_MAX
    assert percentile(times_ms, 500) > 1_000, "the primary was not the one whose turn it was"


@pytest.mark.parametrize("validators", [4, 7])
def test_r17_an_hour_without_quorum_leaves_nothing_to_wait_for(validators: int) -> None:
    assert healing_ms(validators, validators, "parted", HOUR_MS, tick_ms=2_000) <= HEALED_MS_MAX


@pytest.mark.parametrize("outage", OUTAGES)
def test_r17_whatever_kept_the_quorum_from_committing(outage: Outage) -> None:
    assert healing_ms(3, 4, outage, 120_000, tick_ms=200) <= HEALED_MS_MAX


@pytest.mark.parametrize(("strategy", "delay_ms"), [("slow", 950), ("staller", 0)])
def test_r36_a_slow_primary_leaves_half_the_throughput(strategy: str, delay_ms: int) -> None:
    """With half a second of work under way, as in the benchmark, and with all that comes five times a second."""
    calm, slow = slow_primary(1, 4, strategy, delay_ms, clients=100, duration_ms=8_000)
    assert slow.total >= calm.total // 2
    calm, slow = slow_primary(1, 4, strategy, delay_ms, per_second=5, duration_ms=10_000)
    assert sum(slow.per_second[:5]) >= sum(calm.per_second[:5]) // 2
    assert slow.total >= calm.total // 2


def test_r37_a_flood_of_forged_signatures_leaves_half_the_throughput() -> None:
    """Because who brings them is held up; without that the same flood takes most of it."""
    load: dict[str, int] = {"clients": 50, "duration_ms": 6_000, "per_second": 2_000}
    calm, flood = flooded(1, 4, **load)
    assert flood.total >= calm.total // 2
    calm, flood = flooded(1, 4, **load, pause_us=0)
    assert flood.total < calm.total // 2


@pytest.mark.parametrize("validators", [4, 7])
def test_a_censored_client_is_included_once_the_liars_have_had_their_turns(validators: int) -> None:
    waited = [blocks for seed in range(3) for blocks in censored_blocks(seed, validators)]
    faulty_max = (validators - 1) // 3
    assert max(waited) <= faulty_max + TAKEN_BLOCKS_MAX
    assert max(waited) > 1, "no liar ever had its turn"
