"""Mutants of sealing and of trusted environments: who is answered, with what, and what stays sealed."""

from tests.mutants.mutant import Mutant

_SEALING = "services/payee/sealing.py"
_ENVIRONMENT = "services/payee/enclave.py"
_KEYS = "services/payee/enclave_keys.py"
_PROGRAM = "services/payee/enclave_program.py"
_WALLS = "services/payee/enclave_walls.py"
_MEASUREMENT = "services/payee/measurement.py"
_TRAVEL = "consensus/ledger/payees.py"
_SEALED = "pytest tests/payee/test_sealing.py::test_"
_ASKED = "pytest tests/payee/test_enclave.py::test_"
_KEPT = "pytest tests/payee/test_enclave_keys.py::test_"
_SERVED = "pytest tests/payee/test_enclave_program.py::test_"
_RUN = "pytest tests/payee/test_enclave_process.py::test_"

MUTANTS = (
    # -- sealing -------------------------------------------------------------------------------------------------
    Mutant(
        "a record bound to no place",
        _SEALING,
        "nonce, place = ciphertext[:NONCE_BYTES], record_place(identity, server, version)",
        "nonce, place = ciphertext[:NONCE_BYTES], None",
        "a record copied to another merchant opens there",
        f"{_SEALED}a_record_opens_at_its_place_alone",
    ),
    Mutant(
        "a commitment that nobody checks",
        _SEALING,
        "    if commitment(content.salt, content.plaintext) != committed:\n",
        "    if False:\n",
        "a platform shows the merchant one payee and stores another",
        f"{_ASKED}a_record_that_does_not_open_to_what_it_commits_to_is_bad",
    ),
    Mutant(
        "a wrap for every epoch",
        _SEALING,
        """    place: list[Value] = ["payee-wrap", server, epoch, environment]
    return EpochKey(""",
        """    place: list[Value] = ["payee-wrap", server, 2, environment]
    return EpochKey(""",
        "a key of an earlier epoch passes for the present one's",
        f"{_SEALED}a_wrap_opens_for_its_environment_epoch_and_platform_alone",
    ),
    Mutant(
        "an answer for every query",
        _SEALING,
        """_open(own, exchange_key, ["payee-answer", query, environment, height], sealed)""",
        """_open(own, exchange_key, ["payee-answer", bytes(range(32)), environment, height], sealed)""",
        "an answer to one query opens as the answer to another",
        f"{_SEALED}an_answer_opens_for_its_query_alone",
    ),
    Mutant(
        "a content that shows itself",
        _TRAVEL,
        '        return "Content(…)"\n',
        '        return f"Content({self.plaintext!r})"\n',
        "acquiring information in whatever shows an object",
        f"{_SEALED}objects_do_not_show_what_they_hold",
    ),
    # -- who is answered, and with what --------------------------------------------------------------------------
    Mutant(
        "others' records without the merchant's consent",
        _ENVIRONMENT,
        "is_own or (merchant.consent and record.is_shareable)",
        "is_own or record.is_shareable",
        "platforms read each other's records of a merchant who did not agree",
        f"{_ASKED}mode_b_gives_anothers_content_only_if_merchant_and_platform_let_it",
    ),
    Mutant(
        "others' records without their platform's leave",
        _ENVIRONMENT,
        "is_own or (merchant.consent and record.is_shareable)",
        "is_own or merchant.consent",
        "platforms read what another one does not share",
        f"{_ASKED}mode_b_gives_anothers_content_only_if_merchant_and_platform_let_it",
    ),
    Mutant(
        "a query of anybody",
        _ENVIRONMENT,
        "        if not _verifies(signer, query.signature, Purpose.PAYEE_QUERY, self._chain_id, name):\n",
        "        if False:\n",
        "whoever reaches a node reads any platform's records",
        f"{_ASKED}only_the_platforms_key_asks_for_it",
    ),
    Mutant(
        "a delegation for ever",
        _ENVIRONMENT,
        "0 <= left_ms <= DELEGATION_MS_MAX + HEAD_AGE_MS_MAX",
        "left_ms <= DELEGATION_MS_MAX + HEAD_AGE_MS_MAX",
        "a lost client asks in its platform's name for ever",
        f"{_ASKED}a_delegate_asks_while_its_delegation_is_in_force",
    ),
    Mutant(
        "a delegation of another platform",
        _ENVIRONMENT,
        "if delegation.server != body.server or not is_in_force or not self._is_delegated(platform, delegation):",
        "if delegation.server != body.server or not is_in_force:",
        "whoever writes a delegation has one",
        f"{_ASKED}a_delegation_is_the_platforms_own_and_for_one_key",
    ),
    Mutant(
        "a query without time",
        _ENVIRONMENT,
        "if abs(now_ms - body.time_ms) > QUERY_AGE_MS_MAX:",
        "if now_ms - body.time_ms > QUERY_AGE_MS_MAX:",
        "queries signed ahead are kept for later",
        f"{_ASKED}a_query_counts_for_a_minute_by_the_environments_clock",
    ),
    Mutant(
        "states of any age",
        _ENVIRONMENT,
        "        if abs(now_ms - proven.time_ms) > HEAD_AGE_MS_MAX:\n",
        "        if False:\n",
        "a node serves a payee of last year",
        f"{_ASKED}states_of_an_old_head_are_refused",
    ),
    Mutant(
        "heads that go back",
        _ENVIRONMENT,
        "        if proven.height < self.height:\n",
        "        if False:\n",
        "a removed record is served for two minutes more",
        f"{_ASKED}heads_never_go_back",
    ),
    Mutant(
        "a removed record that is served",
        _ENVIRONMENT,
        "if record is None or record.status != _ACTIVE:",
        "if record is None:",
        "a platform without a relation to the merchant is told an empty record is bad",
        f"{_ASKED}a_removed_record_is_none",
    ),
    Mutant(
        "a text taken for bytes",
        _ENVIRONMENT,
        "msgspec.convert(value, kind, builtin_types=(bytes,))",
        "msgspec.convert(value, kind)",
        "a state of another form is read as something else",
        f"{_ASKED}values_of_a_form_it_does_not_know_are_refused",
    ),
    # -- what it keeps -------------------------------------------------------------------------------------------
    Mutant(
        "keys sealed for any code",
        _KEYS,
        'encode(["payee-environment", measurement])',
        'encode(["payee-environment"])',
        "other code that passes itself off opens the keys",
        f"{_KEPT}other_code_does_not_open_them",
    ),
    Mutant(
        "a head written in one place",
        _KEYS,
        "        self._next = 1 - self._next\n",
        "        pass\n",
        "a power cut leaves no head that opens",
        f"{_KEPT}a_write_of_the_head_that_was_cut_short_leaves_the_one_before",
    ),
    Mutant(
        "a new secret for old keys",
        _KEYS,
        '        if not is_new:\n            raise LocalError("key_lost"',
        '        if False:\n            raise LocalError("key_lost"',
        "a lost secret is replaced in silence, and what the keys open is lost",
        f"{_KEPT}they_open_on_their_machine_for_their_chain_and_name_alone",
    ),
    Mutant(
        "a measurement without its list's order",
        _MEASUREMENT,
        "[[name, _file_hash(name)] for name in FILES]",
        "[_file_hash(name) for name in sorted(FILES, key=_file_hash)]",
        "files that change places are the same code",
        "pytest tests/payee/test_measurement.py::test_files_cannot_change_places",
    ),
    Mutant(
        "code that is loaded and not measured",
        _PROGRAM,
        "from services.payee.wording import EMULATED\n",
        "from services.payee.wording import EMULATED\nfrom services.payee import identity  # noqa: F401\n",
        "code outside of the measurement runs where records are opened",
        f"{_RUN}the_measurement_covers_exactly_what_it_loads",
    ),
    Mutant(
        "keys put aside under a running environment",
        _KEYS,
        "            _lock(descriptor, folder)\n            number = 1\n",
        "            number = 1\n",
        "an environment that runs loses its keys with its next start",
        "pytest tests/payee/test_measurement.py::test_keys_are_put_aside_and_never_lost",
    ),
    # -- its process ---------------------------------------------------------------------------------------------
    Mutant(
        "an environment that logs what it opens",
        _ENVIRONMENT,
        "            check_commitment(content, record.commitment)\n",
        "            check_commitment(content, record.commitment)\n"
        "            import sys\n\n"
        "            print(content.plaintext, file=sys.stderr)\n",
        "acquiring information in a log",
        f"{_RUN}no_plaintext_and_no_key_is_left_anywhere",
    ),
    Mutant(
        "an environment that says what its bug was about",
        _PROGRAM,
        'log.error("an ask is broken", error=type(error).__name__, places=places)',
        'log.error("an ask is broken", error=str(error), places=places)',
        "an error's words bring a plaintext into the log",
        f"{_SERVED}a_bug_says_nothing_of_what_it_was_about",
    ),
    Mutant(
        "an environment that stays root",
        _WALLS,
        "        os.setresuid(user.uid, user.uid, user.uid)\n",
        "        os.seteuid(user.uid)\n",
        "it becomes root again whenever it wants",
        f"{_RUN}it_answers_behind_its_walls_and_ends_in_order",
    ),
    Mutant(
        "an environment with a network",
        _WALLS,
        "_step(_EQUALS, socket.AF_UNIX, past_true=1),",
        "_step(_EQUALS, socket.AF_INET, past_true=1),",
        "what is opened there can leave the machine",
        f"{_RUN}it_answers_behind_its_walls_and_ends_in_order",
    ),
    Mutant(
        "an environment that waits for the end of a message",
        _PROGRAM,
        "        with trio.move_on_after(FRAME_S_MAX):\n            await self._fill(LENGTH_BYTES)",
        "        with trio.move_on_after(IDLE_S_MAX):\n            await self._fill(LENGTH_BYTES)",
        "eight connections that say nothing keep all others out for an hour",
        f"{_SERVED}a_message_that_does_not_go_on_ends_the_connection",
    ),
    Mutant(
        "an environment with room for everybody",
        _PROGRAM,
        "        if self._connections >= CONNECTIONS_MAX:\n",
        "        if False:\n",
        "connections without number take its memory",
        f"{_SERVED}one_too_many_is_told_busy_and_has_a_place_later",
    ),
    Mutant(
        "an environment that ends with who takes nothing",
        _PROGRAM,
        "            with suppress(trio.BrokenResourceError):\n                await self._converse(stream)\n",
        "            await self._converse(stream)\n",
        "one connection that sends a bad frame and never reads ends the environment for all",
        f"{_SERVED}who_takes_no_answer_is_let_go",
    ),
    Mutant(
        "first starts that make each their own secret",
        _KEYS,
        "            _lock(descriptor, folder)\n            # Only now",
        "            # Only now",
        "of two starts at once the later replaces the secret that the first one's keys are sealed under",
        f"{_KEPT}of_two_first_starts_one_makes_the_keys",
    ),
)
