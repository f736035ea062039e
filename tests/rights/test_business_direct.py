"""The business server that submits by itself: answers after finality, with the contract's own refusals."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import httpx
import pytest
import trio
from anycorn.typing import ASGIFramework

from consensus.ledger.codec import Value
from services.client.client import Client
from services.local import web
from services.local.pages import LOOPBACK_NAMES, Gate
from services.rights.campaigns import Campaigns
from services.rights.direct import Direct
from services.rights.metrics import BusinessMetrics
from services.rights.pages import Pages
from tests.client.support import SoloNode, client_of, running
from tests.rights.business_world import ORDER, SHOP


@asynccontextmanager
async def direct_server(client: Client, *, is_strict: bool) -> AsyncIterator[httpx.AsyncClient]:
    """Give a caller of a server whose clock is the chain's, which stands still in tests."""
    metrics, stopping = BusinessMetrics(), trio.Event()
    campaigns = Campaigns(client, SHOP.address)
    pages = Pages(Direct(client, SHOP, is_strict=is_strict), campaigns, metrics)
    app = cast(ASGIFramework, Gate(pages.app(), names=LOOPBACK_NAMES, token=""))
    listening = web.open_socket("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with trio.open_nursery() as nursery, httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
        nursery.start_soon(campaigns.run)

        async def serve() -> None:
            await web.serve(listening, app, connections=metrics.connections, stopping=stopping)
            nursery.cancel_scope.cancel()

        nursery.start_soon(serve)
        yield http
        stopping.set()


@pytest.mark.parametrize("is_strict", [True, False])
async def test_answers_come_after_finality_and_say_where_in_the_chain(tmp_path: Path, is_strict: bool) -> None:
    node = SoloNode(tmp_path)
    async with running(node), client_of(node) as client:
        for method, arguments in (
            ("open_campaign", {"campaign": "summer", "quota": 1_000}),
            ("set_price", {"item": "coffee", "price": 30}),
        ):
            called: dict[str, Value] = dict(arguments)
            (await client.call(SHOP, "rights", method, called)).check()
        async with direct_server(client, is_strict=is_strict) as http:
            answer = (await http.post("/orders", json=ORDER)).raise_for_status()
            assert answer.status_code == 200
            taken = answer.json()
            assert taken["eventId"] == "create/o-1/1"
            outcome = await client.outcome(bytes.fromhex(taken["chain"]["transactionId"][2:]))
            assert outcome.is_ok
            assert outcome.height == taken["chain"]["height"]
            assert (await http.get(taken["follow"])).json()["state"] == "done"
            again = (await http.post("/orders", json=ORDER)).json()
            assert (taken["isNew"], again["isNew"]) == (True, False)
            assert again["chain"]["height"] > taken["chain"]["height"]
            assert (await http.get("/events/create/o-2/1")).status_code == 404

            answers = await http.post(
                "/events",
                json=[
                    {"kind": "complete", "order": "o-1", "amount": 90},
                    {"kind": "redeem", "redemption": "r-1", "user": "u-1", "items": {"coffee": 2}},
                    {"kind": "redeem", "redemption": "r-2", "user": "u-1", "amount": 30},
                    {"kind": "reverse_redemption", "redemption": "r-1"},
                    {"kind": "cancel", "order": "o-1"},
                    {"kind": "refund", "order": "o-1"},
                ],
            )
            assert all(answer["isNew"] for answer in answers.json()[:-1])
            assert [answer.get("error", {}).get("code", "") for answer in answers.json()] == [*[""] * 5, "order_state"]
            for path, body in (
                ("/orders/o-1/complete", {"amount": 90}),
                ("/redemptions", {"redemption": "r-2", "user": "u-1", "amount": 30}),
                ("/redemptions/r-1/reverse", {}),
            ):
                assert not (await http.post(path, json=body)).raise_for_status().json()["isNew"], path
            totals = await client.query("rights", "totals")
            assert isinstance(totals, dict)
            # 90 granted, 10 revoked, 60 redeemed and returned, 30 redeemed; the cancel clawed back the 60 left.
            figures = [totals[name] for name in ("created", "redeemed", "revoked", "clawedBack", "debt")]
            assert figures == [100, 30, 10, 60, 30]

            refused = await http.post("/orders", json={**ORDER, "order": "o-9", "amount": 5_000})
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "quota_exceeded")


@pytest.mark.parametrize("is_strict", [True, False])
async def test_strict_means_one_transaction_at_a_time(tmp_path: Path, is_strict: bool) -> None:
    node = SoloNode(tmp_path)
    async with running(node), client_of(node) as client:
        opened: dict[str, Value] = {"campaign": "summer", "quota": 1_000}
        (await client.call(SHOP, "rights", "open_campaign", opened)).check()
        before = node.chain.head.header.height
        async with direct_server(client, is_strict=is_strict) as http:
            node.is_deciding = False

            async def post(number: int) -> None:
                (await http.post("/orders", json={**ORDER, "order": f"o-{number}"})).raise_for_status()

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(post, number)
                with trio.fail_after(20):
                    while len(set(node.submitted)) < (2 if is_strict else 9):
                        await trio.lowlevel.checkpoint()
                node.is_deciding = True
                node.wake()
        blocks = node.chain.head.header.height - before
        assert blocks == 8 if is_strict else blocks < 8
