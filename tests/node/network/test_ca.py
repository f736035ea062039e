"""Certificates: what a root issues, renews and refuses."""

from datetime import timedelta

import pytest
from cryptography.exceptions import InvalidSignature

from consensus.ledger.errors import LocalError
from consensus.ledger.keys import PrivateKey
from node.network.ca import Authority, to_pem, utc_now

NOW = utc_now()
KEY = PrivateKey.from_secret(7).exchange.public_key()


def test_root_vouches_for_its_nodes_and_no_other_root_does():
    ours, theirs = Authority.create("bank-a", now=NOW), Authority.create("bank-a", now=NOW)
    certificate = ours.issue("node-1", KEY, now=NOW)
    certificate.verify_directly_issued_by(ours.certificate)
    with pytest.raises(InvalidSignature):
        certificate.verify_directly_issued_by(theirs.certificate)
    assert certificate.subject.rfc4514_string() == "CN=node-1,O=bank-a"


def test_renewal_keeps_node_and_key_and_overlaps():
    root = Authority.create("bank-a", now=NOW)
    old = root.issue("node-1", KEY, now=NOW, days=30)
    new = root.renew(old, now=NOW + timedelta(days=20), days=30)
    assert (new.subject, new.public_key()) == (old.subject, old.public_key())
    assert new.serial_number != old.serial_number
    assert new.not_valid_before_utc < old.not_valid_after_utc < new.not_valid_after_utc


def test_only_the_issuer_renews():
    certificate = Authority.create("bank-a", now=NOW).issue("node-1", KEY, now=NOW)
    with pytest.raises(LocalError) as raised:
        Authority.create("bank-a", now=NOW).renew(certificate, now=NOW)
    assert raised.value.code == "bad_certificate_file"


def test_root_survives_its_files():
    root = Authority.create("bank-a", now=NOW)
    again = Authority.load(to_pem(root.certificate), root.key.to_pem(b"secret"), b"secret")
    assert again.organisation == "bank-a"
    again.issue("node-1", KEY, now=NOW).verify_directly_issued_by(root.certificate)
    with pytest.raises(LocalError) as raised:
        Authority.load(to_pem(root.certificate), root.key.to_pem(b"secret"), b"wrong")
    assert raised.value.code == "wrong_passphrase"
