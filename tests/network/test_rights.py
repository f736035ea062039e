"""Rights on a running network: both ways to create, the cap, and the proven balance on every node."""

from pathlib import Path

import pytest

from consensus.ledger.codec import Value
from services.client.errors import Refused
from tests.network.support import client_of, running_network, signer

pytestmark = [pytest.mark.network, pytest.mark.slow]


async def test_shares_are_computed_or_checked_by_the_contract_on_every_node(tmp_path: Path) -> None:
    async with running_network(tmp_path / "net") as network, client_of(network) as client:
        shop = signer(network, "shop")

        async def call(method: str, **arguments: Value) -> Value:
            return (await client.call(shop, "rights", method, arguments)).check().value()

        await call("open_campaign", campaign="spring", quota=1_000, order_max=50, share_basis_points=500)
        created = await call("create", campaign="spring", order="o1", user="u1", amount=40, event="e")
        assert created == {"created": 40, "entry": 0, "reserved": 40}
        with pytest.raises(Refused) as refusal:
            await call("create", campaign="spring", order="o2", user="u1", amount=51, event="e")
        assert refusal.value.code == "share_too_large"
        computed = await call("create_by_rule", campaign="spring", order="o3", user="u1", order_amount=399, event="e")
        assert computed == {"created": 19, "entry": 1, "reserved": 19}
        for node in network.nodes:
            async with client_of(network, node.name) as reader:
                key = f"rights/user/u1/{shop.address.hex()}"
                proven = await reader.state(key, is_newest=True)
                assert isinstance(proven.value, list)
                count, _, balance, _ = proven.value
                assert (count, balance) == (2, [59, 59, 0, 0, 0, 0, 0])
