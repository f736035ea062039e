"""A trial network with the rights system's programs on it: what the rights demo and its benchmark run on."""

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from cli.rights_plan import plan_of
from cli.trial import ProgramsTrial
from node.network.trial import trial_network
from services.client.client import open_client
from services.client.keystore import Signer
from services.demo.network import Doors, Wishes
from services.local.files import F, read_service, write_service
from services.messages.config import CenterFile, read_token
from services.rights.config import BusinessFile, ServerFile, ShareFile
from services.rights.setup import set_up

SHOP = "shop"
"""The identity whose account is the business server's."""


class RightsTrial(ProgramsTrial):
    """A running trial network, the three programs, and the accidents that all may meet."""

    SYSTEM = "rights"

    async def open_rights(self, wishes: Wishes) -> Doors:
        """Set the rights system up and run its three programs so, ending those that run otherwise.

        Raises:
            LocalError, Refused, Unreachable: as :func:`services.rights.setup.set_up` and
                :func:`node.network.programs.start`.
        """
        await self.stop_programs()
        center_home, business_home, server_home = await self._set_up(wishes)
        center = replace_fields(center_home, CenterFile, queue=dict(wishes.queue))
        if wishes.is_fresh:
            shutil.rmtree(center_home / center.data, ignore_errors=True)
        direct = SHOP if wishes.is_direct or wishes.is_direct_strict else ""
        business = replace_fields(business_home, BusinessFile, direct=direct, direct_strict=wishes.is_direct_strict)
        shares = {campaign: ShareFile(basis_points, cap) for campaign, (basis_points, cap) in wishes.shares.items()}
        changes = {"shares": shares, "prices": dict(wishes.prices), "linger_ms": wishes.linger_ms}
        replace_fields(server_home, ServerFile, **changes)
        await self.start_programs()
        return Doors(f"http://{business.listen}", center.listen, read_token(center_home, "token", center.token))

    async def _set_up(self, wishes: Wishes) -> Sequence[Path]:
        plan = plan_of(self.network, rate_per_s=wishes.rate_per_s, store=wishes.store, is_strict=wishes.is_strict)
        async with open_client(self.genesis, list(self.urls.values())) as client:
            return (await set_up(client, Signer.of(SHOP, self.key(SHOP)), plan)).homes


def replace_fields(home: Path, kind: type[F], **changes: object) -> F:
    """Change fields of a program's ``service.toml`` and return what it says now."""
    file = msgspec.structs.replace(read_service(home, kind), **changes)
    write_service(home, file)
    return file


@asynccontextmanager
async def rights_trial(folder: Path | None = None, *, keep: bool = False) -> AsyncIterator[RightsTrial]:
    """Give a running trial network for the time of the block; its programs end with it, unless it is kept or was.

    Arguments and errors as :func:`node.network.trial.trial_network`.
    """
    async with trial_network(folder, keep=keep) as trial:
        rights = RightsTrial(trial)
        async with rights.ended_with(keep=keep):
            yield rights
