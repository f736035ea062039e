"""docs/faults.md says which test shows what: every test it names exists, every number has its row and its test.

``python -m tests.test_faults`` puts the table of mutants into the page as it is now.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.mutants.__main__ import markdown
from tests.mutants.table import MUTANTS
from tests.test_tidy import ROOT, files_of, tree_of

PATH = ROOT / "docs" / "faults.md"
PAGE = PATH.read_text("utf-8")
BUGS = 89
STAGED = 88
"""Bugs up to this number are staged by a test of their own name; later ones say what they wait for."""


def names_of_tests(path: str) -> Iterator[str]:
    """Names of a file's tests; hypothesis machines stand there as ``TestName = …``."""
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name.startswith("test_"):
                yield name
            case ast.Assign(targets=[ast.Name(id=name)]) if name.startswith("Test"):
                yield name


EXISTING = {f"{path.removeprefix('tests/')}::{name}" for path in files_of("tests") for name in names_of_tests(path)}
"""Every test, as ``file::name`` below ``tests/``."""


def rows(page: str) -> list[tuple[int, list[str]]]:
    """Return number and further cells of each row of the table of bugs."""
    found = []
    for line in page.splitlines():
        if match := re.fullmatch(r"\| R(\d\d) \| (.*) \|", line):
            found.append((int(match[1]), [cell.strip() for cell in match[2].split(" | ")]))
    return found


def named(text: str) -> list[str]:
    """Return the tests that a text names, as ``file::name`` or within a command."""
    return [name.removeprefix("tests/") for name in re.findall(r"[\w/]+\.py::\w+", text)]


def numbers(test: str) -> set[int]:
    """Return the numbers that a test's name claims: ``test_r17_r19_…``, ``test_r60_to_r63_…``."""
    parts = test.partition("::")[2].removeprefix("test_").split("_")
    found: list[int] = []
    through = False
    for part in parts:
        if match := re.fullmatch(r"r(\d\d)", part):
            found += range(found[-1] + 1 if through else int(match[1]), int(match[1]) + 1)
            through = False
        elif part == "to" and found:
            through = True
        else:
            break
    return set(found)


def faults(page: str) -> list[str]:
    """Return what is wrong with a page."""
    found = [f"{test} does not exist" for test in named(page) if test not in EXISTING]
    listed = rows(page)
    counts = Counter(number for number, _ in listed)
    found += [f"R{number:02} has {counts[number]} rows" for number in range(1, BUGS + 1) if counts[number] != 1]
    found += [f"R{number:02} is no number" for number in counts if not 1 <= number <= BUGS]
    for number, cells in listed:
        if len(cells) != 3 or not all(cells):
            found.append(f"R{number:02} has an empty cell")
            continue
        *_, ours = cells
        tests = named(ours)
        found += [f"{test} does not stage R{number:02}" for test in tests if number not in numbers(test)]
        if not tests and number <= STAGED and not ours.startswith("does not apply: "):
            found.append(f"R{number:02} has neither a test nor a reason")
    return found


def test_the_page_of_faults_is_true() -> None:
    assert faults(PAGE) == []


def test_every_number_is_staged_by_a_test_of_its_name() -> None:
    staged = set().union(*map(numbers, EXISTING))
    reasons = {number for number, cells in rows(PAGE) if cells[-1].startswith("does not apply: ")}
    assert set(range(1, STAGED + 1)) - staged - reasons == set()


def test_no_test_claims_a_number_that_there_is_not() -> None:
    assert [test for test in EXISTING if any(not 1 <= number <= BUGS for number in numbers(test))] == []


def test_the_table_of_mutants_is_that_of_the_command() -> None:
    assert markdown(MUTANTS) in PAGE, "python -m tests.test_faults puts it there"


ROW = "| R07 | besu-eth/besu#2459 |"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (ROW, "| R08 | besu-eth/besu#2459 |", "R07 has 0 rows"),
        (ROW, "| R90 | besu-eth/besu#2459 |", "R90 is no number"),
        ("::test_r56_", "::test_r56_not_", "does not exist"),
        ("::test_r56_a_node_has_one_database", "::test_r57_closing_waits_for_a_batch_under_way", "does not stage R56"),
        ("| planned with gateways |", "|  |", "R89 has an empty cell"),
    ],
)
def test_a_page_that_is_wrong_is_found(old: str, new: str, what: str) -> None:
    assert old in PAGE
    assert any(what in fault for fault in faults(PAGE.replace(old, new)))


if __name__ == "__main__":
    PATH.write_text(re.sub(r"\| mutant \|.*?(?=\n\n)", lambda _: markdown(MUTANTS), PAGE, flags=re.DOTALL), "utf-8")
