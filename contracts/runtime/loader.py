"""From a contract's source to something that runs: checked, metered, in a namespace of its own."""

import builtins
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

from consensus.ledger.errors import LocalError
from consensus.ledger.ids import Hash, tagged_hash
from contracts.runtime.arguments import Method, compile_method
from contracts.runtime.contract import Contract
from contracts.runtime.guards import Builtins, Methods, Operators, frozen
from contracts.runtime.lint import CHEAP_BUILTINS, TYPES, check_source
from contracts.runtime.meter import STEPS_PER_CALL_MAX, Meter, OutOfSteps
from contracts.runtime.rewrite import GUARDED_BUILTINS, rewrite

RESERVED_NAMES = ("lanes", "registry")
"""State namespaces of the runtime itself, which no contract may have."""
COMPILED_MAX = 64
"""How many checked sources are kept."""

_BUILTINS = sorted(CHEAP_BUILTINS | TYPES | {"__build_class__", "__import__"})
_OPERATORS = [name for name in vars(Operators) if not name.startswith("_")]


@dataclass(frozen=True, slots=True)
class LoadedContract:
    """One version of one contract, ready to run. ``code_hash`` is over the source bytes."""

    name: str
    version: int
    code_hash: Hash
    doc: str
    methods: dict[str, Method]
    instance: Contract
    namespace: dict[str, Any]

    def function(self, name: str) -> Callable[..., Any] | None:
        """Return a function of the module itself, None where it has none."""
        found = self.namespace.get(name)
        return found if callable(found) else None


def code_hash(source: bytes) -> Hash:
    """Return the hash that an activation pins: SHA-256 of the source bytes under the domain ``contract``."""
    return tagged_hash("contract", source)


def load_contract(file_name: str, source: bytes, meter: Meter) -> LoadedContract:
    """Load one contract; its steps are charged to ``meter``.

    Raises:
        LocalError: ``contract_refused`` with file, line and reason.
    """
    code = _compiled(file_name, source)
    namespace = _namespace(file_name, meter)
    meter.begin(STEPS_PER_CALL_MAX)
    try:
        exec(code, namespace)
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        NameError,
        OutOfSteps,
        TypeError,
        ValueError,
    ) as error:
        raise LocalError("contract_refused", f"{file_name}: {error!r}") from None
    classes = [
        item
        for item in namespace.values()
        if isinstance(item, type) and issubclass(item, Contract) and item is not Contract
    ]
    if len(classes) != 1:
        raise LocalError("contract_refused", f"{file_name}: a module holds exactly one Contract, not {len(classes)}")
    cls = classes[0]
    name, version = cls.__dict__.get("name"), cls.__dict__.get("version")
    if not isinstance(name, str) or not name or "/" in name or name in RESERVED_NAMES:
        raise LocalError("contract_refused", f"{file_name}: {cls.__name__}.name must be a text without /")
    if not isinstance(version, int) or version < 1:
        raise LocalError("contract_refused", f"{file_name}: {cls.__name__}.version must be a number from 1 on")
    marked = [item for item in cls.__dict__.values() if callable(item) and "kind" in getattr(item, "__dict__", {})]
    methods = {function.__name__: compile_method(function) for function in marked}
    # What it is for, and what its module says of rules and state keys.
    doc = "\n\n".join(text.strip() for text in (cls.__doc__, namespace.get("__doc__")) if isinstance(text, str))
    return LoadedContract(name, version, code_hash(source), doc, methods, cls(), namespace)


@lru_cache(COMPILED_MAX)
def _compiled(file_name: str, source: bytes) -> CodeType:
    """Return a checked source as code; it depends on nothing else, so several registries of a process share it."""
    tree = rewrite(check_source(file_name, source))
    code: CodeType = compile(tree, file_name, "exec", dont_inherit=True, optimize=0)
    return code


def _namespace(file_name: str, meter: Meter) -> dict[str, Any]:
    """Return the globals of a contract's module: few built-ins, and the guards under names that it cannot write."""
    operators = Operators(meter)
    guarded = Builtins(meter, operators)
    namespace: dict[str, Any] = {
        "__name__": f"contract:{file_name}",
        "__builtins__": {name: getattr(builtins, name) for name in _BUILTINS},
        "__meter__": meter,
        "__tick__": meter.tick,
        "__invoke__": Methods(meter, operators, guarded).invoke,
        "__frozen__": frozen,
    }
    for name in _OPERATORS:
        namespace[f"__{name}__"] = getattr(operators, name)
    for name in sorted(GUARDED_BUILTINS):
        namespace[f"__guard_{name}__"] = getattr(guarded, f"{name}_")
    return namespace
