"""Encrypted backups of a channel: out of a gateway, back into one that lost its store, and altered on the way."""

import os
import shutil
from pathlib import Path

import pytest

from consensus.ledger.errors import LocalError
from services.agency import backup, desk
from services.agency.backup import MAGIC, export_channel, import_channel, read_channel
from services.agency.interfaces import PackageState, RootQuery
from services.client.errors import Refused
from services.local.link import LocalLink
from tests.agency.world import BANK, ISSUER, World, answer_next, application, outcomes, submit, world

PASSPHRASE = b"correct horse"


def nobody(_: int) -> None:
    pass


async def export(bank: LocalLink, path: Path) -> int:
    return await export_channel(bank, path, PASSPHRASE, organisation=BANK, bank=BANK, issuer=ISSUER, on_page=nobody)


async def trade(found: World, bank: LocalLink, *batches: str) -> list[bytes]:
    """Send batches of an order each, have them answered, and return the packages' roots."""
    roots: list[bytes] = []
    async with found.gateway(ISSUER) as issuer:
        position = 0
        for number, batch in enumerate(batches):
            sent = await submit(bank, application(number), batch=batch)
            roots += [package.root for package in sent.packages]
            position, _ = await answer_next(issuer, position)
        await outcomes(bank, 2 * len(batches))
    return roots


def fault(path: Path, passphrase: bytes = PASSPHRASE) -> str:
    with pytest.raises(LocalError) as caught:
        list(backup._pages(path, passphrase))
    return caught.value.code


async def test_a_gateway_that_lost_its_store_gets_all_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "EXPORT_BYTES_MAX", 1)  # a page for each package
    path = tmp_path / "c.backup"
    async with world(tmp_path) as found:
        async with found.gateway(BANK) as bank:
            roots = await trade(found, bank, "one", "two", "three")
            assert await export(bank, path) == 6
            before = [await bank.call("package", RootQuery(root), PackageState) for root in roots]
        assert path.stat().st_mode & 0o077 == 0
        assert read_channel(path) == (BANK, BANK, ISSUER)
        content = path.read_bytes()
        assert b"A00000001" not in content
        assert b"TA0000000001" not in content
        shutil.rmtree(found.settings(BANK).data)
        async with found.gateway(BANK) as bank:
            with pytest.raises(Refused) as caught:
                await bank.call("package", RootQuery(roots[0]), PackageState)
            assert caught.value.code == "unknown_package"
            assert await import_channel(bank, path, PASSPHRASE, on_page=nobody) == 3
            assert await import_channel(bank, path, PASSPHRASE, on_page=nobody) == 0
            for root, kept in zip(roots, before, strict=True):
                again = await bank.call("package", RootQuery(root), PackageState)
                assert (again.count, again.signature, again.state) == (kept.count, kept.signature, "answered")
                assert [item.outcome_root for item in again.rounds] == [item.outcome_root for item in kept.rounds]


async def test_a_file_that_was_altered_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "EXPORT_BYTES_MAX", 1)
    path, broken = tmp_path / "c.backup", tmp_path / "broken"
    async with world(tmp_path) as found, found.gateway(BANK) as bank:
        await trade(found, bank, "one", "two")
        await export(bank, path)
        with pytest.raises(LocalError) as exists:
            await export(bank, path)
        assert exists.value.code == "file_exists"
    content = path.read_bytes()
    header_end = len(MAGIC) + 4 + int.from_bytes(content[len(MAGIC) : len(MAGIC) + 4], "big")
    first_end = header_end + 4 + int.from_bytes(content[header_end : header_end + 4], "big")
    assert fault(path, b"another") == "wrong_passphrase"
    alterations = {
        "last byte": content[:-1] + bytes([content[-1] ^ 1]),
        "cut off": content[:-1],
        "without its last page": content[:first_end],
        "without its first page": content[:header_end] + content[first_end:],
        "pages swapped": content[:header_end] + content[first_end:] + content[header_end:first_end],
        "something behind": content + content[header_end:first_end],
        "another header": content.replace(b'"n":32768', b'"n":16384'),
        "a costly header": content.replace(b'"n":32768', b'"n":99999999'),
        "no backup": b"OFDCFDAT",
        "nothing": b"",
    }
    for name, data in alterations.items():
        broken.write_bytes(data)
        assert fault(broken) in ("bad_file", "wrong_passphrase"), name
    assert fault(tmp_path / "none") == "bad_file"
    assert [name for name in os.listdir(tmp_path) if name.endswith(".new")] == []
