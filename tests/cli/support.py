"""Running the command line inside a test."""

import json
from typing import Any

from click.testing import CliRunner, Result

from cli.main import cli


def hansa(*arguments: str, **environment: str) -> Result:
    """Run a command in this process; nothing of the outside environment reaches it."""
    variables: dict[str, str | None] = {"HANSA_NETWORK": None, "HANSA_PASSPHRASE": None, "COLUMNS": "80"}
    return CliRunner().invoke(cli, list(arguments), env=variables | environment, prog_name="hansa")


def answer(result: Result) -> Any:
    """Return the one JSON object of a command that succeeded."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def fault(result: Result, exit_code: int) -> str:
    """Return the code out of a failed command's one line; there is never a traceback."""
    assert result.exit_code == exit_code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    word, code = lines[0].split(":")[0].split()
    assert word == "error"
    return code
