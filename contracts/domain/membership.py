"""Who belongs to the consortium: organisations, their nodes and accounts, and the validator set.

All organisations agree on the genesis document, and with it on the roles that each of them holds. From then on every
organisation keeps its own accounts: an *admin*, an account with the role ``admin`` in an organisation that is not
suspended, registers, suspends and resumes accounts of its own organisation and of no other, and gives them roles out
of those that the organisation or the admin itself holds. So no admin can make more of an account than the members
agreed to. An account's address is made from its first key and never changes; its name is unique on the chain; it is
never removed, only suspended, so that whatever names it keeps its meaning.

**Nodes.** A node is admitted as an *observer*: it may connect and follows. An admin of its organisation seats
it with a proof that it holds its vote key and has caught up; from the next block on it is a *validator*. What
concerns others – ``admit_organisation``, ``suspend_organisation``, ``admit_node``, ``remove_node`` – takes
effect when a quorum of the organisations that hold a validator have approved the identical proposal; approvals are
counted when one is given, by the seats of that moment. What concerns a node's own organisation alone its admin does.

**Invariants**: the set holds exactly the nodes with status validator, 1 to 100 of them; no vote key ever has
two nodes or two lives; a removed node comes back only with a new key and by approval.

State, under ``membership/``:

- ``organisation/NAME`` = {roles, rootCertificate (PEM), status}
- ``node/NAME`` = {organisation, voteKey (33 bytes), status: observer, validator or removed, address: HOST:PORT or
  empty, revoked: [SHA-256 of DER certificates, 32 bytes]}; ``vote-key/HEX`` = its node, for every key ever used;
  ``key-changes/NAME`` = the heights of its latest changes
- ``account/ADDRESS`` = an account's record as in ``contracts.runtime.accounts``; ``name/NAME`` = its address
- ``validators`` = the bytes of the validator set of the next height, as ``ValidatorSet.encode`` makes them
- ``approval/HASH`` = an open proposal, {method, arguments, approvals: [organisation]}; ``approved/ORGANISATION`` =
  the hashes (32 bytes) of those that it stands behind
"""

from typing import Annotated, Any, TypeAlias, TypedDict

import msgspec

from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import SIGNATURE_BYTES, Purpose
from consensus.ledger.validators import (
    VALIDATORS_MAX,
    Validator,
    ValidatorSet,
    decode_validators_untrusted,
    quorum_of,
    seat_payload,
)
from contracts.runtime.accounts import ACCOUNT_PREFIX, ACTIVE, NAME_PREFIX, SUSPENDED, AccountRecord
from contracts.runtime.contract import AccountAddress, Context, Contract, Name, Revert, Value, method, query

ADMIN_ROLE = "admin"
"""The role of an account that keeps the accounts of its organisation."""

ACCOUNTS_PER_CALL_MAX = 200
PROPOSALS_PER_ORGANISATION_MAX = 16
"""How many open proposals one organisation stands behind."""
PROOF_BLOCKS_MAX = 1_000
"""How many blocks old the height in a proof may be."""
KEY_CHANGES_MAX = 8
"""How often a node's own organisation may replace its key in ``KEY_CHANGES_BLOCKS``: a proof carries every change of
the set, so one member alone must not make many."""
KEY_CHANGES_BLOCKS = 10_000
REVOKED_MAX = 64
"""How many certificates of one node may be revoked; a renewed root, or another name, begins anew."""

OBSERVER, VALIDATOR, REMOVED = "observer", "validator", "removed"

AccountName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
PublicKeyBytes = Annotated[bytes, msgspec.Meta(min_length=33, max_length=33)]
Roles = Annotated[list[Name], msgspec.Meta(max_length=16)]
NewAccounts = Annotated[dict[AccountName, PublicKeyBytes], msgspec.Meta(min_length=1, max_length=ACCOUNTS_PER_CALL_MAX)]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=100)]
NodeName = AccountName
PeerAddress = Annotated[str, msgspec.Meta(pattern=r"^(|[A-Za-z0-9.:\[\]-]{1,253}:[1-9][0-9]{0,4})\Z")]
_PEM_PATTERN = r"^-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]{1,8000}\n-----END CERTIFICATE-----\n\Z"
CertificateText = Annotated[str, msgspec.Meta(pattern=_PEM_PATTERN, max_length=8_192)]
SignatureBytes = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
HashBytes = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
BlockNumber = Annotated[int, msgspec.Meta(ge=0)]

