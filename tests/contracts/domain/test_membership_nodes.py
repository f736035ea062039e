"""membership: organisations and nodes that come and go, their seats, keys and certificates."""

from typing import Any

import pytest

from consensus.ledger.codec import encode
from consensus.ledger.keys import Purpose
from consensus.ledger.transaction import make_call
from consensus.ledger.validators import VALIDATORS_MAX, Validator, ValidatorSet, seat_payload
from tests.contracts.domain.consortium import Consortium, key, root

NEW = key(500)
OTHER = key(501)


@pytest.fixture
def four() -> Consortium:
    return Consortium(4)


def admission(**changes: Any) -> dict[str, Any]:
    fields = {
        "node": "late",
        "organisation": "org-0",
        "vote_key": NEW.public.compressed,
        "address": "10.0.0.7:26600",
    }
    return fields | changes


def new_organisation(**changes: Any) -> dict[str, Any]:
    fields = {
        "organisation": "org-new",
        "roles": ["member"],
        "root_certificate": root(500),
        "admin_key": OTHER.public.compressed,
    }
    return fields | changes


def test_genesis_nodes(four: Consortium) -> None:
    assert four.query("node", node="node-1") == {
        "node": "node-1",
        "organisation": "org-1",
        "voteKey": key(101).public.compressed,
        "status": "validator",
        "address": "",
        "revoked": [],
    }
    assert [item["node"] for item in four.query("nodes")] == [f"node-{index}" for index in range(4)]
    assert four.query("proposals") == []
    four.refuses("unknown_node", "node", node="nobody")


def test_admission_takes_a_quorum_of_organisations(four: Consortium) -> None:
    answer = four.call("org-2", "admit_node", **admission())
    assert answer == {"proposal": answer["proposal"], "approvals": 1, "needed": 3, "done": False}
    assert four.call("org-2", "admit_node", **admission())["approvals"] == 1, "one organisation has one voice"
    assert four.call("org-0", "admit_node", **admission())["approvals"] == 2
    assert four.query("proposals") == [
        {
            "proposal": answer["proposal"],
            "method": "admit_node",
            "arguments": {
                "node": "late",
                "organisation": "org-0",
                "voteKey": NEW.public.compressed,
                "address": "10.0.0.7:26600",
            },
            "approvals": ["org-2", "org-0"],
            "counted": 2,
            "needed": 3,
        }
    ]
    four.refuses("unknown_node", "node", node="late")
    assert four.call("org-1", "admit_node", **admission())["done"]
    assert [name for name, _ in four.events()] == ["approved", "node_admitted"]
    assert four.query("node", node="late")["status"] == "observer"
    assert four.query("proposals") == []
    assert "late" not in four.validators()
    four.fails("node_exists", "org-3", "admit_node", **admission())
    four.fails("key_used", "org-3", "admit_node", **admission(node="later"))


def test_another_address_is_another_proposal(four: Consortium) -> None:
    for index in range(4):
        answer = four.call(f"org-{index}", "admit_node", **admission(address=f"10.0.0.{index + 1}:26600"))
        assert (answer["approvals"], answer["done"]) == (1, False)
    assert len(four.query("proposals")) == 4
    assert len(four.query("proposals", limit=2)) == 2


