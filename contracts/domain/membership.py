"""Who belongs to the consortium: organisations, their nodes and accounts, and the validator set.

All organisations agree on the genesis document, and with it on the roles that each organisation holds.
From then on every organisation keeps its own accounts: an account with the role ``admin`` registers,
suspends and resumes accounts of its own organisation and of no other, and gives them roles out of those
that the organisation or the admin itself holds. So no admin can make more of an account than the
members agreed to. An account's address is made from its first key and never changes; its name is unique
on the chain; it is never removed, only suspended, so that whatever names it keeps its meaning.

State, under ``membership/``:

- ``organisation/NAME`` = {roles, rootCertificate (PEM), status}
- ``node/NAME`` = {organisation, voteKey (33 bytes)}
- ``account/ADDRESS`` = an account's record as in ``contracts.runtime.accounts``; ``name/NAME`` = its address
- ``validators`` = the bytes of the validator set of the next height, as ``ValidatorSet.encode`` makes them
"""

from typing import Annotated, Any

import msgspec

from consensus.ledger.genesis import Genesis
from consensus.ledger.validators import decode_validators_untrusted
from contracts.runtime.accounts import ACCOUNT_PREFIX, ACTIVE, NAME_PREFIX, SUSPENDED, AccountRecord
from contracts.runtime.contract import AccountAddress, Context, Contract, Name, Revert, Value, method, query

ADMIN_ROLE = "admin"
"""The role of an account that keeps the accounts of its organisation."""

ACCOUNTS_PER_CALL_MAX = 200

AccountName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
PublicKeyBytes = Annotated[bytes, msgspec.Meta(min_length=33, max_length=33)]
Roles = Annotated[list[Name], msgspec.Meta(max_length=16)]
NewAccounts = Annotated[dict[AccountName, PublicKeyBytes], msgspec.Meta(min_length=1, max_length=ACCOUNTS_PER_CALL_MAX)]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=100)]


