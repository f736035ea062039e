"""Targets of trusted environments: asks of whoever connects, and what platforms seal for them."""

from consensus.ledger.payees import AskQuote, AskResolve, Mode, answer_codec, ask_codec, query_codec, told_codec
from services.payee.sealing import open_answer, unwrap_epoch_key
from tests.fuzz.target import Target
from tests.payee.test_enclave import Desk, make_desk
from tests.payee.test_sealing import (
    FRESH,
    IDENTITY,
    KEY,
    OWN,
    QUERY,
    opened_record,
    sealed_answer,
    sealed_record,
    wrapped,
)

_QUOTE = ask_codec.encode(AskQuote(bytes(16)))


def targets() -> list[Target]:
    """Return the targets of environments."""
    return [_asks_target(), *_sealed_targets()]


def _asks_target() -> Target:
    desk = make_desk(shareable=True)
    asks = [_ask(desk, mode) for mode in Mode]
    genuine = {ask_codec.decode_untrusted(ask).query for ask in asks}  # type: ignore[union-attr]

    def tell(data: bytes) -> None:
        told = told_codec.decode_untrusted(desk.environment.tell(data))
        if told.code:
            if told.body or not told.message:
                raise AssertionError("a refusal holds more or less than a code and words")
            return
        ask = ask_codec.decode_untrusted(data)
        if isinstance(ask, AskResolve):
            answer_codec.decode_untrusted(told.body)
            if ask.query not in genuine:
                raise AssertionError("a query was answered that no platform has signed")

    return Target("asks to an environment", tell, [_QUOTE, *asks], may=(), weight=2)


def _ask(desk: Desk, mode: Mode) -> bytes:
    query = desk.signed(desk.body(mode=mode))
    return ask_codec.encode(AskResolve(query_codec.encode(query), desk.states(query)))


def _sealed_targets() -> list[Target]:
    def record(data: bytes) -> None:
        opened_record(data)
        if data != sealed_record():
            raise AssertionError(f"an altered record of {IDENTITY.hex()} opened")

    def wrap(data: bytes) -> None:
        key = unwrap_epoch_key(data, server="wallet-p", epoch=2, environment="bank-a", exchange=OWN)
        if key.secret() != KEY.secret():
            raise AssertionError("an altered wrap opened")

    def answer(data: bytes) -> None:
        open_answer(data, query=QUERY, environment="bank-a", height=9, exchange_key=FRESH.public, own=OWN)
        if data != sealed_answer():
            raise AssertionError("an altered answer opened")

    return [
        Target("a sealed record", record, [sealed_record()]),
        Target("a wrapped key", wrap, [wrapped()]),
        Target("a sealed answer", answer, [sealed_answer()]),
    ]
