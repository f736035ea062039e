"""Groups of commands that are imported when they are used, so that help and every other command start fast."""

import importlib
from typing import Any, ClassVar

import rich_click as click


class LazyCommands(click.RichGroup):
    """A group that knows its commands by name and imports each when it is called or explained.

    A subclass gives the table: command or group → (where it is, as ``MODULE:NAME``; what help says about it).
    """

    table: ClassVar[dict[str, tuple[str, str]]]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; for a help page or a completion a stand-in with its one line is enough."""
        if cmd_name not in self.table:
            return None
        place, line = self.table[cmd_name]
        if ctx.params.get("explaining"):
            return click.RichCommand(name=cmd_name, short_help=line, help=line)
        module, attribute = place.split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page without importing any command."""
        ctx.params["explaining"] = True
        super().format_help(ctx, formatter)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete the names without importing any command."""
        ctx.params["explaining"] = True
        return super().shell_complete(ctx, incomplete)
