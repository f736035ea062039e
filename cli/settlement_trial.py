"""A trial network with the settlement programs on it: what the settlement demo, its benchmark and tests run on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cli.settle_plan import plan_of
from cli.trial import ProgramsTrial
from consensus.ledger.keys import PrivateKey
from node.network import programs
from node.network.trial import trial_network
from services.client.client import open_client
from services.client.keystore import KeyStore, Signer, read_passphrase
from services.demo.settlement_network import Doors, Wishes
from services.local.files import SERVICE_FILE
from services.local.urls import EMBEDDED
from services.messages.config import read_token
from services.settlement.setup import BANK, Prepared, open_people, set_up


class SettlementTrial(ProgramsTrial):
    """A running trial network, the programs of settlement, and the accidents that they may meet."""

    SYSTEM = "settlement"

    def key(self, identity: str) -> PrivateKey:
        """Return the key of an identity, ``settlement-agent`` included."""
        passphrase = read_passphrase(self.network.passphrase_file)
        return KeyStore(self.network.keystore).load(identity, passphrase).key

    async def open_settlement(self, wishes: Wishes) -> Doors:
        """Set settlement up and run its programs so; those that run otherwise are started anew.

        Raises:
            LocalError, Refused, Unreachable: as :func:`services.settlement.setup.set_up` and
                :func:`node.network.programs.start`.
        """
        prepared = await self._set_up(wishes)
        outdated = [item for item in self.all_programs if f"{item.name}/{SERVICE_FILE}" in prepared.done]
        await programs.stop(self.network, outdated)
        await self.start_programs()
        await open_people(prepared)
        token = read_token(prepared.accounts_token.parent, "token", prepared.accounts_token.name)
        return Doors(prepared.events, prepared.accounts_url, token)

    async def _set_up(self, wishes: Wishes) -> Prepared:
        plan = plan_of(
            self.network,
            database=wishes.database or EMBEDDED,
            allow_faults=wishes.allow_faults,
            changes={
                "relay": wishes.is_relay_on,
                "scan": wishes.is_scan_on,
                "scan_interval_ms": wishes.scan_interval_ms,
            },
            may_leave_events=True,
        )
        async with open_client(self.genesis, list(self.urls.values())) as client:
            return await set_up(client, Signer.of(BANK, self.key(BANK)), plan)


@asynccontextmanager
async def settlement_trial(folder: Path | None = None, *, keep: bool = False) -> AsyncIterator[SettlementTrial]:
    """Give a running trial network for the time of the block; its programs end with it, unless it is kept or was.

    Arguments and errors as :func:`node.network.trial.trial_network`.
    """
    async with trial_network(folder, keep=keep) as trial:
        settlement = SettlementTrial(trial)
        async with settlement.ended_with(keep=keep):
            yield settlement
