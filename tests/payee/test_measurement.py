"""The measurement: any change of the code that environments run makes another one; and the commands that show it."""

import shutil
from pathlib import Path

import pytest

from cli.payee_enclave import HINT
from consensus.ledger.errors import InvariantError, LocalError
from services.local.files import changed, existing, read_service, write_service
from services.payee import measurement
from services.payee.enclave_config import EnclaveFile, enclave_settings, keys_measurement, put_keys_aside
from services.payee.enclave_keys import open_sealed
from services.payee.enclave_walls import find_user
from services.payee.measurement import FILES, measure
from services.payee.wording import EMULATED
from tests.cli.support import answer, fault, hansa
from tests.payee.test_enclave import shared_world

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the measured files, which is measured in their place."""
    tree = tmp_path / "tree"
    for name in FILES:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
    monkeypatch.setattr(measurement, "_ROOT", tree)
    return tree


def measured() -> bytes:
    return measure.__wrapped__()


def test_a_change_of_any_file_library_or_python_changes_it(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured() == measure()
    seen = {measured()}
    for name in FILES:
        path = copy / name
        content = path.read_bytes()
        path.write_bytes(content + b"#")
        seen.add(measured())
        path.write_bytes(content)
    for library in measurement.LIBRARIES:
        with monkeypatch.context() as patched:
            patched.setattr(measurement, "version", lambda name, library=library: "0" if name == library else "1")
            seen.add(measured())
    with monkeypatch.context() as patched:
        patched.setattr("sys.version_info", (3, 11, 99))
        seen.add(measured())
    assert len(seen) == 1 + len(FILES) + len(measurement.LIBRARIES) + 1
    assert measured() == measure()


def test_files_cannot_change_places(copy: Path) -> None:
    one, other = (copy / f"services/payee/{name}.py" for name in ("wording", "measurement"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert measured() != measure()


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / FILES[3]).unlink()
    with pytest.raises(InvariantError, match=FILES[3]):
        measured()


def test_the_list_is_in_order_and_small() -> None:
    assert [*FILES] == sorted({*FILES})
    assert len(FILES) < 32
    assert sum((ROOT / name).stat().st_size for name in FILES) < 200_000


# -- commands --------------------------------------------------------------------------------------------


def test_measure_prints_what_the_allow_list_has() -> None:
    told = answer(hansa("payee", "enclave", "measure", "--json"))
    assert told["measurement"] == f"0x{measure().hex()}"
    assert told["files"] == [*FILES]
    assert told["isolation"] == EMULATED
    assert EMULATED in hansa("payee", "enclave", "measure").stdout


def make_home(folder: Path, **changes: str) -> Path:
    """Write the folder of an environment in a network folder, and return it."""
    (folder / "genesis.json").write_bytes(shared_world().chain.genesis.to_json())
    home = folder / "services" / "bank-a-enclave"
    file = EnclaveFile(name="bank-a", genesis="../../genesis.json")
    write_service(home, changed(home, file, changes))
    return home


def test_status_says_who_does_not_answer(tmp_path: Path) -> None:
    make_home(tmp_path)
    result = hansa("payee", "enclave", "status", "--network", str(tmp_path), "--json")
    assert result.exit_code == 1
    assert "environment_unreachable" in result.stdout
    assert EMULATED in result.stdout
    shown = hansa("payee", "enclave", "status", "bank-a", "--network", str(tmp_path))
    assert shown.exit_code == 1
    assert EMULATED in shown.stdout


def test_a_network_without_environments_is_named(tmp_path: Path) -> None:
    result = hansa("payee", "enclave", "status", "--network", str(tmp_path))
    assert fault(result, 2) == "no_home"
    assert HINT in result.stderr
    assert fault(hansa("payee", "enclave", "serve", "bank-a", "--network", str(tmp_path)), 2) == "no_home"
    assert hansa("payee", "enclave", "serve").exit_code == 2


def test_serve_refuses_what_cannot_be_meant(tmp_path: Path) -> None:
    for changes, code in (
        ({"genesis": "nothing.json"}, "bad_config"),
        ({"user": "root"}, "unknown_user"),
        ({"user": "0"}, "unknown_user"),
        ({"user": "no-such-user-here"}, "unknown_user"),
        ({"group": "staff"}, "bad_config"),
    ):
        home = make_home(tmp_path, **changes)
        assert fault(hansa("payee", "enclave", "serve", "--home", str(home)), 2) == code


def test_settings_are_absolute(tmp_path: Path) -> None:
    home = make_home(tmp_path, user="61300", group="61301")
    file = read_service(home, EnclaveFile)
    assert existing(home, EnclaveFile) == file
    settings = enclave_settings(home, file)
    assert (settings.uid, settings.gid, settings.group) == (61_300, 61_300, 61_301)
    assert settings.socket == str(home / "run" / "environment.sock")
    assert settings.machine == str(home / "data" / "machine.key")
    assert settings.genesis == str(tmp_path / "genesis.json")


def test_a_user_is_a_name_or_a_number_and_never_root() -> None:
    assert find_user("61300").uid == 61_300
    assert find_user("nobody").uid not in {0, None}
    for text in ("root", "0", "no-such-user-here", str(2**40), "-1"):
        with pytest.raises(LocalError) as caught:
            find_user(text)
        assert caught.value.code == "unknown_user"


def test_keys_are_put_aside_and_never_lost(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    file = read_service(home, EnclaveFile)
    assert keys_measurement(home, file) is None
    assert not put_keys_aside(home, file)
    data = home / "data"
    kept = []
    for code in (b"\1" * 32, b"\2" * 32):
        with open_sealed(data, data / "machine.key", name="bank-a", chain_id=bytes(32), measurement=code):
            assert keys_measurement(home, file) == code
            with pytest.raises(LocalError, match="another process"):
                put_keys_aside(home, file)
        kept.append((data / "keys.sealed").read_bytes())
        assert put_keys_aside(home, file)
    assert [(data / f"keys.sealed.{number}").read_bytes() for number in (1, 2)] == kept
    assert keys_measurement(home, file) is None
