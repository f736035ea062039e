"""What must hold at the end of the rights demo, judged on facts alone. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from services.demo.chain import BlockView, ReceiptView, Seal
from services.demo.orders import OrderBook
from services.demo.rights_machine import Deed, Figures, Plan, total_figures
from services.messages.store import State
from services.rights.events import Kind

NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the chain an event's call stands: block height, transaction id (32 bytes), call's index."""

    height: int
    transaction_id: bytes
    call_index: int


@dataclass(frozen=True, slots=True)
class End:
    """How the message centre says that an event ended; ``code`` is "" for success, ``place`` None outside the chain."""

    state: State
    code: str
    place: Place | None


@dataclass(frozen=True, slots=True)
class Sample:
    """How many deliveries the message centre had made since its start (of number ``life``), asked at a moment.

    The count was read between ``asked_ns`` and ``answered_ns`` of one monotonic clock.
    """

    life: int
    asked_ns: int
    answered_ns: int
    delivered_count: int


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What one node shows: its height, its seal, and the receipts of every transaction that events ended in."""

    height: int
    seal: Seal
    receipts: Mapping[bytes, tuple[ReceiptView, ...]]


@dataclass(frozen=True, slots=True)
class Accident:
    """A node that was killed or frozen at a height, and the height at which it was started again or woken."""

    node: str
    from_height: int
    to_height: int


@dataclass(frozen=True, slots=True)
class Crash:
    """A program that was killed with so many messages waiting, and how many ended afterwards."""

    program: str
    waiting: int
    ended_after: int


@dataclass(frozen=True, slots=True)
class Intake:
    """How fast the burst was taken in: so many events in so many seconds, and how many waited when it was over."""

    events: int
    seconds: float
    waiting: int


@dataclass(frozen=True, slots=True)
class Proof:
    """A user's history as it was verified offline: its entries, and the balance that they end in."""

    user: str
    entries: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the invariants look at.

    Args:
        book: the orders' files.
        plan: what was posted.
        misfits: events on purpose wrong, posted besides, with the end each must find.
        expected: each user's balance by the model.
        before: the contract's totals over all users of the server before the story.
        after: those at the end.
        balances: each user's balance at the end.
        campaigns: each campaign's figures at the end.
        ends: how each event ended, by its key; None where the message centre does not know it or it still waits.
        entries: how often each event stands in its user's history on the chain, by (type, reference, number).
        repeats_new: of the events posted a second time, how many were taken for new ones.
        answers: what bad input was answered with, and what it had to be: name → (got, wanted).
        rate_per_s: the message centre's threshold.
        samples: the deliveries, as they went.
        nodes: what each node shows.
        blocks: all blocks since the beginning of the story.
        killed: the validator that was killed.
        frozen: the primary that was frozen.
        crashes: the programs that were killed.
        proof: one user's history.
    """

    book: OrderBook
    plan: Plan
    misfits: tuple[Deed, ...]
    expected: Mapping[str, Figures]
    before: Figures
    after: Figures
    balances: Mapping[str, Figures]
    campaigns: Mapping[str, Mapping[str, int]]
    ends: Mapping[str, End | None]
    entries: Mapping[tuple[str, str, str], int]
    repeats_new: int
    answers: Mapping[str, tuple[str, str]]
    rate_per_s: float
    samples: tuple[Sample, ...]
    nodes: Mapping[str, NodeFacts]
    blocks: Sequence[BlockView]
    killed: Accident
    frozen: Accident
    crashes: tuple[Crash, ...]
    proof: Proof


def judge(facts: Facts) -> dict[str, bool]:
    """Return for every invariant whether it holds."""
    return {
        "every_event_ended_once": _ended_once(facts),
        "nothing_lost_or_doubled": _nothing_lost_or_doubled(facts),
        "each_order_in_turn": _in_turn(facts),
        "repeats_change_nothing": facts.repeats_new == 0 and bool(facts.plan.repeats),
        "rights_conserved": _conserved(facts),
        "quota_held": _quota_held(facts),
        "pace_held": pace_held(facts.samples, facts.rate_per_s),
        "bad_input_refused": bool(facts.answers) and all(got == wanted for got, wanted in facts.answers.values()),
        "lines_accounted": facts.book.is_accounted,
        "history_proven": _history_proven(facts),
        "receipts_agree": _receipts_agree(facts),
        "state_roots_agree": len({node.seal for node in facts.nodes.values()}) == 1,
        "heights_agree": len({node.height for node in facts.nodes.values()}) == 1,
        "killed_validator_returned": any(
            block.proposer == facts.killed.node and block.height > facts.killed.to_height for block in facts.blocks
        ),
        "frozen_primary_replaced": _frozen_replaced(facts),
        "killed_programs_returned": bool(facts.crashes) and all(crash.ended_after for crash in facts.crashes),
    }


def read_end(state: State, detail: str) -> End:
    """Return an end out of a message's state and detail, ``[CODE ]HEIGHT TXID CALLINDEX[ …]``, or a reason alone."""
    words = detail.split()
    code = "" if state is State.DONE or not words else words.pop(0).rstrip(":")
    match words[:3]:
        case [height, identity, index] if height.isdecimal() and identity.startswith("0x") and index.isdecimal():
            return End(state, code, Place(int(height), bytes.fromhex(identity[2:]), int(index)))
        case _:
            return End(state, code, None)


