"""What an environment keeps on disk: it opens for the same code on the same machine, and says why it does not."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from consensus.ledger.errors import HansaError
from services.payee.enclave import EnvironmentKeys
from services.payee.enclave_keys import HEAD_FILE, KEYS_FILE, HeadFile, open_sealed

CHAIN_ID, OTHER_CHAIN_ID = bytes(range(32)), bytes(32)
CODE, OTHER_CODE = b"\1" * 32, b"\2" * 32
PLACE_BYTES = 36


@contextmanager
def opened(
    folder: Path, *, name: str = "bank-a", chain_id: bytes = CHAIN_ID, measurement: bytes = CODE
) -> Iterator[tuple[EnvironmentKeys, HeadFile]]:
    machine = folder / "machine.key"
    with open_sealed(folder / "data", machine, name=name, chain_id=chain_id, measurement=measurement) as both:
        yield both


def keys_of(folder: Path) -> tuple[bytes, bytes]:
    """Return both public keys."""
    with opened(folder) as (keys, _):
        return keys.exchange.public, keys.signing.public.compressed


def refusal(folder: Path, *, name: str = "bank-a", chain_id: bytes = CHAIN_ID, measurement: bytes = CODE) -> str:
    with (
        pytest.raises(HansaError) as caught,
        opened(folder, name=name, chain_id=chain_id, measurement=measurement) as (_, head),
    ):
        head.read()
    return caught.value.code


def test_keys_are_made_once_and_two(tmp_path: Path) -> None:
    first = keys_of(tmp_path)
    assert first == keys_of(tmp_path)
    assert first[0] != first[1]
    assert first != keys_of(tmp_path / "another")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o600}


def test_other_code_does_not_open_them(tmp_path: Path) -> None:
    before = keys_of(tmp_path)
    assert refusal(tmp_path, measurement=OTHER_CODE) == "wrong_measurement"
    # nor where it passes itself off as the code that sealed them
    path = tmp_path / "data" / KEYS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole.replace(CODE, OTHER_CODE))
    assert refusal(tmp_path, measurement=OTHER_CODE) == "not_sealed_here"
    path.write_bytes(whole)
    assert keys_of(tmp_path) == before


def test_they_open_on_their_machine_for_their_chain_and_name_alone(tmp_path: Path) -> None:
    before = keys_of(tmp_path)
    assert refusal(tmp_path, name="bank-b") == "not_sealed_here"
    assert refusal(tmp_path, chain_id=OTHER_CHAIN_ID) == "not_sealed_here"
    machine = tmp_path / "machine.key"
    secret = machine.read_bytes()
    machine.write_bytes(bytes(32))
    assert refusal(tmp_path) == "not_sealed_here"
    machine.write_bytes(secret + b"\0")
    assert refusal(tmp_path) == "bad_key"
    machine.write_bytes(secret)
    machine.chmod(0o640)
    assert refusal(tmp_path) == "key_permissions"
    machine.unlink()
    assert refusal(tmp_path) == "key_lost"
    assert not machine.exists()
    machine.write_bytes(secret)
    machine.chmod(0o600)
    assert keys_of(tmp_path) == before


def test_every_byte_of_sealed_keys_counts(tmp_path: Path) -> None:
    keys_of(tmp_path)
    path = tmp_path / "data" / KEYS_FILE
    whole = path.read_bytes()
    codes = set()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        codes.add(refusal(tmp_path))
    assert codes == {"corrupted", "wrong_measurement", "not_sealed_here"}
    path.write_bytes(whole[:-1])
    assert refusal(tmp_path) == "corrupted"


def test_no_secret_lies_there_in_clear(tmp_path: Path) -> None:
    with opened(tmp_path) as (keys, head):
        head.write(0x123456)
        secret = keys.signing.exchange.private_numbers().private_value.to_bytes(32, "big")
        for path in tmp_path.rglob("*"):
            if path.is_file():
                assert keys.exchange.secret() not in path.read_bytes()
                assert secret not in path.read_bytes()
                assert b"\x12\x34\x56" not in path.read_bytes()


def test_one_process_alone(tmp_path: Path) -> None:
    with opened(tmp_path):
        assert refusal(tmp_path) == "already_running"
    keys_of(tmp_path)


def test_of_two_first_starts_one_makes_the_keys(tmp_path: Path) -> None:
    """The other one touches nothing: a machine's secret that it made would take the place of the first one's."""
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / HEAD_FILE).open("wb") as head:
        fcntl.flock(head, fcntl.LOCK_EX)
        assert refusal(tmp_path) == "already_running"
    assert not (tmp_path / "machine.key").exists()
    assert keys_of(tmp_path) == keys_of(tmp_path)


def test_keys_without_a_head_are_refused_every_time(tmp_path: Path) -> None:
    keys_of(tmp_path)
    (tmp_path / "data" / HEAD_FILE).unlink()
    assert [refusal(tmp_path) for _ in range(2)] == ["corrupted"] * 2


def test_a_first_start_that_was_cut_short_begins_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as (_, head):
        head.write(7)
    (tmp_path / "data" / KEYS_FILE).unlink()
    with opened(tmp_path) as (_, head):
        assert head.read() == 0


def test_the_highest_head_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as (_, head):
        assert head.read() == 0
        for height in (5, 6, 9):
            head.write(height)
            assert head.read() == height
    with opened(tmp_path) as (_, head):
        assert head.read() == 9
        head.write(10)
    with opened(tmp_path) as (_, head):
        assert head.read() == 10


def test_a_write_of_the_head_that_was_cut_short_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "data" / HEAD_FILE
    with opened(tmp_path) as (_, head):
        head.write(5)
        head.write(6)
    whole = path.read_bytes()
    assert len(whole) == 2 * PLACE_BYTES
    found = set()
    for start in (0, PLACE_BYTES):
        path.write_bytes(whole[:start] + bytes(PLACE_BYTES) + whole[start + PLACE_BYTES :])
        with opened(tmp_path) as (_, head):
            kept = head.read()
            found.add(kept)
            head.write(kept + 10)
            assert head.read() == kept + 10
    assert found == {5, 6}


def test_a_head_that_does_not_open_stops_it(tmp_path: Path) -> None:
    keys_of(tmp_path)
    path = tmp_path / "data" / HEAD_FILE
    path.write_bytes(bytes(2 * PLACE_BYTES))
    assert refusal(tmp_path) == "not_sealed_here"
    path.unlink()
    assert refusal(tmp_path) == "corrupted"


def test_a_place_of_the_head_is_no_other_place(tmp_path: Path) -> None:
    """Two places of one write would let an old height stand beside the new one for ever."""
    path = tmp_path / "data" / HEAD_FILE
    with opened(tmp_path) as (_, head):
        head.write(5)
    whole = path.read_bytes()
    path.write_bytes(whole[PLACE_BYTES:] + whole[:PLACE_BYTES])
    assert refusal(tmp_path) == "not_sealed_here"


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    assert refusal(tmp_path) == "bad_config"
