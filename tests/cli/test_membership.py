"""The chain as membership commands reach it: what they say while a transaction is not final."""

from pathlib import Path

import pytest
import trio

from cli import membership
from cli.membership import ClientChain
from consensus.ledger.errors import PeerError
from services.client.errors import Refused
from tests.client.support import SoloNode, client_of, running, signer


async def test_a_call_without_a_quorum_says_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "LATE_S", 0.05)
    node, said = SoloNode(tmp_path / "a"), []
    node.is_deciding = False
    async with running(node), client_of(node) as client:
        with trio.CancelScope() as waiting:

            def tell(text: str) -> None:
                said.append(text)
                waiting.cancel()

            await ClientChain(client, signer, tell).call("bank-a", "remove_node", {"node": "node-3"})
    assert said == ["bank-a: remove_node is not final yet; hansa consensus doctor says whether enough nodes vote"]


async def test_a_call_in_time_says_nothing_and_its_refusal_comes_alone(tmp_path: Path) -> None:
    said: list[str] = []
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        with pytest.raises((Refused, PeerError)) as refusal:
            await ClientChain(client, signer, said.append).call("bank-a", "remove_node", {"node": "nobody"})
    assert refusal.value.code == "unknown_node"
    assert not said
