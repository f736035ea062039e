"""The default consortium: who its members are, and the genesis document they start from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consensus.ledger.errors import LocalError
from consensus.ledger.genesis import Account, Activation, Genesis, GenesisValidator, Organisation
from consensus.ledger.keys import PublicKey
from consensus.ledger.validators import VALIDATORS_MAX
from contracts.runtime.registry import Registry

ADMIN = "admin"
"""Role of the account that registers and suspends accounts of its own organisation."""


@dataclass(frozen=True, slots=True)
class Member:
    """An organisation with its roles, and the account of the same name with its own."""

    name: str
    roles: tuple[str, ...]
    account_roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Person:
    """An account that belongs to another member's organisation."""

    name: str
    organisation: str
    roles: tuple[str, ...]


VALIDATORS = (
    Member("bank-a", ("bank",), ("sales", "unit-issuer")),
    Member("issuer-c", ("issuer",), ("issuer", "unit-issuer")),
    Member("issuer-f", ("issuer",), ("issuer", "unit-issuer")),
    Member("permission", ("permission",), ("permission",)),
)
"""Members with a node, in the order in which ports are given."""

OTHERS = (
    Member("issuer-d", ("issuer",), ("issuer", "unit-issuer")),
    Member("merchant-m", ("merchant",), ("merchant",)),
    Member("shop", ("platform",), ("business-server",)),
    Member("wallet-p", ("payment",), ("wallet",)),
    Member("wallet-q", ("payment",), ("wallet",)),
)
"""Members without a node."""

PERSONS = (
    Person("user-b", "wallet-p", ("user",)),
    Person("user-e", "wallet-q", ("user",)),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Who takes part in a network."""

    name: str
    validators: tuple[Member, ...]
    others: tuple[Member, ...]
    persons: tuple[Person, ...]

    @property
    def organisations(self) -> tuple[Member, ...]:
        """All members, by name."""
        return tuple(sorted((*self.validators, *self.others), key=lambda member: member.name))

    @property
    def accounts(self) -> tuple[Person, ...]:
        """All accounts, by name; every member's own is its admin."""
        own = [Person(member.name, member.name, (ADMIN, *member.account_roles)) for member in self.organisations]
        return tuple(sorted((*own, *self.persons), key=lambda account: account.name))


def default_plan(*, validators: int = len(VALIDATORS), name: str = "hansa-local") -> Plan:
    """Return the default consortium with this many validators.

    Up to four are the first of :data:`VALIDATORS`, the rest of those then being members without a node;
    beyond four, ``member-05``, ``member-06``, … join.

    Raises:
        LocalError: ``bad_validators`` outside 1…100.
    """
    if not 1 <= validators <= VALIDATORS_MAX:
        raise LocalError("bad_validators", f"a network has 1 to {VALIDATORS_MAX} validators, not {validators}")
    more = tuple(Member(f"member-{number:02d}", ("member",)) for number in range(len(VALIDATORS) + 1, validators + 1))
    return Plan(name, VALIDATORS[:validators] + more, VALIDATORS[validators:] + OTHERS, PERSONS)


def activations_of(registry: Registry) -> list[Activation]:
    """Return what activates the newest version of every contract of a registry."""
    return [Activation(item.name, item.version, item.code_hash.hex()) for item in registry.newest()]


def make_genesis(
    plan: Plan,
    *,
    time_ms: int,
    roots: Mapping[str, bytes],
    vote_keys: Mapping[str, PublicKey],
    account_keys: Mapping[str, PublicKey],
    activations: Sequence[Activation],
) -> Genesis:
    """Return the genesis document of a plan.

    Args:
        plan: who takes part.
        time_ms: time of block 0, ms since 1970 UTC.
        roots: each organisation's root certificate, PEM.
        vote_keys: each validator's key for votes.
        account_keys: each account's key.
        activations: the contracts that are active from the first block on.
    """
    return Genesis(
        name=plan.name,
        time_ms=time_ms,
        organisations=[
            Organisation(member.name, list(member.roles), roots[member.name].decode()) for member in plan.organisations
        ],
        validators=[
            GenesisValidator(member.name, member.name, vote_keys[member.name].compressed.hex())
            for member in sorted(plan.validators, key=lambda member: member.name)
        ],
        accounts=[
            Account(
                account.name, account.organisation, account_keys[account.name].compressed.hex(), list(account.roles)
            )
            for account in plan.accounts
        ],
        contracts=list(activations),
    )
