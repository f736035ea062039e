"""A test chain of banks and issuers, and what they sign on it, with keys that are made from numbers."""

from dataclasses import dataclass
from typing import Any

from consensus.ledger.codec import encode
from consensus.ledger.cooperation import FIRST_ANSWER, agreement_hash, answer_hash, orders_hash, terms_hash
from consensus.ledger.genesis import Account, Activation, Genesis, GenesisValidator, Organisation
from consensus.ledger.ids import Hash
from consensus.ledger.keys import PrivateKey, Purpose
from contracts.runtime.registry import Registry
from contracts.runtime.state import MemoryState
from tests.contracts.domain.support import Door, shared_registry
from tests.contracts.support import START_MS, Chain

DAY_MS = 24 * 3_600 * 1_000
GRACE_MS = 60_000
ROLES = {
    "bank-a": "sales",
    "bank-b": "sales",
    "issuer-c": "issuer",
    "issuer-d": "issuer",
    "issuer-f": "issuer",
    "permission": "permission",
}
"""Organisations and the role of the account of each one's name, which is its admin."""
NODES = {"bank-a": "bank-a", "bank-b": "bank-b", "issuer-c": "issuer-c", "issuer-f": "issuer-f", "spare-a": "bank-a"}
"""Nodes and their organisations; issuer-d has none."""
TERMS = {
    "kinds": ["022", "024"],
    "ageMin": 18,
    "needsIdentity": True,
    "needsRegistration": True,
    "needsRiskMatch": True,
    "amountMin": 100,
    "amountMax": 0,
}


def key(number: int) -> PrivateKey:
    """Return the key that a number stands for."""
    return PrivateKey.from_secret(20_000 + number)


ACCOUNT_KEYS = {name: key(index) for index, name in enumerate([*ROLES, "clerk-a"])}
"""Every organisation's account, and one of bank-a that has no role."""
VOTE_KEYS = {name: key(50 + index) for index, name in enumerate(NODES)}
BUSINESS = {name: key(100 + index) for index, name in enumerate(ROLES)}
"""The business keys that parties register at first."""
CHANNEL = {name: key(200 + index) for index, name in enumerate(ROLES)}


def agency_genesis(registry: Registry) -> Genesis:
    """Return the document of these organisations, nodes and accounts."""
    accounts = [(name, name, ["admin", role]) for name, role in ROLES.items()]
    return Genesis(
        name="agency",
        time_ms=START_MS,
        organisations=[Organisation(name, [role], "PEM") for name, role in ROLES.items()],
        validators=[
            GenesisValidator(node, owner, VOTE_KEYS[node].public.compressed.hex()) for node, owner in NODES.items()
        ],
        accounts=[
            Account(name, owner, ACCOUNT_KEYS[name].public.compressed.hex(), roles)
            for name, owner, roles in [*accounts, ("clerk-a", "bank-a", [])]
        ],
        contracts=[Activation(item.name, item.version, item.code_hash.hex()) for item in registry.newest()],
    )


