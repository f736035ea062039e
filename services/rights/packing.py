"""Many events in one transaction: first each batch's root, once, then the events in the order of their delivery. Pure.

A transaction's mode is EACH: every call stands for itself and has a receipt of its own, so that one refused
event takes nothing from the others.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from consensus.ledger.transaction import CALLS_MAX, TRANSACTION_BYTES_MAX, Call, make_call
from services.rights.events import SignedEvent

CONTRACT = "rights"
PACK_MAX = CALLS_MAX // 2
"""How many events one transaction takes at the most: each may need its own root presented."""
PACK_BYTES_MAX = TRANSACTION_BYTES_MAX - 4 * 1024
"""How many bytes the calls of a transaction may have; the rest is for what stands around them."""
CALL_OVERHEAD_BYTES = 32
"""More than what stands around a call's arguments."""
PACK_STEPS_MAX = 1_000_000
"""How many steps the chain gives to one transaction: calls that come after them fail, whatever they are."""
PRESENT_STEPS, APPLY_STEPS = 3_600, 3_400
"""More than the contract needs to check a root against four keys, and for an event of an order that has had many."""
ROOTS_MAX = 8_192
"""How many presented roots are remembered."""

Root = tuple[bytes, bytes]
"""A business server's address and a root that it signed."""


class Presented:
    """Roots that are known to be presented, proven by receipts; the least used are forgotten first."""

    def __init__(self, roots_max: int = ROOTS_MAX) -> None:
        self._roots: OrderedDict[Root, None] = OrderedDict()
        self._roots_max = roots_max

    def __contains__(self, root: Root) -> bool:
        return root in self._roots

    def __len__(self) -> int:
        return len(self._roots)

    def add(self, root: Root) -> None:
        """Remember a root."""
        self._roots[root] = None
        self._roots.move_to_end(root)
        if len(self._roots) > self._roots_max:
            self._roots.popitem(last=False)

    def forget(self, root: Root) -> None:
        """Present this root again next time."""
        self._roots.pop(root, None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an event stands in its transaction: its call, and the calls that present its root (none: was known)."""

    call_index: int
    present_indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pack:
    """The calls of one transaction, and where each of its events stands, in the order of the events."""

    calls: tuple[Call, ...]
    places: tuple[Place, ...]


def pack(events: Sequence[SignedEvent], shares: Sequence[int], presented: Presented) -> Pack:
    """Return the transaction for the first events of a list: one, up to 512, as many as fit in bytes and steps.

    ``shares`` has what each event brings, 0 where the contract computes it. A root that came with several
    signatures is presented with each of them, so that a forged one stands in nobody's way.
    """
    presents: dict[tuple[bytes, bytes, bytes], Call] = {}
    applies: list[Call] = []
    size = steps = 0
    for signed, share in zip(events[:PACK_MAX], shares, strict=False):
        apply = _apply_call(signed, share)
        claim = (signed.server, signed.root, signed.signature)
        is_known = claim[:2] in presented or claim in presents
        present = None if is_known else _present_call(signed)
        size += _size(apply) + (_size(present) if present else 0)
        steps += APPLY_STEPS + (PRESENT_STEPS if present else 0)
        if (size > PACK_BYTES_MAX or steps > PACK_STEPS_MAX) and applies:
            break
        applies.append(apply)
        if present:
            presents[claim] = present
    roots: dict[Root, tuple[int, ...]] = {}
    for index, (server, root, _) in enumerate(presents):
        roots[server, root] = (*roots.get((server, root), ()), index)
    places = [
        Place(len(presents) + index, roots.get((signed.server, signed.root), ()))
        for index, signed in enumerate(events[: len(applies)])
    ]
    return Pack((*presents.values(), *applies), tuple(places))


def _size(call: Call) -> int:
    return len(call.arguments) + CALL_OVERHEAD_BYTES


def _present_call(signed: SignedEvent) -> Call:
    arguments = {"server": signed.server, "root": signed.root, "signature": signed.signature}
    return make_call(CONTRACT, "present", arguments)  # type: ignore[arg-type]


def _apply_call(signed: SignedEvent, share: int) -> Call:
    event, proof = signed.event, signed.proof
    return make_call(
        CONTRACT,
        "apply",
        {
            "server": signed.server,
            "root": signed.root,
            "index": proof.index,
            "count": proof.count,
            "path": list(proof.path),
            "kind": str(event.kind),
            "reference": event.reference,
            "number": event.number,
            "user": event.user,
            "campaign": event.campaign,
            "amount": event.amount,
            "items": dict(event.items),
            "time_ms": event.time_ms,
            "share": share,
        },
    )
