"""The contracts that this node has code for, and which of them the chain has activated.

Code ships with the node; the chain decides. State holds at ``registry/NAME`` a list of activations
``{version, codeHash, fromHeight}``; the one with the greatest ``fromHeight`` not above a height is
active there. A node that lacks an activated version, or holds other code under its number, must stop
before it votes (``contract_code_missing``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError
from consensus.ledger.ids import Hash
from contracts.runtime.arguments import Method
from contracts.runtime.loader import LoadedContract, load_contract
from contracts.runtime.meter import Meter
from contracts.runtime.state import StateReader

DOMAIN_FOLDER = Path(__file__).parent.parent / "domain"
"""Where the shipped contracts stand, one a file."""

ACTIVATIONS_PREFIX = b"registry/"
CONTRACTS_MAX = 1_000


class ActivationRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """That a version with this code (32 bytes) is active from a height on."""

    version: int
    code_hash: bytes
    from_height: int


_decoder = msgspec.msgpack.Decoder(list[ActivationRecord])
_encoder = msgspec.msgpack.Encoder(order="sorted")


@dataclass(frozen=True, slots=True)
class MissingCode:
    """A contract that is active and that this node cannot run; ``code_hash`` has 32 bytes."""

    name: str
    version: int
    code_hash: bytes


def activation_key(name: str) -> bytes:
    """Return the state key of a contract's activations."""
    return ACTIVATIONS_PREFIX + name.encode()


def encode_activations(records: list[ActivationRecord]) -> bytes:
    """Return the canonical bytes that the state holds for a contract's activations."""
    return _encoder.encode(records)


def active_at(data: bytes, height: int) -> ActivationRecord | None:
    """Return the activation in force at a height from the bytes at ``activation_key``."""
    current = [record for record in _decoder.decode(data) if record.from_height <= height]
    return max(current, key=lambda record: record.from_height, default=None)


class Registry:
    """Loaded contracts by name and version, sharing one meter; not for use by several threads."""

    def __init__(self, sources: Iterable[tuple[str, bytes]]) -> None:
        """Load contracts from pairs of file name (for messages) and source bytes.

        Raises:
            LocalError: ``contract_refused`` with file and line, or because one version stands twice.
        """
        self.meter = Meter()
        self._contracts: dict[tuple[str, int], LoadedContract] = {}
        for file_name, source in sources:
            contract = load_contract(file_name, source, self.meter)
            if (contract.name, contract.version) in self._contracts:
                raise LocalError("contract_refused", f"{file_name}: {contract.name} {contract.version} stands twice")
            self._contracts[contract.name, contract.version] = contract

    @staticmethod
    def shipped() -> "Registry":
        """Load every contract under ``contracts/domain``: each ``*.py`` but those that begin with ``_``."""
        paths = sorted(path for path in DOMAIN_FOLDER.rglob("*.py") if not path.name.startswith("_"))
        return Registry((path.relative_to(DOMAIN_FOLDER).as_posix(), path.read_bytes()) for path in paths)

    def get(self, name: str, version: int) -> LoadedContract | None:
        """Return a contract that this node has code for."""
        return self._contracts.get((name, version))

    def newest(self) -> list[LoadedContract]:
        """Return the newest version of each contract, in order of their names: what a new chain activates."""
        newest = {name: self._contracts[name, version] for name, version in sorted(self._contracts)}
        return list(newest.values())

    def active(self, state: StateReader, height: int) -> dict[str, ActivationRecord]:
        """Return what is active at a height, by name, whether this node has the code or not."""
        entries = state.scan(ACTIVATIONS_PREFIX, ACTIVATIONS_PREFIX, CONTRACTS_MAX)
        found = {key[len(ACTIVATIONS_PREFIX) :].decode(): active_at(data, height) for key, data in entries}
        return {name: record for name, record in found.items() if record is not None}

    def resolve(self, state: StateReader, name: str, height: int) -> LoadedContract | None:
        """Return the contract that is active under a name at a height, None where none is.

        Raises:
            LocalError: ``contract_code_missing``: this node lacks the code and must not go on.
        """
        data = state.get(activation_key(name))
        record = None if data is None else active_at(data, height)
        if record is None:
            return None
        contract = self._contracts.get((name, record.version))
        if contract is None or contract.code_hash != record.code_hash:
            raise LocalError("contract_code_missing", f"{name} {record.version} with code {record.code_hash.hex()}")
        return contract

    def missing(self, state: StateReader, height: int) -> list[MissingCode]:
        """Return the contracts active at a height whose code this node lacks or has otherwise."""
        lacking: list[MissingCode] = []
        for name, record in self.active(state, height).items():
            contract = self._contracts.get((name, record.version))
            if contract is None or contract.code_hash != record.code_hash:
                lacking.append(MissingCode(name, record.version, record.code_hash))
        return lacking

    def describe(self, name: str, version: int | None = None) -> "Description | None":
        """Return what users see of a contract, of its newest version by default; None for an unknown one."""
        versions = [known for known_name, known in self._contracts if known_name == name]
        if not versions:
            return None
        contract = self._contracts.get((name, max(versions) if version is None else version))
        return None if contract is None else Description.of(contract)


@dataclass(frozen=True, slots=True)
class Description:
    """A contract for people and programs: ``doc`` strings are Markdown-free text."""

    name: str
    version: int
    code_hash: Hash
    doc: str
    methods: tuple[Method, ...]

    @staticmethod
    def of(contract: LoadedContract) -> "Description":
        """Return a loaded contract's description."""
        methods = tuple(contract.methods[name] for name in sorted(contract.methods))
        return Description(contract.name, contract.version, contract.code_hash, contract.doc, methods)

    def to_builtins(self) -> dict[str, Any]:
        """Return maps and lists with camelCase keys, ready for JSON (bytes as 0x-hex)."""
        return {
            "name": self.name,
            "version": self.version,
            "codeHash": "0x" + self.code_hash.hex(),
            "doc": self.doc,
            "methods": [_method_to_builtins(method) for method in self.methods],
        }


def _method_to_builtins(method: Method) -> dict[str, Any]:
    arguments: list[dict[str, Any]] = []
    for argument in method.arguments:
        entry: dict[str, Any] = {"name": argument.name, "type": argument.type, "required": argument.is_required}
        if argument.limits:
            entry["limits"] = argument.limits
        if not argument.is_required:
            entry["default"] = _to_json(argument.default)
        arguments.append(entry)
    kind = "query" if method.is_query else "method"
    return {"name": method.name, "kind": kind, "doc": method.doc, "arguments": arguments, "returns": method.returns}


def _to_json(value: Value) -> object:
    return "0x" + value.hex() if isinstance(value, bytes) else value
