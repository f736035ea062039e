"""Payment streams on real processes: whatever dies, nobody loses more than one step."""

from dataclasses import replace
from pathlib import Path

import pytest

from cli.stream_trial import stream_trial
from services.demo.stream_network import NODE, SERVICE_PROGRAM
from tests.network.stream_faults import PAYER, Ended, play

SEED = 34
ENDED = Ended("payment-first", 8, 40, 20, 160, 160, False, 0, "SETTLED", "count")


@pytest.mark.parametrize(
    "wrong",
    [
        replace(ENDED, status="LOST"),
        replace(ENDED, supplied=26),
        replace(ENDED, supplied=14),
        replace(ENDED, due=168),
        replace(ENDED, fined=True),
    ],
)
def test_faults_are_seen(wrong: Ended) -> None:
    assert ENDED.faults() == []
    assert len(wrong.faults()) == 1


@pytest.mark.network
@pytest.mark.slow
async def test_killing_anybody_at_any_time_costs_nobody_more_than_a_step(tmp_path: Path) -> None:
    async with stream_trial(tmp_path / "net") as trial:
        seen, ended, wrong = await play(trial, seed=SEED, streams=2, kills=6)
    assert wrong == []
    assert set(seen.killed) >= {PAYER, SERVICE_PROGRAM, NODE}
    assert [item.reason for item in ended[-2:]] == ["timeout"] * 2
