"""Rights on a running network: both ways to create, the cap, relayed events, and what every node proves of a user."""

from pathlib import Path

import msgspec
import pytest

from consensus.ledger.codec import Value
from consensus.ledger.errors import PeerError
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import EACH, make_call
from services.client.errors import Refused
from services.rights.events import Event, apply_arguments, present_arguments, sign_events
from services.rights.history import fetch_history, load_untrusted, save, verify_history
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


async def test_a_relayed_history_is_proven_by_every_node_and_checked_offline(tmp_path: Path) -> None:
    """Signed by the shop's event key, brought by a bank's account, and nothing of it can be left out afterwards."""
    event_key = PrivateKey.from_secret(91)
    async with running_network(tmp_path / "net") as network, client_of(network) as client:
        shop, relay = signer(network, "shop"), signer(network, "bank-a")
        settings: list[tuple[str, dict[str, Value]]] = [
            ("open_campaign", {"campaign": "spring", "quota": 10_000, "share_basis_points": 1_000}),
            ("appoint", {"event_keys": [event_key.public.compressed], "rights_servers": [relay.address]}),
            ("set_price", {"item": "cup", "price": 30}),
        ]
        for method, arguments in settings:
            (await client.call(shop, "rights", method, arguments)).check()
        events = [Event("create", f"o{n}", "1", "u1", "spring", 1_000, [], n) for n in range(9)]
        events += [Event("complete", f"o{n}", "1", "", "", 0, [], n) for n in range(9)]
        events += [Event("redeem", "r1", "1", "u1", "", 100, [("cup", 3)], 20)]
        events += [Event("cancel", "o0", "1", "", "", 40, [], 21), Event("create", "o9", "1", "u1", "none", 5, [], 22)]
        signed = sign_events(event_key, client.chain_id, shop.address, events)
        calls = [make_call("rights", "present", present_arguments(signed[0]))]
        calls += [make_call("rights", "apply", apply_arguments(item)) for item in signed]
        outcome = await client.call_many(relay, calls, mode=EACH)
        assert [receipt.code for receipt in outcome.receipts] == [""] * 21 + ["unknown_campaign"]
        for node in network.nodes:
            async with client_of(network, node.name) as reader:
                save(await fetch_history(reader, "u1", shop.address), tmp_path / node.name)
                save(await fetch_history(reader, "u2", shop.address), tmp_path / f"{node.name}-nobody")
    for node in network.nodes:
        file = load_untrusted(tmp_path / node.name)
        proven = verify_history(file, network.genesis)
        assert len(proven.entries) == 20
        figures = {name: amount for name, amount in proven.balance.items() if amount}
        assert figures == {"created": 900, "available": 770, "redeemed": 90, "clawedBack": 40}
        assert verify_history(load_untrusted(tmp_path / f"{node.name}-nobody"), network.genesis).entries == ()
        with pytest.raises(PeerError) as refusal:
            verify_history(msgspec.structs.replace(file, entries=file.entries[:-1]), network.genesis)
        assert refusal.value.code == "history_broken"
