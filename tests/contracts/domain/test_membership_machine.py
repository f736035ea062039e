"""membership against an independent model: random admissions, approvals, seats, keys and removals by anybody.

The model says of each call every reason why it must be refused; the contract has to refuse with one of them,
and to do the call where there is none. It counts approvals anew each time out of the list of what was said.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consensus.ledger.keys import Purpose
from consensus.ledger.validators import seat_payload
from tests.contracts.domain.consortium import Consortium, key, root

FOUNDERS = 3
ORGANISATIONS = [f"org-{index}" for index in range(5)]
NODES = [f"node-{index}" for index in range(6)]
KEYS = [*range(100, 103), *range(200, 209), 0]
"""Vote keys of genesis, new ones, and one that is an admin's."""
OPEN_MAX = 16


def quorum(count: int) -> int:
    """The least number of which any two groups share one more than may lie."""
    liars = (count - 1) // 3
    return min(size for size in range(1, count + 1) if 2 * size - count > liars)


@dataclass
class Node:
    organisation: str
    vote_key: int
    status: str
    revoked: list[bytes] = field(default_factory=list)


@dataclass
class Organisation:
    root: int
    admin: int
    is_active: bool = True


class MembershipMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.door = Consortium(FOUNDERS)
        self.organisations = {f"org-{index}": Organisation(index, index) for index in range(FOUNDERS)}
        self.nodes = {f"node-{index}": Node(f"org-{index}", 100 + index, "validator") for index in range(FOUNDERS)}
        self.used = {100 + index for index in range(FOUNDERS)}
        self.first_keys = {f"org-{index}": index for index in range(FOUNDERS)}
        self.said: dict[Any, list[str]] = {}
        self.key_changes: dict[str, list[int]] = {}

    # -- the model ---------------------------------------------------------------------------------------

    @property
    def validators(self) -> dict[str, int]:
        return {name: node.vote_key for name, node in self.nodes.items() if node.status == "validator"}

    @property
    def seated(self) -> set[str]:
        return {node.organisation for node in self.nodes.values() if node.status == "validator"}

    def own(self, organisation: str, node: str) -> list[str]:
        """Reasons why an admin may not act for a node alone."""
        if node not in self.nodes:
            return ["unknown_node"]
        return [] if self.nodes[node].organisation == organisation else ["not_allowed"]

    def used_key(self, number: int) -> list[str]:
        return ["key_used"] if number in self.used or number in self.first_keys.values() else []

    def act(self, reasons: list[str], admin: str, method: str, /, **arguments: Any) -> Any:
        """Call; return the value, or None when it was refused for one of the reasons foretold."""
        before = self.door.records()
        if not self.organisations[admin].is_active:
            reasons = ["organisation_suspended", *reasons]
        receipt = self.door.chain.call(admin, "membership", method, **arguments)
        if reasons:
            assert receipt.code in reasons, f"{method}: {receipt.code!r} is none of {reasons}"
            assert self.door.records() == before
            return None
        assert receipt.code == "", f"{method}: {receipt.code} {self.door.chain.logs[-1:]}"
        self.door.receipt = receipt
        return True

    def approve(self, reasons: list[str], admin: str, method: str, /, **arguments: Any) -> bool:
        """Approve; tell whether the proposal takes effect, which it does with a quorum and not before."""
        proposal = (method, *(str(item) for item in sorted(arguments.items())))
        said = self.said.get(proposal, [])
        reasons = reasons + ([] if admin in self.seated else ["not_allowed"])
        stands_behind = sum(admin in others for others in self.said.values())
        if admin not in said and stands_behind >= OPEN_MAX:
            reasons.append("too_many_proposals")
        if self.act(reasons, admin, method, **arguments) is None:
            return False
        said = [*said, *([] if admin in said else [admin])]
        if len(self.seated & set(said)) >= quorum(len(self.seated)):
            self.said.pop(proposal, None)
            return True
        self.said[proposal] = said
        return False

    # -- what may be tried -------------------------------------------------------------------------------

    admins = st.sampled_from(ORGANISATIONS[:FOUNDERS] * 2 + ORGANISATIONS)
    names = st.sampled_from(NODES)
    numbers = st.sampled_from(KEYS)

    def admin(self, name: str) -> str:
        """An organisation that has an admin: the one drawn, or the first."""
        return name if name in self.organisations else "org-0"

    def everybody(self, name: str) -> list[str]:
        """Who approves one after the other: one alone, or all with a seat."""
        return [self.admin(name)] if name == "org-1" else sorted(self.seated)

    def fresh(self, number: int) -> int:
        """The first key from this one on that no node had."""
        return next((item for item in range(number, 1_000) if item not in self.used), number)

    fair = st.sampled_from([True, True, True, False])
    """Whether a call is given what it needs, or anything."""
    ages = st.sampled_from([0, 0, 0, 1, 2])

    @rule(who=admins, node=names, owner=admins, number=numbers, port=st.integers(1, 20), fair=fair)
    def admit_node(self, who: str, node: str, owner: str, number: int, port: int, fair: bool) -> None:
        if fair:
            number = self.fresh(200)
            node = next((name for name in [*NODES[FOUNDERS:], *NODES] if self.is_out(name)), node)
            owner = self.nodes[node].organisation if node in self.nodes else owner
        for organisation in self.everybody(who):
            reasons = self.used_key(number)
            if owner not in self.organisations:
                reasons.append("unknown_organisation")
            elif not self.organisations[owner].is_active:
                reasons.append("organisation_suspended")
            old = self.nodes.get(node)
            if old is not None and (old.status != "removed" or old.organisation != owner):
                reasons.append("node_exists")
            fields = {"node": node, "organisation": owner, "vote_key": key(number).public.compressed}
            if self.approve(reasons, organisation, "admit_node", **fields, address=f"h:{port}"):
                self.nodes[node] = Node(owner, number, "observer", [] if old is None else old.revoked)
                self.used.add(number)

    def is_out(self, name: str) -> bool:
        return name not in self.nodes or self.nodes[name].status == "removed"

    @rule(who=admins, node=names)
    def remove_node(self, who: str, node: str) -> None:
        for organisation in self.everybody(who):
            reasons: list[str] = []
            if node not in self.nodes:
                reasons = ["unknown_node"]
            elif self.nodes[node].status == "removed":
                reasons = ["node_state"]
            if set(self.validators) == {node}:
                reasons.append("last_validator")
            if self.approve(reasons, organisation, "remove_node", node=node):
                self.nodes[node].status = "removed"

    @rule(who=st.sampled_from([*ORGANISATIONS, *["org-1"] * 5]), other=admins)
    def suspend_organisation(self, who: str, other: str) -> None:
        for organisation in self.everybody(who):
            reasons = [] if other in self.organisations else ["unknown_organisation"]
            if other in self.organisations and not self.organisations[other].is_active:
                reasons.append("organisation_suspended")
            if self.seated == {other}:
                reasons.append("last_validator")
            if self.approve(reasons, organisation, "suspend_organisation", organisation=other):
                self.organisations[other].is_active = False
                left = {proposal: [item for item in said if item != other] for proposal, said in self.said.items()}
                self.said = {proposal: said for proposal, said in left.items() if said}
                for name, node in self.nodes.items():
                    if node.organisation == other and node.status == "validator":
                        node.status = "removed"
                        self.said.pop(("remove_node", str(("node", name))), None)

    @rule(who=admins, other=admins, number=st.integers(0, 30), root_number=st.integers(0, 30), fair=fair)
    def admit_organisation(self, who: str, other: str, number: int, root_number: int, fair: bool) -> None:
        if fair:
            out = [name for name in ORGANISATIONS if name not in self.organisations]
            out += [name for name in self.organisations if not self.organisations[name].is_active]
            other = out[number % len(out)] if out else other
        for organisation in self.everybody(who):
            old = self.organisations.get(other)
            reasons = [] if old is None or not old.is_active else ["organisation_exists"]
            if old is not None and old.root == root_number:
                reasons.append("key_used")
            if number in self.first_keys.values():
                reasons.append("account_exists")
            if old is not None and old.admin == number:
                reasons.append("key_used")
            fields = {"organisation": other, "roles": ["member"], "root_certificate": root(root_number)}
            if self.approve(
                reasons, organisation, "admit_organisation", **fields, admin_key=key(number).public.compressed
            ):
                self.organisations[other] = Organisation(root_number, number)
                # A known account keeps its address, which comes from its first key.
                self.first_keys.setdefault(other, number)
                self.door.chain.keys.setdefault(other, key(number))

    @precondition(lambda self: self.said)
    @rule(who=admins, data=st.data())
    def withdraw(self, who: str, data: st.DataObject) -> None:
        organisation = self.admin(who)
        listed = self.door.query("proposals")
        index = data.draw(st.integers(0, len(listed) - 1))
        chosen = listed[index]
        reasons = [] if organisation in chosen["approvals"] else ["unknown_proposal"]
        if self.act(reasons, organisation, "withdraw_approval", proposal=chosen["proposal"]):
            proposal = self.proposal_of(chosen)
            self.said[proposal].remove(organisation)
            if not self.said[proposal]:
                del self.said[proposal]

    def proposal_of(self, listed: dict[str, Any]) -> Any:
        """The model's name of a proposal that the contract lists."""
        names = {"voteKey": "vote_key", "rootCertificate": "root_certificate", "adminKey": "admin_key"}
        arguments = {names.get(name, name): value for name, value in listed["arguments"].items()}
        return (listed["method"], *(str(item) for item in sorted(arguments.items())))

    @rule(who=admins, node=names, number=numbers, is_owner=fair, has_key=fair, age=ages, fair=fair)
    def seat_node(self, who: str, node: str, number: int, is_owner: bool, has_key: bool, age: int, fair: bool) -> None:
        if fair:
            node = next((name for name in NODES if name in self.nodes and self.nodes[name].status == "observer"), node)
        organisation, reasons, record = self.own_call(who, node, is_owner=is_owner)
        signing = record.vote_key if record is not None and has_key else number
        if record is not None:
            reasons += [] if record.status == "observer" else ["node_state"]
            reasons += [] if signing == record.vote_key else ["bad_proof"]
        fields = self.proof(node, signing, signing if record is None else record.vote_key, age, reasons)
        if self.act(reasons, organisation, "seat_node", **fields) and record is not None:
            record.status = "validator"

    @rule(who=admins, node=names, number=numbers, is_owner=fair, has_key=fair, age=ages, fair=fair)
    def replace_key(
        self, who: str, node: str, number: int, is_owner: bool, has_key: bool, age: int, fair: bool
    ) -> None:
        number = self.fresh(200) if fair else number
        organisation, reasons, record = self.own_call(who, node, is_owner=is_owner)
        signing = number if has_key else 300
        if record is not None:
            reasons += ["node_state"] if record.status == "removed" else []
            reasons += [] if has_key else ["bad_proof"]
        reasons += self.used_key(number)
        fields = self.proof(node, signing, number, age, reasons)
        height = self.door.chain.height + 1
        recent = [item for item in self.key_changes.get(node, []) if height - item < 10_000]
        reasons += ["too_many_key_changes"] if len(recent) >= 8 else []
        if self.act(reasons, organisation, "replace_key", **fields, vote_key=key(number).public.compressed):
            self.nodes[node].vote_key = number
            self.key_changes.setdefault(node, []).append(height)
            self.used.add(number)

    def own_call(self, who: str, node: str, *, is_owner: bool) -> tuple[str, list[str], Node | None]:
        record = self.nodes.get(node)
        organisation = record.organisation if record is not None and is_owner else self.admin(who)
        return organisation, self.own(organisation, node), record

    def proof(self, node: str, signing: int, named: int, age: int, reasons: list[str]) -> dict[str, Any]:
        """The arguments of a proof by one key over another, for a recent block, an old one, or one to come."""
        chain = self.door.chain
        if age == 1:
            chain.height += 1_000
            reasons.append("height_out_of_range")
        height = chain.height + {0: 0, 1: -1_000, 2: 1}[age]
        reasons += ["height_out_of_range"] if age == 2 else []
        payload = seat_payload(node, key(named).public.compressed, height)
        return {"node": node, "height": height, "proof": key(signing).sign(Purpose.SEAT, chain.chain_id, payload)}

    @rule(who=admins, node=names, is_owner=st.booleans(), certificate=st.integers(0, 2))
    def revoke(self, who: str, node: str, is_owner: bool, certificate: int) -> None:
        organisation, reasons, record = self.own_call(who, node, is_owner=is_owner)
        fingerprint = bytes([certificate]) * 32
        if self.act(reasons, organisation, "revoke_certificate", node=node, fingerprint=fingerprint) and record:
            record.revoked += [] if fingerprint in record.revoked else [fingerprint]

    # -- what always holds -------------------------------------------------------------------------------

    @invariant()
    def the_set_is_the_validators(self) -> None:
        validators = self.door.set().validators
        expected = {name: key(number).public.compressed for name, number in self.validators.items()}
        assert {item.name: item.vote_key for item in validators} == expected
        assert validators, "the chain needs one validator at least"
        keys = [node.vote_key for node in self.nodes.values()]
        assert len(keys) == len(set(keys)), "no key has two nodes"

    @invariant()
    def records_are_as_foretold(self) -> None:
        nodes = {item["node"]: item for item in self.door.query("nodes")}
        assert {
            name: (item["organisation"], item["voteKey"], item["status"], item["revoked"])
            for name, item in nodes.items()
        } == {
            name: (node.organisation, key(node.vote_key).public.compressed, node.status, node.revoked)
            for name, node in self.nodes.items()
        }
        organisations = {item["organisation"]: item for item in self.door.query("organisations")}
        assert {name: (item["rootCertificate"], item["status"]) for name, item in organisations.items()} == {
            name: (root(item.root), "active" if item.is_active else "suspended")
            for name, item in self.organisations.items()
        }

    @invariant()
    def proposals_are_what_was_said(self) -> None:
        listed = {self.proposal_of(item): item["approvals"] for item in self.door.query("proposals")}
        assert listed == self.said


TestMembership = MembershipMachine.TestCase
TestMembership.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
