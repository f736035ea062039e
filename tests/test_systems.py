"""``docs/systems.md`` names files and tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"^\| (S\d\.\d+) \|(.*)\|(.*)\|(.*)\| (works|contract|planned) \|$", re.MULTILINE)


def test_every_row_names_what_is_there() -> None:
    rows = ROW.findall((ROOT / "docs" / "systems.md").read_text("utf-8"))
    assert len(rows) == 15 + 21 + 16 + 14 + 15
    named = {path for _, _, where, tests, _ in rows for path in re.findall(r"`([a-z_/]+\.py)`", where + tests)}
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
    assert [row for row, _, where, tests, status in rows if (status == "planned") == bool(where.strip())] == []
    assert [row for row, _, _, tests, status in rows if status == "works" and "tests/" not in tests] == []
