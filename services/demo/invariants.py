"""What must hold at the end of the rights demo, judged on facts alone. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.demo.chain import BlockView, ReceiptView, Seal
from services.demo.orders import OrderBook
from services.demo.rights_machine import Batch, Figures


@dataclass(frozen=True, slots=True)
class Sent:
    """A transaction of the schedule and what one node says became of its calls."""

    transaction_id: bytes
    batch: Batch


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What one node shows: its height, its seal, and the receipts of every transaction sent, in order."""

    height: int
    seal: Seal
    receipts: tuple[tuple[ReceiptView, ...], ...]


@dataclass(frozen=True, slots=True)
class Accident:
    """A node that was killed or frozen at a height, and the height at which it was started again or woken."""

    node: str
    from_height: int
    to_height: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the invariants look at.

    ``before`` and ``after`` are the contract's totals over all users of the server, ``balances`` those of
    each user at the end, ``expected`` the model's; ``probe`` is the receipt of an order one unit above what
    is left of the quota, ``blocks`` are all blocks since the beginning of the story.
    """

    book: OrderBook
    expected: Mapping[str, Figures]
    before: Figures
    after: Figures
    balances: Mapping[str, Figures]
    quota: int
    campaign: Mapping[str, int]
    probe: ReceiptView
    sent: tuple[Sent, ...]
    refusals: tuple[str, ...]
    nodes: Mapping[str, NodeFacts]
    blocks: Sequence[BlockView]
    killed: Accident
    frozen: Accident


def judge(facts: Facts) -> dict[str, bool]:
    """Return for every invariant whether it holds."""
    return {
        "state_roots_agree": len({node.seal for node in facts.nodes.values()}) == 1,
        "heights_agree": len({node.height for node in facts.nodes.values()}) == 1,
        "receipts_found": _receipts_found(facts),
        "nothing_failed": not facts.refusals and all(receipt.status == "ok" for receipt in _receipts(facts)),
        "repeats_change_nothing": _repeats_hold(facts),
        "rights_conserved": _conserved(facts),
        "quota_held": _quota_held(facts),
        "lines_accounted": facts.book.is_accounted,
        "killed_validator_returned": any(
            block.proposer == facts.killed.node and block.height > facts.killed.to_height for block in facts.blocks
        ),
        "frozen_primary_replaced": _frozen_replaced(facts),
    }


def _receipts(facts: Facts) -> list[ReceiptView]:
    return [receipt for node in facts.nodes.values() for receipts in node.receipts for receipt in receipts]


def _receipts_found(facts: Facts) -> bool:
    """Tell whether every node has a receipt for every call, and the same ones as the others."""
    shown = [node.receipts for node in facts.nodes.values()]
    counts = [len(sent.batch.events) for sent in facts.sent]
    return all([len(receipts) for receipts in node] == counts for node in shown) and all(
        node == shown[0] for node in shown
    )


def _repeats_hold(facts: Facts) -> bool:
    """Tell whether each repeated event returned what its first delivery did."""
    first: dict[tuple[str, str, str], ReceiptView] = {}
    pairs: list[tuple[ReceiptView | None, ReceiptView]] = []
    for node in facts.nodes.values():
        first.clear()
        for sent, receipts in zip(facts.sent, node.receipts, strict=True):
            for event, receipt in zip(sent.batch.events, receipts, strict=False):
                key = (event.kind, event.reference, event.event)
                if event.is_repeat:
                    pairs.append((first.get(key), receipt))
                else:
                    first[key] = receipt
    return all(one == other for one, other in pairs)


def _conserved(facts: Facts) -> bool:
    """Tell whether the contract's totals, each user's balance and the model agree to the unit."""
    expected = Figures()
    for figures in facts.expected.values():
        expected.add(figures)
    grown = {name: value - facts.before.as_map()[name] for name, value in facts.after.as_map().items()}
    return (
        grown == expected.as_map()
        and facts.after.is_conserved
        and expected.is_conserved
        and facts.balances.keys() == facts.expected.keys()
        and all(facts.balances[user] == figures and figures.is_conserved for user, figures in facts.expected.items())
    )


def _quota_held(facts: Facts) -> bool:
    campaign = facts.campaign
    allocated = campaign["created"] - campaign["revoked"]
    return 0 <= allocated <= campaign["quota"] == facts.quota and facts.probe.code == "quota_exceeded"


def _frozen_replaced(facts: Facts) -> bool:
    """Tell whether blocks were decided in a later view while the primary was frozen, by others than it."""
    frozen = facts.frozen
    return any(
        block.view > 0 and block.proposer != frozen.node and frozen.from_height < block.height <= frozen.to_height + 1
        for block in facts.blocks
    )
