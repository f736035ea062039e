"""The measurement: a hash of the code that a trusted environment runs.

It covers Python, the libraries by their versions, and every file of ours that is loaded, by its content. The program
measures the files it was loaded from at its start. Hardware measures the pages that it loads, and signs what it found;
here nobody but the program itself vouches for it.
"""

import sys
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from consensus.ledger.codec import Value, encode
from consensus.ledger.errors import InvariantError
from consensus.ledger.ids import Hash, tagged_hash

LIBRARIES = ("cryptography", "msgspec", "structlog", "trio")
FILES = (
    "consensus/__init__.py",
    "consensus/ledger/__init__.py",
    "consensus/ledger/block.py",
    "consensus/ledger/codec.py",
    "consensus/ledger/errors.py",
    "consensus/ledger/genesis.py",
    "consensus/ledger/ids.py",
    "consensus/ledger/keys.py",
    "consensus/ledger/merkle.py",
    "consensus/ledger/payees.py",
    "consensus/ledger/proof.py",
    "consensus/ledger/receipt.py",
    "consensus/ledger/sealing.py",
    "consensus/ledger/state_tree.py",
    "consensus/ledger/states.py",
    "consensus/ledger/transaction.py",
    "consensus/ledger/validators.py",
    "services/__init__.py",
    "services/messages/__init__.py",
    "services/messages/logs.py",
    "services/payee/__init__.py",
    "services/payee/enclave.py",
    "services/payee/enclave_keys.py",
    "services/payee/enclave_program.py",
    "services/payee/enclave_walls.py",
    "services/payee/measurement.py",
    "services/payee/sealing.py",
    "services/payee/wording.py",
)
"""Every file of ours that an environment's process loads, and no other; a test compares."""

_ROOT = Path(__file__).resolve().parents[2]


@cache
def measure() -> Hash:
    """Return the measurement of the code that is installed here.

    Raises:
        InvariantError: a declared file is missing.
    """
    python = ".".join(str(number) for number in sys.version_info[:3])
    libraries: list[Value] = [[name, version(name)] for name in LIBRARIES]
    files: list[Value] = [[name, _file_hash(name)] for name in FILES]
    return tagged_hash("payee-measurement", encode([sys.implementation.name, python, libraries, files]))


def _file_hash(name: str) -> bytes:
    try:
        return sha256((_ROOT / name).read_bytes()).digest()
    except OSError as error:
        raise InvariantError(f"the environment's code lacks {name}: {error.strerror}") from None
