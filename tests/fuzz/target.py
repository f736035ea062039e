"""A target of pure fuzzing, and where targets are to be found: read from the product, so that none is forgotten."""

import ast
import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from consensus.ledger.codec import RecordCodec
from consensus.ledger.errors import PeerError
from tests.test_tidy import PRODUCT, Function, files_of, tree_of


@dataclass(frozen=True)
class Target:
    """One way in: ``call`` may return, or raise what is in ``may``; whatever else comes out is a finding.

    ``reaches`` names functions as ``FILE:NAME``; ``weight`` says how many inputs it gets where others get one.
    """

    name: str
    call: Callable[[bytes], object | Awaitable[object]]
    samples: Sequence[bytes]
    reaches: tuple[str, ...] = ()
    may: tuple[type[Exception], ...] = (PeerError,)
    is_json: bool = False
    weight: int = 1


def untrusted_functions() -> set[str]:
    """Return every function of the product whose name says that it takes what anyone may have made."""
    found = set()
    for path in files_of(*PRODUCT):
        names = {node.name for node in ast.walk(tree_of(path)) if isinstance(node, Function)}
        found |= {f"{path}:{name}" for name in names if name.endswith("_untrusted")}
    return found


def record_codecs() -> dict[str, RecordCodec[object]]:
    """Return every record codec that stands in a module of the product, by its place."""
    found: dict[str, RecordCodec[object]] = {}
    for package in ("consensus", "contracts", "p2p", "node", "services"):
        root = importlib.import_module(package)
        for info in pkgutil.walk_packages(root.__path__, package + "."):
            if info.name.endswith(".migrations.env"):  # what alembic alone may load
                continue
            for name, value in vars(importlib.import_module(info.name)).items():
                if isinstance(value, RecordCodec) and all(value is not known for known in found.values()):
                    found[f"{info.name}.{name}"] = value
    return found
