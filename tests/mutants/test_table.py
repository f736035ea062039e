"""The table of mutants fits the product, and its runner tells caught from survived; ``make mutants`` runs all."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutants.__main__ import markdown
from tests.mutants.mutant import ROOT, copied_tree, judge
from tests.mutants.table import MUTANTS

QUICK = ("certificate with one signer twice", "vote before it is durable", "sync skipped")
MUTANTS_MIN = 30


def test_every_mutant_can_be_applied() -> None:
    """Whoever changes a line that a mutant breaks gives the mutant its new text, in ``tests/mutants/table_*.py``."""
    assert {mutant.name: fault for mutant in MUTANTS if (fault := mutant.fault())} == {}
    assert [mutant.name for mutant in MUTANTS if mutant.old == mutant.new] == []
    for mutant in MUTANTS:
        text = (ROOT / mutant.file).read_text("utf-8")
        ast.parse(text.replace(mutant.old, mutant.new), mutant.name)


def test_every_mutant_has_a_name_of_its_own_and_a_test_that_exists() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= MUTANTS_MIN
    for mutant in MUTANTS:
        module, where = mutant.caught_by.split(maxsplit=1)
        assert module in ("pytest", "tests.sim")
        if module == "pytest":
            path, _, test = where.partition("::")
            tree = ast.parse((ROOT / path).read_text("utf-8"))
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert mutant.name in markdown([mutant])


@pytest.mark.slow
def test_quick_mutants_are_caught_and_a_harmless_change_is_not(tmp_path: Path) -> None:
    by_name = {mutant.name: mutant for mutant in MUTANTS}
    harmless = replace(by_name[QUICK[0]], new=by_name[QUICK[0]].old + "  # the same")
    gone = replace(harmless, old="no such text")
    with copied_tree(tmp_path) as tree:
        before = _texts(tree)
        verdicts = [judge(mutant, tree) for mutant in (*(by_name[name] for name in QUICK), harmless, gone)]
        assert _texts(tree) == before
    assert [verdict.outcome for verdict in verdicts] == ["caught", "caught", "caught", "survived", "broken"]


def _texts(tree: Path) -> dict[Path, str]:
    return {path: path.read_text("utf-8") for path in {tree / mutant.file for mutant in MUTANTS}}
