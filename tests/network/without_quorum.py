"""``python -m tests.network.without_quorum``: two of four nodes are away for a minute, and until standard input ends.

Nothing commits meanwhile, and soon after they are back everything does. The network needs next to nothing in that
time, so that other tests may run beside it.
"""

import sys
import tempfile
from pathlib import Path

import pytest
import trio

from consensus.ledger.transaction import make_call
from node.network import local
from services.client.errors import Unreachable
from tests.network.support import client_of, open_campaign, order, running_network, signer

WITHOUT_QUORUM_S = 60
RECOVERY_S = 24


async def run(folder: Path) -> None:
    """Run it on a network of its own in ``folder``.

    Raises:
        pytest.fail.Exception: something was final without a quorum.
        trio.TooSlowError, Unreachable: the chain does not go on with one.
    """
    async with running_network(folder) as network:
        await open_campaign(network)
        absent = [node.name for node in network.nodes][:2]
        present = [node.name for node in network.nodes][2:]
        await local.stop(network, absent)
        shop = signer(network, "shop")
        async with client_of(network, *present) as client:
            calls = [make_call("rights", "create", order(1, "quorum"))]
            transaction = client.sign(shop, calls, sequence=0, lane=b"quorum", validity_ms=600_000)
            await client.submit(transaction)
            with pytest.raises(Unreachable) as unknown:
                await client.wait(transaction, timeout_ms=1_000 * WITHOUT_QUORUM_S)
            assert unknown.value.code == "outcome_unknown"
            await trio.to_thread.run_sync(sys.stdin.read)
            with trio.fail_after(RECOVERY_S):
                await local.start(network, absent)
                (await client.wait(transaction, timeout_ms=1_000 * RECOVERY_S)).check()


def main() -> None:
    """Run it in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="hansa-quorum-") as folder:
        trio.run(run, Path(folder) / "net")


if __name__ == "__main__":
    main()
