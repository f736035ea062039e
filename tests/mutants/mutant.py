"""One way to break the product, and how it is applied to a copy of the tree and judged."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("consensus", "contracts", "p2p", "node", "services", "cli", "bench", "tests", "docs")
COPIED_FILES = (
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "Makefile",
    "CHANGELOG.md",
    "requirements.lock",
    "ruff.toml",
)
SECONDS_MAX = 180
"""Time for one command; one that takes longer has noticed nothing."""

FAILED = 1
"""Exit code of pytest, and of the simulator, when a test or a schedule failed; others mean that it did not run."""


@dataclass(frozen=True)
class Mutant:
    """``old`` stands in ``file`` exactly once and becomes ``new``; then ``caught_by`` must fail.

    ``caught_by`` is what follows ``python -m``: ``pytest NODE`` or ``tests.sim --seeds … --first-seed …``.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    caught_by: str

    def fault(self, root: Path = ROOT) -> str:
        """Return why the mutant cannot be applied, or an empty text."""
        path = root / self.file
        if not path.is_file():
            return f"{self.file} is gone"
        count = path.read_text("utf-8").count(self.old)
        return "" if count == 1 else f"its text stands in {self.file} {count} times"


@dataclass(frozen=True)
class Verdict:
    """What came of one mutant: ``caught``, ``survived``, or ``broken`` when the command could not judge."""

    mutant: Mutant
    outcome: str
    detail: str = ""


@contextmanager
def copied_tree(folder: Path) -> Iterator[Path]:
    """Give a copy of the product and its tests."""
    tree = folder / "tree"
    for name in COPIED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
    for name in COPIED_FILES:
        shutil.copy(ROOT / name, tree / name)
    yield tree


@contextmanager
def applied(mutant: Mutant, tree: Path) -> Iterator[None]:
    """Break the copy for the time of the block."""
    path = tree / mutant.file
    text = path.read_text("utf-8")
    try:
        _replace(path, text.replace(mutant.old, mutant.new))
        yield
    finally:
        _replace(path, text)


def _replace(path: Path, text: str) -> None:
    """Write a source file and forget what was compiled of it: a change within a second is not noticed otherwise."""
    path.write_text(text, "utf-8")
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def run(command: str, tree: Path) -> tuple[int | None, str]:
    """Run a command in a tree; return its exit code, None after too long a time, and the end of what it said."""
    module, *arguments = command.split()
    flags = ["-q", "-x", "-p", "no:cacheprovider", "--no-header"] if module == "pytest" else []
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *flags, *arguments],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree), "HYPOTHESIS_STORAGE_DIRECTORY": str(tree / ".hypothesis")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"no end after {SECONDS_MAX} s"
    return done.returncode, "\n".join((done.stdout + done.stderr).splitlines()[-12:])


def judge(mutant: Mutant, tree: Path) -> Verdict:
    """Apply one mutant to the tree, run its command, and undo it."""
    if fault := mutant.fault(tree):
        return Verdict(mutant, "broken", fault)
    with applied(mutant, tree):
        code, said = run(mutant.caught_by, tree)
    if code == FAILED:
        return Verdict(mutant, "caught", said)
    return Verdict(mutant, "survived" if code == 0 else "broken", said)