@dataclass
class AgencyChain(Chain):
    """A chain that begins with banks, issuers and the permission node."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.genesis = agency_genesis(self.registry)
        self.chain_id = self.genesis.chain_id()
        self.state = MemoryState()
        self.state.apply(self.executor.genesis_writes(self.genesis))
        self.keys = dict(ACCOUNT_KEYS)


class Agency(Door):
    """The cooperation contract of such a chain, ``evidence`` beside it, and the parties' signatures."""

    def __init__(self) -> None:
        super().__init__("cooperation", AgencyChain(shared_registry()))
        self.evidence = Door("evidence", self.chain)
        self.business = dict(BUSINESS)

    # -- signatures --------------------------------------------------------------------------------------

    def sign(self, who: str, purpose: Purpose, payload: Hash) -> bytes:
        """Sign with the present business key of an organisation."""
        return self.business[who].sign(purpose, self.chain.chain_id, payload)

    def agreement(
        self,
        number: str = "1",
        bank: str = "bank-a",
        issuers: tuple[str, ...] = ("issuer-c",),
        *,
        begins_in_ms: int = 0,
        days: int = 30,
    ) -> Any:
        """Return the arguments of ``apply`` for an agreement that all have signed; it ends in so many days."""
        fields: dict[str, Any] = {
            "number": number,
            "issuers": [*issuers],
            "document": bytes(32),
            "valid_from_ms": self.chain.time_ms + begins_in_ms,
            "valid_until_ms": self.chain.time_ms + days * DAY_MS,
            "grace_ms": GRACE_MS,
        }
        agreed = agreement_hash(bank=bank, **fields)
        signatures = {name: self.sign(name, Purpose.AGREEMENT, agreed) for name in (bank, *issuers)}
        return {**fields, "signatures": signatures}

    def terms(self, who: str, version: int = 1, subject: str = "product:000198", **changed: Any) -> Any:
        """Return the arguments of ``propose_terms`` between bank-a and issuer-c, signed by one of them."""
        times = {name: changed.pop(name) for name in ("effective_ms", "expires_ms") if name in changed}
        fields: dict[str, Any] = {
            "bank": "bank-a",
            "issuer": "issuer-c",
            "subject": subject,
            "terms": {**TERMS, **changed},
            "effective_ms": START_MS,
            "expires_ms": START_MS + 365 * DAY_MS,
            **times,
        }
        return {**fields, "signature": self.sign(who, Purpose.TERMS, terms_hash(version=version, **fields))}

    def anchor(self, root: bytes, *, signed: str = "both", **changed: Any) -> Any:
        """Return the arguments of ``anchor`` for a package of bank-a and issuer-c.

        ``signed`` is ``both``, ``bank`` or ``issuer``; ``changed`` says epoch, count, round_number, outcome_root,
        previous otherwise.
        """
        ours = {"bank": "bank-a", "issuer": "issuer-c", "epoch": 1, "root": root}
        ours |= {name: changed[name] for name in ("bank", "issuer", "epoch") if name in changed}
        count: Any = changed.get("count", 1_000)
        answer: dict[str, Any] = {"round_number": 0, "outcome_root": b"o" * 32, "previous": FIRST_ANSWER}
        answer |= {name: changed[name] for name in answer if name in changed}
        if signed == "bank":
            answer = {"round_number": 0, "outcome_root": b"", "previous": b""}
        statement: Any = ours
        orders = self.sign(statement["bank"], Purpose.ORDERS, orders_hash(**statement, count=count))
        confirmed = self.sign(statement["issuer"], Purpose.ANSWER, answer_hash(**statement, **answer))
        return {
            **ours,
            **answer,
            "count": count,
            "orders_signature": b"" if signed == "issuer" else orders,
            "answer_signature": b"" if signed == "bank" else confirmed,
        }

    # -- steps -------------------------------------------------------------------------------------------

    def register(self, *names: str) -> None:
        """Register parties with the node of their name and their first keys."""
        for name in names:
            self.call(name, "register_party", **self.party(name))

    def party(self, name: str, node: str = "") -> Any:
        """Return the arguments of ``register_party`` with an organisation's present business key."""
        channel_key = CHANNEL[name].public.compressed
        business_key = self.business[name].public.compressed
        return {"node": node or name, "business_key": business_key, "channel_key": channel_key}

    def rotate(self, name: str, number: int) -> None:
        """Give a party the business key of a number."""
        self.business[name] = key(number)
        self.call(name, "register_party", **self.party(name))

    def open(
        self, number: str = "1", bank: str = "bank-a", issuers: tuple[str, ...] = ("issuer-c",), *, days: int = 30
    ) -> bytes:
        """Apply with an agreement and let the permission desk open its channels; return the application's id."""
        application: bytes = self.call(bank, "apply", **self.agreement(number, bank, issuers, days=days))
        self.call("permission", "open_channels", application=application)
        return application

    def offer(self, product: str = "000198", **changed: Any) -> None:
        """Let issuer-c set a product of its interface ``C-FUNDS``."""
        fields = {"product_type": "money-market", "risk": 1, "currency": "156", "charge_basis_points": 0}
        fields |= {"is_open": True, "interface": "C-FUNDS", **changed}
        self.call("issuer-c", "set_product", product=product, **fields)

    def enact(self, version: int = 1, subject: str = "product:000198", **changed: Any) -> bytes:
        """Let bank-a propose terms, issuer-c accept and the permission desk enact them; return the proposal's id."""
        proposal: bytes = self.call("bank-a", "propose_terms", **self.terms("bank-a", version, subject, **changed))
        self.call("issuer-c", "accept_terms", proposal=proposal, signature=self.sign_terms("issuer-c", proposal))
        self.call("permission", "enact_terms", proposal=proposal)
        return proposal

    def sign_terms(self, who: str, proposal: bytes) -> bytes:
        """Return a party's signature of proposed terms."""
        return self.sign(who, Purpose.TERMS, Hash(proposal))

    def put_anchor(self, who: str, root: bytes, **said: Any) -> Any:
        """Let somebody anchor; return the result."""
        return self.evidence.call(who, "anchor", **self.anchor(root, **said))

    def pass_ms(self, time_ms: int) -> None:
        """Let block time pass."""
        self.chain.time_ms += time_ms

    def signers(self) -> Any:
        """Return epoch and accepted keys of the channel of bank-a and issuer-c."""
        return self.query("signers", bank="bank-a", issuer="issuer-c")

    def channel(self, issuer: str = "issuer-c") -> Any:
        """Return a channel of bank-a."""
        return self.query("channel", bank="bank-a", issuer=issuer)


def make_agency() -> Agency:
    """Return a chain where all with a node are parties and issuer-c offers 000198, with no channel yet."""
    agency = Agency()
    agency.register("bank-a", "bank-b", "issuer-c", "issuer-f")
    agency.call("issuer-c", "set_interface", interface="C-FUNDS", node="issuer-c")
    agency.offer()
    return agency


def play_agency() -> bytes:
    """Let the parties come together, trade and part; return the chain's whole state, encoded."""
    agency = make_agency()
    agency.open(issuers=("issuer-c", "issuer-f"))
    agency.enact()
    agency.put_anchor("bank-a", b"r" * 32, signed="bank")
    agency.put_anchor("issuer-c", b"r" * 32)
    agency.rotate("bank-a", 900)
    agency.call("issuer-c", "revoke_channel", bank="bank-a", issuer="issuer-c", reason="over")
    agency.open("2")
    return encode([[name, value] for name, value in sorted(agency.chain.state.entries().items())])
