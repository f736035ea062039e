"""``hansa settle accounts``: an account system with simulated money."""

from pathlib import Path

import rich_click as click

from cli.settle_place import ACCOUNTS_HOME, home_of, home_option


@click.group()
def accounts() -> None:
    """An account system: double entry over HTTP, each order once; all its money is simulated."""


@accounts.command("serve")
@home_option(ACCOUNTS_HOME)
def serve(home: Path | None) -> None:
    """Run the account system in the foreground until SIGTERM or Ctrl-C.

    Example: hansa settle accounts serve --home net/services/settle-accounts
    """
    import trio

    from services.accounts.config import AccountsFile, accounts_settings
    from services.accounts.program import run
    from services.local.files import read_service

    place = home_of(ACCOUNTS_HOME, home)
    trio.run(run, accounts_settings(place, read_service(place, AccountsFile)))
