"""Payment streams on chain: every rule of opening, settling, claiming and closing."""

from tests.contracts.domain.streams import Streams


def test_a_stream_settles_and_closes() -> None:
    streams = Streams()
    stream = streams.open()
    streams.settle(streams.iteration(stream, 40))
    assert streams.record(stream).paid == 40
    rest = streams.call("shop", "close", **streams.consent(stream, 40, by="alice"))
    assert rest == {"amount": 0, "rest": 1_000}


def test_burn_is_claimed() -> None:
    streams = Streams()
    stream = streams.open()
    last = streams.iteration(stream, 40)
    streams.burn(stream)
    assert streams.call("bob", "claim", stream=stream, raw=last.raw) == {"amount": 40, "fine": 100}
    assert streams.held() == 500_000
    print(streams.receipt.steps)
