"""Channels as the state says: phases by block time, who is at the other end, records that are none."""

import pytest

from consensus.ledger.codec import Value, encode
from consensus.ledger.ids import NodeName
from contracts.runtime.state import MemoryState
from node.channels import ChannelRegistry
from p2p.private.port import ChannelFacts, ChannelName, Phase

NAME = ChannelName("bank-a", "issuer-c")
BANK_KEY, ISSUER_KEY = b"\2" + bytes(32), b"\3" + bytes(32)
PARTIES: dict[str, Value] = {
    "party/bank-a": {"node": "node-a", "businessKey": BANK_KEY, "channelKey": BANK_KEY, "role": "sales"},
    "party/issuer-c": {"node": "node-c", "businessKey": ISSUER_KEY, "channelKey": ISSUER_KEY, "role": "issuer"},
}


def channel(**changes: Value) -> dict[str, Value]:
    return {
        "bank": "bank-a",
        "issuer": "issuer-c",
        "epoch": 2,
        "status": "OPEN",
        "agreement": bytes(32),
        "bankNode": "node-a",
        "issuerNode": "node-c",
        "openedMs": 100,
        "expiresMs": 1_000,
        "revokedMs": 0,
        "graceUntilMs": 1_500,
        "revokedBy": "",
        "reason": "",
        **changes,
    }


def registry(**records: Value) -> ChannelRegistry:
    found = {**PARTIES, "channel/bank-a/issuer-c": channel(), **records}
    return ChannelRegistry.read(
        MemoryState({f"cooperation/{key}".encode(): encode(item) for key, item in found.items()})
    )


def facts(found: ChannelRegistry, node: str, now_ms: int = 500) -> tuple[ChannelFacts, ...]:
    return found.facts(NodeName(node), now_ms)


def test_each_side_sees_the_other_and_nobody_else_sees_anything() -> None:
    found = registry()
    assert facts(found, "node-a") == (ChannelFacts(NAME, 2, Phase.OPEN, True, NodeName("node-c"), ISSUER_KEY),)
    assert facts(found, "node-c") == (ChannelFacts(NAME, 2, Phase.OPEN, False, NodeName("node-a"), BANK_KEY),)
    assert facts(found, "node-f") == ()
    assert found.key_of(NodeName("node-a")) == BANK_KEY
    assert found.key_of(NodeName("node-f")) is None


@pytest.mark.parametrize(
    ("status", "now_ms", "phase"),
    [
        ("OPEN", 999, Phase.OPEN),
        ("OPEN", 1_000, Phase.GRACE),
        ("OPEN", 1_499, Phase.GRACE),
        ("OPEN", 1_500, Phase.CLOSED),
        ("REVOKED", 500, Phase.GRACE),
        ("REVOKED", 1_500, Phase.CLOSED),
    ],
)
def test_phases_change_with_the_first_block_at_the_time(status: str, now_ms: int, phase: Phase) -> None:
    found = registry(**{"channel/bank-a/issuer-c": channel(status=status)})
    assert [item.phase for item in facts(found, "node-a", now_ms)] == [phase]


def test_the_next_deadline_is_the_first_that_lies_ahead() -> None:
    later = channel(issuer="issuer-f", expiresMs=1_200, graceUntilMs=1_300)
    found = registry(**{"channel/bank-a/issuer-f": later})
    expected = {0: 1_000, 999: 1_000, 1_000: 1_200, 1_200: 1_300, 1_300: 1_500, 1_500: None}
    assert {now_ms: found.next_deadline_ms(now_ms) for now_ms in expected} == expected


def test_a_party_that_answers_elsewhere_or_is_unknown_closes_its_channels() -> None:
    moved = {**PARTIES["party/issuer-c"], "node": "node-x"}  # type: ignore[dict-item]
    found = registry(**{"party/issuer-c": moved})
    assert [item.phase for item in facts(found, "node-a")] == [Phase.CLOSED]
    assert facts(found, "node-x") == ()
    assert facts(registry(**{"party/issuer-c": None}), "node-a") == ()


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        "channel",
        channel(epoch=0),
        channel(status="open"),
        channel(bankNode=7),
        channel(issuer="issuer-f"),
        channel(bankNode="node-c"),
        {"bank": "bank-a", "issuer": "issuer-c"},
    ],
)
def test_a_record_of_another_shape_counts_as_absent(record: Value) -> None:
    found = registry(**{"channel/bank-a/issuer-c": record})
    assert facts(found, "node-a") == ()
    assert [item for item in facts(found, "node-c") if item.phase is not Phase.CLOSED] == []


def test_a_key_of_another_length_makes_no_party() -> None:
    party = {**PARTIES["party/issuer-c"], "channelKey": bytes(32)}  # type: ignore[dict-item]
    assert facts(registry(**{"party/issuer-c": party}), "node-a") == ()


def test_many_channels_are_read_in_pages() -> None:
    records = {f"channel/bank-a/issuer-{number:03}": channel(issuer=f"issuer-{number:03}") for number in range(600)}
    assert len(registry(**records).channels) == 601


def test_only_writes_to_channels_and_parties_count() -> None:
    assert ChannelRegistry.touched_by({b"cooperation/channel/bank-a/issuer-c": b""})
    assert ChannelRegistry.touched_by({b"cooperation/party/bank-a": None})
    assert not ChannelRegistry.touched_by({b"cooperation/product/000198": b"", b"membership/node/bank-a": b""})
