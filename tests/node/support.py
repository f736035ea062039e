"""A small consortium for tests of a node's rooms: keys from fixed secrets, genesis, blocks with real certificates."""

from dataclasses import dataclass

import trio

from consensus.ledger.genesis import Account, Activation, Genesis, GenesisValidator, Organisation
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.transaction import ATOMIC, Call, Transaction, sign_transaction
from consensus.ledger.validators import Certificate, Signature, vote_payload
from contracts.runtime.execution import Executor
from contracts.runtime.registry import Registry
from node.chain import Candidate, Chain
from node.storage.store import Store

GENESIS_TIME_MS = 1_700_000_000_000
VALIDITY_MS = 600_000

ROLES = {
    "bank-a": ["bank", "unit-issuer", "admin"],
    "shop": ["business-server"],
    "user-b": [],
    "user-e": [],
}


@dataclass(frozen=True)
class Consortium:
    """Genesis with the keys behind it."""

    genesis: Genesis
    vote_keys: dict[str, PrivateKey]
    account_keys: dict[str, PrivateKey]

    def sign(
        self,
        name: str,
        calls: list[Call],
        *,
        sequence: int = 0,
        lane: bytes = b"",
        mode: int = ATOMIC,
        valid_until_ms: int = GENESIS_TIME_MS + VALIDITY_MS,
    ) -> Transaction:
        """Return a transaction signed by a named account."""
        return sign_transaction(
            self.account_keys[name],
            self.genesis.chain_id(),
            calls,
            sequence=sequence,
            lane=lane,
            mode=mode,
            valid_until_ms=valid_until_ms,
        )

    def certify(self, candidate: Candidate, view: int = 0) -> Certificate:
        """Return the certificate that a quorum would give the block."""
        block, chain_id = candidate.block, self.genesis.chain_id()
        payload = vote_payload(block.height, view, block.hash)
        quorum = self.genesis.validator_set().quorum
        votes = [
            Signature(name, self.vote_keys[name].sign(Purpose.COMMIT, chain_id, payload))
            for name in sorted(self.vote_keys)[:quorum]
        ]
        return Certificate(block.height, view, block.hash, votes)


def make_consortium(validators: int = 4, registry: Registry | None = None) -> Consortium:
    """Return a consortium with this many validators and the accounts of ``ROLES``."""
    contracts = (registry or Registry.shipped()).newest()
    vote_keys = {f"node-{number}": PrivateKey.from_secret(1_000 + number) for number in range(validators)}
    account_keys = {name: PrivateKey.from_secret(2_000 + number) for number, name in enumerate(ROLES)}
    genesis = Genesis(
        name="test",
        time_ms=GENESIS_TIME_MS,
        organisations=[Organisation(name, ["bank"], "") for name in [*vote_keys, "people"]],
        validators=[GenesisValidator(name, name, key.public.compressed.hex()) for name, key in vote_keys.items()],
        accounts=[
            Account(name, "people", key.public.compressed.hex(), ROLES[name]) for name, key in account_keys.items()
        ],
        contracts=[Activation(item.name, item.version, item.code_hash.hex()) for item in contracts],
    )
    return Consortium(genesis, vote_keys, account_keys)


def make_executor() -> Executor:
    """Return an executor over the shipped contracts."""
    return Executor(Registry.shipped())


async def pass_time(seconds: float) -> None:
    """Let a clock that jumps go on; with any other clock this would be a sleep."""
    with trio.move_on_after(seconds):
        await trio.sleep_forever()


def extend(
    chain: Chain, store: Store, consortium: Consortium, transactions: list[Transaction], step_ms: int = 10
) -> Candidate:
    """Build, certify and commit one block; everything given must be accepted."""
    head = chain.head.header
    candidate, refused = chain.build("node-0", head.time_ms + step_ms, transactions)
    if refused:
        raise refused[0][1]
    certificate = consortium.certify(candidate)
    store.write(chain.commit_batch(candidate, certificate))
    chain.adopt(candidate, certificate)
    return candidate
