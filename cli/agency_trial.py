"""A trial network with the agency system's programs on it: what the agency demo, its benchmark and tests run on."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from cli.agency_plan import plan_of
from cli.trial import ProgramsTrial
from consensus.ledger.keys import PrivateKey
from node.config import CONFIG_FILE
from node.network.homes import LocalNetwork
from node.network.traces import traces_of
from node.network.trial import trial_network
from services.agency.setup import set_up
from services.client.client import open_client
from services.client.keystore import KeyStore, read_passphrase

RECORD = "log/frames.bin"
"""Where a node that records its frames keeps them, below its home."""
SOCKETS = {"gateway": "gateway.sock", "sales": "sales.sock", "end": "issuer.sock"}


class AgencyTrial(ProgramsTrial):
    """A running trial network, the programs of bank, issuers and permission desk, and the accidents they may meet."""

    SYSTEM = "agency"

    @property
    def genesis_file(self) -> Path:
        """Where the genesis document stands."""
        return self.network.genesis_path

    def socket(self, program: str) -> Path:
        """Return the local socket of a program, ``ORG-gateway``, ``ORG-sales`` or ``ORG-end``."""
        return self.network.folder / "services" / program / "run" / SOCKETS[program.rpartition("-")[2]]

    def key(self, identity: str) -> PrivateKey:
        """Return the key of an identity or of an institution's business, ``ORG-business``."""
        passphrase = read_passphrase(self.network.passphrase_file)
        return KeyStore(self.network.keystore).load(identity, passphrase).key

    async def open_agency(self) -> None:
        """Set the agency system up and run its programs.

        Raises:
            LocalError, Refused, Unreachable: as :func:`services.agency.setup.set_up` and
                :func:`node.network.programs.start`.
        """
        async with open_client(self.genesis, list(self.urls.values())) as client:
            await set_up(client, plan_of(self.network))
        await self.start_programs()

    def traces(self, name: str) -> Iterator[tuple[str, bytes]]:
        """Yield place and bytes of everything that a stopped node has left."""
        return ((trace.place, trace.data) for trace in traces_of(self.network.node(name)))


@asynccontextmanager
async def agency_trial(
    folder: Path | None = None, *, keep: bool = False, records_frames: bool = False
) -> AsyncIterator[AgencyTrial]:
    """Give a running trial network for the time of the block; its programs end with it, unless it is kept or was.

    Arguments and errors as :func:`node.network.trial.trial_network`; ``records_frames`` lets all nodes write down
    what they send and receive, where the network is made.
    """
    async with trial_network(folder, keep=keep, prepare=_record if records_frames else None) as trial:
        agency = AgencyTrial(trial)
        async with agency.ended_with(keep=keep):
            yield agency


def _record(network: LocalNetwork) -> None:
    for home in network.nodes:
        path = home.folder / CONFIG_FILE
        path.write_text(f'record_frames = "{RECORD}"\n{path.read_text("utf-8")}', "utf-8")