def pace_held(samples: Sequence[Sample], rate_per_s: float) -> bool:
    """Tell whether no window between two samples shows more than rate × its length + 1 deliveries.

    A window is taken as long as it can have been, so that what is found is really too fast; whatever is
    faster for longer than asking takes is found.
    """
    slacks: dict[int, float] = {}
    for sample in samples:
        # delivered − earlier delivered ≤ rate × (answered − earlier asked) + 1, for every earlier one of this life.
        reached = sample.delivered_count - rate_per_s * sample.answered_ns / NS
        if sample.life in slacks and reached > slacks[sample.life] + 1 + 1e-6:
            return False
        begun = sample.delivered_count - rate_per_s * sample.asked_ns / NS
        slacks[sample.life] = min(slacks.get(sample.life, begun), begun)
    return len(samples) > 1


def delivered_per_s(samples: Sequence[Sample], *, window_s: float = 1.0) -> float:
    """Return the most deliveries a second in any window of at least so long, 0 where there was none that long."""
    found = 0.0
    first = 0
    for last, sample in enumerate(samples):
        while samples[first].life != sample.life or (
            first < last and sample.asked_ns - samples[first + 1].answered_ns >= window_s * NS
        ):
            first += 1
        seconds = (sample.answered_ns - samples[first].asked_ns) / NS
        if seconds >= window_s:
            found = max(found, (sample.delivered_count - samples[first].delivered_count) / seconds)
    return found


def _ended_once(facts: Facts) -> bool:
    """Tell whether every event ended as the plan says, and what succeeded has a call of its own in the chain."""
    deeds = (*facts.plan.deeds, *facts.misfits)
    places: list[Place | None] = []
    for deed in deeds:
        end = facts.ends.get(deed.key)
        if end is None or (end.state, end.code) != (deed.state, deed.code):
            return False
        if end.state is State.DONE:
            places.append(end.place)
    return None not in places and len(set(places)) == len(places)


def _in_turn(facts: Facts) -> bool:
    """Tell whether the chain has each order's events, and each redemption's, in the order in which they were posted.

    One that came before the creation of its order had to wait for that.
    """
    posted: dict[str, list[Deed]] = {}
    for deed in facts.plan.deeds:
        posted.setdefault(deed.reference, []).append(deed)
    for deeds in posted.values():
        ends = [facts.ends.get(deed.key) for deed in sorted(deeds, key=lambda deed: deed.kind is not Kind.CREATE)]
        places = [(end.place.height, end.place.call_index) for end in ends if end and end.place]
        if any(place >= following for place, following in pairwise(places)):
            return False
    return True


def _nothing_lost_or_doubled(facts: Facts) -> bool:
    """Tell whether the users' histories hold what was to succeed, each once, and nothing else."""
    wanted = Counter((deed.kind.value, deed.reference, deed.number) for deed in facts.plan.deeds)
    return Counter(facts.entries) == wanted


def _conserved(facts: Facts) -> bool:
    """Tell whether the contract's totals, each user's balance and the model agree to the unit."""
    expected = total_figures(facts.expected)
    grown = {name: value - facts.before.as_map()[name] for name, value in facts.after.as_map().items()}
    return (
        grown == expected.as_map()
        and facts.after.is_conserved
        and expected.is_conserved
        and facts.balances.keys() == facts.expected.keys()
        and all(facts.balances[user] == figures and figures.is_conserved for user, figures in facts.expected.items())
    )


def _quota_held(facts: Facts) -> bool:
    """Tell whether each campaign allocated at most its quota, which was just enough for its orders."""
    if facts.campaigns.keys() != facts.plan.quotas.keys():
        return False
    for name, campaign in facts.campaigns.items():
        allocated = campaign["created"] - campaign["revoked"]
        if not 0 <= allocated <= campaign["quota"] == campaign["created"] == facts.plan.quotas[name]:
            return False
    probe = facts.answers.get("above the quota", ("", ""))
    return probe == ("quota_exceeded", "quota_exceeded")


def _history_proven(facts: Facts) -> bool:
    """Tell whether the verified history is as long as the chain's and ends in the user's balance."""
    proof = facts.proof
    return proof.entries > 0 and facts.balances.get(proof.user) == proof.figures


def _receipts_agree(facts: Facts) -> bool:
    """Tell whether all nodes show the same receipts, and a success where an event ended well."""
    shown = [node.receipts for node in facts.nodes.values()]
    if any(receipts != shown[0] for receipts in shown):
        return False
    for end in facts.ends.values():
        if end is not None and end.place is not None:
            receipts = shown[0].get(end.place.transaction_id, ())
            if end.place.call_index >= len(receipts):
                return False
            receipt = receipts[end.place.call_index]
            if (receipt.status == "ok", receipt.code) != (end.state is State.DONE, end.code):
                return False
    return bool(shown[0])


def _frozen_replaced(facts: Facts) -> bool:
    """Tell whether blocks were decided in a later view while the primary was frozen, by others than it."""
    frozen = facts.frozen
    return any(
        block.view > 0 and block.proposer != frozen.node and frozen.from_height < block.height <= frozen.to_height + 1
        for block in facts.blocks
    )
