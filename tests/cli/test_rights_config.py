"""``service.toml``: what is refused with file and field, what a program gets, and what is written comes back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError
from consensus.ledger.keys import PrivateKey
from contracts.runtime.registry import Registry
from node.network.genesis import activations_of, default_plan
from node.network.homes import LocalNetwork, init_network
from services.client.keystore import KeyStore
from services.local.files import read_service, replace_file, service_text, write_service
from services.messages.config import CenterFile, center_settings, split_place
from services.rights.config import BusinessFile, ServerFile, ShareFile, business_settings, server_settings
from services.rights.shares import ShareRule

CENTER = CenterFile(listen="127.0.0.1:26801", token="token", rate_per_s=50)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> LocalNetwork:
    folder = tmp_path_factory.mktemp("net")
    return init_network(folder, default_plan(validators=1), activations_of(Registry.shipped()))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "rights-center"
    write_service(home, CENTER)
    replace_file(home / "token", b"secret\n")
    return home


def shared(network: LocalNetwork) -> dict[str, object]:
    return {
        "center": "127.0.0.1:26801",
        "center_token": "",
        "genesis": str(network.genesis_path),
        "nodes": ["http://127.0.0.1:1"],
        "keys": str(network.keystore),
        "passphrase": str(network.passphrase_file),
    }


def business(network: LocalNetwork, **changes: object) -> BusinessFile:
    server = f"0x{network.identity('shop').address.hex()}"
    given = {"listen": "127.0.0.1:26800", "server": server, "event_key": "shop"} | shared(network) | changes
    return BusinessFile(**given)  # type: ignore[arg-type]


def server(network: LocalNetwork, **changes: object) -> ServerFile:
    given = {"name": "r1", "account": "shop"} | shared(network) | changes
    return ServerFile(**given)  # type: ignore[arg-type]


def wrong(home: Path, text: str) -> str:
    """Return what is said of a message centre's file with this content."""
    (home / "service.toml").write_text(text)
    with pytest.raises(LocalError) as refusal:
        center_settings(home, read_service(home, CenterFile))
    assert refusal.value.code == "bad_config"
    assert str(home / "service.toml") in refusal.value.message
    return refusal.value.message


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)


@given(
    st.dictionaries(names, st.integers(1, 10**11)), st.dictionaries(names, st.builds(ShareFile, *[st.integers()] * 2))
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, prices: dict[str, int], shares: dict[str, ShareFile]
) -> None:
    home = tmp_path_factory.getbasetemp() / "written"
    given = {"center": "[::1]:1", "center_token": "", "genesis": 'a "b" \\ c', "nodes": ["http://x:1", "http://y:2"]}
    file = ServerFile(**given, name="n", account="a", keys="k", passphrase="", prices=prices, shares=shares)  # type: ignore[arg-type]
    write_service(home, file)
    assert read_service(home, ServerFile) == file
    assert (home / "service.toml").stat().st_mode & 0o777 == 0o600


def test_a_wrong_field_is_named_with_its_file(home: Path) -> None:
    good = service_text(CENTER)
    assert "rate_per_s" in wrong(home, good.replace("50", '"fast"'))
    assert "$.rate_per_s" in wrong(home, good.replace("= 50", "= 0"))
    assert "rate" in wrong(home, good.replace("rate_per_s", "rate"))
    assert "$.listen" in wrong(home, good.replace("127.0.0.1:26801", "26801"))
    assert "$.store" in wrong(home, good.replace("embedded", "memory"))
    assert "$.log_level" in wrong(home, good.replace("info", "loud"))
    assert "$.program" in wrong(home, good.replace('"center"', '"other"'))
    assert "queue.waitingmax" in wrong(home, good + "[queue]\nwaitingmax = 3\n")
    assert "queue.rate_per_s" in wrong(home, good + "[queue]\nrate_per_s = 3\n")
    assert "queue.attempts_max" in wrong(home, good + '[queue]\nattempts_max = "3"\n')
    assert "token" in wrong(home, good.replace('"token"', '"nothing"'))
    assert "token" in wrong(home, good.replace("127.0.0.1", "0.0.0.0").replace('"token"', '""'))
    assert "end of document" in wrong(home, "listen")
    assert "more than" in wrong(home, "#" * 300_000)


