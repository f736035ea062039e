"""Small complete objects of the ledger, the same in every run."""

from collections.abc import Callable, Iterator, Sequence

from consensus.ledger.block import Block, Header, genesis_block, receipts_root, transactions_root, writes_root
from consensus.ledger.errors import PeerError
from consensus.ledger.genesis import Account, Activation, Genesis, GenesisValidator, Organisation
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.receipt import OK, Event, Receipt
from consensus.ledger.state_tree import EMPTY_ROOT
from consensus.ledger.transaction import Transaction, make_call, sign_transaction
from consensus.ledger.validators import Certificate, Signature, Validator, ValidatorSet, vote_payload

CHAIN = ChainId(bytes(range(32)))
CLIENT = PrivateKey.from_secret(4242)
START_MS = 1_700_000_000_000

Keys = dict[str, PrivateKey]


def make_keys(count: int, *, first: int = 1) -> Keys:
    """Vote keys by node name, names ascending."""
    return {f"node-{number:03d}": PrivateKey.from_secret(number) for number in range(first, first + count)}


def make_set(keys: Keys) -> ValidatorSet:
    return ValidatorSet.of([Validator(name, "bank", key.public.compressed) for name, key in keys.items()])


def certify(header: Header, keys: Keys, *, view: int = 0, count: int | None = None) -> Certificate:
    """A certificate by the first ``count`` of these keys, a quorum unless told otherwise."""
    names = sorted(keys)[: make_set(keys).quorum if count is None else count]
    payload = vote_payload(header.height, view, header.hash())
    chain_id = ChainId(header.chain_id)
    votes = [Signature(name, keys[name].sign(Purpose.COMMIT, chain_id, payload)) for name in names]
    return Certificate(header.height, view, header.hash(), votes)


def make_transaction(number: int = 0, *, chain_id: ChainId = CHAIN, lane: bytes = b"") -> Transaction:
    call = make_call("tokens", "transfer", {"unit": "cny", "to": bytes(20), "amount": 5})
    return sign_transaction(CLIENT, chain_id, [call], sequence=number, valid_until_ms=START_MS + 60_000, lane=lane)


def make_receipt(transaction: Transaction, index: int = 0) -> Receipt:
    return Receipt(transaction.id, index, OK, "", [b"\xc0"], [Event("tokens", "moved", b"\x80")], 17)


def make_genesis(keys: Keys) -> Genesis:
    return Genesis(
        name="harbour",
        time_ms=START_MS,
        organisations=[Organisation("bank", ["bank"], "PEM"), Organisation("shop", ["merchant"], "PEM")],
        validators=[GenesisValidator(name, "bank", key.public.compressed.hex()) for name, key in keys.items()],
        accounts=[Account("teller", "bank", CLIENT.public.compressed.hex(), ["admin"])],
        contracts=[Activation("tokens", 1, "ab" * 32)],
    )


def make_genesis_block(chain_id: ChainId, validators: ValidatorSet) -> Block:
    return genesis_block(
        chain_id,
        time_ms=START_MS,
        proposer=validators.names[0],
        validators_hash=validators.hash(),
        writes={},
        sealed_root=EMPTY_ROOT,
    )


def make_block(
    parent: Header,
    validators: ValidatorSet,
    *,
    transactions: Sequence[Transaction] = (),
    receipts: Sequence[Receipt] = (),
    following: ValidatorSet | None = None,
    sealed_root: bytes | None = None,
) -> Block:
    """The next block, one second later; it seals when a root is given."""
    height = parent.height + 1
    header = Header(
        version=1,
        chain_id=parent.chain_id,
        height=height,
        parent_hash=parent.hash(),
        time_ms=parent.time_ms + 1_000,
        uptime_ms=parent.uptime_ms + 1_000,
        proposer=validators.primary(height, 0),
        transactions_root=transactions_root([transaction.leaf for transaction in transactions]),
        receipts_root=receipts_root(receipts),
        writes_root=writes_root({}),
        validators_hash=validators.hash(),
        next_validators_hash=(following or validators).hash(),
        sealed_height=parent.sealed_height if sealed_root is None else height,
        sealed_root=parent.sealed_root if sealed_root is None else sealed_root,
    )
    return Block.of(header, [transaction.raw for transaction in transactions])


def refusal(check: Callable[..., object], *arguments: object) -> str:
    """The code of the ``PeerError`` that a call ends in, or nothing if it succeeds; other errors pass through."""
    try:
        check(*arguments)
    except PeerError as error:
        return error.code
    return ""


def flips(data: bytes) -> Iterator[bytes]:
    """The data with each byte changed in turn."""
    for place in range(len(data)):
        yield data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
