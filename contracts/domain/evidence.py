"""What the chain proves of agency sale: anchors of packages that bank and issuer signed; no payload, no order.

A bank signs the root of a package's orders when it sends it; the issuer signs that root, the root of the outcomes and
its answer before. Whoever of the two holds both signatures anchors, and the anchor is MUTUAL. With one signature it is
CLAIMED, so that nobody can veto evidence: a bank claims what it sent (no outcome), an issuer what it answered. What a
claim says beyond its signature proves nothing: an issuer's says the number of orders on its own word. Of a number that
the bank signed wrongly it holds too: what counts is the one that the root commits to, as a path under it shows.

Each answer names the id of the issuer's answer to this bank before it, ``answer_hash`` of what its entry in the log
says. An id that is named and is no entry's is an answer that was signed and not anchored: on its way, or hidden. An
id that two entries name is a fork. No alarm is raised for a gap; whoever reads the log computes it.

**Invariants**

- an anchor never vanishes and never weakens: CLAIMED becomes MUTUAL, and the bank's claim of a package gives way to the
  first MUTUAL anchor of its round 0; nothing else changes
- no outcome stands here that the issuer did not sign for this channel, epoch, package and round; no package as MUTUAL
  that the bank did not sign for this channel and epoch
- different outcomes of one package and round stand side by side, each marked contradicted
- every anchor, and every change of one, is an entry of its channel's log, a hash chain: head(n) = ``context.hash(
  head(n − 1), entry n)``, head(−1) = 32 zero bytes; with its count it shows that nothing was left out

The channel may be revoked, expired, or in a later epoch: evidence of what was is not lost with it. Signatures count
by business keys in force, and for a while after their replacement, as ``cooperation`` says.

State, under ``evidence/``; roots in hex:

- ``anchor/BANK/ISSUER/ROOT/ROUND/OUTCOMEROOT`` = {status: MUTUAL or CLAIMED, epoch, count, previous, ordersSignature,
  answerSignature, bankKey, issuerKey, height, timeMs, number, isContradicted}; OUTCOMEROOT, and what the issuer would
  have signed, is empty in a bank's claim, ordersSignature and bankKey in an issuer's; number is that of its log entry
- ``log/BANK/ISSUER`` = {count, head}; ``entry/BANK/ISSUER/NUMBER`` = [root, round, outcome root, status, epoch, count,
  previous, height, time_ms], NUMBER with 12 digits from 0
"""

from typing import Annotated, Any, TypeAlias

import msgspec

from consensus.ledger.ids import HASH_BYTES
from consensus.ledger.keys import SIGNATURE_BYTES, Purpose
from contracts.runtime.contract import Context, Contract, Revert, Value, method, query

MUTUAL, CLAIMED = "MUTUAL", "CLAIMED"
PACKAGE_ORDERS_MAX = 1_024
EMPTY_HEAD = bytes(32)
OUTCOMES_SHOWN_MAX = 16
"""How many different outcomes of one package and round ``anchor_of`` returns."""

Party = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
Epoch = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
HashBytes = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
HashOrNone = Annotated[bytes, msgspec.Meta(max_length=HASH_BYTES)]
SignatureOrNone = Annotated[bytes, msgspec.Meta(max_length=SIGNATURE_BYTES)]
Count = Annotated[int, msgspec.Meta(ge=1, le=PACKAGE_ORDERS_MAX)]
Round = Annotated[int, msgspec.Meta(ge=0, le=1)]
EntryNumber = Annotated[int, msgspec.Meta(ge=0)]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=100)]

Anchor: TypeAlias = dict[str, Any]
"""A record as state holds it."""