@pytest.mark.parametrize(
    ("code", "sender", "changes"),
    [
        ("node_exists", "org-0", {"node": "node-1"}),
        ("unknown_organisation", "org-0", {"organisation": "nobody"}),
        ("key_used", "org-0", {"vote_key": key(102).public.compressed}),
        ("key_used", "org-0", {"vote_key": key(2).public.compressed}),
        ("bad_key", "org-0", {"vote_key": b"\2" + b"\xff" * 32}),
        ("bad_arguments", "org-0", {"vote_key": b"\2" * 32}),
        ("bad_arguments", "org-0", {"node": "Late"}),
        ("bad_arguments", "org-0", {"node": "late\n"}),
        ("bad_arguments", "org-0", {"address": "10.0.0.7"}),
        ("bad_arguments", "org-0", {"address": "10.0.0.7:0"}),
        ("bad_arguments", "org-0", {"address": "10.0.0.7:26600\n"}),
        ("not_allowed", "clerk", {}),
        ("not_allowed", "outsider", {}),
    ],
)
def test_admit_node_refuses(four: Consortium, code: str, sender: str, changes: dict[str, Any]) -> None:
    four.chain.keys |= {"clerk": key(300), "outsider": OTHER}
    four.call("org-0", "register_account", name="clerk", public_key=key(300).public.compressed)
    four.approve(["org-0", "org-1", "org-2"], "admit_organisation", **new_organisation(organisation="outsider"))
    four.fails(code, sender, "admit_node", **admission(**changes))


def test_seat(four: Consortium) -> None:
    four.admit("late", "org-0", NEW)
    height = four.chain.height
    proof = four.proof("late", NEW, height)
    four.fails("not_allowed", "org-1", "seat_node", node="late", height=height, proof=proof)
    four.fails("unknown_node", "org-0", "seat_node", node="nobody", height=height, proof=proof)
    four.fails("bad_proof", "org-0", "seat_node", node="late", height=height + 1, proof=proof)
    four.fails("bad_proof", "org-0", "seat_node", node="late", height=height, proof=four.proof("late", OTHER, height))
    payload = seat_payload("late", NEW.public.compressed, height)
    other_purpose = NEW.sign(Purpose.COMMIT, four.chain.chain_id, payload)
    four.fails("bad_proof", "org-0", "seat_node", node="late", height=height, proof=other_purpose)
    four.call("org-0", "seat_node", node="late", height=height, proof=proof)
    assert four.events() == [("node_seated", {"node": "late", "voteKey": NEW.public.compressed})]
    assert four.validators() == ["late", *(f"node-{index}" for index in range(4))]
    assert four.set().vote_key("late") == NEW.public
    assert four.query("node", node="late")["status"] == "validator"
    four.fails("node_state", "org-0", "seat_node", node="late", height=height, proof=proof)


def test_a_seat_counts_from_the_next_block_on(four: Consortium) -> None:
    four.admit("late", "org-0", NEW)
    height = four.chain.height
    fields = {"node": "late", "height": height, "proof": four.proof("late", NEW, height)}
    execution = four.chain.block([four.chain.transaction("org-0", make_call("membership", "seat_node", fields))])
    assert (execution.receipts[0].code, execution.validators.size) == ("", 5)


def test_an_old_proof_seats_nobody(four: Consortium) -> None:
    four.admit("late", "org-0", NEW)
    height = four.chain.height
    proof = four.proof("late", NEW, height)
    four.chain.height = height + 1_000
    four.fails("height_out_of_range", "org-0", "seat_node", node="late", height=height, proof=proof)
    future = four.chain.height + 1
    late = four.proof("late", NEW, future)
    four.fails("height_out_of_range", "org-0", "seat_node", node="late", height=future + 1, proof=late)
    four.chain.height = height + 999
    four.call("org-0", "seat_node", node="late", height=height, proof=proof)


def test_replace_key(four: Consortium) -> None:
    height = four.chain.height
    old = key(101).public
    fields = {"node": "node-1", "vote_key": NEW.public.compressed, "height": height}
    proof = four.proof("node-1", NEW, height)
    four.fails("not_allowed", "org-0", "replace_key", **fields, proof=proof)
    four.fails("bad_proof", "org-1", "replace_key", **fields, proof=four.proof("node-1", key(101), height))
    four.call("org-1", "replace_key", **fields, proof=proof)
    assert four.set().vote_key("node-1") == NEW.public
    assert four.query("node", node="node-1")["voteKey"] == NEW.public.compressed
    for used in (old.compressed, NEW.public.compressed, key(100).public.compressed):
        four.fails("key_used", "org-1", "replace_key", **(fields | {"vote_key": used}), proof=proof)
    assert four.set().size == 4


