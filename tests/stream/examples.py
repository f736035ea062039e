"""Terms and keys for tests of one party's machine."""

from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from consensus.ledger.streams import Mode, StreamRecord, Terms, terms_hash

CHAIN_ID = ChainId(bytes([1]) * 32)
NOW_MS = 1_700_000_000_000
PAYER_KEY, SERVICE_KEY = PrivateKey.from_secret(31), PrivateKey.from_secret(32)
TERMS = Terms(
    payer=bytes(PAYER_KEY.public.address),
    service=bytes(SERVICE_KEY.public.address),
    number=7,
    what="0.1 kWh",
    unit="FEN",
    deposit=1_000,
    fine=100,
    price=5,
    step_max=10,
    credit=0,
    mode=int(Mode.SERVICE_FIRST),
    count_max=0,
    amount_max=0,
    duration_ms_max=0,
    window_ms=300_000,
    validity_ms=60_000,
    margin_ms=10_000,
    step_ms=5_000,
    offer_until_ms=NOW_MS + 60_000,
)
"""Price 5, steps up to 10, a deposit of 1,000 with a fine of 100."""


def open_record(terms: Terms) -> StreamRecord:
    """Return the record of a stream that was just opened with these terms."""
    return StreamRecord(
        payer=terms.payer,
        service=terms.service,
        payer_key=PAYER_KEY.public.compressed,
        unit=terms.unit,
        deposit=terms.deposit,
        taken=0,
        paid=0,
        fine=terms.fine,
        is_fined=False,
        settled_by=b"",
        terms_hash=terms_hash(terms),
        credit=terms.credit,
        window_ms=terms.window_ms,
        withdraw_at_uptime_ms=0,
        opened_at_ms=NOW_MS,
        status="OPEN",
    )