class Evidence(Contract):
    """Anchors of packages of orders between bank and issuer, and the log of each channel's anchors."""

    name = "evidence"
    version = 1

    @method
    def anchor(
        self,
        context: Context,
        bank: Party,
        issuer: Party,
        epoch: Epoch,
        root: HashBytes,
        count: Count,
        orders_signature: SignatureOrNone,
        round_number: Round,
        outcome_root: HashOrNone,
        previous: HashOrNone,
        answer_signature: SignatureOrNone,
    ) -> dict[str, Value]:
        """Anchor a package and what was answered to it; return {status, number, height, timeMs} of the anchor.

        Called by any account of either organisation. A signature is 64 bytes or empty: both make it MUTUAL, one
        CLAIMED. Without the answer's, ``outcome_root`` and ``previous`` are empty and the round is 0. What adds nothing
        returns the first result. Fails with ``nothing_signed``, ``not_party``, ``unsigned_outcome``,
        ``outcome_missing``, ``unknown_channel`` (also for an epoch still to come) or ``bad_signature``.
        """
        account = context.account(context.caller)
        is_party = account is not None and account.organisation in (bank, issuer)
        context.require(is_party, "not_party", "only the two parties anchor")
        context.require(orders_signature or answer_signature, "nothing_signed", "an anchor needs a signature")
        if answer_signature:
            is_whole = len(outcome_root) == HASH_BYTES and len(previous) == HASH_BYTES
            context.require(is_whole, "outcome_missing", "the issuer signed an outcome and the answer before")
        else:
            is_bare = not outcome_root and not previous and not round_number
            context.require(is_bare, "unsigned_outcome", "without the issuer's signature there is no outcome")
        place = f"anchor/{bank}/{issuer}/{root.hex()}/"
        known = _standing(context, place, round_number, outcome_root, is_mutual=bool(orders_signature))
        if known is not None:
            return _result(known)
        signers: Anchor = context.query("cooperation", "signers", bank=bank, issuer=issuer)
        context.require(epoch <= signers["epoch"], "unknown_channel", f"the channel is at epoch {signers['epoch']}")
        bank_key = issuer_key = b""
        if orders_signature:
            payload = context.hash("orders", bank, issuer, epoch, root, count)
            bank_key = _signer(context, signers["bankKeys"], orders_signature, Purpose.ORDERS, payload)
        if answer_signature:
            payload = context.hash("answer", bank, issuer, epoch, root, round_number, outcome_root, previous)
            issuer_key = _signer(context, signers["issuerKeys"], answer_signature, Purpose.ANSWER, payload)
        status = MUTUAL if bank_key and issuer_key else CLAIMED
        entry: list[Value] = [root, round_number, outcome_root, status, epoch, count, previous]
        number = _log(context, bank, issuer, entry)
        record: Anchor = {
            "status": status,
            "epoch": epoch,
            "count": count,
            "previous": previous,
            "ordersSignature": orders_signature,
            "answerSignature": answer_signature,
            "bankKey": bank_key,
            "issuerKey": issuer_key,
            "height": context.height,
            "timeMs": context.time_ms,
            "number": number,
            "isContradicted": _mark_contradicted(context, f"{place}{round_number}/", outcome_root),
        }
        context.state.put(f"{place}{round_number}/{outcome_root.hex()}", record)
        if status == MUTUAL and not round_number and context.state.get(f"{place}0/") is not None:
            # The bank's claim says nothing that this does not.
            context.state.delete(f"{place}0/")
        context.emit("anchored", bank=bank, issuer=issuer, root=root, status=status, number=number, count=count)
        return _result(record)

    @query
    def anchor_of(
        self,
        context: Context,
        bank: Party,
        issuer: Party,
        root: HashBytes,
        round_number: Round,
        outcome_root: HashOrNone = b"",
    ) -> Value:
        """Return how a package's round stands: {anchors: [each with outcomeRoot], isContradicted}; null for none.

        At most 16 anchors, MUTUAL ones first; they are those whose outcomes are ``outcome_root`` or come after it.
        """
        prefix = f"anchor/{bank}/{issuer}/{root.hex()}/{round_number}/"
        entries = context.state.scan(prefix, prefix + outcome_root.hex(), OUTCOMES_SHOWN_MAX)
        if not entries:
            return None
        found = [{**record, "outcomeRoot": bytes.fromhex(key[len(prefix) :])} for key, record in entries]
        mutual: list[Value] = [record for record in found if record["status"] == MUTUAL]
        claimed: list[Value] = [record for record in found if record["status"] != MUTUAL]
        return {"anchors": [*mutual, *claimed], "isContradicted": any(record["isContradicted"] for record in found)}

    @query
    def anchors(
        self, context: Context, bank: Party, issuer: Party, start: EntryNumber = 0, limit: PageSize = 100
    ) -> list[Value]:
        """Return up to ``limit`` entries of a channel's log from the number ``start`` on, in order.

        Each is {number, root, roundNumber, outcomeRoot, status, epoch, count, previous, height, timeMs}. A package that
        was claimed and then anchored by both stands there twice.
        """
        prefix = f"entry/{bank}/{issuer}/"
        entries = context.state.scan(prefix, f"{prefix}{start:012d}", limit)
        return [_entry_map(int(key[len(prefix) :]), entry) for key, entry in entries]

    @query
    def log(self, context: Context, bank: Party, issuer: Party) -> dict[str, Value]:
        """Return {count, head}: how many entries a channel's log has, and the head of their hash chain, 32 bytes."""
        return _log_of(context, bank, issuer)


