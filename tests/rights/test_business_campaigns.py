"""What the business server knows of campaigns, before a chain that answers as the test says; on a clock that jumps."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from consensus.ledger.codec import Value
from consensus.ledger.errors import HansaError, PeerError
from services.client.errors import Refused, Unreachable
from services.rights import campaigns as product
from services.rights.campaigns import ASK_MS_MAX, FRESH_MS, Campaigns
from tests.rights.business_world import SHOP

OPEN: dict[str, Value] = {"server": SHOP.address, "isClosed": False}
CLOSED: dict[str, Value] = {**OPEN, "isClosed": True}


class Chain:
    """Answers after ``delay_s`` what it is set to, and counts the questions."""

    def __init__(self, answer: "Value | HansaError" = OPEN) -> None:
        self.answer = answer
        self.delay_s = 0.0
        self.asked: list[Value] = []
        self.left = 0

    async def query(self, contract: str, method: str, arguments: dict[str, Value] | None = None) -> Value:
        assert (contract, method) == ("rights", "campaign")
        self.asked.append((arguments or {})["campaign"])
        with trio.move_on_after(self.delay_s):
            await trio.sleep_forever()
        if isinstance(self.answer, HansaError):
            raise self.answer
        return self.answer

    def leave_node(self) -> None:
        self.left += 1


@asynccontextmanager
async def knowing(chain: Chain) -> AsyncIterator[Campaigns]:
    campaigns = Campaigns(chain, SHOP.address)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(campaigns.run)
        yield campaigns
        nursery.cancel_scope.cancel()


async def code(campaigns: Campaigns, name: str = "summer") -> str:
    refusal = await campaigns.refusal(name)
    return refusal.code if refusal else ""


async def later(ms: int) -> None:
    with trio.move_on_after(ms / 1000):
        await trio.sleep_forever()


async def test_many_who_ask_at_once_are_one_question(autojump_clock: trio.testing.MockClock) -> None:
    chain = Chain(CLOSED)
    chain.delay_s = 0.1
    codes: list[str] = []
    async with knowing(chain) as campaigns:

        async def ask() -> None:
            codes.append(await code(campaigns))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask)
        assert codes == ["campaign_closed"] * 50
        assert chain.asked == ["summer"]


async def test_what_is_known_counts_for_a_while_and_an_open_campaign_is_asked_about_beside(
    autojump_clock: trio.testing.MockClock,
) -> None:
    chain = Chain()
    async with knowing(chain) as campaigns:
        assert await code(campaigns) == ""
        chain.answer, chain.delay_s = CLOSED, 0.1
        await later(FRESH_MS - 200)
        assert await code(campaigns) == ""
        assert len(chain.asked) == 1
        await later(300)
        begin = trio.current_time()
        assert await code(campaigns) == ""  # at once, while the chain is asked
        assert trio.current_time() == begin
        await later(200)
        assert await code(campaigns) == "campaign_closed"
        assert len(chain.asked) == 2


async def test_a_refusal_is_asked_about_again(autojump_clock: trio.testing.MockClock) -> None:
    chain = Chain(Refused("unknown_campaign", ""))
    async with knowing(chain) as campaigns:
        assert await code(campaigns) == "unknown_campaign"
        chain.answer = OPEN
        assert await code(campaigns) == "unknown_campaign"
        await later(FRESH_MS)
        assert await code(campaigns) == ""


@pytest.mark.parametrize(
    "trouble",
    [Unreachable("gone"), Refused("node_failed", ""), Refused("unknown_contract", ""), PeerError("bad_answer", "")],
)
async def test_a_chain_that_cannot_say_refuses_nothing(
    autojump_clock: trio.testing.MockClock, trouble: HansaError
) -> None:
    async with knowing(Chain(trouble)) as campaigns:
        assert await code(campaigns) == ""


async def test_a_chain_that_is_silent_holds_an_order_up_once_and_briefly(
    autojump_clock: trio.testing.MockClock,
) -> None:
    chain = Chain()
    chain.delay_s = 1_000
    async with knowing(chain) as campaigns:
        begin = trio.current_time()
        assert await code(campaigns) == ""
        assert trio.current_time() - begin <= ASK_MS_MAX / 1000 + 0.001
        await later(10)
        begin = trio.current_time()
        assert await code(campaigns) == ""
        assert trio.current_time() == begin
        assert chain.left == 1  # the next question goes to another node


async def test_names_that_are_remembered_are_bounded(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "CAMPAIGNS_MAX", 4)
    chain = Chain(Refused("unknown_campaign", ""))
    async with knowing(chain) as campaigns:
        for number in range(10):
            assert await code(campaigns, f"c-{number}") == "unknown_campaign"
        assert len(campaigns._known) <= 4
