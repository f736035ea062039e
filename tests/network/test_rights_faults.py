"""The whole rights system under kill -9 of each program, a frozen chain, lost acknowledgements, doubled deliveries."""

from pathlib import Path
from random import Random

import pytest

from tests.messages.redis import RedisServer, new_redis
from tests.network.rights_faults import Faults
from tests.network.rights_model import Model
from tests.network.rights_system import running_system

pytestmark = [pytest.mark.network, pytest.mark.slow]

RATE_PER_S = 250.0
ORDERS = 600


async def test_every_event_ends_once_and_as_it_must_whatever_dies_or_stands_still(tmp_path: Path) -> None:
    async with running_system(tmp_path / "net", rate_per_s=RATE_PER_S) as system:
        faults = Faults(system, Model(Random(1), "embedded"))
        assert await faults.play(faults.all(), ORDERS) == []
        assert faults.unheard > 0
        assert faults.taken_over > 0
        assert max(system.posted.values()) > 1


async def test_the_same_over_a_redis_that_dies_under_the_center(tmp_path: Path) -> None:
    redis: RedisServer = new_redis(tmp_path / "redis")
    redis.start()
    try:
        async with running_system(tmp_path / "net", store=redis.url, rate_per_s=RATE_PER_S) as system:
            faults = Faults(system, Model(Random(2), "redis"), redis)
            assert (
                await faults.play([faults.restart_redis, faults.kill_center, faults.restart_redis], ORDERS // 3) == []
            )
    finally:
        redis.kill()
