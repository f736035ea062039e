"""Several values of one sealed state, proven together under one certified head.

What a proof file (:mod:`consensus.ledger.proof`) is to people, this is to programs that ask often: records in their
canonical encoding, and a checker that remembers which heads it has verified, so that signatures are checked once a
head and paths always. Values are those after block ``header.sealed_height``, the newest that the header proves.

Pure.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Annotated, TypeVar

import msgspec

from consensus.ledger.block import Header, check_certified_untrusted
from consensus.ledger.codec import Record, RecordCodec, Value, decode_untrusted
from consensus.ledger.errors import PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.merkle import HashBytes
from consensus.ledger.payees import STATES_BYTES_MAX
from consensus.ledger.proof import SET_CHANGES_MAX, SetChange, following_set_untrusted
from consensus.ledger.state_tree import StateProof, check_state_proof_untrusted
from consensus.ledger.validators import Certificate, ValidatorSet, decode_validators_untrusted

ENTRIES_MAX = 128
"""How many keys one proof speaks of."""
KEY_CHARACTERS_MAX = 256
HEADS_REMEMBERED_MAX = 256
"""How many verified heads, and how many verified set changes, a checker remembers."""


V = TypeVar("V")


class StateEntry(Record, frozen=True):
    """That a key has this value, in its stored bytes, or none."""

    key: Annotated[str, msgspec.Meta(min_length=1, max_length=KEY_CHARACTERS_MAX)]
    value: bytes | None
    path: StateProof


class CertifiedChange(Record, frozen=True):
    """A header that announces another set for the next height, its certificate, and the encoding of that set."""

    header: Header
    certificate: Certificate
    validators: Annotated[bytes, msgspec.Meta(max_length=64 * 1024)]


class StatesProof(Record, frozen=True):
    """Entries, ascending by key, under a header that the set after the last of ``changes`` has certified."""

    chain_id: HashBytes
    changes: Annotated[list[CertifiedChange], msgspec.Meta(max_length=SET_CHANGES_MAX)]
    header: Header
    certificate: Certificate
    entries: Annotated[list[StateEntry], msgspec.Meta(max_length=ENTRIES_MAX)]


states_codec: RecordCodec[StatesProof] = RecordCodec(StatesProof, bytes_max=STATES_BYTES_MAX)

_change_codec: RecordCodec[CertifiedChange] = RecordCodec(CertifiedChange, bytes_max=STATES_BYTES_MAX)


class _Head(Record, frozen=True):
    header: Header
    certificate: Certificate


_head_codec: RecordCodec[_Head] = RecordCodec(_Head, bytes_max=STATES_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class ProvenStates:
    """What a proof has proven: values under ``header``, which the chain has certified."""

    header: Header
    _values: Mapping[str, bytes | None]

    @property
    def height(self) -> int:
        """The head's height; the values are those after ``header.sealed_height``."""
        return self.header.height

    @property
    def time_ms(self) -> int:
        """The head's time, ms UTC."""
        return self.header.time_ms

    def value(self, key: str) -> Value:
        """Return the value at a key, None where the chain has none.

        Raises:
            PeerError: ``not_proven`` when the proof does not speak of this key.
        """
        data = self.stored(key)
        return None if data is None else decode_untrusted(data)

    def stored(self, key: str) -> bytes | None:
        """Return the bytes that stand at a key, None where the chain has none.

        Raises:
            PeerError: ``not_proven`` when the proof does not speak of this key.
        """
        if key not in self._values:
            raise PeerError("not_proven", f"nothing is proven about {key}")
        return self._values[key]


class StatesChecker:
    """Checks proofs of one chain, whose genesis document it trusts."""

    def __init__(self, genesis: Genesis) -> None:
        self._chain_id = genesis.chain_id()
        self._first_set = genesis.validator_set()
        self._heads: OrderedDict[bytes, None] = OrderedDict()
        self._sets: OrderedDict[bytes, ValidatorSet] = OrderedDict()

    def check_untrusted(self, data: bytes) -> ProvenStates:
        """Check a proof and return what it proves.

        Raises:
            PeerError: ``malformed``, ``wrong_chain``, ``bad_certificate`` or ``bad_proof``.
        """
        try:
            proof = states_codec.decode_untrusted(data)
        except PeerError as error:
            raise PeerError("malformed", error.message) from None
        header = proof.header
        if proof.chain_id != self._chain_id or header.chain_id != self._chain_id:
            raise PeerError("wrong_chain", "the states belong to another chain")
        if any(one.key >= next_one.key for one, next_one in pairwise(proof.entries)):
            raise PeerError("malformed", "the keys must ascend, and none may stand twice")
        self._check_head_untrusted(proof)
        if header.sealed_height > header.height:
            raise PeerError("bad_proof", "the header names a seal above itself")
        for entry in proof.entries:
            check_state_proof_untrusted(header.sealed_root, entry.key.encode(), entry.value, entry.path)
        return ProvenStates(header, {entry.key: entry.value for entry in proof.entries})

    def _check_head_untrusted(self, proof: StatesProof) -> None:
        """Check the way from genesis to the header, unless these very bytes have been checked before."""
        way, above = b"", 0
        validators = self._first_set
        for change in proof.changes:
            way = sha256(way + _change_codec.encode(change)).digest()
            known = self._sets.get(way)
            validators = self._following_untrusted(change, validators, above) if known is None else known
            _remember(self._sets, way, validators)
            above = change.header.height
        if proof.header.height <= above:
            raise PeerError("bad_proof", "the header must follow the last set change")
        head = sha256(way + _head_codec.encode(_Head(proof.header, proof.certificate))).digest()
        if head not in self._heads:
            check_certified_untrusted(proof.header, proof.certificate, validators)
        _remember(self._heads, head, None)

    def _following_untrusted(self, change: CertifiedChange, validators: ValidatorSet, above: int) -> ValidatorSet:
        try:
            announced = decode_validators_untrusted(change.validators)
        except PeerError as error:
            raise PeerError("malformed", error.message) from None
        step = SetChange(change.header, change.certificate, announced)
        return following_set_untrusted(step, validators, above=above, chain_id=self._chain_id)


def _remember(known: OrderedDict[bytes, V], key: bytes, value: V) -> None:
    """Keep what was used last; the rest is forgotten, oldest first."""
    known[key] = value
    known.move_to_end(key)
    if len(known) > HEADS_REMEMBERED_MAX:
        known.popitem(last=False)
