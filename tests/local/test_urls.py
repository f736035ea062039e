"""What a database's URL says to whom: nobody reads the password in it."""

from pathlib import Path

import pytest

from consensus.ledger.errors import LocalError
from services.local.database import open_database
from services.local.files import replace_file
from services.local.urls import database_url, without_password

SECRETS = [
    ("user:{}@db.example/settle", "Tr0ub4dor"),
    ("user:{}@db.example:5432/settle?connect_timeout=3", "Tr0ub%404dor"),
    ("db.example/settle?user=user&password={}", "Tr0ub4dor"),
    ("db.example/settle?sslpassword={}", "Tr0ub4dor"),
    # What ought to be escaped, and is not.
    ("user:{}@db.example/settle", "Tr0/ub4dor"),
    ("user:{}@db.example/settle", "Tr0?ub4dor"),
    ("user:{}@db.example/settle", "4711#ub4dor"),
    ("user:{}@db.example/settle", "Tr0@ub4dor"),
    ("user:{}@db.example/settle", "Tr0[ub4dor"),
    ("db.example/settle?password={}", "Tr0@ub4dor"),
]


@pytest.mark.parametrize(("form", "password"), SECRETS)
def test_a_password_wants_a_file_that_nobody_else_reads_and_is_in_no_message(
    tmp_path: Path, form: str, password: str
) -> None:
    name = f"postgresql://{form.format(password)}"
    replace_file(tmp_path / "service.toml", b"")
    (tmp_path / "service.toml").chmod(0o644)
    with pytest.raises(LocalError) as caught:
        database_url(tmp_path, name, "x.db")
    assert caught.value.code == "key_permissions"
    (tmp_path / "service.toml").chmod(0o600)
    said = without_password(name)
    try:
        database_url(tmp_path, name, "x.db")
    except LocalError as error:
        said += error.message
    assert not any(part in said for part in ("Tr0", "ub4dor", "4711"))


@pytest.mark.parametrize("name", ["postgresql://h:x/d", "postgresql://h:70000/d", "postgresql://[::1/d"])
def test_what_is_no_url_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LocalError) as caught:
        database_url(tmp_path, name, "x.db")
    assert caught.value.code == "bad_config"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("embedded", "embedded"),
        ("postgresql://user:secret@db.example:5432/settle?sslmode=require", "postgresql://db.example:5432/settle"),
        ("postgresql://settle@/settle?host=/run/postgresql", "postgresql:///settle"),
    ],
)
def test_people_are_told_where_a_database_is(name: str, shown: str) -> None:
    assert without_password(name) == shown


async def test_a_server_that_cannot_be_used_is_named_without_the_password(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://user:Tr0ub@/settle?host={tmp_path}&password=ub4dor&sslpassword=4711"
    with pytest.raises(Exception, match="user") as caught:
        async with open_database(url, migrations="tests.local.steps.older.things.migrations", patience_s=0.0):
            pass
    assert not any(part in str(caught.value) for part in ("Tr0", "ub4dor", "4711"))