def change_key(four: Consortium, number: int, node: str = "node-1") -> dict[str, Any]:
    height = four.chain.height
    proof = four.proof(node, key(number), height)
    return {"node": node, "vote_key": key(number).public.compressed, "height": height, "proof": proof}


def test_one_member_alone_cannot_fill_proofs_with_its_changes(four: Consortium) -> None:
    first = four.chain.height + 1
    for number in range(600, 608):
        four.call("org-1", "replace_key", **change_key(four, number))
    four.fails("too_many_key_changes", "org-1", "replace_key", **change_key(four, 608))
    four.call("org-2", "replace_key", **change_key(four, 609, "node-2"))
    four.chain.height = first + 10_000 - 2
    four.fails("too_many_key_changes", "org-1", "replace_key", **change_key(four, 608))
    four.call("org-1", "replace_key", **change_key(four, 608))


def test_an_observer_replaces_its_key_and_is_seated_with_the_new_one(four: Consortium) -> None:
    four.admit("late", "org-0", NEW)
    height = four.chain.height
    four.call(
        "org-0",
        "replace_key",
        node="late",
        vote_key=OTHER.public.compressed,
        height=height,
        proof=four.proof("late", OTHER, height),
    )
    assert "late" not in four.validators()
    height = four.chain.height
    four.fails("bad_proof", "org-0", "seat_node", node="late", height=height, proof=four.proof("late", NEW, height))
    four.seat("late", "org-0", OTHER)
    assert four.set().vote_key("late") == OTHER.public


def test_remove(four: Consortium) -> None:
    four.approve(["org-0", "org-1"], "remove_node", node="node-3")
    assert len(four.validators()) == 4
    assert four.call("org-2", "remove_node", node="node-3")["done"]
    assert four.validators() == ["node-0", "node-1", "node-2"]
    assert four.query("node", node="node-3")["status"] == "removed"
    four.fails("node_state", "org-0", "remove_node", node="node-3")
    four.fails("unknown_node", "org-0", "remove_node", node="nobody")
    four.fails("not_allowed", "org-3", "remove_node", node="node-0")
    height = four.chain.height
    proof = four.proof("node-3", key(103), height)
    four.fails("node_state", "org-3", "seat_node", node="node-3", height=height, proof=proof)
    four.fails(
        "node_state", "org-3", "replace_key", node="node-3", vote_key=NEW.public.compressed, height=height, proof=proof
    )


def test_a_removed_node_comes_back_with_a_new_key_only(four: Consortium) -> None:
    four.call("org-3", "revoke_certificate", node="node-3", fingerprint=bytes(32))
    four.approve(["org-0", "org-1", "org-2"], "remove_node", node="node-3")
    again = admission(node="node-3", organisation="org-3")
    four.fails("key_used", "org-0", "admit_node", **(again | {"vote_key": key(103).public.compressed}))
    four.fails("node_exists", "org-0", "admit_node", **(again | {"organisation": "org-0"}))
    four.admit("node-3", "org-3", NEW)
    assert four.query("node", node="node-3")["revoked"] == [bytes(32)], "what was revoked stays so"
    four.seat("node-3", "org-3", NEW)
    assert len(four.validators()) == 4


def test_the_set_is_never_empty() -> None:
    one = Consortium(1)
    one.fails("last_validator", "org-0", "remove_node", node="node-0")
    one.fails("last_validator", "org-0", "suspend_organisation", organisation="org-0")
    one.admit("late", "org-0", NEW)
    one.seat("late", "org-0", NEW)
    one.call("org-0", "remove_node", node="node-0")
    assert one.validators() == ["late"]
    one.fails("last_validator", "org-0", "remove_node", node="late")


