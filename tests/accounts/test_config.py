"""The account system's ``service.toml``."""

from pathlib import Path

import pytest

from consensus.ledger.errors import LocalError
from services.accounts.config import AccountsFile, accounts_settings
from services.local.files import read_service, replace_file, write_service


def settings_in(home: Path, text: str) -> object:
    replace_file(home / "service.toml", text.encode())
    return accounts_settings(home, read_service(home, AccountsFile))


def test_what_the_program_gets(tmp_path: Path) -> None:
    replace_file(tmp_path / "token", b" secret\n")
    write_service(tmp_path, AccountsFile(listen="127.0.0.1:24000", token="token", hosts=["money.example"]))
    settings = accounts_settings(tmp_path, read_service(tmp_path, AccountsFile))
    assert (settings.host, settings.port, settings.token) == ("127.0.0.1", 24_000, "secret")
    assert settings.database == f"sqlite:///{tmp_path.resolve()}/data/accounts.db"
    assert settings.host_names == {"money.example"}
    assert not settings.is_fault_panel_open
    assert "secret" not in repr(read_service(tmp_path, AccountsFile))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('listen = "0.0.0.0:1"', "bad_config"),
        ('listen = "money.example:1"', "bad_config"),
        ('listen = "127.0.0.1:70000"', "bad_address"),
        ('listen = "unix:/tmp/x"', "bad_address"),
        ('listen = "127.0.0.1:1"\ntoken = "missing"', "bad_config"),
        ('listen = "127.0.0.1:1"\ntoken = "open"', "key_permissions"),
        ('listen = "127.0.0.1:1"\ndatabase = "mysql://x/y"', "bad_config"),
        ('listen = "127.0.0.1:1"\nallow_fault = true', "bad_config"),
        ('program = "payer"\nlisten = "127.0.0.1:1"', "bad_config"),
        ("", "bad_config"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "open").write_text("secret")
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(LocalError) as error:
        settings_in(tmp_path, text)
    assert error.value.code == code
