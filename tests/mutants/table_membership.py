"""Mutants of who belongs: approvals, seats, keys, roots, revocations."""

from tests.mutants.mutant import Mutant

_CONTRACT = "contracts/domain/membership.py"
_NODES = "pytest tests/contracts/domain/test_membership_nodes.py::test_"
_MEMBERS = "pytest tests/node/test_members.py::test_"

MUTANTS = (
    Mutant(
        "admission by one approval less",
        _CONTRACT,
        "    if counted >= needed:\n",
        "    if counted >= needed - 1:\n",
        "fewer organisations than a quorum change who votes",
        _NODES + "admission_takes_a_quorum_of_organisations",
    ),
    Mutant(
        "approvals of who lost its seat",
        _CONTRACT,
        "counted = len([item for item in approvals if item in seated])\n    needed",
        "counted = len(approvals)\n    needed",
        "organisations without a validator decide who votes",
        _NODES + "approvals_are_counted_by_the_seats_of_the_moment",
    ),
    Mutant(
        "seat without proof",
        _CONTRACT,
        '        _check_proof(context, node, record["voteKey"], height, proof)\n',
        "",
        "a node counts before it has caught up, or has its key",
        _NODES + "seat",
    ),
    Mutant(
        "old proof of a seat",
        _CONTRACT,
        "is_recent = context.height - PROOF_BLOCKS_MAX <= height < context.height",
        "is_recent = height < context.height",
        "a proof from long ago seats a node that is not there",
        _NODES + "an_old_proof_seats_nobody",
    ),
    Mutant(
        "vote key used again",
        _CONTRACT,
        "    is_account = context.account(context.address_of(vote_key)) is not None\n"
        '    context.require(not is_account, "key_used", "an account has this key")\n'
        "    _refuse_vote_key(context, vote_key)\n",
        "    pass\n",
        "a key comes back whose votes nobody remembers (R49)",
        _NODES + "replace_key",
    ),
    Mutant(
        "last validator removed",
        _CONTRACT,
        '        context.require(staying, "last_validator", "the chain needs one validator at least")\n',
        "",
        "nobody is left to decide a block",
        _NODES + "the_set_is_never_empty",
    ),
    Mutant(
        "revocation ignored",
        "node/members.py",
        "return node.organisation == organisation and fingerprint not in node.revoked",
        "return node.organisation == organisation",
        "a revoked certificate is let in (R71)",
        _MEMBERS + "who_is_let_in",
    ),
    Mutant(
        "removed node let in",
        "node/members.py",
        "node.status != REMOVED and node.organisation in",
        "node.organisation in",
        "who was removed keeps its session",
        _MEMBERS + "who_is_let_in",
    ),
    Mutant(
        "root that TLS cannot load",
        "p2p/tls.py",
        "except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm, ssl.SSLError) as error:",
        "except ValueError as error:",
        "a root that members agreed on ends every node, or keeps it from starting (R67)",
        "pytest tests/fuzz/test_targets.py::test_r67_a_root_that_either_library_refuses_is_refused_before_it_counts",
    ),
    Mutant(
        "root that looks like another's",
        "p2p/tls.py",
        "if (named := _only(root, NameOID.ORGANIZATION_NAME)) != organisation:",
        "if not (named := _only(root, NameOID.ORGANIZATION_NAME)):",
        "an organisation shuts another one's nodes out with a root of the same name",
        "pytest tests/p2p/test_roots.py::test_a_root_that_names_another_organisation_is_refused",
    ),
    Mutant(
        "observers fill the inbox",
        "node/shares.py",
        "if is_observer and self._observers and self._observers + size > PEER_BYTES_MAX:",
        "if False:",
        "a crowd of observers keeps votes waiting",
        _MEMBERS + "all_observers_together_wait_in_no_more_room_than_one_validator",
    ),
)
