"""A payer opens a stream: the offer, what is checked of it, and the one transaction that puts the deposit in.

An offer is bytes of somebody's. It counts only when the key that signed it is the service party's in the proven state,
and when it says what was wished within what the payer accepts. Opening again is harmless: a stream is opened once, for
ever, and who finds its own there has opened it.
"""

from dataclasses import dataclass

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import Hash
from consensus.ledger.keys import PublicKey
from consensus.ledger.streams import (
    AMOUNT_MAX,
    CONTRACT,
    WINDOW_MS_MAX,
    Mode,
    StreamRecord,
    Terms,
    read_record,
    stream_id,
    stream_key,
    terms_fault,
    terms_hash,
)
from services.client.client import Client
from services.client.errors import Refused
from services.client.keystore import Signer
from services.client.outcome import Outcome
from services.client.reader import Reader
from services.local.asking import Program, open_program
from services.stream.service_interface import Offer, OfferWanted

SERVICE = "service party"
UNREACHABLE = "service_unreachable"
LANES = b"stream-payer"
"""Prefix of the lane that a payer's own transactions about streams stand in."""
ANSWER_MS_MAX = 15_000
MODES = {"service-first": Mode.SERVICE_FIRST, "payment-first": Mode.PAYMENT_FIRST}
"""The modes as people write them."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a payer accepts of an offer beside what it wished.

    Args:
        unit: the unit it pays in, "" for any.
        price_max: of one metered unit; ``step_max`` what may become due at once, and so be lost at the most; both in
            smallest units.
        window_ms_max: how long the deposit may be bound after a withdrawal was asked for, in ``uptime_ms``.
    """

    unit: str = ""
    price_max: int = AMOUNT_MAX
    step_max: int = AMOUNT_MAX
    window_ms_max: int = WINDOW_MS_MAX


ANYTHING = Accepted()


