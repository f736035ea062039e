"""A transaction system in a process of its own, so that it can be killed.

``python -m tests.network.settlement_trader`` reads one JSON object from standard input, places its trade, and ends
with 0 when nothing stood in its way.
"""

import sys
from pathlib import Path

import msgspec
import trio

from consensus.ledger.genesis import decode_genesis_untrusted
from consensus.ledger.keys import PrivateKey
from services.accounts.link import open_accounts
from services.client.client import open_client
from services.client.errors import Unreachable
from services.client.keystore import Signer
from services.local.link import LocalLink
from services.settlement.states import Terms
from services.settlement.trader import Trade, Trader


class Task(msgspec.Struct, frozen=True):
    """What is to be traded, by whom, and where everybody is reached."""

    genesis: bytes
    nodes: list[str]
    events: str
    accounts: str
    token: str
    agent: bytes
    seller: str
    key: bytes
    event: str
    terms: Terms
    validity_ms: int


async def place(task: Task) -> int:
    """Place the trade."""
    genesis = decode_genesis_untrusted(task.genesis)
    signer = Signer.of(task.seller, PrivateKey.from_pem(task.key))
    async with (
        open_client(genesis, task.nodes) as client,
        LocalLink(Path(task.events)) as events,
        open_accounts(task.accounts, token=task.token) as accounts,
    ):
        trader = Trader(events, accounts, client, agent=task.agent)
        try:
            (kept,) = await trader.place([Trade(task.event, signer, task.terms, task.validity_ms)])
        except Unreachable as error:
            print(error, file=sys.stderr)
            return 1
        print(kept.code, kept.message, file=sys.stderr)
        return 1 if kept.code else 0


if __name__ == "__main__":
    raise SystemExit(trio.run(place, msgspec.json.decode(sys.stdin.buffer.read(), type=Task)))
