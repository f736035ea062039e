"""Private channels between two nodes over real TLS: delivery, restarts, revocation, and who must stay out."""

import pytest
import trio

from p2p.private.port import PAYLOAD_BYTES_MAX
from tests.p2p.private.support import BANK, ISSUER, NAME, MemoryStore, Site, eventually, facts_of, payloads
from tests.p2p.support import Certificates, free_port


class Pair:
    """Two nodes whose stores and ports outlive them."""

    def __init__(self, folder) -> None:
        self.certificates = Certificates(folder, "a", "b", "c")
        self.ports = {"a": free_port(), "b": free_port(), "c": free_port()}
        self.stores = {name: MemoryStore() for name in self.ports}

    def site(self, name: str, **settings) -> Site:
        """Return a new life of a node."""
        settings.setdefault("peers", {"a": self.ports["a"], "b": self.ports["b"]})
        return Site(self.certificates, name, self.stores[name], port=self.ports[name], **settings)


@pytest.fixture
def pair(tmp_path):
    """Two nodes that may be run and run again."""
    return Pair(tmp_path)


async def test_messages_go_both_ways_once_and_in_order(pair):
    sent = [b"order %d " % number + bytes(1_000) for number in range(1_000)]
    async with (
        pair.site("a").running(facts_of(is_bank=True)) as a,
        pair.site("b").running(facts_of(is_bank=False)) as b,
    ):
        async with trio.open_nursery() as nursery:
            for number, payload in enumerate(sent):
                nursery.start_soon(a.private.send, NAME, f"id-{number}", payload)
        assert sorted(payloads(await b.collect(1_000))) == sorted(sent)
        assert await b.private.send(NAME, "answer", bytes(PAYLOAD_BYTES_MAX)) == (1, 1)
        [answer] = await a.collect(1)
        assert (answer.payload, answer.number, answer.code) == (bytes(PAYLOAD_BYTES_MAX), 1, "")
        await eventually(lambda: (a.status().waiting, b.status().waiting) == (0, 0))
        assert (a.status().delivered, b.status().received, b.status().delivered) == (1_000, 1_000, 1)
        await eventually(lambda: a.network.connected() == (ISSUER,) and b.network.connected() == (BANK,))
