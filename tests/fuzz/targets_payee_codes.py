"""Targets of payee codes: bytes that a QR code held; with the CRC mended, so that inputs reach behind it."""

from consensus.ledger.errors import PeerError
from consensus.ledger.keys import PrivateKey
from services.payee import emv
from services.payee.codes import CodeTerms, make_code, read_code, verify_code
from services.payee.emv_rows import describe
from tests.fuzz.target import Target
from tests.ledger.builders import CHAIN

_KEY = PrivateKey.from_secret(91)
_OTHERS = "00020101021126180014org.example.xy" + "5204000053037025802SG5904SHOP6009SINGAPORE62070703T-1"


def targets() -> list[Target]:
    """Return the targets of payee codes."""
    terms = CodeTerms(amount=12_50, currency="SGD", order="A-17", expires_ms=10**12)
    identity, into = bytes(range(16)), emv.parse_unchecked(f"{_OTHERS}6304{emv.crc_of(f'{_OTHERS}6304')}")
    signed = make_code(identity, terms, chain_id=CHAIN, key=_KEY, into=into)
    unsigned = make_code(identity, chain_id=CHAIN, into=into)
    genuine = {signed.text, unsigned.text}

    def take(text: str) -> None:
        code = read_code(emv.parse(text))
        if code.text != text:
            raise AssertionError("a payload is not built back to its characters")
        verify_code(code, _KEY.public.compressed, CHAIN, 0)
        if code.is_signed and text not in genuine:
            raise AssertionError("an altered code was taken")

    def show(data: bytes) -> None:
        text = emv.text_of(data)
        payload = emv.parse_unchecked(text)
        if payload.build() != text or not all(row.value.isprintable() for row in describe(payload)):
            raise AssertionError("a payload is shown as another")

    def mend(data: bytes) -> None:
        payload = emv.parse_unchecked(emv.text_of(data))
        take(payload.build()[:-4] + payload.right_crc)

    samples = [signed.text.encode(), unsigned.text.encode(), into.build().encode()]
    return [
        Target("payee code", lambda data: take(emv.text_of(data)), samples, may=(PeerError,)),
        Target("payee code, CRC mended", mend, samples, may=(PeerError,)),
        Target("payee code, shown", show, samples, may=(PeerError,)),
    ]
