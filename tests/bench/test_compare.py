"""An earlier commit beside the working tree: turns, ratios, what is slower, and that nothing stays behind."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import compare
from bench.compare import Ratios, compared, find_commit, main, running_below, unpack
from consensus.ledger.errors import HansaError, LocalError
from tests.cli.support import fault, hansa

ROOT = Path(__file__).resolve().parent.parent.parent


def report(rate: float, processor: float | None = 100.0, row: str = "single") -> dict[str, object]:
    cost = {} if processor is None else {"cpu_us_per_call": processor}
    return {"ok": True, "rows": [{"row": row, "calls_per_s": rate, **cost}]}


@pytest.mark.parametrize(
    ("rounds", "slower"),
    [
        ((0.91, 0.91, 0.91), False),
        ((0.89, 0.89, 0.89), True),
        ((0.95, 0.89, 0.80), False),  # within the spread of 0.075
        ((0.85, 0.80, 0.75), True),
        ((1.2, 1.3, 1.1), False),
        ((0.5,), True),
    ],
)
def test_slower_is_beyond_tolerance_and_spread(rounds: tuple[float, ...], slower: bool) -> None:
    assert Ratios(rounds).is_slower(0.10) is slower


def test_ratios_are_taken_round_by_round() -> None:
    found = compared(
        [report(100), report(1_000), report(100)], [report(80, 150), report(900, 120), report(90, 110)], 0.0
    )
    [row] = found["rows"]  # type: ignore[misc]
    assert (row["base_per_s"], row["tree_per_s"], row["ratio"], row["spread"]) == (100.0, 90.0, 0.9, 0.05)
    assert (row["cpu_ratio"], row["cpu_spread"], row["slower"], found["ok"]) == (1.2, 0.2, True, False)


def test_a_base_that_tells_less_is_compared_by_what_it_tells() -> None:
    found = compared([report(100, None)], [report(101)], 0.1)
    assert found["ok"] is True
    assert [row["cpu_ratio"] for row in found["rows"]] == [None]  # type: ignore[attr-defined]
    assert compared([report(100)], [report(101, row="other")], 0.1)["rows"] == []


def git(folder: Path, *arguments: str) -> None:
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *author, *arguments], check=True, capture_output=True)


def fake_tree(folder: Path, log: Path, *, rate: float) -> Path:
    """A tree whose benchmark notes its call and prints a rate."""
    (folder / "cli").mkdir(parents=True)
    (folder / "cli" / "__init__.py").write_text("")
    (folder / "cli" / "main.py").write_text(
        "import json, os, sys, tempfile\n"
        f"with open({str(log)!r}, 'a') as log:\n"
        "    print(os.getcwd(), tempfile.gettempdir(), *sys.argv[1:], file=log)\n"
        f"print({json.dumps(report(rate))!r})\n"
    )
    return folder


def test_both_run_in_turns_each_in_its_own_tree(tmp_path: Path) -> None:
    log = tmp_path / "log"
    trees = {name: fake_tree(tmp_path / name, log, rate=rate) for name, rate in (("base", 100.0), ("tree", 50.0))}
    reports = compare._run_in_turns(trees, ["single", "lone"], 3, 4, tmp_path)
    calls = [line.split() for line in log.read_text().splitlines()]
    assert [Path(call[0]).name for call in calls] == ["base", "tree", "tree", "base", "base", "tree"]
    assert {call[1] for call in calls} == {str(tmp_path)}
    assert {" ".join(call[2:]) for call in calls} == {"bench throughput --json --seconds 4 --rows single,lone"}
    assert compared(reports["base"], reports["tree"], 0.1)["ok"] is False


@pytest.mark.parametrize("program", ["print('error not_ready')", "raise SystemExit(1)", "print('{\"ok\": false}')"])
def test_a_run_without_figures_is_an_error(tmp_path: Path, program: str) -> None:
    fake_tree(tmp_path / "base", tmp_path / "log", rate=1)
    (tmp_path / "base" / "cli" / "main.py").write_text(program)
    with pytest.raises(HansaError) as caught:
        compare._run(tmp_path / "base", ["single"], 1, tmp_path)
    assert caught.value.code == "bench_failed"


def test_a_commit_is_found_and_unpacked(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", "--quiet")
    (repository / "file").write_text("before")
    git(repository, "add", "file")
    git(repository, "commit", "--quiet", "--message", "one")
    (repository / "file").write_text("after")
    commit = find_commit(repository, "HEAD")
    unpack(repository, commit, tmp_path / "base")
    assert (tmp_path / "base" / "file").read_text() == "before"
    for name in ("nothing", "HEAD:file", "--all", ""):
        with pytest.raises(LocalError) as caught:
            find_commit(repository, name)
        assert caught.value.code == "unknown_commit"


def test_outside_a_checkout_there_is_nothing_to_compare_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(LocalError) as caught:
        find_commit(tmp_path, "HEAD")
    assert caught.value.code == "no_repository"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalError) as caught:
        find_commit(ROOT, "HEAD")
    assert caught.value.code == "no_repository"


def test_wrong_arguments() -> None:
    assert fault(hansa("bench", "compare", "HEAD", "--rows", "double"), 2) == "bad_arguments"
    assert hansa("bench", "compare", "HEAD", "--tolerance", "1.5").exit_code == 2
    assert hansa("bench", "compare").exit_code == 2


def waiting_process(argument: Path) -> "subprocess.Popen[bytes]":
    """A process that waits for its input, as one that was left behind."""
    program = [sys.executable, "-c", "print(flush=True); input()", str(argument)]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_whatever_runs_on_the_folder_ends_with_it(tmp_path: Path) -> None:
    with waiting_process(tmp_path / "home") as other:
        left: list[subprocess.Popen[bytes]] = []

        def interrupted() -> None:
            with compare._place() as place:
                left.append(waiting_process(place / "home"))
                assert running_below(place) == [left[0].pid]
                raise KeyboardInterrupt(place)

        with pytest.raises(KeyboardInterrupt) as caught:
            interrupted()
        with left[0]:
            assert left[0].wait(10) == -signal.SIGKILL
        assert not caught.value.args[0].exists()
        assert other.poll() is None, "what runs elsewhere is left alone"
        other.communicate(b"\n")


@pytest.mark.network
@pytest.mark.slow
def test_the_last_commit_beside_the_working_tree(capsys: pytest.CaptureFixture[str]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not in a git checkout")
    code = main("HEAD", rows=["lone"], rounds=1, seconds=1, tolerance=0.9, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (code, found["ok"]) == (0, True)
    [row] = found["rows"]
    assert row["row"] == "lone"
    assert 0.1 < row["ratio"] < 10
    assert 0.1 < row["cpu_ratio"] < 10
