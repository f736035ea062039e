"""A business event as the business server signs it, and as the message centre carries it. Pure.

Events are signed in batches: the leaves of a Merkle tree (:mod:`consensus.ledger.merkle`) are the canonical
bytes of the events, and one signature covers the server's address and the tree's root. Each message carries
its event with the path to that root, so that it is worth as much alone as in its batch.
"""

from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Annotated

import msgspec

from consensus.ledger.codec import INTEGER_MAX, Record, RecordCodec, Value
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ADDRESS_BYTES, ChainId
from consensus.ledger.keys import SIGNATURE_BYTES, PrivateKey, Purpose
from consensus.ledger.merkle import HashBytes, ListProof, leaf_is_under, list_root, prove_leaves

BATCH_EVENTS_MAX = 256
ITEMS_MAX = 16
SIGNED_EVENT_BYTES_MAX = 4_096
AMOUNT_MAX = 10**15

Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z")]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Amount = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class Kind(StrEnum):
    """What happened; each is a method of the rights contract."""

    CREATE = "create"
    CANCEL = "cancel"
    COMPLETE = "complete"
    REFUND = "refund"
    REDEEM = "redeem"
    REVERSE = "reverse_redemption"


class Event(Record, frozen=True):
    """One business event; together with its server, kind, reference and number are what makes it this event.

    Args:
        kind: a :class:`Kind`.
        reference: the order, or the redemption, it is about.
        number: tells events of one kind and reference apart; chosen by who posts it, ``1`` if nobody says.
        user: pseudonym of the user; "" where the reference says it already (cancel, complete, refund, reverse).
        campaign: of a creation, else "".
        amount: in smallest units: of a creation the order's amount, else of how much it is; 0 for all that is left.
        items: what is redeemed, as [item, count] in ascending order of the items; of a redemption alone.
        time_ms: when the business server took it, UTC.
    """

    kind: Name
    reference: Id
    number: Name
    user: str
    campaign: str
    amount: Amount
    items: Annotated[list[tuple[Id, Count]], msgspec.Meta(max_length=ITEMS_MAX)]
    time_ms: Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]

    @property
    def key(self) -> str:
        """What makes it this event at its server: ``KIND/REFERENCE/NUMBER``."""
        return f"{self.kind}/{self.reference}/{self.number}"


class SignedEvent(Record, frozen=True):
    """An event under the signature (64 bytes, raw r‖s) of its batch; ``server`` is the business server's address."""

    server: Annotated[bytes, msgspec.Meta(min_length=ADDRESS_BYTES, max_length=ADDRESS_BYTES)]
    root: HashBytes
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
    proof: ListProof
    event: Event


event_codec: RecordCodec[Event] = RecordCodec(Event, bytes_max=SIGNED_EVENT_BYTES_MAX)
signed_codec: RecordCodec[SignedEvent] = RecordCodec(SignedEvent, bytes_max=SIGNED_EVENT_BYTES_MAX)


def sign_events(key: PrivateKey, chain_id: ChainId, server: bytes, events: Sequence[Event]) -> list[SignedEvent]:
    """Sign 1 to 256 events of a server under one signature; answers come in the same order."""
    leaves = [event_codec.encode(event) for event in events]
    root = list_root(leaves)
    signature = key.sign(Purpose.BUSINESS_EVENTS, chain_id, server + root)
    proofs = prove_leaves(leaves)
    return [SignedEvent(server, root, signature, proof, event) for proof, event in zip(proofs, events, strict=True)]


def decode_signed_untrusted(data: bytes) -> SignedEvent:
    """Return the event in a message's body.

    Raises:
        PeerError: ``malformed``, or ``bad_proof`` where the path does not lead from the event to the root. The
            signature is for the contract to judge, which knows the server's keys.
    """
    signed = signed_codec.decode_untrusted(data)
    items = [item for item, _ in signed.event.items]
    if any(item >= following for item, following in pairwise(items)):
        raise PeerError("malformed", "the items do not ascend")
    if not leaf_is_under(signed.root, event_codec.encode(signed.event), signed.proof):
        raise PeerError("bad_proof", "the event does not stand under its batch's root")
    return signed


def present_arguments(signed: SignedEvent) -> dict[str, Value]:
    """Return the arguments of ``rights.present`` for the batch that an event was signed with."""
    return {"server": signed.server, "root": signed.root, "signature": signed.signature}


def apply_arguments(signed: SignedEvent, share: int = 0) -> dict[str, Value]:
    """Return the arguments of ``rights.apply`` for an event; ``share`` is what the rights server computed, or 0."""
    event, proof = signed.event, signed.proof
    path: list[Value] = [*proof.path]
    items: dict[str, Value] = {**dict(event.items)}
    return {
        "server": signed.server,
        "root": signed.root,
        "index": proof.index,
        "count": proof.count,
        "path": path,
        "kind": event.kind,
        "reference": event.reference,
        "number": event.number,
        "user": event.user,
        "campaign": event.campaign,
        "amount": event.amount,
        "items": items,
        "time_ms": event.time_ms,
        "share": share,
    }