def test_approvals_are_counted_by_the_seats_of_the_moment(four: Consortium) -> None:
    four.call("org-3", "admit_node", **admission())
    four.approve(["org-0", "org-1", "org-2"], "remove_node", node="node-3")
    open_proposal = four.query("proposals")[0]
    assert (open_proposal["approvals"], open_proposal["counted"], open_proposal["needed"]) == (["org-3"], 0, 2)
    four.fails("not_allowed", "org-3", "admit_node", **admission())
    answer = four.call("org-0", "admit_node", **admission())
    assert (answer["approvals"], answer["done"]) == (1, False), "who lost the seat lost the voice"
    assert four.call("org-1", "admit_node", **admission())["done"]


def test_approving_again_counts_again(four: Consortium) -> None:
    four.approve(["org-0", "org-1"], "admit_node", **admission())
    four.approve(["org-0", "org-1", "org-2"], "remove_node", node="node-3")
    assert four.call("org-0", "admit_node", **admission())["done"], "two of three organisations approve now"


def test_withdraw(four: Consortium) -> None:
    proposal = four.call("org-0", "admit_node", **admission())["proposal"]
    four.fails("unknown_proposal", "org-1", "withdraw_approval", proposal=proposal)
    four.call("org-1", "admit_node", **admission())
    four.call("org-0", "withdraw_approval", proposal=proposal)
    assert four.query("proposals")[0]["approvals"] == ["org-1"]
    assert not four.call("org-2", "admit_node", **admission())["done"]
    four.call("org-1", "withdraw_approval", proposal=proposal)
    four.call("org-2", "withdraw_approval", proposal=proposal)
    assert four.query("proposals") == []
    four.fails("unknown_proposal", "org-0", "withdraw_approval", proposal=proposal)
    assert not [name for name in four.records() if name.startswith(b"membership/appro")]


def test_an_organisation_stands_behind_16_proposals_at_most(four: Consortium) -> None:
    proposals = [
        four.call("org-0", "admit_node", **admission(address=f"h:{port}"))["proposal"] for port in range(1, 17)
    ]
    four.fails("too_many_proposals", "org-0", "admit_node", **admission(address="h:17"))
    four.call("org-1", "admit_node", **admission(address="h:17"))
    four.fails("too_many_proposals", "org-0", "admit_node", **admission(address="h:17"))
    four.call("org-0", "admit_node", **admission(address="h:1"))
    four.call("org-0", "withdraw_approval", proposal=proposals[3])
    four.call("org-0", "admit_node", **admission(address="h:17"))
    # What takes effect leaves everybody's share.
    four.call("org-2", "admit_node", **admission(address="h:17"))
    four.call("org-0", "remove_node", node="node-3")


def test_a_hundred_validators_at_most(four: Consortium) -> None:
    more = [Validator(f"x-{number:02d}", "org-1", key(2_000 + number).public.compressed) for number in range(96)]
    full = ValidatorSet.of([*four.set().validators, *more])
    assert full.size == VALIDATORS_MAX
    four.admit("late", "org-0", NEW)
    # Written by hand: how they came is another test's matter.
    four.chain.state.apply({b"membership/validators": encode(full.encode())})
    height = four.chain.height
    proof = four.proof("late", NEW, height)
    four.fails("too_many_validators", "org-0", "seat_node", node="late", height=height, proof=proof)
    assert four.approve(["org-1", "org-2", "org-3"], "remove_node", node="node-0")["done"]
    four.call("org-0", "seat_node", node="late", height=height, proof=proof)


