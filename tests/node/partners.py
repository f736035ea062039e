"""A bank and an issuer on a site: registered as parties, with an agreement, a channel opened, prolonged or revoked."""

from consensus.ledger.codec import Value
from consensus.ledger.cooperation import agreement_hash
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.transaction import Call, make_call
from node.network.keys import load_channel_key
from node.private import PrivatePart
from p2p.private.port import ChannelName, ChannelStatus, Delivery, Phase
from tests.node.site import Site

CHANNEL = ChannelName("bank-a", "issuer-c")
BANK, ISSUER, PERMISSION = "bank-a", "issuer-c", "permission"
DAY_MS = 86_400_000


class Partners:
    """What the two do on the chain, through the node of the permission desk, and on their channel."""

    def __init__(self, site: Site, via: str = PERMISSION) -> None:
        self.site = site
        self._via = via
        self._business = {name: PrivateKey.generate() for name in (BANK, ISSUER)}
        self._next: dict[str, int] = {}

    def part(self, name: str) -> PrivatePart:
        part = self.site.running[name].node.private
        assert part is not None
        return part

    async def do(self, name: str, method: str, **arguments: Value) -> None:
        """Let an account call the contract; the block with it is everywhere when this returns."""
        await self._call(name, make_call("cooperation", method, arguments))

    async def tick(self) -> None:
        """Let a block come that has nothing to do with channels."""
        unit = f"u{self._next.get(BANK, 0)}"
        await self._call(BANK, make_call("tokens", "define", {"unit": unit, "decimals": 2, "description": "-"}))

    async def _call(self, name: str, call: Call) -> None:
        sequence = self._next.get(name, 0)
        self._next[name] = sequence + 1
        transaction = self.site.sign(name, [call], sequence=sequence)
        self.site.submit(self._via, transaction)
        nodes = [item.node for item in self.site.running.values()]
        await self.site.until(lambda: all(node.chain.reader.locate(transaction.id) is not None for node in nodes))
        location = nodes[0].chain.reader.locate(transaction.id)
        assert location is not None
        await self.site.reach(location.height)
        receipts = nodes[0].chain.reader.receipts(location.height)
        assert receipts is not None
        [receipt] = receipts.receipts[location.receipt_index : location.receipt_index + location.receipt_count]
        assert receipt.code == "", receipt

    async def register(self, *names: str) -> None:
        for name in names or (BANK, ISSUER):
            channel_key = load_channel_key(self.site.config(name).channel_key).public.compressed
            business_key = self._business[name].public.compressed
            await self.do(name, "register_party", node=name, business_key=business_key, channel_key=channel_key)

    async def open(self, number: str = "1", *, valid_ms: int = DAY_MS, grace_ms: int = DAY_MS) -> None:
        """Sign an agreement that ends so long after genesis, apply, and open."""
        begin_ms = self.site.genesis.time_ms
        agreed = agreement_hash(number, BANK, [ISSUER], bytes(32), begin_ms, begin_ms + valid_ms, grace_ms)
        signatures: dict[str, Value] = {
            name: key.sign(Purpose.AGREEMENT, self.site.chain_id, agreed) for name, key in self._business.items()
        }
        await self.do(
            BANK,
            "apply",
            number=number,
            issuers=[ISSUER],
            document=bytes(32),
            valid_from_ms=begin_ms,
            valid_until_ms=begin_ms + valid_ms,
            grace_ms=grace_ms,
            signatures=signatures,
        )
        await self.do(PERMISSION, "open_channels", application=agreed)

    async def revoke(self, by: str = ISSUER) -> None:
        await self.do(by, "revoke_channel", bank=BANK, issuer=ISSUER, reason="test")

    def status(self, name: str) -> ChannelStatus:
        [status] = self.part(name).status()
        return status

    async def phase(self, phase: Phase, *names: str) -> None:
        """Wait until these nodes, or both, see the channel in this phase."""
        await self.site.until(
            lambda: all(
                [status.facts.phase for status in self.part(name).status()] == [phase]
                for name in names or (BANK, ISSUER)
            )
        )

    async def connected(self) -> None:
        await self.site.until(lambda: all(self.status(name).is_connected for name in (BANK, ISSUER)))

    async def send(self, name: str, message_id: str, payload: bytes) -> int:
        """Send to the other side; return the number."""
        return (await self.part(name).send(CHANNEL, message_id, payload))[1]

    async def received(self, name: str, count: int, after: int = 0) -> list[Delivery]:
        """Wait until so many lie behind a position and return them."""
        found: list[Delivery] = []

        def are_there() -> bool:
            found[:] = self.part(name).receive(after, limit=1_000, bytes_max=1 << 30)
            return len(found) >= count

        await self.site.until(are_there)
        return found