Approval: TypeAlias = dict[str, Value]
"""{proposal: 32 bytes, approvals: how many count, needed: how many must, done: whether it has taken effect}."""


class NodeRecord(TypedDict):
    """As the state holds it; ``revoked`` ascends in time."""

    organisation: str
    voteKey: bytes
    status: str
    address: str
    revoked: list[bytes]


class ProposalRecord(TypedDict):
    """What is proposed, and the organisations that approve of it in order of their approvals."""

    method: str
    arguments: dict[str, Any]
    approvals: list[str]


class Membership(Contract):
    """Organisations, nodes and accounts of the consortium, and who of them votes.

    Whoever calls as an admin holds the role ``admin``, else it is ``not_allowed``, in an organisation that is active,
    else ``organisation_suspended``. Who approves is an admin of an organisation that holds a validator; the call
    returns how the proposal stands and fails with ``too_many_proposals`` where it stands behind 16 open ones.
    """

    name = "membership"
    version = 1

    @method
    def register_account(
        self, context: Context, name: AccountName, public_key: PublicKeyBytes, roles: Roles | None = None
    ) -> bytes:
        """Register an account of the calling admin's organisation; return its address, 20 bytes.

        ``public_key`` is a compressed P-256 key, 33 bytes. The caller or its organisation holds each of ``roles``.
        Fails with ``role_not_allowed``, ``bad_key``, ``key_used``, ``name_taken`` or ``account_exists``.
        """
        admin = _admin(context)
        return _register(context, admin, name, public_key, _granted_roles(context, admin, roles or []))

    @method
    def register_accounts(self, context: Context, accounts: NewAccounts, roles: Roles | None = None) -> list[bytes]:
        """Register up to 200 accounts, name → compressed public key (33 bytes), all with the same roles.

        Returns their addresses in order of their names. Otherwise as ``register_account``: all or none.
        """
        admin = _admin(context)
        granted = _granted_roles(context, admin, roles or [])
        return [_register(context, admin, name, accounts[name], granted) for name in sorted(accounts)]

    @method
    def suspend_account(self, context: Context, account: AccountAddress) -> None:
        """Keep an account of the calling admin's organisation from sending transactions; what it holds stays its own.

        An admin cannot suspend itself, so that an organisation keeps one.
        Fails with ``not_allowed`` or ``unknown_account``.
        """
        context.require(account != context.caller, "not_allowed", "an admin cannot suspend itself")
        _set_status(context, account, SUSPENDED)

    @method
    def resume_account(self, context: Context, account: AccountAddress) -> None:
        """Let a suspended account of the calling admin's organisation send transactions again.

        Fails with ``not_allowed`` or ``unknown_account``.
        """
        _set_status(context, account, ACTIVE)

    @method
    def rotate_key(
        self, context: Context, new_public_key: PublicKeyBytes, account: AccountAddress | None = None
    ) -> None:
        """Replace the key that signs for the caller, or, by an admin, for an account of its organisation.

        The address stays. ``new_public_key`` is a compressed P-256 key, 33 bytes; it counts from the next block on.
        Fails with ``bad_key``, ``key_used``, ``not_allowed`` or ``unknown_account``.
        """
        context.address_of(new_public_key)
        _refuse_vote_key(context, new_public_key)
        address = context.caller if account is None else account
        record = context.account(address) if address == context.caller else _kept_account(context, address)
        if record is None:
            raise Revert("unknown_account")
        rotated = AccountRecord(record.name, record.organisation, new_public_key, record.roles, record.status)
        context.state.put(ACCOUNT_PREFIX + address.hex(), rotated.value())
        context.emit("key_rotated", account=address, publicKey=new_public_key)

    @method
    def admit_organisation(
        self,
        context: Context,
        organisation: AccountName,
        roles: Roles,
        root_certificate: CertificateText,
        admin_key: PublicKeyBytes,
    ) -> Approval:
        """Approve that an organisation joins, or that a suspended one comes back.

        ``root_certificate`` is the PEM of its TLS root; ``admin_key`` (compressed P-256, 33 bytes) becomes the key of
        its account of the same name, with the role ``admin``. One that comes back needs a new root and a new key.
        Fails with ``organisation_exists``, ``name_taken``, ``account_exists``, ``key_used`` or ``bad_key``.
        """
        old = context.state.get(f"organisation/{organisation}")
        _check_new_organisation(context, organisation, old, root_certificate, admin_key)
        whom = {"organisation": organisation, "adminKey": admin_key}
        what = {"roles": [*roles], "rootCertificate": root_certificate}
        approval = _approve(context, "admit_organisation", {**whom, **what})
        if approval["done"]:
            context.state.put(f"organisation/{organisation}", _new_organisation(roles, root_certificate))
            _install_admin(context, organisation, admin_key)
            context.emit("organisation_admitted", organisation=organisation)
        return approval

    @method
    def suspend_organisation(self, context: Context, organisation: AccountName) -> Approval:
        """Approve that an organisation is shut out: its validators are removed, its nodes may not connect.

        Its admins change nothing here any more, and its approvals are withdrawn; accounts and what they hold stay.
        Fails with ``unknown_organisation``, ``organisation_suspended`` or ``last_validator``.
        """
        record = _active_organisation(context, organisation)
        staying = [item for item in _validators(context) if item.organisation != organisation]
        leaving = [item.name for item in _validators(context) if item.organisation == organisation]
        context.require(staying, "last_validator", "no other organisation holds a validator")
        approval = _approve(context, "suspend_organisation", {"organisation": organisation})
        if approval["done"]:
            for name in leaving:
                context.state.put(f"node/{name}", {**_node(context, name), "status": REMOVED})
                _close(context, context.hash("remove_node", {"node": name}))
            _put_validators(context, staying)
            for proposal in context.state.get(f"approved/{organisation}") or []:
                _withdraw(context, organisation, proposal)
            context.state.put(f"organisation/{organisation}", {**record, "status": SUSPENDED})
            context.emit("organisation_suspended", organisation=organisation)
        return approval

    @method
    def admit_node(
        self,
        context: Context,
        node: NodeName,
        organisation: AccountName,
        vote_key: PublicKeyBytes,
        address: PeerAddress = "",
    ) -> Approval:
        """Approve that a node joins as an observer, or that a removed one comes back.

        ``vote_key`` (compressed P-256, 33 bytes) must never have been used; ``address`` is where others reach it,
        HOST:PORT or empty.
        Fails with ``unknown_organisation``, ``organisation_suspended``, ``node_exists``, ``key_used`` or ``bad_key``.
        """
        _active_organisation(context, organisation)
        old: NodeRecord | None = context.state.get(f"node/{node}")
        comes_back = old is not None and old["status"] == REMOVED and old["organisation"] == organisation
        context.require(old is None or comes_back, "node_exists")
        _check_new_vote_key(context, vote_key)
        arguments = {"address": address, "node": node, "organisation": organisation, "voteKey": vote_key}
        approval = _approve(context, "admit_node", arguments)
        if approval["done"]:
            revoked = [] if old is None else old["revoked"]
            context.state.put(f"node/{node}", _new_node(organisation, vote_key, OBSERVER, address, revoked))
            context.state.put(f"vote-key/{vote_key.hex()}", node)
            context.emit("node_admitted", node=node, organisation=organisation, voteKey=vote_key)
        return approval

    @method
    def remove_node(self, context: Context, node: NodeName) -> Approval:
        """Approve that a node leaves: it votes no more from the next block on and may not connect.

        Fails with ``unknown_node``, ``node_state`` where it was removed before, or ``last_validator``.
        """
        record = _node(context, node)
        context.require(record["status"] != REMOVED, "node_state", "the node was removed before")
        staying = [item for item in _validators(context) if item.name != node]
        context.require(staying, "last_validator", "the chain needs one validator at least")
        approval = _approve(context, "remove_node", {"node": node})
        if approval["done"]:
            if record["status"] == VALIDATOR:
                _put_validators(context, staying)
            context.state.put(f"node/{node}", {**record, "status": REMOVED})
            context.emit("node_removed", node=node)
        return approval

    @method
    def withdraw_approval(self, context: Context, proposal: HashBytes) -> None:
        """Take back an approval of the calling admin's organisation; ``proposal`` is the hash of an open one, 32 bytes.

        Fails with ``unknown_proposal``.
        """
        organisation = _admin(context).organisation
        _withdraw(context, organisation, proposal)
        context.emit("approval_withdrawn", proposal=proposal, organisation=organisation)

    @method
    def seat_node(self, context: Context, node: NodeName, height: BlockNumber, proof: SignatureBytes) -> None:
        """Let an observer of the calling admin's organisation vote from the next block on.

        ``proof`` is the signature of ``seat_payload(node, vote key, height)`` by the node's vote key, ``height`` a
        block it has reached, at most 1,000 blocks ago.
        Fails with ``not_allowed``, ``unknown_node``, ``node_state``, ``bad_proof``, ``height_out_of_range`` or
        ``too_many_validators``.
        """
        record = _own_node(context, node)
        context.require(record["status"] == OBSERVER, "node_state", f"the node is {record['status']}")
        _check_proof(context, node, record["voteKey"], height, proof)
        validators = _validators(context)
        context.require(len(validators) < VALIDATORS_MAX, "too_many_validators", f"at most {VALIDATORS_MAX} vote")
        _put_validators(context, [*validators, Validator(node, record["organisation"], record["voteKey"])])
        context.state.put(f"node/{node}", {**record, "status": VALIDATOR})
        context.emit("node_seated", node=node, voteKey=record["voteKey"])

    @method
    def replace_key(
        self, context: Context, node: NodeName, vote_key: PublicKeyBytes, height: BlockNumber, proof: SignatureBytes
    ) -> None:
        """Give a node a vote key never used before (compressed P-256, 33 bytes), from the next block on.

        The node, of the calling admin's organisation, keeps its seat. ``proof`` and ``height`` as in ``seat_node``,
        by the new key. Fails with ``not_allowed``, ``unknown_node``, ``node_state``, ``key_used``, ``bad_key``,
        ``bad_proof``, ``height_out_of_range`` or ``too_many_key_changes``: 8 in 10,000 blocks.
        """
        record = _own_node(context, node)
        context.require(record["status"] != REMOVED, "node_state", "the node was removed")
        _count_key_change(context, node)
        _check_new_vote_key(context, vote_key)
        _check_proof(context, node, vote_key, height, proof)
        if record["status"] == VALIDATOR:
            others = [item for item in _validators(context) if item.name != node]
            _put_validators(context, [*others, Validator(node, record["organisation"], vote_key)])
        context.state.put(f"node/{node}", {**record, "voteKey": vote_key})
        context.state.put(f"vote-key/{vote_key.hex()}", node)
        context.emit("key_replaced", node=node, voteKey=vote_key)

    @method
    def revoke_certificate(self, context: Context, node: NodeName, fingerprint: HashBytes) -> None:
        """Let nobody connect with a TLS certificate of a node any more; ``fingerprint`` is its SHA-256, 32 bytes.

        The node is of the calling admin's organisation. Once more changes nothing.
        Fails with ``not_allowed``, ``unknown_node`` or ``too_many_revoked``.
        """
        record = _own_node(context, node)
        if fingerprint in record["revoked"]:
            return
        context.require(len(record["revoked"]) < REVOKED_MAX, "too_many_revoked", f"at most {REVOKED_MAX} a node")
        context.state.put(f"node/{node}", {**record, "revoked": [*record["revoked"], fingerprint]})
        context.emit("certificate_revoked", node=node, fingerprint=fingerprint)

    @query
    def account(self, context: Context, account: AccountAddress) -> dict[str, Value]:
        """Return {account, name, organisation, publicKey, roles, status}, or fail with ``unknown_account``."""
        record = context.account(account)
        if record is None:
            raise Revert("unknown_account")
        return {**record.value(), "account": account}

    @query
    def accounts(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` accounts whose names are ``start`` or come after it, in order; as ``account``."""
        entries = context.state.scan(NAME_PREFIX, NAME_PREFIX + start, limit)
        return [self.account(context, address) for _, address in entries]

    @query
    def organisation(self, context: Context, organisation: Name) -> dict[str, Value]:
        """Return {organisation, roles, rootCertificate (PEM), status}, or fail with ``unknown_organisation``."""
        return {**_organisation(context, organisation), "organisation": organisation}

    @query
    def organisations(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` organisations whose names are ``start`` or come after it; as ``organisation``."""
        entries = context.state.scan("organisation/", f"organisation/{start}", limit)
        return [{**record, "organisation": key[13:]} for key, record in entries]

    @query
    def node(self, context: Context, node: NodeName) -> dict[str, Value]:
        """Return {node, organisation, voteKey (33 bytes), status, address, revoked}, or fail with ``unknown_node``."""
        return _node_map(node, _node(context, node))

    @query
    def nodes(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` nodes whose names are ``start`` or come after it, in order; as ``node``."""
        return [_node_map(key[5:], record) for key, record in context.state.scan("node/", f"node/{start}", limit)]

    @query
    def proposals(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` open proposals from the hash ``start`` (in hex) on.

        Each is {proposal (32 bytes), method, arguments, approvals: [organisation], counted, needed}; ``counted`` of
        the approvals are by organisations that hold a validator at present.
        """
        seated = _seated(context)
        page: list[Value] = []
        for key, record in context.state.scan("approval/", f"approval/{start}", limit):
            counted = len([item for item in record["approvals"] if item in seated])
            needed = quorum_of(len(seated))
            page.append({**record, "proposal": bytes.fromhex(key[9:]), "counted": counted, "needed": needed})
        return page

    @query
    def validators(self, context: Context) -> list[Value]:
        """Return who votes on the next block, as {node, organisation, voteKey (33 bytes)}, in order of their names."""
        voters = _validators(context)
        return [{"node": item.name, "organisation": item.organisation, "voteKey": item.vote_key} for item in voters]


def _organisation(context: Context, organisation: str) -> dict[str, Any]:
    record: dict[str, Any] | None = context.state.get(f"organisation/{organisation}")
    if record is None:
        raise Revert("unknown_organisation")
    return record


def _new_organisation(roles: list[str], root_certificate: str) -> dict[str, Any]:
    return {"roles": [*roles], "rootCertificate": root_certificate, "status": ACTIVE}


def _active_organisation(context: Context, organisation: str) -> dict[str, Any]:
    record = _organisation(context, organisation)
    context.require(record["status"] == ACTIVE, "organisation_suspended")
    return record


def _admin(context: Context) -> AccountRecord:
    """Return the caller's record, if it is an admin's whose organisation is active."""
    record = context.account(context.caller)
    if record is None or ADMIN_ROLE not in record.roles:
        raise Revert("not_allowed", "needs the role admin")
    _active_organisation(context, record.organisation)
    return record


def _kept_account(context: Context, account: bytes) -> AccountRecord:
    """Return the record of an account that the caller keeps as its organisation's admin."""
    admin = _admin(context)
    record = context.account(account)
    if record is None:
        raise Revert("unknown_account")
    context.require(record.organisation == admin.organisation, "not_allowed", "an account of another organisation")
    return record


def _granted_roles(context: Context, admin: AccountRecord, roles: list[str]) -> list[str]:
    """Return the roles in order, each once, if the admin may give them all."""
    held = [*admin.roles, *_organisation(context, admin.organisation)["roles"]]
    granted: dict[str, bool] = {}
    for role in sorted(roles):
        context.require(role in held, "role_not_allowed", f"neither the admin nor its organisation holds {role}")
        granted[role] = True
    return [*granted]


def _register(context: Context, admin: AccountRecord, name: str, public_key: bytes, roles: list[str]) -> bytes:
    address = context.address_of(public_key)
    context.require(context.state.get(NAME_PREFIX + name) is None, "name_taken")
    context.require(context.account(address) is None, "account_exists")
    _refuse_vote_key(context, public_key)
    record = AccountRecord(name, admin.organisation, public_key, roles, ACTIVE)
    context.state.put(ACCOUNT_PREFIX + address.hex(), record.value())
    context.state.put(NAME_PREFIX + name, address)
    context.emit("account_registered", account=address, name=name, organisation=admin.organisation)
    return address


def _set_status(context: Context, account: bytes, status: str) -> None:
    record = _kept_account(context, account)
    changed = AccountRecord(record.name, record.organisation, record.public_key, record.roles, status)
    context.state.put(ACCOUNT_PREFIX + account.hex(), changed.value())
    context.emit("account_status", account=account, status=status)


def _node(context: Context, node: str) -> NodeRecord:
    record: NodeRecord | None = context.state.get(f"node/{node}")
    if record is None:
        raise Revert("unknown_node")
    return record


def _node_map(node: str, record: NodeRecord) -> dict[str, Value]:
    fields: dict[str, Any] = {**record, "node": node}
    return fields


def _own_node(context: Context, node: str) -> NodeRecord:
    """Return the record of a node that the caller's organisation runs, if the caller may act for it."""
    admin = _admin(context)
    record = _node(context, node)
    context.require(record["organisation"] == admin.organisation, "not_allowed", "a node of another organisation")
    return record


def _new_node(organisation: str, vote_key: bytes, status: str, address: str, revoked: list[bytes]) -> NodeRecord:
    return NodeRecord(organisation=organisation, voteKey=vote_key, status=status, address=address, revoked=revoked)


def _validators(context: Context) -> list[Validator]:
    """Return who votes on the next block, in order of their names."""
    return [*decode_validators_untrusted(context.state.get("validators")).validators]


def _put_validators(context: Context, validators: list[Validator]) -> None:
    context.state.put("validators", ValidatorSet.of(validators).encode())


def _seated(context: Context) -> list[str]:
    """Return the organisations that hold a validator: those whose approvals count."""
    return [*{item.organisation: True for item in _validators(context)}]


def _refuse_vote_key(context: Context, public_key: bytes) -> None:
    is_used = context.state.get(f"vote-key/{public_key.hex()}") is not None
    context.require(not is_used, "key_used", "a node votes, or has voted, with this key")


def _check_new_vote_key(context: Context, vote_key: bytes) -> None:
    is_account = context.account(context.address_of(vote_key)) is not None
    context.require(not is_account, "key_used", "an account has this key")
    _refuse_vote_key(context, vote_key)


def _count_key_change(context: Context, node: str) -> None:
    key = f"key-changes/{node}"
    recent = [item for item in context.state.get(key) or [] if item > context.height - KEY_CHANGES_BLOCKS]
    is_often = len(recent) >= KEY_CHANGES_MAX
    context.require(not is_often, "too_many_key_changes", f"at most {KEY_CHANGES_MAX} in {KEY_CHANGES_BLOCKS} blocks")
    context.state.put(key, [*recent, context.height])


def _check_proof(context: Context, node: str, vote_key: bytes, height: int, proof: bytes) -> None:
    """Check that the node holds its key and has reached a recent height."""
    is_recent = context.height - PROOF_BLOCKS_MAX <= height < context.height
    context.require(is_recent, "height_out_of_range", f"this is block {context.height}")
    payload = seat_payload(node, vote_key, height)
    context.require(context.verifies(vote_key, proof, Purpose.SEAT, payload), "bad_proof", "not signed by the vote key")


def _check_new_organisation(
    context: Context, organisation: str, old: dict[str, Any] | None, root_certificate: str, admin_key: bytes
) -> None:
    """Check that a name is free for an organisation, or its own again; and that its keys are new."""
    address = context.address_of(admin_key)
    context.require(context.account(address) is None, "account_exists")
    _refuse_vote_key(context, admin_key)
    holder = context.account_named(organisation)
    account = None if holder is None else context.account(holder)
    if old is None:
        context.require(holder is None, "name_taken", "an account has the organisation's name")
        return
    context.require(old["status"] == SUSPENDED, "organisation_exists")
    is_own = account is None or account.organisation == organisation
    context.require(is_own, "name_taken", "another organisation's account has the organisation's name")
    context.require(old["rootCertificate"] != root_certificate, "key_used", "it comes back with a new root")
    is_new = account is None or account.public_key != admin_key
    context.require(is_new, "key_used", "it comes back with a new key of its admin")


def _install_admin(context: Context, organisation: str, admin_key: bytes) -> None:
    """Give the organisation's account of the same name this key and the role admin."""
    address = context.account_named(organisation) or context.address_of(admin_key)
    old = context.account(address)
    roles = [] if old is None else [role for role in old.roles if role != ADMIN_ROLE]
    record = AccountRecord(organisation, organisation, admin_key, [ADMIN_ROLE, *roles], ACTIVE)
    context.state.put(ACCOUNT_PREFIX + address.hex(), record.value())
    context.state.put(NAME_PREFIX + organisation, address)


def _approve(context: Context, kind: str, arguments: dict[str, Any]) -> Approval:
    """Count the approval of the caller's organisation; once a quorum approves, close the proposal.

    Approving again only counts again: organisations may have gained or lost their seats.
    """
    organisation = _admin(context).organisation
    seated = _seated(context)
    context.require(organisation in seated, "not_allowed", "only organisations that hold a validator approve")
    proposal = context.hash(kind, arguments)
    key = f"approval/{proposal.hex()}"
    record: ProposalRecord | None = context.state.get(key)
    approvals = [] if record is None else record["approvals"]
    if organisation not in approvals:
        behind: list[bytes] = context.state.get(f"approved/{organisation}") or []
        is_full = len(behind) >= PROPOSALS_PER_ORGANISATION_MAX
        context.require(not is_full, "too_many_proposals", "the organisation must withdraw an approval first")
        context.state.put(f"approved/{organisation}", [*behind, proposal])
        approvals.append(organisation)
    counted = len([item for item in approvals if item in seated])
    needed = quorum_of(len(seated))
    context.state.put(key, ProposalRecord(method=kind, arguments=arguments, approvals=approvals))
    if counted >= needed:
        _close(context, proposal)
    standing: Approval = {"proposal": proposal, "approvals": counted, "needed": needed}
    context.emit("approved", method=kind, organisation=organisation, **standing)
    return {**standing, "done": counted >= needed}


def _close(context: Context, proposal: bytes) -> None:
    """Forget an open proposal and who stands behind it: it has taken effect, or has become void."""
    key = f"approval/{proposal.hex()}"
    record: ProposalRecord | None = context.state.get(key)
    if record is not None:
        context.state.delete(key)
        for item in record["approvals"]:
            _leave(context, item, proposal)


def _withdraw(context: Context, organisation: str, proposal: bytes) -> None:
    key = f"approval/{proposal.hex()}"
    record: ProposalRecord | None = context.state.get(key)
    if record is None or organisation not in record["approvals"]:
        raise Revert("unknown_proposal", "the organisation stands behind no such open proposal")
    record["approvals"].remove(organisation)
    if record["approvals"]:
        context.state.put(key, record)
    else:
        context.state.delete(key)
    _leave(context, organisation, proposal)


def _leave(context: Context, organisation: str, proposal: bytes) -> None:
    """Forget that an organisation stands behind a proposal."""
    key = f"approved/{organisation}"
    behind = [item for item in context.state.get(key) or [] if item != proposal]
    if behind:
        context.state.put(key, behind)
    else:
        context.state.delete(key)


def genesis_records(genesis: Genesis) -> dict[str, Value]:
    """Return this contract's state before block 1, text key → value, as the genesis document says.

    Accounts of the document have the roles it gives them: all members agreed on it.
    """
    records: dict[str, Any] = {"validators": genesis.validator_set().encode()}
    for organisation in genesis.organisations:
        record = _new_organisation(organisation.roles, organisation.root_certificate)
        records[f"organisation/{organisation.name}"] = record
    for node in genesis.validators:
        records[f"node/{node.name}"] = _new_node(node.organisation, bytes.fromhex(node.vote_key), VALIDATOR, "", [])
        records[f"vote-key/{node.vote_key}"] = node.name
    for account in genesis.accounts:
        public_key = bytes.fromhex(account.public_key)
        registered = AccountRecord(account.name, account.organisation, public_key, account.roles, ACTIVE)
        records[ACCOUNT_PREFIX + account.address.hex()] = registered.value()
        records[NAME_PREFIX + account.name] = account.address
    return records
