"""Records of a platform: drafted, signed by both, encrypted, removed; epochs begun, resumed, and trusted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from consensus.ledger.errors import HansaError, LocalError, PeerError, StorageError
from consensus.ledger.keys import PrivateKey
from consensus.ledger.payees import Content, record_key, wrap_key
from services.client.errors import Refused, Unreachable
from services.payee.epochs import _arguments
from services.payee.identity import identity_text
from services.payee.interfaces import (
    Acquiring,
    NoParams,
    PlatformStatus,
    PutRecord,
    RecordPut,
    Records,
    RecordsQuery,
    Register,
    RemoveRecord,
    Rotate,
    Rotated,
    Trust,
)
from services.payee.platform_chain import KeptRecord
from services.payee.platform_store import Rotation
from services.payee.sealing import ExchangeKey, check_commitment, unwrap_epoch_key
from tests.contracts.domain.payees import MEASUREMENT, identity
from tests.payee.platform_world import ACQUIRING, Owner, PlatformWorld, platform_world
from tests.payee.resolving import environment_keys


async def status(owner: Owner) -> PlatformStatus:
    return await owner.link.call("status", NoParams(), PlatformStatus)


async def rotate(owner: Owner, *environments: str) -> Rotated:
    return await owner.link.call("rotate", Rotate([*environments]), Rotated)


async def rows(owner: Owner, limit: int = 100) -> list[tuple[bytes, int, int, Acquiring | None]]:
    """Return all records that the owner sees, page by page."""
    found, after = [], ""
    while True:
        page = await owner.link.call("records", RecordsQuery(after, limit), Records)
        found += page.items
        if not page.next:
            break
        after = page.next
    return [(row.identity, row.version, row.epoch, row.acquiring) for row in found]  # type: ignore[misc]


async def opened_by(world: PlatformWorld, environment: str, server: str = "wallet-p", number: int = 0) -> Content | str:
    """Return what an environment reads of a record, or why it cannot."""
    found = await world.client.state(record_key(server, identity(number)), is_newest=True)
    record = msgspec.convert(found.value, KeptRecord)
    wrap = (await world.client.state(wrap_key(server, record.epoch, environment), is_newest=True)).value
    if not isinstance(wrap, dict):
        return "no key"
    key = unwrap_epoch_key(
        wrap["wrap"],  # type: ignore[arg-type]
        server=server,
        epoch=record.epoch,
        environment=environment,
        exchange=environment_keys(environment).exchange,
    )
    content = key.open_record(record.ciphertext, identity=identity(number), server=server, version=record.version)
    check_commitment(content, record.commitment)
    return content


async def code_of(call: Any) -> str:
    with pytest.raises(HansaError) as caught:
        await call
    return caught.value.code


# -- records ---------------------------------------------------------------------------------------------


async def test_a_record_is_added_and_read_back(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        assert (await owner.begin()).epoch == 1
        put = await owner.add()
        assert (put.version, put.epoch) == (1, 1)
        assert await rows(owner) == [(identity_text(identity(0)), 1, 1, ACQUIRING)]
        for environment in ("bank-a", "issuer-c"):
            content = await opened_by(world, environment)
            assert isinstance(content, Content)
            assert msgspec.json.decode(content.plaintext, type=Acquiring) == ACQUIRING
        found = await status(owner)
        assert (found.epoch, found.environments, found.records, found.outdated) == (1, ["bank-a", "issuer-c"], 1, 0)


async def test_a_record_is_updated_removed_and_comes_back(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        await owner.begin()
        assert (await owner.draft()).standing == ""
        await owner.add()
        other = replace(ACQUIRING, account="shop")
        assert (await owner.draft(other)).standing == "ACTIVE"
        assert (await owner.add(other, is_shareable=True)).version == 2
        gone = RemoveRecord(identity_text(identity(0)))
        assert (await owner.link.call("remove_record", gone, RecordPut)).version == 3
        assert await code_of(owner.link.call("remove_record", gone, RecordPut)) == "record_removed"
        assert await rows(owner) == [(identity_text(identity(0)), 3, 1, None)]
        assert (await owner.draft()).standing == "REMOVED"
        assert (await owner.add()).version == 4
        assert (await status(owner)).records == 1
        unknown = RemoveRecord(identity_text(identity(1)))
        assert await code_of(owner.link.call("remove_record", unknown, RecordPut)) == "unknown_record"


async def test_the_merchant_has_to_sign_what_was_drafted(tmp_path: Path) -> None:
    async with platform_world(tmp_path, merchants=2) as world, world.platform() as owner:
        await owner.begin()
        draft = await owner.draft()
        asked = owner.signed(draft)
        other = owner.signed(await owner.draft(number=1), number=1)
        for wrong in (
            replace(asked, merchant_signature=other.merchant_signature),
            replace(asked, merchant_signature=bytes(64)),
            owner.signed(replace(draft, is_shareable=True)),
            owner.signed(replace(draft, version=2)),
            owner.signed(replace(draft, server="wallet-q")),
        ):
            wrong = PutRecord(asked.identity, asked.commitment, wrong.merchant_signature)
            assert await code_of(owner.link.call("put_record", wrong, RecordPut)) == "bad_signature"
        unknown = replace(asked, commitment=bytes(32))
        assert await code_of(owner.link.call("put_record", unknown, RecordPut)) == "unknown_draft"
        assert await code_of(owner.draft(number=5)) == "unknown_merchant"
        assert await rows(owner) == []
        assert (await owner.link.call("put_record", asked, RecordPut)).version == 1


async def test_a_put_may_be_repeated_and_a_draft_is_for_one_version(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        await owner.begin()
        draft = await owner.draft()
        assert await owner.draft() == draft
        assert (await owner.draft(is_shareable=True)).commitment != draft.commitment
        draft = await owner.draft()
        asked = owner.signed(draft)
        first = await owner.link.call("put_record", asked, RecordPut)
        again = await owner.link.call("put_record", asked, RecordPut)
        assert (again.version, again.epoch) == (first.version, first.epoch) == (1, 1)
        late = owner.signed(await owner.draft())
        await world.remove_as_merchant("wallet-p", 2)
        assert await code_of(owner.link.call("put_record", late, RecordPut)) == "wrong_version"
        assert (await owner.draft()).version == 3


async def test_a_put_whose_answer_is_lost_is_known_by_what_the_chain_has(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        await owner.begin()
        asked = owner.signed(await owner.draft())
        chain = owner.platform.records._chain
        call: Callable[..., Any] = chain.call

        async def lost(method: str, arguments: Any) -> None:
            await call(method, arguments)
            raise Unreachable("nobody answers", "outcome_unknown")

        chain.call = lost  # type: ignore[method-assign, assignment]
        assert await code_of(owner.link.call("put_record", asked, RecordPut)) == "outcome_unknown"
        chain.call = call  # type: ignore[method-assign]
        assert (await owner.link.call("put_record", asked, RecordPut)).version == 1
        assert len(await rows(owner)) == 1


async def test_nothing_is_written_before_the_first_epoch(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        await owner.platform.epochs.make_registered()
        asked = owner.signed(await owner.draft())
        assert await code_of(owner.link.call("put_record", asked, RecordPut)) == "no_epoch"
        assert await code_of(owner.link.call("trust", Trust(["bank-a"]), PlatformStatus)) == "no_epoch"
        assert (await status(owner)).epoch == 0
        await owner.begin()
        assert (await owner.link.call("put_record", asked, RecordPut)).version == 1


# -- epochs ----------------------------------------------------------------------------------------------


async def test_a_rotation_takes_trust_back(tmp_path: Path) -> None:
    async with platform_world(tmp_path, merchants=3) as world, world.platform() as owner:
        await owner.begin()
        for number in range(3):
            await owner.add(number=number)
        await owner.link.call("remove_record", RemoveRecord(identity_text(identity(2))), RecordPut)
        turned = await rotate(owner, "issuer-c")
        assert (turned.epoch, turned.encrypted) == (2, 2)
        assert await opened_by(world, "bank-a") == "no key"
        content = await opened_by(world, "issuer-c")
        assert isinstance(content, Content)
        assert msgspec.json.decode(content.plaintext, type=Acquiring) == ACQUIRING
        found = await status(owner)
        assert (found.epoch, found.environments, found.outdated, found.lost) == (2, ["issuer-c"], 0, 0)
        assert sorted(await rows(owner, limit=2)) == sorted(
            (identity_text(identity(number)), 2, 1 if number == 2 else 2, None if number == 2 else ACQUIRING)
            for number in range(3)
        )
        trusted = await owner.link.call("trust", Trust(["bank-a", "issuer-c"]), PlatformStatus)
        assert trusted.environments == ["bank-a", "issuer-c"]
        assert isinstance(await opened_by(world, "bank-a"), Content)
        assert (await rotate(owner, "issuer-c")).epoch == 3


async def test_only_environments_in_service_are_trusted(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        await owner.platform.epochs.make_registered()
        assert await code_of(rotate(owner, "bank-a", "nobody")) == "unknown_environment"
        await world.call("bank-a", "withdraw_environment", name="bank-a")
        assert await code_of(rotate(owner, "bank-a")) == "environment_withdrawn"
        await rotate(owner, "issuer-c")
        assert await code_of(owner.link.call("trust", Trust(["bank-a"]), PlatformStatus)) == "environment_withdrawn"
        await world.call("permission", "disallow_measurement", measurement=MEASUREMENT)
        assert await code_of(rotate(owner, "issuer-c")) == "unknown_measurement"
        assert (await status(owner)).environments == []  # it has the key, and counts no more
        await world.call("permission", "allow_measurement", measurement=MEASUREMENT, note="")
        assert (await status(owner)).environments == ["issuer-c"]
        await world.call("issuer-c", "withdraw_environment", name="issuer-c")
        assert (await status(owner)).environments == []
        assert (await status(owner)).epoch == 1


async def test_new_keys_of_an_environment_are_trusted_anew(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        await owner.begin()
        await world.call("bank-a", "withdraw_environment", name="bank-a")
        exchange, signing = ExchangeKey.generate(), PrivateKey.generate()
        await world.call(
            "bank-a",
            "register_environment",
            name="bank-a",
            exchange_key=exchange.public,
            signing_key=signing.public.compressed,
            measurement=MEASUREMENT,
        )
        assert (await status(owner)).environments == ["issuer-c"]
        trusted = await owner.link.call("trust", Trust(["bank-a"]), PlatformStatus)
        assert trusted.environments == ["bank-a", "issuer-c"]


POINTS = ("announce before", "announce after", "send before", "send after", "end before")


@pytest.mark.parametrize("point", POINTS)
async def test_an_interrupted_rotation_goes_on(tmp_path: Path, point: str) -> None:
    """Killed anywhere, the same call after a new start ends with the same epoch and nothing outdated."""
    async with platform_world(tmp_path, merchants=2) as world:
        async with world.platform() as owner:
            await owner.begin()
            for number in range(2):
                await owner.add(number=number)
        async with world.platform() as owner:
            _die(owner, point)
            with pytest.raises(StorageError):
                await owner.platform.epochs.rotate(Rotate(["bank-a"]))
        async with world.platform() as owner:
            turned = await rotate(owner, "bank-a")
            assert turned.epoch == 2
            found = await status(owner)
            assert (found.epoch, found.environments, found.outdated, found.lost) == (2, ["bank-a"], 0, 0)
            assert {row[3] for row in await rows(owner)} == {ACQUIRING}
            assert isinstance(await opened_by(world, "bank-a", number=1), Content)
            assert (await rotate(owner, "bank-a")).epoch == 3  # a new one, since the last has ended


@pytest.mark.parametrize("point", POINTS)
async def test_an_interrupted_rotation_may_be_followed_by_another(tmp_path: Path, point: str) -> None:
    """Nobody of whom trust was taken in the second attempt keeps a key that is in force."""
    async with platform_world(tmp_path, merchants=2) as world:
        async with world.platform() as owner:
            await owner.begin()
            for number in range(2):
                await owner.add(number=number)
            _die(owner, point)
            with pytest.raises(StorageError):
                await owner.platform.epochs.rotate(Rotate(["bank-a"]))
        async with world.platform() as owner:
            await rotate(owner, "issuer-c")
            assert (await status(owner)).environments == ["issuer-c"]
            for number in range(2):
                assert await opened_by(world, "bank-a", number=number) == "no key"
                assert isinstance(await opened_by(world, "issuer-c", number=number), Content)


async def test_an_attempt_that_was_given_up_and_comes_late_decides_nothing(tmp_path: Path) -> None:
    """Its call begins the epoch that the next attempt is about to begin: then there is one more."""
    async with platform_world(tmp_path) as world:
        async with world.platform() as owner:
            await owner.begin()
            await owner.add()
            _die(owner, "announce before")
            with pytest.raises(StorageError):
                await owner.platform.epochs.rotate(Rotate(["bank-a"]))
        async with world.platform() as owner:
            epochs = owner.platform.epochs
            given_up = epochs._store.rotation()
            begin = epochs._store.begin_rotation

            async def late(rotation: Rotation, key: bytes) -> None:
                await begin(rotation, key)
                if rotation.epoch == 2 and given_up is not None:
                    arguments = _arguments(2, given_up.wraps)
                    assert await epochs._chain.call_once("put_wraps", arguments, epochs._name(2, 1))

            epochs._store.begin_rotation = late  # type: ignore[method-assign]
            assert (await rotate(owner, "issuer-c")).epoch == 3
            assert await opened_by(world, "bank-a") == "no key"
            assert isinstance(await opened_by(world, "issuer-c"), Content)


def _die(owner: Owner, point: str) -> None:
    """Have the platform end at this point of its next rotation."""
    what, when = point.split()
    target, name = {
        "announce": (owner.platform.epochs._chain, "call_once"),
        "send": (owner.platform.epochs._chain, "call_each"),
        "end": (owner.platform.epochs._store, "end_rotation"),
    }[what]
    call = getattr(target, name)

    async def dying(*arguments: Any) -> None:
        if when == "after":
            await call(*arguments)
        raise StorageError("disk_failed", "the end")

    setattr(target, name, dying)


async def test_an_attempt_that_failed_does_not_stand_in_the_way(tmp_path: Path) -> None:
    """The call that is to begin an epoch fails on the chain; the next attempt has a name of its own."""
    async with platform_world(tmp_path) as world, world.platform() as owner:
        await owner.begin()
        epochs = owner.platform.epochs
        check = epochs._chain.exchange_key

        async def late(environment: str) -> bytes:
            key = await check(environment)
            await world.call("bank-a", "withdraw_environment", name="bank-a")  # after it was looked at
            return key

        epochs._chain.exchange_key = late  # type: ignore[method-assign]
        assert await code_of(rotate(owner, "bank-a")) == "environment_withdrawn"
        epochs._chain.exchange_key = check  # type: ignore[method-assign]
        assert (await rotate(owner, "issuer-c")).epoch == 3  # the second has a key that bank-a could have read


@pytest.mark.parametrize("is_killed_again", [False, True])
async def test_a_key_that_was_wrapped_for_others_stays_on_no_record(tmp_path: Path, is_killed_again: bool) -> None:
    """The call of an attempt that was given up never lands, and yet a node has seen whom it wraps the key for."""
    async with platform_world(tmp_path) as world:
        async with world.platform() as owner:
            await owner.begin()
            await owner.add()
            _die(owner, "announce before")
            with pytest.raises(StorageError):
                await owner.platform.epochs.rotate(Rotate(["bank-a"]))
            given_up = owner.platform.epochs._store.rotation()
        assert given_up is not None
        if is_killed_again:
            async with world.platform() as owner:
                _die(owner, "announce after")
                with pytest.raises(StorageError):
                    await owner.platform.epochs.rotate(Rotate(["issuer-c"]))
        async with world.platform() as owner:
            assert (await rotate(owner, "issuer-c")).epoch == 3
            seen = unwrap_epoch_key(
                given_up.wraps["bank-a"].wrap,
                server="wallet-p",
                epoch=given_up.epoch,
                environment="bank-a",
                exchange=environment_keys("bank-a").exchange,
            )
            record = (await owner.platform.records._chain.record(identity(0))).value
            assert record is not None
            with pytest.raises(PeerError):
                seen.open_record(record.ciphertext, identity=identity(0), server="wallet-p", version=record.version)
            assert isinstance(await opened_by(world, "issuer-c"), Content)


async def test_an_interrupted_rotation_for_keys_that_were_replaced_is_given_up(tmp_path: Path) -> None:
    """The environment has new keys since: who has its old ones gets no key any more."""
    async with platform_world(tmp_path) as world:
        async with world.platform() as owner:
            await owner.begin()
            await owner.add()
            _die(owner, "announce before")
            with pytest.raises(StorageError):
                await owner.platform.epochs.rotate(Rotate(["bank-a"]))
        await world.call("bank-a", "withdraw_environment", name="bank-a")
        fresh = ExchangeKey.generate()
        await world.call(
            "bank-a",
            "register_environment",
            name="bank-a",
            exchange_key=fresh.public,
            signing_key=PrivateKey.generate().public.compressed,
            measurement=MEASUREMENT,
        )
        async with world.platform() as owner:
            await rotate(owner, "bank-a")
            assert (await status(owner)).environments == ["bank-a"]
            with pytest.raises(PeerError):
                await opened_by(world, "bank-a")  # with its old keys


async def test_a_batch_is_no_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.payee.epochs.BATCH", 2)
    monkeypatch.setattr("services.payee.platform_chain.RECORDS_PAGE_MAX", 3)
    async with platform_world(tmp_path, merchants=5) as world, world.platform() as owner:
        await owner.begin()
        for number in range(5):
            await owner.add(number=number)
        assert (await rotate(owner, "bank-a")).encrypted == 5
        assert [row[1:] for row in await rows(owner, limit=2)] == [(2, 2, ACQUIRING)] * 5
        assert ((await status(owner)).records, (await status(owner)).is_more) == (5, False)
        monkeypatch.setattr("services.payee.epochs.RECORDS_COUNTED_MAX", 4)
        assert ((await status(owner)).records, (await status(owner)).is_more) == (4, True)


async def test_an_epoch_that_begins_while_a_record_is_put(tmp_path: Path) -> None:
    """The chain refuses the old epoch's record, and the same draft is encrypted anew: the merchant need not sign."""
    async with platform_world(tmp_path) as world, world.platform() as owner:
        await owner.begin()
        desk = owner.platform.records
        asked, write = owner.signed(await owner.draft()), desk._chain.call

        async def late(method: str, arguments: Any) -> Any:
            desk._chain.call = write  # type: ignore[method-assign]
            await rotate(owner, "issuer-c")
            return await write(method, arguments)

        desk._chain.call = late  # type: ignore[method-assign]
        assert (await owner.link.call("put_record", asked, RecordPut)).epoch == 2
        assert isinstance(await opened_by(world, "issuer-c"), Content)


