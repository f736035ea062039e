"""Mutants of the platform: what pays twice, pays somebody else, trusts whom it must not, or tells what it may not."""

from tests.mutants.mutant import Mutant

_PAYMENTS = "services/payee/payments.py"
_RECORDS = "services/payee/records.py"
_EPOCHS = "services/payee/epochs.py"
_STORE = "services/payee/platform_store.py"
_CHAIN = "services/payee/platform_chain.py"
_PAY = "pytest tests/payee/test_payments.py::"
_KEEP = "pytest tests/payee/test_records.py::"
_WHOLE = "pytest tests/payee/test_platform.py::"

MUTANTS = (
    Mutant(
        "another currency than was shown",
        _PAYMENTS,
        "        if request.currency not in (None, own.currency):",
        "        if request.currency not in (None, own.currency, request.currency):",
        "who was shown 12.50 of one currency pays 12.50 of another",
        _PAY + "test_what_the_payer_was_shown_is_the_currency_that_is_paid",
    ),
    Mutant(
        "paid before it is kept",
        _PAYMENTS,
        "            opened = await self._store.open_payment(name, self._opened(request, currency, kept))\n"
        "            payment = await self._asked(name, opened, turn)",
        "            payment = await self._asked(name, self._opened(request, currency, kept), turn)\n"
        "            if payment.state != OPEN:\n"
        "                payment = await self._store.open_payment(name, payment)\n"
        "                await self._store.end_payment(name, payment)",
        "an answer that is lost leaves money moved and no trace of it",
        _PAY + "test_an_open_payment_is_finished_by_the_next_start",
    ),
    Mutant(
        "event of the platform",
        _PAYMENTS,
        "            event=event_of(identity, request.kind, request.order),",
        "            event=event_of(identity, self._chain.server + request.kind, request.order),",
        "two platforms of one account system both pay an order",
        _PAY + "test_two_platforms_of_one_account_system_pay_an_order_once",
    ),
    Mutant(
        "one kind of order",
        _PAYMENTS,
        '        return "signed" if self.code.is_dynamic else "open"',
        '        return "open"',
        "anybody takes the place of a merchant's order with a static code",
        _PAY + "test_an_order_has_one_set_of_terms",
    ),
    Mutant(
        "payee taken on trust",
        _PAYMENTS,
        "        if own is None or own.account != request.payee:",
        "        if own is None:",
        "the account that a client names is paid, whoever told the client",
        _PAY + "test_what_is_wrong_pays_nothing",
    ),
    Mutant(
        "code taken on trust",
        _PAYMENTS,
        "verify_code(code, merchant.value.key, self._chain.chain_id, max(self._chain.time_ms, self._now_ms()))\n",
        "pass\n",
        "an altered or expired code is paid",
        _PAY + "test_a_code_signed_by_somebody_else_is_refused",
    ),
    Mutant(
        "other terms are the same order",
        _PAYMENTS,
        "                if kept.terms != (request.payer, request.payee, request.amount, currency):",
        "                if kept.terms[:1] != (request.payer,):",
        "an order of another amount is told to be paid",
        _PAY + "test_an_order_has_one_set_of_terms",
    ),
    Mutant(
        "no turns",
        _PAYMENTS,
        "            async with turn.lock:\n                yield turn, turn.asked > asked",
        "            yield turn, turn.asked > asked",
        "requests for one order run over each other, and several call themselves the first",
        _PAY + "test_a_hundred_at_once_have_one_effect",
    ),
    Mutant(
        "refused for good",
        _PAYMENTS,
        "            if kept is not None and request.is_again(kept) and (kept.state != REFUSED or is_just_asked):",
        "            if kept is not None and request.is_again(kept):",
        "who had no money yesterday cannot pay today",
        _PAY + "test_a_refusal_of_the_account_system_can_be_tried_again",
    ),
    Mutant(
        "first trouble holds up all",
        _PAYMENTS,
        "        self.trouble, self._is_away = error.code, isinstance(error, Unreachable)",
        "        self.trouble, self._is_away = error.code, True",
        "one order that the account system does not take keeps all others open",
        _PAY + "test_one_that_is_refused_for_ever_holds_up_no_other",
    ),
    Mutant(
        "marks are left out",
        _STORE,
        '        pairs: list[Pair] = [(_OPEN + name, b"")]',
        "        pairs: list[Pair] = []",
        "nobody finishes what a crash left open",
        _PAY + "test_an_open_payment_is_finished_by_the_next_start",
    ),
    Mutant(
        "old heads",
        _CHAIN,
        "                if found.verified.time_ms >= self._now_ms() - HEAD_AGE_MS_MAX:",
        "                if found.verified.time_ms:",
        "a node that stands still has expired codes and removed records paid",
        _PAY + "test_nodes_without_a_recent_block_decide_nothing",
    ),
    Mutant(
        "removed and paid",
        _RECORDS,
        "        if found.value is None or not found.value.is_active:",
        "        if found.value is None:",
        "a merchant that left the platform gives another error than that",
        _PAY + "test_a_removed_record_is_not_paid",
    ),
    Mutant(
        "key not kept first",
        _STORE,
        "msgspec.msgpack.encode(rotation)), (_epoch(rotation.epoch), key)])",
        "msgspec.msgpack.encode(rotation))])",
        "an epoch is in force whose key nobody has",
        _KEEP + "test_a_rotation_takes_trust_back",
    ),
    Mutant(
        "any names end a rotation",
        _EPOCHS,
        "            if rotation is None or not rotation.is_for(keys) or not await self._announced(rotation):",
        "            if rotation is None or not await self._announced(rotation):",
        "trust that is taken back while a rotation is unfinished stays",
        _KEEP + "test_an_interrupted_rotation_may_be_followed_by_another",
    ),
    Mutant(
        "a key that was given away stays",
        _EPOCHS,
        "            if await self._announced(rotation) and not rotation.is_passing:",
        "            if await self._announced(rotation):",
        "whoever was sent an attempt that was given up reads all records of the epoch that follows",
        _KEEP + "test_a_key_that_was_wrapped_for_others_stays_on_no_record",
    ),
    Mutant(
        "begun by another and taken for ours",
        _EPOCHS,
        "                if await self._epoch_or_none() >= rotation.epoch:\n                    return False",
        "                if await self._epoch_or_none() >= rotation.epoch:\n                    return True",
        "an attempt that was given up decides who can read",
        _KEEP + "test_an_attempt_that_was_given_up_and_comes_late_decides_nothing",
    ),
    Mutant(
        "withdrawn and trusted",
        _CHAIN,
        '        if found.status != ACTIVE:\n            raise Refused("environment_withdrawn"',
        '        if not found.status:\n            raise Refused("environment_withdrawn"',
        "an environment that was withdrawn is shown as trusted, or wrapped for",
        _KEEP + "test_only_environments_in_service_are_trusted",
    ),
    Mutant(
        "not allowed and trusted",
        _CHAIN,
        "        if allowed is None or allowed.status != ALLOWED:",
        "        if allowed is None:",
        "what was struck off the allow-list is shown as trusted",
        _KEEP + "test_only_environments_in_service_are_trusted",
    ),
    Mutant(
        "another vault's key replaces ours",
        _EPOCHS,
        "        if found is None or (found.key != own and is_replacing):",
        "        if found is None or found.key != own:",
        "a platform that was started with the wrong folder takes the right one's place",
        _KEEP + "test_a_lost_vault_is_said_and_survived",
    ),
    Mutant(
        "a refusal that quotes",
        _RECORDS,
        '"this is not the merchant\'s signature of this draft"',
        'f"this is not the merchant\'s signature of {draft.plaintext!r}"',
        "acquiring information stands in an error",
        _WHOLE + "test_what_a_record_says_is_nowhere_but_with_its_owner",
    ),
    Mutant(
        "a log that quotes",
        _RECORDS,
        "        record, found = await self._own(identity)\n        said = self._said(identity, record)\n",
        "        record, found = await self._own(identity)\n        said = self._said(identity, record)\n"
        '        __import__("structlog").get_logger("platform").info("paying", content=msgspec.json.encode(said))\n',
        "acquiring information stands in the log",
        _WHOLE + "test_what_a_record_says_is_nowhere_but_with_its_owner",
    ),
    Mutant(
        "sealed in name alone",
        _RECORDS,
        "        return Written(ciphertext, self._sign(signed))",
        '        __import__("pathlib").Path(self._store._vault.folder, "cache").write_bytes(content.plaintext)\n'
        "        return Written(ciphertext, self._sign(signed))",
        "acquiring information lies on the disk",
        _WHOLE + "test_what_a_record_says_is_nowhere_but_with_its_owner",
    ),
)