def test_a_folder_without_the_file_is_no_home(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="holds no service") as refusal:
        read_service(tmp_path, CenterFile)
    assert refusal.value.code == "no_home"


def test_another_programs_folder_is_said_to_be_its(home: Path) -> None:
    with pytest.raises(LocalError, match="folder of the message centre, not of the business server") as refusal:
        read_service(home, BusinessFile)
    assert refusal.value.code == "bad_config"


def test_a_token_that_others_may_read_is_refused(home: Path) -> None:
    (home / "token").chmod(0o640)
    with pytest.raises(LocalError) as refusal:
        center_settings(home, CENTER)
    assert refusal.value.code == "key_permissions"


def test_the_centre_gets_paths_and_token(home: Path) -> None:
    settings = center_settings(home, CENTER)
    assert (settings.token, settings.data, settings.run) == ("secret", home / "data", home / "run")
    assert (settings.rate_per_s, settings.is_strict) == (50, False)
    more = center_settings(home, CenterFile(listen="unix:/tmp/x", token="", rate_per_s=1, queue={"attempts_max": 3}))
    assert more.queue.attempts_max == 3


def test_the_business_server_gets_its_keys_opened(tmp_path: Path, network: LocalNetwork) -> None:
    settings = business_settings(tmp_path, business(network))
    assert settings.event_key.public == network.key("shop").public
    assert (settings.server, settings.direct) == (network.identity("shop").address, None)
    assert settings.genesis == network.genesis
    direct = business_settings(tmp_path, business(network, direct="shop", direct_strict=True))
    assert direct.direct is not None
    assert direct.direct.address == settings.server
    for changes, code in (
        ({"direct": "bank-a"}, "bad_config"),
        ({"event_key": "nobody"}, "unknown_key"),
        ({"genesis": "none.json"}, "bad_config"),
        ({"listen": "0.0.0.0:1"}, "bad_config"),
        ({"listen": "unix:/tmp/x"}, "bad_address"),
        ({"passphrase": "none"}, "bad_passphrase_file"),
    ):
        with pytest.raises(LocalError) as refusal:
            business_settings(tmp_path, business(network, **changes))
        assert refusal.value.code == code


def test_a_passphrase_may_come_from_the_environment(
    tmp_path: Path, network: LocalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = PrivateKey.generate()
    KeyStore(tmp_path / "keys").create("relay", b"long enough", key)
    file = server(network, passphrase="", keys="keys", account="relay")
    monkeypatch.delenv("HANSA_PASSPHRASE", raising=False)
    with pytest.raises(LocalError, match="HANSA_PASSPHRASE is not set"):
        server_settings(tmp_path, file)
    monkeypatch.setenv("HANSA_PASSPHRASE", "long enough")
    assert server_settings(tmp_path, file).account.key.public == key.public


def test_the_rights_server_gets_its_table(tmp_path: Path, network: LocalNetwork) -> None:
    settings = server_settings(tmp_path, server(network, shares={"summer": ShareFile(100, 50)}, prices={"coffee": 30}))
    assert settings.shares.rules == {"summer": ShareRule(100, 50)}
    assert settings.shares.prices == {"coffee": 30}
    with pytest.raises(LocalError) as refusal:
        server_settings(tmp_path, server(network, prices={"coffee": 0}))
    assert refusal.value.code == "bad_shares"


@pytest.mark.parametrize("place", ["localhost", "unix:/x:1", ":1", "host:99999", "host:x"])
def test_places_that_are_none(place: str) -> None:
    with pytest.raises(LocalError) as refusal:
        split_place(place)
    assert refusal.value.code == "bad_address"


def test_places() -> None:
    assert split_place("[::1]:80") == ("::1", 80)
    assert split_place("localhost:0") == ("localhost", 0)
