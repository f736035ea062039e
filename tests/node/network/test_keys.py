"""Key files that are replaced: the old ones stay beside them, a crash leaves the old or the new, nothing is lost."""

from pathlib import Path

import pytest

from consensus.ledger.errors import LocalError
from consensus.ledger.keys import PrivateKey
from node.network import keys as key_files
from node.network.ca import Authority, to_pem, utc_now
from node.network.keys import (
    adopt_next_key,
    drop_next_key,
    fingerprint,
    is_key_adopted,
    load_vote_key,
    next_vote_key,
    renew_certificate,
    renew_vote_key,
    restore_vote_key,
    write_secret,
)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    keys = tmp_path / "keys"
    write_secret(keys / "vote.pem", PrivateKey.generate().to_pem(None))
    (keys / "incarnation").write_bytes(b"first life")
    return keys


def public(keys: Path) -> bytes:
    return load_vote_key(keys).public.compressed


def modes(keys: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in keys.glob("*.pem")}


def test_a_renewed_key_leaves_the_old_one_and_its_incarnation_aside(keys: Path) -> None:
    first = public(keys)
    second = renew_vote_key(keys).public.compressed
    assert public(keys) == second != first
    assert not (keys / "incarnation").exists()
    assert (keys / "incarnation.aside-1").read_bytes() == b"first life"
    (keys / "incarnation").write_bytes(b"second life")
    third = renew_vote_key(keys).public.compressed
    assert (keys / "incarnation.aside-2").read_bytes() == b"second life"
    aside = [PrivateKey.from_pem((keys / f"vote.aside-{number}.pem").read_bytes()) for number in (1, 2)]
    assert [key.public.compressed for key in aside] == [first, second]
    restore_vote_key(keys, first)
    assert public(keys) == first
    restore_vote_key(keys, third)
    assert public(keys) == third, "what stood in its place meanwhile was set aside too"
    restore_vote_key(keys, bytes(33))
    assert public(keys) == third, "a key that is nowhere cannot be restored"
    assert modes(keys) == {0o600}


@pytest.mark.parametrize("step", ["keep_aside", "replace_secret", "unlink"])
@pytest.mark.parametrize("time", [1, 2])
def test_a_renewal_that_broke_off_is_done_again(
    keys: Path, monkeypatch: pytest.MonkeyPatch, step: str, time: int
) -> None:
    """The disk refuses before one of the steps; the old key is still to be found, and the second try succeeds."""
    first = public(keys)
    owner = Path if step == "unlink" else key_files
    done = 0
    real = getattr(owner, step)

    def failing(*arguments: object, **named: object) -> object:
        nonlocal done
        done += 1
        if done == time:
            raise OSError(28, "no space left")
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, failing)
        try:
            renew_vote_key(keys)
        except OSError:
            assert done == time
    found = [PrivateKey.from_pem(path.read_bytes()).public.compressed for path in keys.glob("vote*.pem")]
    assert first in found
    second = public(keys)
    renew_vote_key(keys)
    assert public(keys) not in (first, second)
    restore_vote_key(keys, first)
    assert public(keys) == first


def test_the_next_key_waits_beside_the_one_that_votes(keys: Path) -> None:
    first = public(keys)
    coming = next_vote_key(keys).public.compressed
    assert next_vote_key(keys).public.compressed == coming, "asked again it is the same"
    assert public(keys) == first != coming
    assert not is_key_adopted(keys)
    adopt_next_key(keys)
    adopt_next_key(keys)
    assert is_key_adopted(keys)
    assert public(keys) == coming
    assert len(list(keys.glob("vote.aside-*"))) == 1
    drop_next_key(keys)
    assert next_vote_key(keys).public.compressed != coming
    renew_vote_key(keys)
    assert not (keys / "vote.next.pem").exists(), "a node that rejoins has no other key to come"


def test_a_home_without_a_key(tmp_path: Path) -> None:
    for function in (load_vote_key, renew_vote_key, next_vote_key):
        with pytest.raises(LocalError) as refusal:
            function(tmp_path)
        assert refusal.value.code == "no_home"


def test_a_renewed_certificate_has_another_key_and_fingerprint(keys: Path) -> None:
    authority = Authority.create("bank-a", now=utc_now())
    key = PrivateKey.generate()
    write_secret(keys / "tls.pem", key.to_pem(None))
    first = authority.issue("bank-a", key.exchange.public_key(), now=utc_now())
    write_secret(keys / "tls.crt", to_pem(first))
    before = fingerprint(keys / "tls.crt")
    renew_certificate(keys, "bank-a", authority)
    assert fingerprint(keys / "tls.crt") != before == fingerprint(keys / "tls.aside-1.crt")
    assert (keys / "tls.aside-1.pem").read_bytes() == key.to_pem(None)
    with pytest.raises(LocalError) as refusal:
        fingerprint(keys / "tls.pem")
    assert refusal.value.code == "bad_certificate_file"
