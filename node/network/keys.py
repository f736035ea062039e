"""The key files of a node's home, made and replaced so that a crash leaves the old ones or the new ones.

``vote.pem`` and ``incarnation`` belong together (:mod:`node.vote_log`). What is replaced stays beside its
successor, as ``vote.aside-N.pem``, ``tls.aside-N.pem`` and so on: nothing is ever deleted.
"""

import os
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from consensus.ledger.errors import LocalError
from consensus.ledger.keys import PrivateKey
from node.network.ca import Authority, to_pem, utc_now
from node.vote_log import INCARNATION_FILE

VOTE_KEY_FILE = "vote.pem"
NEXT_VOTE_KEY_FILE = "vote.next.pem"
TLS_KEY_FILE = "tls.pem"
CERTIFICATE_FILE = "tls.crt"
CHANNEL_KEY_FILE = "channel.pem"
PRIVATE_KEY_FILE = "private.key"
ASIDE_MAX = 1_000
"""How many replaced files of one name stand beside their successor."""


def load_vote_key(keys: Path) -> PrivateKey:
    """Return the vote key of a home's folder of keys.

    Raises:
        LocalError: ``no_home`` when it is not there, ``bad_key``.
    """
    try:
        return PrivateKey.from_pem((keys / VOTE_KEY_FILE).read_bytes())
    except OSError as error:
        raise LocalError("no_home", f"{keys / VOTE_KEY_FILE}: {error.strerror}") from None


def load_channel_key(path: Path) -> PrivateKey:
    """Return the key in a node's ``channel.pem``, made when it is not there.

    A new one is worth nothing until the chain knows it: the node's organisation has to be registered with it.

    Raises:
        LocalError: ``bad_key``, ``file_error``.
    """
    try:
        if not path.exists():
            replace_secret(path, PrivateKey.generate().to_pem(None))
        return PrivateKey.from_pem(path.read_bytes())
    except OSError as error:
        raise LocalError("file_error", f"{path}: {error.strerror}") from None


def renew_vote_key(keys: Path) -> PrivateKey:
    """Set the vote key and its incarnation aside and make a new key; the node must not run.

    Raises:
        LocalError: as :func:`load_vote_key`, for the old one.
    """
    load_vote_key(keys)
    key = PrivateKey.generate()
    _replace_vote_key(keys, key.to_pem(None))
    drop_next_key(keys)
    return key


def next_vote_key(keys: Path) -> PrivateKey:
    """Return the key that a node is to vote with next, made when there is none; the node may run on meanwhile.

    Raises:
        LocalError: as :func:`load_vote_key`.
    """
    load_vote_key(keys)
    path = keys / NEXT_VOTE_KEY_FILE
    if not path.exists():
        replace_secret(path, PrivateKey.generate().to_pem(None))
    return PrivateKey.from_pem(path.read_bytes())


def is_key_adopted(keys: Path) -> bool:
    """Tell whether the vote key is the one that was made to be next."""
    return load_vote_key(keys).public.compressed == next_vote_key(keys).public.compressed


def adopt_next_key(keys: Path) -> None:
    """Put the next key in the place of the vote key, which is set aside; the node must not run."""
    if not is_key_adopted(keys):
        _replace_vote_key(keys, (keys / NEXT_VOTE_KEY_FILE).read_bytes())


def drop_next_key(keys: Path) -> None:
    """Forget that a key was to be next, once the node votes with it."""
    (keys / NEXT_VOTE_KEY_FILE).unlink(missing_ok=True)


def find_vote_key(keys: Path, public_key: bytes) -> Path | None:
    """Return the file that holds the vote key of these 33 bytes, in use or set aside; None when it is lost.

    Raises:
        LocalError: ``bad_key``.
    """
    for path in (keys / VOTE_KEY_FILE, *sorted(keys.glob("vote.aside-*.pem"))):
        if path.is_file() and PrivateKey.from_pem(path.read_bytes()).public.compressed == public_key:
            return path
    return None


def restore_vote_key(keys: Path, public_key: bytes) -> None:
    """Put the vote key (33 bytes) that was set aside back in its place; nothing happens when it is there or lost."""
    path = find_vote_key(keys, public_key)
    if path is not None and path.name != VOTE_KEY_FILE:
        content = path.read_bytes()
        keep_aside(keys / VOTE_KEY_FILE)
        replace_secret(keys / VOTE_KEY_FILE, content)


def _replace_vote_key(keys: Path, content: bytes) -> None:
    keep_aside(keys / INCARNATION_FILE)
    keep_aside(keys / VOTE_KEY_FILE)
    replace_secret(keys / VOTE_KEY_FILE, content)
    # An incarnation of another key says nothing; it goes so that nobody is misled.
    (keys / INCARNATION_FILE).unlink(missing_ok=True)


def fingerprint(certificate_file: Path) -> bytes:
    """Return the SHA-256 of a PEM file's certificate, as ``revoke_certificate`` takes it.

    Raises:
        LocalError: ``bad_certificate_file``.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    except (OSError, ValueError) as error:
        raise LocalError("bad_certificate_file", f"{certificate_file}: {error}") from None
    return sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()


def renew_certificate(keys: Path, node: str, authority: Authority) -> None:
    """Set a node's TLS key and certificate aside and make new ones; the node must not run."""
    key = PrivateKey.generate()
    certificate = authority.issue(node, key.exchange.public_key(), now=utc_now())
    keep_aside(keys / TLS_KEY_FILE)
    keep_aside(keys / CERTIFICATE_FILE)
    # A crash between the two leaves a pair that does not fit: doing it once more mends that.
    replace_secret(keys / TLS_KEY_FILE, key.to_pem(None))
    replace_secret(keys / CERTIFICATE_FILE, to_pem(certificate))


def keep_aside(path: Path) -> None:
    """Give a file a second name, ``NAME.aside-N.SUFFIX``, under which it stays when it is replaced.

    Raises:
        LocalError: ``file_error`` when :data:`ASIDE_MAX` stand there already.
    """
    if not path.exists():
        return
    for number in range(1, ASIDE_MAX + 1):
        aside = path.with_name(f"{path.stem}.aside-{number}{path.suffix}")
        try:
            os.link(path, aside)
        except FileExistsError:
            if aside.samefile(path):
                return
        else:
            return
    raise LocalError("file_error", f"{path}: {ASIDE_MAX} older ones stand beside it")


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file, mode 0600."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(handle)


def replace_secret(path: Path, content: bytes) -> None:
    """Replace a file by one with mode 0600, in one step that lasts."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    write_secret(temporary, content)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
