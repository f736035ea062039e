"""membership: what genesis gives, who may do what, every refusal."""

from typing import Any

import pytest

from consensus.ledger.errors import PeerError
from consensus.ledger.keys import PrivateKey
from contracts.runtime.accounts import load_account
from tests.contracts.domain.support import Door, address
from tests.contracts.support import ACCOUNTS, VOTE_KEYS

NEW = PrivateKey.from_secret(77).public
OTHER = PrivateKey.from_secret(78).public


@pytest.fixture
def membership() -> Door:
    return Door("membership")


def test_genesis(membership: Door) -> None:
    assert membership.query("organisation", organisation="shop") == {
        "organisation": "shop",
        "roles": ["merchant", "business-server"],
        "rootCertificate": "PEM S",
        "status": "active",
    }
    assert [item["organisation"] for item in membership.query("organisations")] == ["bank-a", "bank-b", "shop"]
    assert [item["organisation"] for item in membership.query("organisations", start="bank-b", limit=1)] == ["bank-b"]
    nodes = [
        {"node": name, "organisation": "bank-a", "voteKey": key.public.compressed} for name, key in VOTE_KEYS.items()
    ]
    assert membership.query("validators") == nodes
    rest = {"status": "validator", "address": "", "revoked": []}
    assert membership.query("nodes") == [{**item, **rest} for item in nodes]
    names = sorted(ACCOUNTS)
    assert [item["name"] for item in membership.query("accounts")] == names
    assert [item["name"] for item in membership.query("accounts", start=names[2], limit=3)] == names[2:5]
    assert membership.query("account", account=address("issuer"))["roles"] == ["unit-issuer"]


def test_register(membership: Door) -> None:
    roles = ["bank", "admin", "bank"]
    created = membership.call("admin-a", "register_account", name="dora", public_key=NEW.compressed, roles=roles)
    assert created == NEW.address
    assert membership.query("account", account=created) == {
        "account": NEW.address,
        "name": "dora",
        "organisation": "bank-a",
        "publicKey": NEW.compressed,
        "roles": ["admin", "bank"],
        "status": "active",
    }
    assert membership.events() == [
        ("account_registered", {"account": NEW.address, "name": "dora", "organisation": "bank-a"})
    ]
    membership.chain.keys["dora"] = PrivateKey.from_secret(77)
    membership.call("dora", "register_account", name="emil", public_key=OTHER.compressed)
    assert membership.query("account", account=OTHER.address)["roles"] == []


@pytest.mark.parametrize(
    ("code", "sender", "changes"),
    [
        ("not_allowed", "alice", {}),
        ("role_not_allowed", "admin-a", {"roles": ["business-server"]}),
        ("role_not_allowed", "admin-b", {"roles": ["bank", "unit-issuer"]}),
        ("name_taken", "admin-a", {"name": "carol"}),
        ("account_exists", "admin-a", {"public_key": PrivateKey.from_secret(1_000).public.compressed}),
        ("bad_key", "admin-a", {"public_key": b"\2" + b"\xff" * 32}),
        ("bad_key", "admin-a", {"public_key": bytes(33)}),
        ("bad_arguments", "admin-a", {"public_key": b"\2" * 32}),
        ("bad_arguments", "admin-a", {"name": "Dora"}),
        ("bad_arguments", "admin-a", {"name": "dora\n"}),
        ("bad_arguments", "admin-a", {"name": ""}),
        ("bad_arguments", "admin-a", {"name": "d" * 33}),
        ("bad_arguments", "admin-a", {"roles": [1]}),
        ("bad_arguments", "admin-a", {"surplus": 1}),
    ],
)
def test_register_refuses(membership: Door, code: str, sender: str, changes: dict[str, Any]) -> None:
    arguments = {"name": "dora", "public_key": NEW.compressed, "roles": [], **changes}
    membership.fails(code, sender, "register_account", **arguments)


def test_register_200_at_once(membership: Door) -> None:
    keys = {f"user-{index:03d}": PrivateKey.from_secret(5_000 + index).public for index in range(201)}
    accounts = {name: key.compressed for name, key in keys.items()}
    membership.fails("bad_arguments", "admin-a", "register_accounts", accounts=accounts)
    del accounts["user-200"]
    created = membership.call("admin-a", "register_accounts", accounts=accounts, roles=["bank"])
    assert created == [keys[name].address for name in sorted(accounts)]
    last = membership.query("account", account=keys["user-199"].address)
    assert (last["name"], last["roles"]) == ("user-199", ["bank"])


def test_register_accounts_all_or_none(membership: Door) -> None:
    accounts = {"anna": NEW.compressed, "carol": OTHER.compressed}
    membership.fails("name_taken", "admin-a", "register_accounts", accounts=accounts)
    accounts = {"anna": NEW.compressed, "berta": NEW.compressed}
    membership.fails("account_exists", "admin-a", "register_accounts", accounts=accounts)
    membership.fails("bad_arguments", "admin-a", "register_accounts", accounts={})


def test_suspend_and_resume(membership: Door) -> None:
    membership.call("admin-a", "suspend_account", account=address("alice"))
    assert membership.query("account", account=address("alice"))["status"] == "suspended"
    with pytest.raises(PeerError) as refusal:
        membership.call("alice", "rotate_key", new_public_key=NEW.compressed)
    assert refusal.value.code == "account_suspended"
    membership.call("admin-a", "resume_account", account=address("alice"))
    membership.call("alice", "rotate_key", new_public_key=NEW.compressed)


@pytest.mark.parametrize("method", ["suspend_account", "resume_account"])
def test_suspend_and_resume_refuse(membership: Door, method: str) -> None:
    membership.fails("not_allowed", "alice", method, account=address("bob"))
    membership.fails("not_allowed", "admin-b", method, account=address("alice"))
    membership.fails("unknown_account", "admin-a", method, account=NEW.address)


def test_an_admin_cannot_suspend_itself(membership: Door) -> None:
    membership.fails("not_allowed", "admin-a", "suspend_account", account=address("admin-a"))


def test_rotate_key_keeps_the_address(membership: Door) -> None:
    before = membership.query("account", account=address("alice"))
    membership.call("alice", "rotate_key", new_public_key=NEW.compressed)
    assert membership.query("account", account=address("alice")) == {**before, "publicKey": NEW.compressed}
    record = load_account(membership.chain.state, address("alice"))
    assert record is not None
    assert record.public_key == NEW.compressed
    first_key = PrivateKey.from_secret(1_000 + list(ACCOUNTS).index("alice")).public.compressed
    membership.fails("account_exists", "admin-a", "register_account", name="dora", public_key=first_key)


def test_an_admin_replaces_a_lost_key(membership: Door) -> None:
    membership.call("admin-a", "rotate_key", new_public_key=NEW.compressed, account=address("alice"))
    assert membership.query("account", account=address("alice"))["publicKey"] == NEW.compressed


def test_rotate_key_refuses(membership: Door) -> None:
    new = NEW.compressed
    membership.fails("bad_key", "alice", "rotate_key", new_public_key=bytes(33))
    membership.fails("not_allowed", "alice", "rotate_key", new_public_key=new, account=address("bob"))
    membership.fails("not_allowed", "admin-b", "rotate_key", new_public_key=new, account=address("alice"))
    membership.fails("unknown_account", "admin-a", "rotate_key", new_public_key=new, account=NEW.address)


def test_unknown_names(membership: Door) -> None:
    membership.refuses("unknown_account", "account", account=NEW.address)
    membership.refuses("unknown_organisation", "organisation", organisation="nobody")