@dataclass(frozen=True, slots=True)
class Agreed:
    """Terms with the service party's signature (64 bytes): what opens the stream."""

    terms: Terms
    signature: bytes

    @property
    def stream(self) -> Hash:
        """The stream's id."""
        return stream_id(self.terms.payer, self.terms.service, self.terms.number)


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream that is on the chain; ``outcome`` is of the transaction, None where it was open before."""

    stream: Hash
    record: StreamRecord
    outcome: Outcome | None


async def ask_offer(url: str, wanted: OfferWanted, *, token: str = "") -> Offer:
    """Ask a service party at ``http://HOST:PORT`` for an offer, with the token that it wants of payers, if any.

    Raises:
        LocalError: ``bad_url``.
        Refused: ``bad_offer`` with what the service party would take, and others of its codes.
        Unreachable: ``service_unreachable``.
    """
    async with open_program(Program(url, SERVICE, UNREACHABLE), token=token, answer_ms_max=ANSWER_MS_MAX) as program:
        return await program.post("/offers", wanted, Offer)


async def check_offer(
    reader: Reader, offer: Offer, wanted: OfferWanted, *, now_ms: int, accepted: Accepted = ANYTHING
) -> Agreed:
    """Return what was agreed, after everything that a payer can check of it.

    Raises:
        PeerError: as :meth:`Offer.check_untrusted`; ``bad_signature`` where the key is not the service party's;
            ``other_terms`` where they are not what was wished or accepted; ``offer_expired``.
        Refused: ``unknown_account``.
        Unreachable: the chain.
    """
    terms, signature = offer.check_untrusted(reader.chain_id)
    check_terms(terms, wanted, accepted, now_ms=now_ms)
    key = await account_key(reader, terms.service)
    if key.compressed.hex() != offer.service_key.removeprefix("0x"):
        raise PeerError("bad_signature", "the offer is signed by another key than the service party has on the chain")
    return Agreed(terms, signature)


def check_terms(terms: Terms, wanted: OfferWanted, accepted: Accepted, *, now_ms: int) -> None:
    """Raise PeerError ``other_terms`` or ``offer_expired`` where terms are not what the payer wished and accepts."""
    wishes = {
        "payer": (terms.payer, bytes.fromhex(wanted.payer.removeprefix("0x"))),
        "number": (terms.number, wanted.number),
        "deposit": (terms.deposit, wanted.deposit),
        "fine": (terms.fine, wanted.fine),
        "credit": (terms.credit, wanted.credit),
        "mode": (terms.mode, MODES[wanted.mode]),
        "countMax": (terms.count_max, wanted.count_max),
        "amountMax": (terms.amount_max, wanted.amount_max),
        "durationMsMax": (terms.duration_ms_max, wanted.duration_ms_max),
    }
    other = [name for name, (said, wished) in wishes.items() if said != wished]
    bounds = {
        "unit": accepted.unit in ("", terms.unit),
        f"price {terms.price}": terms.price <= accepted.price_max,
        f"stepMax {terms.step_max}": terms.price <= terms.step_max <= accepted.step_max,
        f"windowMs {terms.window_ms}": terms.window_ms <= accepted.window_ms_max,
    }
    other += [name for name, holds in bounds.items() if not holds]
    if fault := terms_fault(terms):
        other.append(fault)
    if other:
        raise PeerError("other_terms", f"the offer differs from what was wished and is accepted: {', '.join(other)}")
    if terms.offer_until_ms <= now_ms:
        raise PeerError("offer_expired", "the offer's time has passed: ask for another one")


async def open_stream(client: Client, signer: Signer, agreed: Agreed) -> Opened:
    """Open a stream on the chain; again is harmless.

    Raises:
        LocalError: ``wrong_payer``: the terms are of another account.
        Refused: ``number_used``: the number belongs to a stream with other terms; the contract's, ``bad_terms``,
            ``offer_expired``, ``insufficient_funds`` (the deposit), ``bad_signature`` and others.
        Unreachable: ``outcome_unknown`` and others: the same again is safe.
    """
    terms, stream = agreed.terms, agreed.stream
    check_payer(signer, agreed)
    known = await read_stream(client, stream)
    if known is not None:
        return Opened(stream, _same(known, terms), None)
    arguments: dict[str, Value] = {name: getattr(terms, name) for name in Terms.__struct_fields__}
    arguments["signature"] = agreed.signature
    lanes = client.lanes(signer, prefix=LANES)
    outcome = await client.call(signer, CONTRACT, "open", arguments, lanes=lanes)
    if not outcome.is_ok and outcome.receipts[0].code != "stream_exists":
        outcome.check()
    record = await read_stream(client, stream, height_min=outcome.height)
    if record is None:
        raise PeerError("bad_answer", "the stream's opening is proven, and its record is not there")
    return Opened(stream, _same(record, terms), outcome)


def _same(record: StreamRecord, terms: Terms) -> StreamRecord:
    if record.terms_hash != terms_hash(terms):
        raise number_used(terms)
    return record


def check_payer(signer: Signer, agreed: Agreed) -> None:
    """Raise LocalError ``wrong_payer`` where the terms are of another account than the signer's."""
    if agreed.terms.payer != signer.address:
        payer = f"0x{agreed.terms.payer.hex()}"
        raise LocalError("wrong_payer", f"the terms are of the account {payer}, not of {signer.name}")


def number_used(terms: Terms) -> Refused:
    """Return the error of a number that belongs to a stream with other terms."""
    return Refused("number_used", f"number {terms.number} belongs to a stream with other terms")


async def read_stream(
    reader: Reader, stream: bytes, *, height_min: int = 0, is_newest: bool = False
) -> StreamRecord | None:
    """Return a stream's proven record, None for one that was never opened; as :meth:`Reader.state`."""
    found = await reader.state(stream_key(stream), height_min=height_min, is_newest=is_newest)
    return None if found.value is None else read_record(found.value)


async def account_key(reader: Reader, address: bytes) -> PublicKey:
    """Return the proven key that an account has in force.

    Raises:
        Refused: ``unknown_account``.
        PeerError: ``malformed``, and as :meth:`Reader.state`.
        Unreachable: the chain.
    """
    found = await reader.state(f"membership/account/{address.hex()}")
    if found.value is None:
        raise Refused("unknown_account", f"the chain has no account 0x{address.hex()}")
    key = found.value.get("publicKey") if isinstance(found.value, dict) else None
    if not isinstance(key, bytes):
        raise PeerError("malformed", "no record of an account")
    return PublicKey.load_untrusted(key)
