"""Mutants of the node's private part: registry, sealed store, owner's socket, what is kept."""

from tests.mutants.mutant import Mutant

_CHANNELS = "pytest tests/node/test_channels.py::"
_KEPT = "pytest tests/node/test_channels_kept.py::"
_STORE = "pytest tests/node/test_private_store.py::"
_OWNER = "pytest tests/node/rpc/test_owner.py::"

MUTANTS = (
    Mutant(
        "registry not followed",
        "node/private.py",
        "            if ChannelRegistry.touched_by(writes):\n"
        "                self._read(state, time_ms)\n"
        "            elif",
        "            if",
        "a channel that was opened is not there, one that was revoked still is",
        _CHANNELS + "test_messages_go_there_and_back_and_nobody_else_has_them",
    ),
    Mutant(
        "deadlines of channels ignored",
        "node/private.py",
        "            elif self._deadline_ms is not None and time_ms >= self._deadline_ms:",
        "            elif False:",
        "a channel outlives its agreement (R79)",
        _CHANNELS + "test_r79_an_agreement_expires_by_block_time_and_its_grace_too",
    ),
    Mutant(
        "revocation closes nothing",
        "node/channels.py",
        'if self.status == "OPEN" and now_ms < self.expires_ms:',
        "if now_ms < self.expires_ms:",
        "a revoked partner is still written to (R79)",
        _CHANNELS + "test_r79_a_revocation_ends_what_waits_and_lets_answers_pass",
    ),
    Mutant(
        "private bug ends the node",
        "node/private.py",
        "        if not self._has_failed:\n            log.error(",
        "        if True:\n            raise error\n            log.error(",
        "what goes on in private throws a member out of the chain (R78)",
        _CHANNELS + "test_r78_a_private_part_that_fails_changes_nothing_about_the_chain",
    ),
    Mutant(
        "broken private disk borne",
        "node/private.py",
        "            raise error\n        if not self._has_failed:",
        "            pass\n        if not self._has_failed:",
        "a node answers for messages that no disk holds",
        _CHANNELS + "test_a_disk_that_fails_under_the_private_part_ends_the_node",
    ),
    Mutant(
        "private values in clear",
        "node/storage/private.py",
        "(key, None if value is None else seal(key, value))",
        "(key, value)",
        "who reads the disk reads the orders",
        _STORE + "test_nothing_lies_on_the_disk_in_clear",
    ),
    Mutant(
        "new key for old data",
        "node/storage/private.py",
        '        if (folder / "CURRENT").exists():',
        "        if False:",
        "a lost key is replaced by one that opens nothing, and nobody hears which to look for",
        _STORE + "test_a_lost_key_names_key_and_data_and_nothing_is_made_in_its_place",
    ),
    Mutant(
        "owner's socket open to all",
        "node/rpc/listener.py",
        "        path.chmod(0o600)",
        "        path.chmod(0o666)",
        "every user of the machine sends in the institution's name",
        _OWNER + "test_only_the_owner_may_open_the_socket",
    ),
    Mutant(
        "owner's methods public",
        "node/rpc/server.py",
        "    public = Dispatcher(Context(backend, feed), metrics, failure)",
        "    everything = methods.joined(owner_methods)\n"
        "    public = Dispatcher(Context(backend, feed, owner=desk, table=everything), metrics, failure)",
        "whoever reaches the RPC reads the private messages",
        _OWNER + "test_public_methods_are_there_too_and_owners_methods_nowhere_else",
    ),
    Mutant(
        "living socket replaced",
        "node/rpc/listener.py",
        "                    if probe.connect_ex(name) == 0:",
        "                    if False:",
        "a second program takes the socket from under the first",
        _OWNER + "test_a_living_socket_is_left_alone_and_a_dead_one_replaced",
    ),
    Mutant(
        "polls outlive the node",
        "node/owner.py",
        "            await _first_of(lambda: self.private.wait(after), self.stopping.wait)",
        "            await _first_of(lambda: self.private.wait(after))",
        "a stop waits for those who wait for news",
        _OWNER + "test_polls_end_when_the_node_stops_and_the_socket_is_gone",
    ),
    Mutant(
        "private data set aside with the chain's",
        "node/network/rejoin.py",
        "    if not with_private:\n        _bring_private_back(data)\n    return aside",
        "    return aside",
        "a rejoin loses what waits in channels",
        _KEPT + "test_a_rejoin_leaves_private_data_that_are_whole",
    ),
    Mutant(
        "private database not proven",
        "node/network/rejoin.py",
        '            for _ in store.scan(b""):\n                pass\n',
        "            pass\n",
        "a rejoined node stops at the first damaged message",
        _KEPT + "test_a_rejoin_sets_private_data_aside_that_do_not_open",
    ),
    Mutant(
        "keys of channels left behind",
        "node/network/restore.py",
        "        _keep_private(aside, home.folder)\n",
        "        pass\n",
        "a home made anew is unknown to its partners, and nothing opens its data",
        _KEPT + "test_a_home_made_anew_keeps_private_data_and_their_keys",
    ),
)
