"""Keys on disk."""

import os
import stat
from pathlib import Path

import pytest

from consensus.ledger.errors import LocalError
from consensus.ledger.keys import PrivateKey
from services.client.keystore import KeyStore, read_passphrase

PASSPHRASE = b"correct horse"


def test_a_key_is_found_again_and_listed_without_its_passphrase(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    made = store.create("shop", PASSPHRASE)
    assert store.load("shop", PASSPHRASE).address == made.address
    (entry,) = store.entries()
    assert (entry.name, entry.address, entry.public_key) == ("shop", made.address, made.key.public.compressed)
    assert stat.S_IMODE(entry.path.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in entry.path.read_bytes()


def test_a_file_without_header_stands_for_its_own_key(tmp_path: Path) -> None:
    key = PrivateKey.from_secret(7)
    path = tmp_path / "shop.pem"
    path.write_bytes(key.to_pem(PASSPHRASE))
    path.chmod(0o600)
    store = KeyStore(tmp_path)
    assert store.entry("shop").address == b""
    assert store.load("shop", PASSPHRASE).address == key.public.address


def test_the_address_survives_another_key_in_its_place(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    first = store.create("shop", PASSPHRASE)
    path = store.entry("shop").path
    header = path.read_bytes().split(b"-----BEGIN")[0]
    other = PrivateKey.from_secret(9)
    path.write_bytes(header + other.to_pem(PASSPHRASE))
    signer = store.load("shop", PASSPHRASE)
    assert (signer.address, signer.key.public.compressed) == (first.address, other.public.compressed)


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    store.create("shop", PASSPHRASE)
    cases = [
        ("wrong_passphrase", lambda: store.load("shop", b"wrong")),
        ("unknown_key", lambda: store.load("nobody", PASSPHRASE)),
        ("key_exists", lambda: store.create("shop", PASSPHRASE)),
        ("key_exists", lambda: store.check_free("shop")),
        ("bad_name", lambda: store.create("../shop", PASSPHRASE)),
        ("bad_name", lambda: store.load("a/b", PASSPHRASE)),
        ("weak_passphrase", lambda: store.create("other", b"")),
    ]
    for code, action in cases:
        with pytest.raises(LocalError) as caught:
            action()
        assert caught.value.code == code
    os.chmod(tmp_path / "shop.pem", 0o640)
    with pytest.raises(LocalError) as caught:
        store.load("shop", PASSPHRASE)
    assert caught.value.code == "key_permissions"


def test_a_passphrase_file_holds_one_line(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE + b"\n")
    assert read_passphrase(path) == PASSPHRASE
    for content in (b"", b"\n", b"x" * 2_000):
        path.write_bytes(content)
        with pytest.raises(LocalError) as caught:
            read_passphrase(path)
        assert caught.value.code == "bad_passphrase_file"
    with pytest.raises(LocalError, match="No such file"):
        read_passphrase(tmp_path / "missing")
