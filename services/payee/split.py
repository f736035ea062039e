"""The split key: acquiring information that opens only with a part from the code and a part from the institution.

A record may hold, in the place of the clear text, something sealed under a key of two parts: the *code part* stands in
every code that the merchant prints, the *institution part* is the platform's, another one for every content. So the
chain, the nodes and the environments (emulated, without hardware isolation) never have the clear text, and neither the
code nor the platform's vault opens it alone.

Both parts have fixed lengths and go through HKDF-SHA256, with identity and server as ``info``. What comes of it is the
key and nonce of AES-256-GCM, since an institution part seals once, and 32 bytes that stand before the ciphertext: they
commit to the parts. AES-GCM alone does not, and so a platform could show the merchant one content and pay by another.

Errors never hold what was sealed, nor a part. Pure.
"""

import hmac
from typing import Final, TypeAlias

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consensus.ledger.codec import encode
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.sealing import KEY_BYTES, NONCE_BYTES
from services.payee.interfaces import CODE_PART_BYTES, PART_BYTES, Acquiring, SplitAcquiring
from services.payee.sealing import derived

CHECK_BYTES: Final = 32

Plaintext: TypeAlias = Acquiring | SplitAcquiring
"""What a record can hold."""

_acquiring = msgspec.json.Decoder(Acquiring)
_split = msgspec.json.Decoder(SplitAcquiring)


def decode_plaintext(plaintext: bytes) -> Plaintext:
    """Return what a record holds; the fields of the two kinds have no name in common.

    Raises:
        PeerError: ``bad_record``; nothing of the content is said.
    """
    try:
        try:
            return _split.decode(plaintext)
        except msgspec.ValidationError:
            return _acquiring.decode(plaintext)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise PeerError("bad_record", "a record opens to no acquiring information") from None


def seal_split(acquiring: Acquiring, *, code_part: bytes, part: bytes, identity: bytes, server: str) -> SplitAcquiring:
    """Seal acquiring information; ``part``, the institution's, is for this content alone.

    Raises:
        LocalError: ``bad_key`` for a part of another length.
    """
    check, key, nonce = _derived(code_part, part, identity, server)
    return SplitAcquiring(check + AESGCM(key).encrypt(nonce, msgspec.json.encode(acquiring), None))


def open_split(sealed: SplitAcquiring, *, code_part: bytes, part: bytes, identity: bytes, server: str) -> Acquiring:
    """Return what was sealed under these two parts for this identity at this server.

    Raises:
        PeerError: ``wrong_key_part``: one of the parts is another content's, or what is sealed was altered;
            ``bad_record`` where no acquiring information was sealed.
    """
    wrong = PeerError("wrong_key_part", "the parts of code and platform do not open this record")
    try:
        check, key, nonce = _derived(code_part, part, identity, server)
        if not hmac.compare_digest(check, sealed.split[:CHECK_BYTES]):
            raise wrong
        opened = AESGCM(key).decrypt(nonce, sealed.split[CHECK_BYTES:], None)
    except (InvalidTag, LocalError):
        raise wrong from None
    try:
        return _acquiring.decode(opened)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise PeerError("bad_record", "a split record opens to no acquiring information") from None


def _derived(code_part: bytes, part: bytes, identity: bytes, server: str) -> tuple[bytes, bytes, bytes]:
    if (len(code_part), len(part)) != (CODE_PART_BYTES, PART_BYTES):
        raise LocalError("bad_key", f"a split key has parts of {CODE_PART_BYTES} and {PART_BYTES} bytes")
    info = encode(["payee-split", identity, server])
    made = derived(code_part + part, info, bytes_count=CHECK_BYTES + KEY_BYTES + NONCE_BYTES)
    return made[:CHECK_BYTES], made[CHECK_BYTES:-NONCE_BYTES], made[-NONCE_BYTES:]
