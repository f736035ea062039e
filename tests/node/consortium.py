"""A site whose members change while it runs: homes for newcomers, and calls to the membership contract."""

from pathlib import Path

import msgspec
import trio

from consensus.ledger.codec import Value
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.transaction import ATOMIC, make_call, sign_transaction
from consensus.ledger.validators import seat_payload
from node.config import Endpoint, NodeConfig, config_text, load_config
from node.network.ca import Authority, to_pem, utc_now
from node.network.homes import LOCAL_HOST
from tests.node.site import VALIDITY_MS, Site
from tests.p2p.support import free_port

APPROVERS = ("bank-a", "issuer-c", "issuer-f")
"""Three of four organisations are a quorum."""


class Consortium(Site):
    """Four validators of four organisations unless told otherwise, and who joins them."""

    def __init__(self, folder: Path, nursery: trio.Nursery, *, validators: int = 4) -> None:
        super().__init__(folder, nursery, validators=validators)
        self.homes: dict[str, Path] = {}
        self._changes = 0

    def config(self, name: str) -> NodeConfig:
        """Return a node's configuration, a newcomer's included."""
        if name not in self.homes:
            return super().config(name)
        times = super().config(self.names[0]).consensus
        return msgspec.structs.replace(load_config(self.homes[name]), consensus=times)

    def newcomer(self, name: str, organisation: str, authority: Authority, *peers: str) -> str:
        """Make a home that knows these peers; others find it by its address on the chain, which is returned."""
        home = self.homes[name] = self.network.folder / "newcomers" / name
        for part in ("keys", "data", "log", "run"):
            (home / part).mkdir(parents=True)
        p2p = Endpoint(LOCAL_HOST, free_port())
        known = {peer: self.config(peer).p2p for peer in peers}
        text = config_text(name=name, organisation=organisation, p2p=p2p, rpc=Endpoint(LOCAL_HOST, 0), peers=known)
        (home / "node.toml").write_text(text)
        (home / "genesis.json").write_bytes(self.genesis.to_json())
        self.new_vote_key(name)
        self.certify(name, authority)
        return f"{p2p.host}:{p2p.port}"

    def new_vote_key(self, name: str) -> PrivateKey:
        """Give a stopped node a new vote key."""
        key = PrivateKey.generate()
        self.config(name).vote_key.write_bytes(key.to_pem(None))
        return key

    def certify(self, name: str, authority: Authority) -> None:
        """Give a node a new TLS key and certificate."""
        config, key = self.config(name), PrivateKey.generate()
        config.tls_certificate.write_bytes(to_pem(authority.issue(name, key.exchange.public_key(), now=utc_now())))
        config.tls_key.write_bytes(key.to_pem(None))

    def authority(self, organisation: str) -> Authority:
        """Return the root of an organisation that is in genesis."""
        folder = self.network.folder / "ca"
        certificate, key = folder / f"{organisation}.crt", folder / f"{organisation}.pem"
        return Authority.load(certificate.read_bytes(), key.read_bytes())

    async def change(self, admin: str | PrivateKey, method: str, at: str = "", **arguments: Value) -> None:
        """Have an admin call the membership contract, and wait until every node has executed it.

        Args:
            admin: an identity of the network, or the key of an account.
            method: of the contract.
            at: the node that takes the call, else the first that runs.
        """
        self._changes += 1
        key = self.network.key(admin) if isinstance(admin, str) else admin
        transaction = sign_transaction(
            key,
            self.chain_id,
            [make_call("membership", method, arguments)],
            sequence=0,
            lane=b"change-%d" % self._changes,
            mode=ATOMIC,
            valid_until_ms=self.genesis.time_ms + VALIDITY_MS,
        )
        taker = self.running[at or next(iter(self.running))]
        taker.node.intake.submit_untrusted([transaction.raw])
        reader = taker.node.chain.reader
        await self.until(lambda: reader.locate(transaction.id) is not None)
        location = reader.locate(transaction.id)
        assert location is not None
        [receipt] = reader.receipts_of(location)
        assert receipt.code == "", f"{method}: {receipt.code}"
        await self.until(lambda: taker.height >= location.height)

    async def remove(self, node: str, *admins: str, at: str) -> None:
        """Let admins approve that a node leaves until it has left, and end it."""
        for admin in admins:
            if node in self.running[at].node.chain.head.validators.names:
                await self.change(admin, "remove_node", at=at, node=node)
        await self.stop(node)

    async def agree(self, method: str, **arguments: Value) -> None:
        """Let enough organisations approve."""
        for identity in APPROVERS:
            await self.change(identity, method, **arguments)

    def seat_proof(self, name: str, key: PrivateKey, height: int) -> dict[str, Value]:
        """Return the arguments that show that a node holds its key and has come so far."""
        signature = key.sign(Purpose.SEAT, self.chain_id, seat_payload(name, key.public.compressed, height))
        return {"node": name, "height": height, "proof": signature}

    def is_connected(self, name: str, *to: str) -> bool:
        """Tell whether each of these nodes has a session with a node."""
        return all(name in self.running[other].node.network.connected() for other in to)