def test_a_new_organisation(four: Consortium) -> None:
    four.approve(["org-0", "org-1", "org-2"], "admit_organisation", **new_organisation())
    assert four.query("organisation", organisation="org-new") == {
        "organisation": "org-new",
        "roles": ["member"],
        "rootCertificate": root(500),
        "status": "active",
    }
    account = four.query("account", account=OTHER.public.address)
    assert (account["name"], account["organisation"], account["roles"]) == ("org-new", "org-new", ["admin"])
    four.fails(
        "organisation_exists", "org-3", "admit_organisation", **new_organisation(admin_key=NEW.public.compressed)
    )
    four.chain.keys["org-new"] = OTHER
    four.fails("not_allowed", "org-new", "admit_node", **admission(organisation="org-new"))
    four.admit("late", "org-new", NEW)
    four.seat("late", "org-new", NEW)
    assert four.seated() == ["org-0", "org-1", "org-2", "org-3", "org-new"]
    assert four.call("org-new", "remove_node", node="node-0")["needed"] == 4


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("organisation_exists", {"organisation": "org-1"}),
        ("name_taken", {"organisation": "clerk"}),
        ("account_exists", {"admin_key": key(300).public.compressed}),
        ("key_used", {"admin_key": key(101).public.compressed}),
        ("bad_key", {"admin_key": b"\2" + b"\xff" * 32}),
        ("bad_arguments", {"root_certificate": "PEM"}),
        ("bad_arguments", {"root_certificate": root(1) + "x"}),
        ("bad_arguments", {"organisation": "Org"}),
    ],
)
def test_admit_organisation_refuses(four: Consortium, code: str, changes: dict[str, Any]) -> None:
    four.call("org-0", "register_account", name="clerk", public_key=key(300).public.compressed)
    four.fails(code, "org-0", "admit_organisation", **new_organisation(**changes))


def test_suspend_an_organisation_and_take_it_back(four: Consortium) -> None:
    four.admit("second", "org-3", NEW)
    four.seat("second", "org-3", NEW)
    four.admit("third", "org-3", OTHER)
    assert four.approve(["org-0", "org-1", "org-2"], "suspend_organisation", organisation="org-3")["done"]
    assert four.validators() == ["node-0", "node-1", "node-2"]
    assert four.query("organisation", organisation="org-3")["status"] == "suspended"
    statuses = {item["node"]: item["status"] for item in four.query("nodes")}
    assert (statuses["second"], statuses["node-3"], statuses["third"]) == ("removed", "removed", "observer")
    height = four.chain.height
    proof = four.proof("third", OTHER, height)
    seat = {"node": "third", "height": height, "proof": proof}
    four.fails("organisation_suspended", "org-3", "seat_node", **seat)
    four.fails("organisation_suspended", "org-3", "revoke_certificate", node="third", fingerprint=bytes(32))
    four.fails("organisation_suspended", "org-3", "register_account", name="a", public_key=key(9).public.compressed)
    four.fails("organisation_suspended", "org-0", "suspend_organisation", organisation="org-3")
    late = admission(organisation="org-3", vote_key=key(9).public.compressed)
    four.fails("organisation_suspended", "org-0", "admit_node", **late)

    back = new_organisation(organisation="org-3", admin_key=key(502).public.compressed)
    four.fails("key_used", "org-0", "admit_organisation", **(back | {"root_certificate": root(3)}))
    four.fails("account_exists", "org-0", "admit_organisation", **(back | {"admin_key": key(3).public.compressed}))
    four.approve(["org-0", "org-1"], "admit_organisation", **back)
    account = four.query("account", account=key(3).public.address)
    assert account["publicKey"] == key(502).public.compressed, "the account is the old one under a new key"
    four.seat("third", "org-3", OTHER)
    assert four.validators() == ["node-0", "node-1", "node-2", "third"]


def test_a_suspended_organisation_s_admin_changes_nothing_any_more(four: Consortium) -> None:
    four.call("org-3", "register_account", name="clerk", public_key=key(300).public.compressed)
    proposal = four.call("org-3", "admit_node", **admission())["proposal"]
    four.approve(["org-0", "org-1", "org-2"], "suspend_organisation", organisation="org-3")
    clerk = key(300).public.address
    for method in ("suspend_account", "resume_account"):
        four.fails("organisation_suspended", "org-3", method, account=clerk)
    stolen = key(301).public.compressed
    four.fails("organisation_suspended", "org-3", "rotate_key", account=clerk, new_public_key=stolen)
    four.fails("organisation_suspended", "org-3", "withdraw_approval", proposal=proposal)
    four.call("org-3", "rotate_key", new_public_key=stolen)