def _standing(
    context: Context, place: str, round_number: int, outcome_root: bytes, *, is_mutual: bool
) -> Anchor | None:
    """Return the anchor that says already what a new one would, or more; None where the new one adds something."""
    if outcome_root:
        known: Anchor | None = context.state.get(f"{place}{round_number}/{outcome_root.hex()}")
        if known is not None and (known["status"] == MUTUAL or not is_mutual):
            return known
        return None
    for _, record in context.state.scan(f"{place}0/", limit=OUTCOMES_SHOWN_MAX):
        if record["ordersSignature"]:
            anchor: Anchor = record
            return anchor
    return None


def _signer(context: Context, keys: list[bytes], signature: bytes, purpose: Purpose, payload: bytes) -> bytes:
    """Return which of the keys made a signature."""
    for key in keys:
        if context.verifies(key, signature, purpose, payload):
            return key
    raise Revert("bad_signature", "none of the party's business keys made it")


def _mark_contradicted(context: Context, prefix: str, outcome_root: bytes) -> bool:
    """Tell whether another outcome of this round stands, and mark it; once there are two, each is marked."""
    if not outcome_root:
        return False
    # The bank's claim, this very outcome, and one other: three tell.
    found = context.state.scan(prefix, limit=3)
    others = [(key, record) for key, record in found if key not in (prefix, prefix + outcome_root.hex())]
    for key, record in others:
        if not record["isContradicted"]:
            context.state.put(key, {**record, "isContradicted": True})
    return bool(others)


def _log_of(context: Context, bank: str, issuer: str) -> Anchor:
    return context.state.get(f"log/{bank}/{issuer}") or {"count": 0, "head": EMPTY_HEAD}


def _log(context: Context, bank: str, issuer: str, fields: list[Value]) -> int:
    """Append an entry to a channel's log; return its number."""
    log = _log_of(context, bank, issuer)
    number: int = log["count"]
    entry: list[Value] = [*fields, context.height, context.time_ms]
    context.state.put(f"entry/{bank}/{issuer}/{number:012d}", entry)
    context.state.put(f"log/{bank}/{issuer}", {"count": number + 1, "head": context.hash(log["head"], entry)})
    return number


def _entry_map(number: int, entry: list[Any]) -> dict[str, Value]:
    root, round_number, outcome_root, status, epoch, count, previous, height, time_ms = entry
    return {
        "number": number,
        "root": root,
        "roundNumber": round_number,
        "outcomeRoot": outcome_root,
        "status": status,
        "epoch": epoch,
        "count": count,
        "previous": previous,
        "height": height,
        "timeMs": time_ms,
    }


def _result(record: Anchor) -> dict[str, Value]:
    return {name: record[name] for name in ("status", "number", "height", "timeMs")}
