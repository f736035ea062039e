"""Roots that look alike: one that an organisation brings must not stand in the way of another's."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from consensus.ledger.errors import LocalError
from consensus.ledger.keys import PrivateKey
from node.network.ca import to_pem
from p2p.tls import Trust
from tests.p2p.support import Certificates


def look_alike(root: x509.Certificate) -> x509.Certificate:
    """Return a root with another key under the subject and the key identifier of this one."""
    key = PrivateKey.generate().exchange
    builder = (
        x509.CertificateBuilder()
        .subject_name(root.subject)
        .issuer_name(root.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(root.not_valid_before_utc)
        .not_valid_after(root.not_valid_after_utc)
    )
    for extension in root.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, hashes.SHA256())


def test_a_root_that_names_another_organisation_is_refused(tmp_path: Path) -> None:
    """OpenSSL takes the first root whose name and key identifier fit: the other organisation's nodes were out."""
    certificates = Certificates(tmp_path, "a", "b")
    root = certificates.roots["org-a"].certificate
    forged = to_pem(look_alike(root)).decode()
    with pytest.raises(LocalError) as refused:
        Trust.of([("all-before-a", forged), ("org-a", to_pem(root).decode())])
    assert refused.value.code == "bad_certificate_file"
    assert set(Trust.of([("org-a", to_pem(root).decode())]).roots) == {"org-a"}
