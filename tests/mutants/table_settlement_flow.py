"""Mutants of settlement's programs: what is sent before what, what is asked twice, who is told, what a crash leaves."""

from tests.mutants.mutant import Mutant

_TRADER = "services/settlement/trader.py"
_ENGINE = "services/settlement/engine.py"
_RELAY = "services/settlement/relay.py"
_PAYER = "services/settlement/payer.py"
_SCANNER = "services/settlement/scanner.py"
_WATCHED = "services/settlement/watched.py"
_GATHERING = "services/settlement/gathering.py"
_TEST = "pytest tests/settlement/"

MUTANTS = (
    # -- the transaction system ----------------------------------------------------------------------------------
    Mutant(
        "sent before it is released",
        _TRADER,
        "        await self._release(kept)\n        await self._submit(kept)",
        "        await self._submit(kept)\n        await self._release(kept)",
        "a trade that dies there was sent, or is never sent",
        _TEST + "test_trader.py::test_register_hold_release_send_in_this_order",
    ),
    Mutant(
        "sent though not released",
        _TRADER,
        "            if item.event is not None and item.event.is_released and item.event.state is State.REGISTERED",
        "            if item.event is not None and item.event.state is State.REGISTERED",
        "the asset moves although the money is not held",
        _TEST + "test_trader.py::test_a_bank_that_stays_away_leaves_the_trade_to_the_scan",
    ),
    Mutant(
        "held for what is over",
        _TRADER,
        "        return is_open and event.valid_until_ms > self._now_ms()",
        "        return is_open",
        "money is held for a transaction that no block can take",
        _TEST + "test_trader.py::test_money_is_not_held_for_a_transaction_that_is_over",
    ),
    Mutant(
        "calls that do not gather",
        _GATHERING,
        "            await trio.lowlevel.checkpoint()  # whoever comes in the same moment is taken along\n",
        "",
        "a thousand tasks make a thousand calls",
        _TEST + "test_trader.py::test_the_same_trade_a_thousand_times_at_once_is_one",
    ),
    Mutant(
        "nobody takes over",
        _GATHERING,
        "            self._waiting.pop(ticket, None)\n            self._wake_next()",
        "            self._waiting.pop(ticket, None)",
        "who waited behind a call waits for ever",
        _TEST + "test_trader.py::test_what_gathers_goes_together_and_each_gets_its_own",
    ),
    # -- the event system ----------------------------------------------------------------------------------------
    Mutant(
        "the newest bytes answered",
        _ENGINE,
        "                answers.append(_same(trade, next(kept)))",
        "                answers.append(_same(trade, item if next(kept) else item))",
        "what is sent is not what is registered",
        _TEST + "test_events.py::test_the_first_bytes_of_an_id_win",
    ),
    Mutant(
        "other terms under an id",
        _ENGINE,
        "    if (kept.kind, kept.terms) != (Kind.TRADE, trade.terms):",
        "    if kept.kind is not Kind.TRADE:",
        "a caller takes another trade for its own",
        _TEST + "test_events.py::test_other_terms_under_an_id_are_a_conflict",
    ),
    Mutant(
        "any transaction",
        _ENGINE,
        "        if not is_delivery(transaction, trade.event, terms, self._rules.agent):",
        "        if not body.calls:",
        "what is sent is not what was agreed on",
        _TEST + "test_events.py::test_a_bad_trade_is_not_kept",
    ),
    Mutant(
        "a reversal's name for a trade",
        _ENGINE,
        "        if len(trade.event) > EVENT_CHARACTERS_MAX or _REVERSAL_ID.search(trade.event):",
        "        if len(trade.event) > EVENT_CHARACTERS_MAX:",
        "a trade takes the place of another one's reversal",
        _TEST + "test_events.py::test_a_bad_trade_is_not_kept",
    ),
    Mutant(
        "a lost race taken for won",
        _ENGINE,
        "                if is_taken\n            }",
        "            }",
        "a release is answered that was not kept",
        _TEST + "test_events.py::test_a_change_that_never_wins_is_refused_not_repeated_for_ever",
    ),
    Mutant(
        "an answer given up",
        _ENGINE,
        "            waiting = {index: waiting[index] for index in lost}",
        "            waiting = {}",
        "a payment's answer is lost where the scan was faster",
        _TEST + "test_events.py::test_an_answer_that_meets_another_change_is_decided_anew",
    ),
    Mutant(
        "who waits is not told",
        _WATCHED,
        "            watch.put(change.after)",
        "            watch",
        "callers hear of the end when their time is up",
        _TEST + "test_events.py::test_who_waits_for_an_event_hears_of_its_change",
    ),
    # -- relay, payer, scan --------------------------------------------------------------------------------------
    Mutant(
        "dropped before it is published",
        _RELAY,
        "                messages = await self._messages(notices)\n",
        "                messages = await self._messages(notices)\n"
        "                await self._store.drop_notices([notice.number for notice in notices])\n",
        "a notice is lost with the centre's connection",
        _TEST + "test_relay.py::test_while_the_centre_is_away_everything_stays",
    ),
    Mutant(
        "releases of finished events dropped",
        _RELAY,
        "            if notice.topic is not Topic.PAY or not events[notice.event].is_finished",
        "            if not events[notice.event].is_finished",
        "the money of a cancelled trade stays held",
        _TEST + "test_relay.py::test_the_outbox_goes_out_in_order_and_once",
    ),
    Mutant(
        "dead letters stay dead",
        _RELAY,
        "                await self.revive()\n",
        "                pass\n",
        "a release that cost its consumers too often is never done",
        _TEST + "test_relay.py::test_dead_letters_are_looked_for_by_itself",
    ),
    Mutant(
        "a refused release is settled",
        _ENGINE,
        "    return answer.code not in NOT_HELD",
        "    return False",
        "the money of a cancelled trade is held for ever",
        _TEST + "test_payer.py::test_a_cancelled_trade_s_hold_is_released_however_often_that_is_refused",
    ),
    Mutant(
        "sent again to the same node",
        _SCANNER,
        "            self._client.leave_node()  # the one",
        "            # the one",
        "a node that takes all and hands nothing on lets every trade expire",
        _TEST + "test_scanner.py::test_each_time_another_node_gets_what_is_sent_again",
    ),
    Mutant(
        "reminders pile up",
        _SCANNER,
        "if self._relay.trouble else change",
        "if False else change",
        "the outbox grows as long as the message centre is away",
        _TEST + "test_scanner.py::test_reminders_do_not_pile_up_while_the_centre_is_away",
    ),
    Mutant(
        "settled without telling",
        _PAYER,
        'taken = await self._events.call("answers_put", AnswersPut(answers), AnswersTaken)',
        "taken = AnswersTaken([], [False] * len(AnswersPut(answers).answers))",
        "the event system does not hear of a payment",
        _TEST + "test_payer.py::test_what_was_delivered_is_paid_and_completed",
    ),
    Mutant(
        "one bad order holds up all",
        _PAYER,
        "                    if isinstance(error, Refused) and len(orders) > 1:",
        "                    if isinstance(error, Refused) and len(orders) > 1_000:",
        "payments wait for one that can never be made",
        _TEST + "test_payer.py::test_an_order_that_the_bank_takes_never_holds_up_no_other",
    ),
    Mutant(
        "a reversed trade left behind",
        _SCANNER,
        "                await self._finish_reversal(event.event)",
        "                pass",
        "the units went back and the trade awaits its payment for ever",
        _TEST + "test_scanner.py::test_a_trade_that_changes_while_its_reversal_ends_is_ended_too",
    ),
    Mutant(
        "sent again though not released",
        _SCANNER,
        "            if isinstance(action, Resend):",
        "            if event.state is State.REGISTERED:",
        "the scan sends what nobody released",
        _TEST + "test_scanner.py::test_identical_bytes_are_sent_again_while_they_may_come",
    ),
)