def test_an_organisation_that_comes_back_stands_behind_nothing_it_approved_before(four: Consortium) -> None:
    four.call("org-3", "admit_node", **admission())
    four.call("org-0", "remove_node", node="node-1")
    four.call("org-3", "remove_node", node="node-1")
    four.approve(["org-0", "org-1", "org-2"], "suspend_organisation", organisation="org-3")
    assert [item["approvals"] for item in four.query("proposals")] == [["org-0"]]


def test_a_node_that_left_with_its_organisation_is_not_half_removed_again_when_it_is_back(four: Consortium) -> None:
    four.call("org-0", "remove_node", node="node-3")
    four.approve(["org-0", "org-1", "org-2"], "suspend_organisation", organisation="org-3")
    assert four.query("proposals") == []


def test_an_organisation_does_not_come_back_with_a_key_its_admin_had(four: Consortium) -> None:
    rotated = key(600)
    four.call("org-3", "rotate_key", new_public_key=rotated.public.compressed)
    four.approve(["org-0", "org-1", "org-2"], "suspend_organisation", organisation="org-3")
    back = new_organisation(organisation="org-3")
    four.fails("key_used", "org-0", "admit_organisation", **(back | {"admin_key": rotated.public.compressed}))
    four.fails("account_exists", "org-0", "admit_organisation", **(back | {"admin_key": key(3).public.compressed}))


def test_revoke_certificate(four: Consortium) -> None:
    first, second = b"\1" * 32, b"\2" * 32
    four.call("org-1", "revoke_certificate", node="node-1", fingerprint=first)
    assert four.events() == [("certificate_revoked", {"node": "node-1", "fingerprint": first})]
    four.call("org-1", "revoke_certificate", node="node-1", fingerprint=second)
    four.call("org-1", "revoke_certificate", node="node-1", fingerprint=first)
    assert four.events() == []
    assert four.query("node", node="node-1")["revoked"] == [first, second]
    assert len(four.validators()) == 4
    four.fails("not_allowed", "org-0", "revoke_certificate", node="node-1", fingerprint=first)
    four.fails("unknown_node", "org-0", "revoke_certificate", node="nobody", fingerprint=first)
    four.fails("bad_arguments", "org-1", "revoke_certificate", node="node-1", fingerprint=b"\1" * 31)
    for number in range(62):
        four.call("org-1", "revoke_certificate", node="node-1", fingerprint=bytes([number + 10]) * 32)
    four.fails("too_many_revoked", "org-1", "revoke_certificate", node="node-1", fingerprint=bytes(32))


def test_a_vote_key_signs_for_no_account(four: Consortium) -> None:
    for vote_key in (key(101), key(102)):
        four.fails("key_used", "org-0", "rotate_key", new_public_key=vote_key.public.compressed)
        four.fails("key_used", "org-0", "register_account", name="a", public_key=vote_key.public.compressed)


def test_a_key_replaced_in_the_block_of_its_removal_counts_nothing(four: Consortium) -> None:
    """Both in one block, in both orders: the set and the records agree."""
    four.approve(["org-0", "org-1"], "remove_node", node="node-3")
    height = four.chain.height
    replace = make_call(
        "membership",
        "replace_key",
        {
            "node": "node-3",
            "vote_key": NEW.public.compressed,
            "height": height,
            "proof": four.proof("node-3", NEW, height),
        },
    )
    remove = make_call("membership", "remove_node", {"node": "node-3"})
    chain = four.chain
    execution = chain.block([chain.transaction("org-3", replace), chain.transaction("org-2", remove)])
    assert [receipt.code for receipt in execution.receipts] == ["", ""]
    assert [item.name for item in execution.validators.validators] == ["node-0", "node-1", "node-2"]
    record = four.query("node", node="node-3")
    assert (record["status"], record["voteKey"]) == ("removed", NEW.public.compressed)
