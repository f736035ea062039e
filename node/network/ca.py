"""Certificates of a consortium: each organisation has its own root, which vouches for its own nodes.

P-256 throughout. A root signs node certificates directly (path length 0); a node certificate names one
organisation (O) and one node (CN) and serves both ends of a connection. Renewing makes a new certificate
for the same key; old and new are both good while their validities overlap.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from consensus.ledger.errors import LocalError
from consensus.ledger.keys import PrivateKey

ROOT_DAYS = 3_650
NODE_DAYS = 825
BACKDATED = timedelta(hours=1)
"""How long before it is made a certificate begins to be valid, for clocks that run behind."""


@dataclass(frozen=True, slots=True)
class Authority:
    """An organisation's root: its certificate and the key that signs node certificates."""

    organisation: str
    certificate: x509.Certificate
    key: PrivateKey

    @staticmethod
    def create(organisation: str, *, now: datetime, days: int = ROOT_DAYS) -> "Authority":
        """Make a new root with a new key, valid for ``days`` from an hour before ``now`` (UTC)."""
        key = PrivateKey.generate()
        name = _subject(organisation, f"{organisation} root")
        builder = _builder(name, name, key.exchange.public_key(), now=now, days=days)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(_key_identifier(key.exchange.public_key()), critical=False)
            .sign(key.exchange, hashes.SHA256())
        )
        return Authority(organisation, certificate, key)

    @staticmethod
    def load(certificate_pem: bytes, key_pem: bytes, passphrase: bytes | None = None) -> "Authority":
        """Load a root from its PEM files.

        Raises:
            LocalError: ``bad_certificate_file``, ``bad_key`` or ``wrong_passphrase``.
        """
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            organisation = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value
        except (ValueError, IndexError) as error:
            raise LocalError("bad_certificate_file", str(error)) from None
        return Authority(str(organisation), certificate, PrivateKey.from_pem(key_pem, passphrase))

    def issue(
        self,
        node: str,
        public_key: ec.EllipticCurvePublicKey,
        *,
        now: datetime,
        days: int = NODE_DAYS,
        organisation: str | None = None,
    ) -> x509.Certificate:
        """Vouch for a node's TLS key, for ``days`` from an hour before ``now`` (UTC).

        ``organisation`` is our own unless a test wants to see a foreign one refused.
        """
        name = _subject(organisation or self.organisation, node)
        ours = self.key.exchange.public_key()
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        return (
            _builder(name, self.certificate.subject, public_key, now=now, days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(usages, critical=False)
            .add_extension(_key_identifier(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ours), critical=False)
            .sign(self.key.exchange, hashes.SHA256())
        )

    def renew(self, certificate: x509.Certificate, *, now: datetime, days: int = NODE_DAYS) -> x509.Certificate:
        """Vouch again for the node and key of a certificate that we issued.

        Raises:
            LocalError: ``bad_certificate_file`` when it is not ours.
        """
        try:
            certificate.verify_directly_issued_by(self.certificate)
            node = str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        except (ValueError, TypeError, IndexError, InvalidSignature) as error:
            raise LocalError("bad_certificate_file", f"not issued by {self.organisation}: {error}") from None
        public_key = certificate.public_key()
        if not isinstance(public_key, ec.EllipticCurvePublicKey):
            raise LocalError("bad_certificate_file", "the certificate's key is not on P-256")
        return self.issue(node, public_key, now=now, days=days)


def to_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def utc_now() -> datetime:
    """Return the present moment, in UTC."""
    return datetime.now(UTC)


def _subject(organisation: str, name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, *, now: datetime, days: int
) -> x509.CertificateBuilder:
    begin = now - BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_identifier(public_key: ec.EllipticCurvePublicKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(public_key)
