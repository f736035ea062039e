"""A running network under a tenth of ``make fuzz``: nothing falls, nothing grows, all commit the same afterwards."""

from pathlib import Path

import pytest

from tests.fuzz.run import fuzz_network

FRAMES, CALLS, SEED = 20_000, 5_000, 1


@pytest.mark.network
@pytest.mark.slow
async def test_a_network_lives_through_broken_frames_and_calls(tmp_path: Path) -> None:
    said: list[str] = []
    assert await fuzz_network(tmp_path / "net", frames=FRAMES, calls=CALLS, seed=SEED, say=said.append) == []
    assert said