# -- what is lost ----------------------------------------------------------------------------------------


async def test_records_come_back_from_the_chain_by_the_epochs_keys(tmp_path: Path) -> None:
    """A vault that holds nothing but keys is enough to read, to update and to rotate."""
    async with platform_world(tmp_path) as world:
        async with world.platform() as owner:
            await owner.begin()
            await owner.add()
            store = owner.platform.epochs._store
            kept = [(name, store._vault.get(name)) for name in (b"key", b"epoch/000001")]
        async with world.platform(folder=tmp_path / "anew") as owner:
            await owner.platform.epochs._store._vault.write(kept)
        async with world.platform(folder=tmp_path / "anew") as owner:
            assert await rows(owner) == [(identity_text(identity(0)), 1, 1, ACQUIRING)]
            assert (await owner.add()).version == 2
            assert (await rotate(owner, "bank-a")).encrypted == 1


async def test_a_lost_vault_is_said_and_survived(tmp_path: Path) -> None:
    async with platform_world(tmp_path, merchants=2) as world:
        async with world.platform() as owner:
            await owner.begin()
            await owner.add()
        async with world.platform(folder=tmp_path / "anew") as owner:
            with pytest.raises(LocalError) as caught:
                await owner.platform.epochs.make_registered()
            assert caught.value.code == "other_key"
            assert await code_of(rotate(owner, "bank-a")) == "other_key"
            assert await code_of(owner.link.call("register", Register(), PlatformStatus)) == "other_key"
            found = await owner.link.call("register", Register(True), PlatformStatus)
            assert (found.epoch, found.lost, found.environments) == (1, 1, [])
            assert await rows(owner) == [(identity_text(identity(0)), 1, 1, None)]
            turned = await rotate(owner, "bank-a")
            assert (turned.epoch, turned.encrypted) == (2, 0)
            assert ((await status(owner)).outdated, (await status(owner)).lost) == (1, 1)
            assert (await owner.add()).version == 2
            assert (await status(owner)).lost == 0


async def test_an_account_of_another_organisation_is_said(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world, world.platform() as owner:
        owner.platform.epochs._chain.server = "wallet-x"
        with pytest.raises(LocalError) as caught:
            await owner.platform.epochs.make_registered()
        assert caught.value.code == "wrong_server"
        assert isinstance(caught.value, LocalError)
        assert not isinstance(caught.value, Refused)
