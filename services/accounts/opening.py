"""Opens accounts of simulated money for people, once the account system runs."""

from collections.abc import Sequence
from pathlib import Path

from services.accounts.link import open_accounts
from services.client.errors import Refused
from services.messages.config import read_token

CURRENCY, OPENING_CENTS = "CNY", 10_000_000_000
"""What each account begins with, in 1/100: simulated money."""


async def open_people(url: str, token_file: Path, people: Sequence[str]) -> list[str]:
    """Open an account for everybody who has none; return what was made, in words.

    Args:
        url: root of the account system.
        token_file: holds what it asks for.
        people: names of the accounts.

    Raises:
        Unreachable: ``accounts_unreachable``.
        Refused: the account system's; ``wrong_currency`` where an account of another currency has the name.
    """
    token = read_token(token_file.parent, "token", token_file.name)
    async with open_accounts(url, token=token) as accounts:
        known = {account.id for account in await accounts.accounts()}
        new = [name for name in people if name not in known]
        if new:
            await accounts.open([(name, CURRENCY) for name in new])
        for name in people:
            try:
                await accounts.deposit(name, OPENING_CENTS, key=f"opening-{name}")
            except Refused as error:
                if error.code != "operation_conflict":  # it was opened with another amount
                    raise
    return [f"account {name} with simulated money" for name in new]
