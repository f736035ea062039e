"""The census over real nodes: what counts is proven, and who lies is named."""

from pathlib import Path

from services.settlement.census import Census
from services.settlement.decision import Verdict
from tests.client.support import SoloNode, client_of, running
from tests.settlement.chain import event_of, give_units, transaction_of


async def test_a_certified_receipt_counts(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_units(client)
        event = event_of("e-1")
        await client.submit_many([transaction_of(event)], wait_ms=10_000)
        tally = await Census(client).ask(event)
    assert [(answer.validator, answer.verdict, answer.height) for answer in tally.answers] == [
        ("node-0", Verdict.SUCCEEDED, 2),
        ("node-1", Verdict.UNKNOWN, 0),
        ("node-2", Verdict.UNKNOWN, 0),
        ("node-3", Verdict.UNKNOWN, 0),
    ]
    assert tally.ratio == 3
