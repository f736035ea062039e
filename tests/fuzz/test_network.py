"""A running network under a small part of ``make fuzz``: nothing falls or grows, all commit the same in the end."""

from pathlib import Path

import pytest

from tests.fuzz.run import fuzz_network

FRAMES, CALLS, ROUNDS, SEED = 12_000, 3_000, 2, 1


@pytest.mark.network
@pytest.mark.slow
async def test_a_network_lives_through_broken_frames_and_calls(tmp_path: Path) -> None:
    said: list[str] = []
    found = await fuzz_network(tmp_path / "net", frames=FRAMES, calls=CALLS, rounds=ROUNDS, seed=SEED, say=said.append)
    assert found == []
    assert said
