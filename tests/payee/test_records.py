"""Records of a platform: drafted, signed by both, encrypted, removed; epochs begun, resumed, and trusted."""

from pathlib import Path

from services.payee.interfaces import NoParams, PlatformStatus, Records, RecordsQuery
from tests.payee.platform_world import ACQUIRING, platform_world


async def test_a_record_is_added_and_read_back(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        assert (await owner.begin()).epoch == 1
        put = await owner.add()
        assert (put.version, put.epoch) == (1, 1)
        (row,) = (await owner.link.call("records", RecordsQuery(), Records)).items
        assert row.acquiring == ACQUIRING
        status = await owner.link.call("status", NoParams(), PlatformStatus)
        assert (status.epoch, status.environments, status.records, status.outdated) == (1, ["bank-a", "issuer-c"], 1, 0)
