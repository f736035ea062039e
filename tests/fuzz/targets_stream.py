"""Targets of payment streams: iterations, offers, files of iterations; what is changed is never taken for genuine."""

import msgspec

from cli.stream_iteration import _said_untrusted
from consensus.ledger.errors import PeerError
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.streams import Terms, make_iteration, read_iteration_untrusted, stream_id, terms_hash
from services.stream.iteration_file import (
    Carried,
    check_carried_untrusted,
    decode_carried_untrusted,
    encode_carried,
    terms_json,
)
from services.stream.pages import _stream_of_untrusted
from services.stream.service_interface import Offer
from tests.fuzz.target import Target
from tests.ledger.test_proof import CHAIN_ID, GENESIS

_PAYER, _SERVICE = PrivateKey.from_secret(81), PrivateKey.from_secret(82)
_TERMS = Terms(
    payer=_PAYER.public.address,
    service=_SERVICE.public.address,
    number=3,
    what="0.1 kWh",
    unit="FEN",
    deposit=1_000,
    fine=100,
    price=5,
    step_max=10,
    credit=0,
    mode=0,
    count_max=200,
    amount_max=0,
    duration_ms_max=0,
    window_ms=150_000,
    validity_ms=60_000,
    margin_ms=10_000,
    step_ms=5_000,
    offer_until_ms=10**13,
)
_STREAM = stream_id(_TERMS.payer, _TERMS.service, _TERMS.number)


def targets() -> list[Target]:
    """Return the targets of payment streams."""
    raw = make_iteration(_PAYER, CHAIN_ID, _TERMS.payer, _STREAM, 40, 10**13).raw
    carried = Carried(_TERMS, _PAYER.public.compressed, raw)
    file = encode_carried(carried, CHAIN_ID)
    proven = encode_carried(Carried(_TERMS, _PAYER.public.compressed, raw, {"claim": {}}), CHAIN_ID)
    offer = msgspec.json.encode(
        Offer(
            chain_id=f"0x{CHAIN_ID.hex()}",
            stream=f"0x{_STREAM.hex()}",
            terms=terms_json(_TERMS),
            service_key=f"0x{_SERVICE.public.compressed.hex()}",
            signature=f"0x{_SERVICE.sign(Purpose.STREAM_TERMS, CHAIN_ID, terms_hash(_TERMS)).hex()}",
        )
    )

    def iteration(data: bytes) -> None:
        read = read_iteration_untrusted(data, chain_id=CHAIN_ID, payer=_TERMS.payer, stream=_STREAM, key=_PAYER.public)
        if data != raw or read.due != 40:
            raise AssertionError("an altered iteration was taken")

    def offered(data: bytes) -> None:
        terms, _ = msgspec.json.decode(data, type=Offer).check_untrusted(CHAIN_ID)
        if terms != _TERMS:
            raise AssertionError("altered terms were taken")

    def carry(data: bytes) -> None:
        said, _ = decode_carried_untrusted(data)
        _said_untrusted(said)

    def check(data: bytes) -> None:
        checked = check_carried_untrusted(data, GENESIS)
        if checked.carried.raw != raw or checked.iteration.due != 40:
            raise AssertionError("a file with another iteration holds")

    ledger, files = "consensus/ledger/streams.py", "services/stream/iteration_file.py"
    pages, offers = "services/stream/pages.py", "services/stream/service_interface.py"
    of_files = tuple(f"{files}:{name}_untrusted" for name in ("check_carried", "decode_carried", "terms_from_json"))
    malformed = (PeerError, msgspec.MsgspecError, UnicodeDecodeError)
    return [
        Target("iteration", iteration, [raw], (f"{ledger}:read_iteration_untrusted",)),
        Target("stream of an iteration", _stream_of_untrusted, [raw], (f"{pages}:_stream_of_untrusted",)),
        Target("offer", offered, [offer], (f"{offers}:check_untrusted",), may=malformed, is_json=True),
        Target("iteration file", check, [file, proven], of_files, is_json=True),
        Target("iteration file shown", carry, [file], ("cli/stream_iteration.py:_said_untrusted",), is_json=True),
    ]
