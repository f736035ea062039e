"""The genesis document: all that the members agree on before the first block.

It is a JSON file that people can read; the chain id is the hash of its canonical encoding, so every
member that holds the same document is on the same chain, and any change makes another chain.
"""

import json
from typing import Annotated, cast

import msgspec

from consensus.ledger.codec import Value, encode
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import Address, ChainId, tagged_hash
from consensus.ledger.keys import PUBLIC_KEY_BYTES, PublicKey
from consensus.ledger.transaction import Natural
from consensus.ledger.validators import NodeNameText, Validator, ValidatorSet

GENESIS_BYTES_MAX = 1 << 20
HexKey = Annotated[str, msgspec.Meta(pattern=rf"^[0-9a-f]{{{2 * PUBLIC_KEY_BYTES}}}\Z")]


class Organisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A member, its roles (``bank``, ``issuer``, ``permission``, …) and the root of its TLS certificates."""

    name: NodeNameText
    roles: list[str]
    root_certificate: str


class GenesisValidator(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A node that votes from the first block on; ``vote_key`` is compressed, in hex."""

    name: NodeNameText
    organisation: NodeNameText
    vote_key: HexKey


class Account(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """An account that exists from the start; ``public_key`` is compressed, in hex."""

    name: NodeNameText
    organisation: NodeNameText
    public_key: HexKey
    roles: list[str]

    @property
    def address(self) -> Address:
        """The account's address."""
        return PublicKey.load_untrusted(bytes.fromhex(self.public_key)).address


class Activation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A contract that is active from the first block; ``code_hash`` in hex pins its source."""

    name: NodeNameText
    version: Annotated[int, msgspec.Meta(ge=1)]
    code_hash: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Genesis(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The document as a whole. ``time_ms`` is the time of block 0."""

    name: NodeNameText
    time_ms: Natural
    organisations: list[Organisation]
    validators: Annotated[list[GenesisValidator], msgspec.Meta(min_length=1)]
    accounts: list[Account]
    contracts: list[Activation]

    def chain_id(self) -> ChainId:
        """Return the hash of the document's canonical encoding."""
        document = cast(Value, msgspec.to_builtins(self))
        return ChainId(tagged_hash("genesis", encode(document)))

    def validator_set(self) -> ValidatorSet:
        """Return the set that certifies block 1."""
        return ValidatorSet.of([Validator(v.name, v.organisation, bytes.fromhex(v.vote_key)) for v in self.validators])

    def to_json(self) -> bytes:
        """Return the file's content, indented for people."""
        return json.dumps(msgspec.to_builtins(self), indent=2, ensure_ascii=False).encode() + b"\n"


def decode_genesis_untrusted(data: bytes) -> Genesis:
    """Decode a genesis file.

    Raises:
        LocalError: ``bad_genesis`` with what is wrong and where.
    """
    if len(data) > GENESIS_BYTES_MAX:
        raise LocalError("bad_genesis", f"a genesis file has at most {GENESIS_BYTES_MAX} bytes")
    try:
        genesis = msgspec.convert(json.loads(data, object_pairs_hook=_without_duplicates), type=Genesis)
        vote_keys = {validator.vote_key for validator in genesis.validator_set().validators}
        genesis.chain_id()
        addresses = [account.address for account in genesis.accounts]
    except (msgspec.MsgspecError, ValueError, RecursionError, LocalError, PeerError) as error:
        raise LocalError("bad_genesis", str(error)) from None
    _refuse_twice("organisation", [organisation.name for organisation in genesis.organisations])
    _refuse_twice("account name", [account.name for account in genesis.accounts])
    _refuse_twice("account key", [address.hex() for address in addresses])
    _refuse_twice("contract", [contract.name for contract in genesis.contracts])
    if any(bytes.fromhex(account.public_key) in vote_keys for account in genesis.accounts):
        raise LocalError("bad_genesis", "an account uses a vote key: each key has one use")
    named = {validator.organisation for validator in genesis.validators}
    named |= {account.organisation for account in genesis.accounts}
    if unknown := sorted(named - {organisation.name for organisation in genesis.organisations}):
        raise LocalError("bad_genesis", f"unknown organisation {unknown[0]}")
    return genesis


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse an object with a name twice: two readers could see two documents."""
    _refuse_twice("name in an object", [name for name, _ in pairs])
    return dict(pairs)


def _refuse_twice(what: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise LocalError("bad_genesis", f"{what} {name} stands twice")
        seen.add(name)