class Membership(Contract):
    """Organisations, nodes and accounts of the consortium, and who of them votes."""

    name = "membership"
    version = 1

    @method
    def register_account(
        self, context: Context, name: AccountName, public_key: PublicKeyBytes, roles: Roles | None = None
    ) -> bytes:
        """Register an account of the caller's organisation; return its address, 20 bytes.

        The caller needs the role ``admin``. ``public_key`` is a compressed P-256 key, 33 bytes. Each of ``roles``
        must be one that the caller or its organisation holds.
        Fails with ``not_allowed``, ``role_not_allowed``, ``bad_key``, ``name_taken`` or ``account_exists``.
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
        """Keep an account of the caller's organisation from sending transactions; what it holds stays its own.

        The caller needs the role ``admin``, and cannot suspend itself, so that an organisation keeps an admin.
        Fails with ``not_allowed`` or ``unknown_account``.
        """
        context.require(account != context.caller, "not_allowed", "an admin cannot suspend itself")
        _set_status(context, account, SUSPENDED)

    @method
    def resume_account(self, context: Context, account: AccountAddress) -> None:
        """Let a suspended account of the caller's organisation send transactions again.

        The caller needs the role ``admin``. Fails with ``not_allowed`` or ``unknown_account``.
        """
        _set_status(context, account, ACTIVE)

    @method
    def rotate_key(
        self, context: Context, new_public_key: PublicKeyBytes, account: AccountAddress | None = None
    ) -> None:
        """Replace the key that signs for the caller, or, by an admin, for an account of its organisation.

        The address stays. ``new_public_key`` is a compressed P-256 key, 33 bytes; it counts from the next block on.
        Fails with ``bad_key``, ``not_allowed`` or ``unknown_account``.
        """
        context.address_of(new_public_key)
        address = context.caller
        record = context.account(address)
        if account is not None and account != context.caller:
            address = account
            record = _kept_account(context, account)
        if record is None:
            raise Revert("unknown_account")
        rotated = AccountRecord(record.name, record.organisation, new_public_key, record.roles, record.status)
        context.state.put(ACCOUNT_PREFIX + address.hex(), rotated.value())
        context.emit("key_rotated", account=address, publicKey=new_public_key)

    @query
    def account(self, context: Context, account: AccountAddress) -> dict[str, Value]:
        """Return an account's {account, name, organisation, publicKey, roles, status}.

        Fails with ``unknown_account``.
        """
        record = context.account(account)
        if record is None:
            raise Revert("unknown_account")
        return {**record.value(), "account": account}

    @query
    def accounts(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` accounts whose names are ``start`` or come after it, in order; as ``account``."""
        page: list[Value] = []
        for _, address in context.state.scan(NAME_PREFIX, NAME_PREFIX + start, limit):
            page.append(self.account(context, address))
        return page

    @query
    def organisation(self, context: Context, organisation: Name) -> dict[str, Value]:
        """Return an organisation's {organisation, roles, rootCertificate (PEM), status}.

        Fails with ``unknown_organisation``.
        """
        return {**_organisation(context, organisation), "organisation": organisation}

    @query
    def organisations(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` organisations whose names are ``start`` or come after it; as ``organisation``."""
        return [
            {**record, "organisation": key[13:]}
            for key, record in context.state.scan("organisation/", f"organisation/{start}", limit)
        ]

    @query
    def nodes(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` nodes, {node, organisation, voteKey (33 bytes)}, in order of their names."""
        return [{**record, "node": key[5:]} for key, record in context.state.scan("node/", f"node/{start}", limit)]

    @query
    def validators(self, context: Context) -> list[Value]:
        """Return who votes on the next block, as {node, organisation, voteKey (33 bytes)}, in order of their names."""
        validators = decode_validators_untrusted(context.state.get("validators"))
        return [
            {"node": validator.name, "organisation": validator.organisation, "voteKey": validator.vote_key}
            for validator in validators.validators
        ]


def _organisation(context: Context, organisation: str) -> dict[str, Any]:
    record: dict[str, Any] | None = context.state.get(f"organisation/{organisation}")
    if record is None:
        raise Revert("unknown_organisation")
    return record


def _admin(context: Context) -> AccountRecord:
    """Return the caller's record, if it is an admin's."""
    record = context.account(context.caller)
    if record is None or ADMIN_ROLE not in record.roles:
        raise Revert("not_allowed", "needs the role admin")
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
    granted: list[str] = []
    for role in sorted(roles):
        context.require(role in held, "role_not_allowed", f"neither the admin nor its organisation holds {role}")
        if role not in granted:
            granted.append(role)
    return granted


def _register(context: Context, admin: AccountRecord, name: str, public_key: bytes, roles: list[str]) -> bytes:
    address = context.address_of(public_key)
    context.require(context.state.get(NAME_PREFIX + name) is None, "name_taken")
    context.require(context.account(address) is None, "account_exists")
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


def genesis_records(genesis: Genesis) -> dict[str, Value]:
    """Return this contract's state before block 1, text key → value, as the genesis document says.

    Accounts of the document have the roles it gives them: all members agreed on it.
    """
    records: dict[str, Value] = {"validators": genesis.validator_set().encode()}
    for organisation in genesis.organisations:
        roles: list[Value] = [*organisation.roles]
        records[f"organisation/{organisation.name}"] = {
            "roles": roles,
            "rootCertificate": organisation.root_certificate,
            "status": ACTIVE,
        }
    for node in genesis.validators:
        records[f"node/{node.name}"] = {
            "organisation": node.organisation,
            "voteKey": bytes.fromhex(node.vote_key),
        }
    for account in genesis.accounts:
        public_key = bytes.fromhex(account.public_key)
        record = AccountRecord(account.name, account.organisation, public_key, account.roles, ACTIVE)
        records[ACCOUNT_PREFIX + account.address.hex()] = record.value()
        records[NAME_PREFIX + account.name] = account.address
    return records
