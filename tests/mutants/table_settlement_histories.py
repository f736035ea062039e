"""Mutants of settlement's steps and their order: each caught by a fault at the wrong moment, or by random histories."""

from tests.mutants.mutant import Mutant

_CRASHES = "pytest tests/settlement/test_crashes.py::"
_HISTORIES = "pytest tests/settlement/test_histories.py::"
_EVERY_CALL = _CRASHES + "test_a_fault_at_every_call"
_AGAIN = _CRASHES + "test_a_trader_that_begins_again_makes_the_same_trade"
_SEEDED = _HISTORIES + "test_seeded_histories_end_in_every_way"

MUTANTS = (
    Mutant(
        "notice dropped before it is published",
        "services/settlement/relay.py",
        "                messages = await self._messages(notices)\n",
        "                messages = await self._messages(notices)\n"
        "                await self._store.drop_notices([notice.number for notice in notices])\n",
        "a relay that is killed loses a release: the money of a cancelled trade stays held",
        _EVERY_CALL,
    ),
    Mutant(
        "payment done whatever came of it",
        "services/settlement/payer.py",
        "                    return [(Verdict.RETRY, error.code)] * len(orders)",
        "                    return [(Verdict.DONE, error.code)] * len(orders)",
        "orders that the account system never saw are settled",
        _SEEDED,
    ),
    Mutant(
        "sent without release",
        "services/settlement/trader.py",
        "if item.event is not None and item.event.is_released and item.event.state is State.REGISTERED",
        "if item.event is not None and item.event.state is State.REGISTERED",
        "the asset is sent before the money is held",
        _SEEDED,
    ),
    Mutant(
        "released without money",
        "services/settlement/trader.py",
        "            if item.event is not None and not item.code and self._may_hold(item.event)",
        "            if item.event is not None and self._may_hold(item.event)",
        "a trade goes on although the account system did not say that the money is held",
        _SEEDED,
    ),
    Mutant(
        "scan forgets the outbox",
        "services/settlement/scanner.py",
        "        await self._relay.drain()\n        return len(seen)",
        "        return len(seen)",
        "without the relay nothing gets to the account system",
        _SEEDED,
    ),
    Mutant(
        "own bytes sent",
        "services/settlement/engine.py",
        "    return Kept(kept)",
        "    return Kept(given)",
        "a trade that is made a second time sends other bytes than are kept",
        _AGAIN,
    ),
    Mutant(
        "given up after it was sent",
        "services/settlement/decision.py",
        '    if event.is_released:\n        raise LocalError("event_released"',
        '    if event.height:\n        raise LocalError("event_released"',
        "a run of a trade that finds no money gives up what another has sent",
        _HISTORIES + "test_who_finds_no_money_does_not_give_up_what_another_has_sent_meanwhile",
    ),
)
