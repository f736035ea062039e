"""Who may speak: TLS 1.3 with certificates on both sides, judged by the roots of the organisations.

TLS checks that some organisation's root vouches for the peer and that the certificate is valid now.
What TLS cannot know is checked after it by :meth:`Trust.identify_untrusted`: the subject names exactly
one organisation (O) and one node (CN), and it is that organisation's own root that signed, directly;
so the root of one organisation never vouches for a node of another. Whether the node is a member is
the chain's affair (``admits`` of the network), and revocation happens there: by fingerprint, not by
CRLs, which Python's ``ssl`` ignores when given in memory (R71).

What a connection is for is agreed within TLS (ALPN), so that one port serves both: :data:`PUBLIC` for what all
members share, :data:`PRIVATE` for the channels of two. Who offers nothing means the public one.

There are no session tickets, so every connection shows its certificate again.
"""

import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PrivateKey, PublicKey

_NAME_CHARACTERS_MAX = 32
PUBLIC = "hansa/1"
PRIVATE = "hansa-private/1"


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who a certificate says its holder is. ``fingerprint`` is the SHA-256 of its DER form."""

    name: NodeName
    organisation: str
    fingerprint: bytes
    key: PublicKey


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """Our own certificate and key; ``ssl`` reads both from their files once more."""

    certificate_path: Path
    key_path: Path
    certificate: x509.Certificate
    key: PrivateKey

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of our certificate, 32 bytes."""
        return sha256(self.certificate.public_bytes(serialization.Encoding.DER)).digest()

    @staticmethod
    def load(certificate_path: Path, key_path: Path) -> "TlsIdentity":
        """Load a node's certificate (PEM) and unencrypted PKCS#8 key.

        Raises:
            LocalError: ``bad_certificate_file`` or ``bad_key``, naming the file.
        """
        try:
            certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        except (OSError, ValueError) as error:
            raise LocalError("bad_certificate_file", f"{certificate_path}: {error}") from None
        try:
            key = PrivateKey.from_pem(key_path.read_bytes())
        except (OSError, LocalError) as error:
            raise LocalError("bad_key", f"{key_path}: {error}") from None
        if _compressed_key(certificate) != key.public.compressed:
            raise LocalError("bad_key", f"{key_path} is not the key of {certificate_path}")
        return TlsIdentity(certificate_path, key_path, certificate, key)


Roots: TypeAlias = Mapping[str, tuple[x509.Certificate, ...]]
"""Each organisation's root certificates; two of them overlap while a root is renewed."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The roots that count on this chain."""

    roots: Roots

    @staticmethod
    def of(pem_by_organisation: Iterable[tuple[str, str]]) -> "Trust":
        """Return the trust in these roots: pairs of organisation and PEM text of one or more certificates.

        Raises:
            LocalError: ``bad_certificate_file`` for text that holds no certificate, for one that TLS cannot load,
                and for one whose subject names another organisation: of two roots that look alike TLS takes either.
        """
        roots: dict[str, tuple[x509.Certificate, ...]] = {}
        for organisation, pem in pem_by_organisation:
            try:
                roots[organisation] = tuple(x509.load_pem_x509_certificates(pem.encode()))
                # OpenSSL reads more strictly: what it refuses here would keep a node from starting later.
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                for root in roots[organisation]:
                    if (named := _only(root, NameOID.ORGANIZATION_NAME)) != organisation:
                        raise ValueError(f"its subject names {named}")
                    context.load_verify_locations(cadata=root.public_bytes(serialization.Encoding.DER))
            except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm, ssl.SSLError) as error:
                raise LocalError("bad_certificate_file", f"root of {organisation}: {error}") from None
        return Trust(roots)

    @staticmethod
    def of_genesis(genesis: Genesis) -> "Trust":
        """Return the trust in the roots of a genesis document."""
        return Trust.of((item.name, item.root_certificate) for item in genesis.organisations)

    def identify_untrusted(self, der: bytes) -> PeerIdentity:
        """Return who a certificate that TLS has already verified speaks for.

        Raises:
            PeerError: ``untrusted_certificate``.
        """
        try:
            certificate = x509.load_der_x509_certificate(der)
            name = _only(certificate, NameOID.COMMON_NAME)
            organisation = _only(certificate, NameOID.ORGANIZATION_NAME)
            key = PublicKey.load_untrusted(_compressed_key(certificate))
        except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm, LocalError, PeerError) as error:
            raise PeerError("untrusted_certificate", str(error)) from None
        if not any(_signed_by(certificate, root) for root in self.roots.get(organisation, ())):
            raise PeerError("untrusted_certificate", f"no root of {organisation} vouches for {name}")
        return PeerIdentity(NodeName(name), organisation, sha256(der).digest(), key)


def server_context(identity: TlsIdentity, trust: Trust, protocols: Sequence[str] = (PUBLIC,)) -> ssl.SSLContext:
    """Return the settings for accepting connections: TLS 1.3 only, the peer shows a certificate, no tickets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    context.set_alpn_protocols([*protocols])
    return _with_identity(context, identity, trust)


def client_context(identity: TlsIdentity, trust: Trust, protocol: str = PUBLIC) -> ssl.SSLContext:
    """Return the settings for dialling; names are compared by the network, which knows nodes and not hosts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_alpn_protocols([protocol])
    return _with_identity(context, identity, trust)


def _with_identity(context: ssl.SSLContext, identity: TlsIdentity, trust: Trust) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    pem = b"".join(root.public_bytes(serialization.Encoding.PEM) for roots in trust.roots.values() for root in roots)
    context.load_verify_locations(cadata=pem.decode())
    context.load_cert_chain(identity.certificate_path, identity.key_path)
    return context


def trust_also(context: ssl.SSLContext, trust: Trust, *, known: Trust) -> list[str]:
    """Let handshakes from now on reach these roots too; return the organisations whose roots cannot be loaded.

    A context cannot forget a root. That one counts no longer is for :meth:`Trust.identify_untrusted` to say,
    which every peer has to pass after TLS.
    """
    unusable: list[str] = []
    for organisation, roots in trust.roots.items():
        for root in roots:
            if root in known.roots.get(organisation, ()):
                continue
            try:
                context.load_verify_locations(cadata=root.public_bytes(serialization.Encoding.DER))
            except ssl.SSLError:
                unusable.append(organisation)
    return unusable


def tls_error(error: BaseException) -> PeerError:
    """Return the error that stands for a failed TLS handshake: the peer's fault unless shown otherwise."""
    cause = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return PeerError("untrusted_certificate", cause.verify_message)
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return PeerError("tls_failed", cause.reason.lower().replace("_", " "))
    return PeerError("connection_lost", "the connection ended within the handshake")


def _only(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    values = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(oid)]
    if len(values) != 1 or not isinstance(values[0], str) or not 0 < len(values[0]) <= _NAME_CHARACTERS_MAX:
        raise ValueError("the subject must name one organisation and one node or root")
    return values[0]


def _compressed_key(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise LocalError("bad_key", "the certificate's key is not on P-256")
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def _signed_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
