"""Mutants of stores in tables, and of settlement's event store."""

from tests.mutants.mutant import Mutant

_DATABASE = "services/local/database.py"
_BACKENDS = "services/local/backends.py"
_STORE = "services/settlement/database.py"
_LOCAL = "pytest tests/local/test_database.py::"
_SUITE = "pytest tests/settlement/test_store.py::"

MUTANTS = (
    # -- stores in tables ---------------------------------------------------------------------------------
    Mutant(
        "one bad work fails its group",
        _DATABASE,
        "            for job in jobs:\n                _run_group(backend, [job])",
        "            for job in jobs:\n                job.result = outcome.Error(LookupError('another one'))",
        "one caller's mistake is everybody's",
        _LOCAL + "test_a_work_that_raises_leaves_nothing_and_takes_nobody_with_it",
    ),
    Mutant(
        "a transaction for each work",
        _DATABASE,
        "                while len(jobs) < GROUP_MAX:",
        "                while len(jobs) < 1:",
        "every caller waits for a sync of the disk of its own",
        _LOCAL + "test_works_of_many_callers_share_transactions",
    ),
    Mutant(
        "work of who has left",
        _DATABASE,
        "if job.result is None and not job.is_left]:",
        "if job.result is None]:",
        "what a caller gave up in the queue takes effect",
        _LOCAL + "test_who_is_cancelled_in_the_queue_has_no_effect_and_who_is_later_may",
    ),
    Mutant(
        "SQLite without transactions",
        _BACKENDS,
        '                event.listen(self._engine, "begin", _begin_sqlite)\n',
        "",
        "half a work is kept, and a reader sees two moments",
        _LOCAL + "test_a_work_that_raises_leaves_nothing_and_takes_nobody_with_it",
    ),
    Mutant(
        "readers of two moments",
        _BACKENDS,
        'isolation_level="REPEATABLE READ", ',
        "",
        "PostgreSQL shows a reader the rows of one moment with the counts of another",
        _LOCAL + "test_a_reader_sees_one_moment",
    ),
    Mutant(
        "SQLite syncs now and then",
        _BACKENDS,
        '"PRAGMA synchronous = FULL"',
        '"PRAGMA synchronous = NORMAL"',
        "a power cut takes back what was answered",
        _LOCAL + "test_every_commit_is_synced_whatever_a_server_does_by_default",
    ),
    Mutant(
        "PostgreSQL syncs as it likes",
        _BACKENDS,
        '"-c synchronous_commit=on"',
        '"-c work_mem=4MB"',
        "a power cut takes back what was answered",
        _LOCAL + "test_every_commit_is_synced_whatever_a_server_does_by_default",
    ),
    Mutant(
        "server that may lose commits",
        _BACKENDS,
        'names = ("fsync", "full_page_writes", "server_encoding")',
        'names = ("full_page_writes", "server_encoding")',
        "a server with fsync off is taken",
        _LOCAL + "test_a_server_that_does_not_sync_is_refused",
    ),
    Mutant(
        "lock of the first session only",
        _BACKENDS,
        "                self._take_lock(writer)\n",
        '                if self.trouble == "":\n                    self._take_lock(writer)\n',
        "who lost its session writes beside the new owner",
        _LOCAL + "test_who_lost_its_session_to_another_owner_writes_nothing_more",
    ),
    Mutant(
        "session without its lock is kept",
        _BACKENDS,
        "        except BaseException:\n"
        "            _dropped(writer)\n"
        "            raise\n"
        "        self._writer = writer\n",
        "        finally:\n            self._writer = writer\n",
        "who was refused the lock once writes with the next try",
        _LOCAL + "test_who_lost_its_session_to_another_owner_writes_nothing_more",
    ),
    Mutant(
        "file without lock",
        _BACKENDS,
        "fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX",
        "fcntl.LOCK_SH",
        "two programs work on one file",
        _LOCAL + "test_a_store_has_one_owner_at_a_time_unless_it_is_shared",
    ),
    Mutant(
        "lost server is the caller's trouble",
        _DATABASE,
        "                except ServerLost:\n"
        "                    await trio.sleep(pause_s)\n"
        "                    pause_s = min(2 * pause_s, _RETRY_S_MAX)\n"
        "        raise self._unreachable()\n",
        "                except ServerLost:\n                    break\n        raise self._unreachable()\n",
        "a restart of the database server fails who reads",
        _LOCAL + "test_callers_outlast_a_server_that_is_restarted",
    ),
    Mutant(
        "newer tables are taken",
        "services/local/schema.py",
        "        if now - {step.revision for step in script.walk_revisions()}:",
        "        if now - {step.revision for step in script.walk_revisions()} - now:",
        "an older program works on tables that it does not know",
        _LOCAL + "test_older_tables_are_brought_up_to_date_and_newer_ones_are_refused",
    ),
    # -- the event store ----------------------------------------------------------------------------------
    Mutant(
        "change of any version",
        _STORE,
        "is_taken = versions.get(event) == change.before.version",
        "is_taken = event in versions",
        "two parts decide about the same version, and the later one wins",
        _SUITE + "test_a_change_of_an_older_version_is_not_taken",
    ),
    Mutant(
        "versions without lock",
        _STORE,
        ").with_for_update()",
        ")",
        "two programs on one PostgreSQL take the same version",
        _SUITE + "test_two_owners_of_one_store_never_take_the_same_version",
    ),
    Mutant(
        "cursor goes on alone",
        _STORE,
        "    if cursor is not None and all(taken):",
        "    if cursor is not None:",
        "a receipt whose change lost its race is never looked at again",
        _SUITE + "test_the_cursor_goes_on_only_with_all_changes",
    ),
    Mutant(
        "the last bytes win",
        "services/local/rows.py",
        "    return adding.on_conflict_do_nothing().returning(*returned)",
        "    others = {column.name: adding.excluded[column.name] for column in table.c}\n"
        "    keys = [column.name for column in table.primary_key]\n"
        "    return adding.on_conflict_do_update(index_elements=keys, set_=others).returning(*returned)",
        "an event is registered again with other bytes, after the first were sent",
        _SUITE + "test_an_id_keeps_its_first_event_whatever_comes_later",
    ),
    Mutant(
        "clock set back stops the scan",
        _STORE,
        "            return found + _events(connection, due_query("
        "EVENTS.c.due_ms > now_ms + ahead_ms, limit - len(found)))",
        "            return found",
        "events wait for years after the clock was set back",
        _SUITE + "test_due_are_the_unfinished_whose_time_has_come_or_is_too_far_ahead",
    ),
    Mutant(
        "index of all events",
        "services/settlement/migrations/v0001_events.py",
        '        sqlite_where=sa.text("is_finished IS 0"),\n',
        "",
        "the scan's selection grows with the finished events",
        _SUITE + "test_the_steps_make_the_tables_that_the_code_expects",
    ),
    Mutant(
        "scan without its index",
        _STORE,
        "return _SELECT.where(UNFINISHED, when)",
        "return _SELECT.where(EVENTS.c.state.in_([State.REGISTERED.value, State.ACCOUNT_PENDING.value]), when)",
        "the scan's selection reads all events",
        _SUITE + "test_the_scan_reads_the_index_of_unfinished_events_in_its_order",
    ),
    Mutant(
        "numbers given twice",
        "services/settlement/migrations/v0001_events.py",
        "        sqlite_autoincrement=True,\n",
        "",
        "a relay that remembers the last number passes over a notice",
        _SUITE + "test_every_taken_change_has_its_notices_numbered_in_order",
    ),
)
