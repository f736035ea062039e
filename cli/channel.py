"""``hansa channel``: private channels: agreements, applications, revoking, and the permission desk."""

from pathlib import Path

import rich_click as click


@click.group()
def channel() -> None:
    """Private channels between a bank's node and an issuer's node, opened by the permission desk.

    First both sign an agreement: agreement new, agreement sign. Then the bank applies.
    """


@channel.group("authority")
def authority() -> None:
    """The permission desk: opens channels for signed agreements, enacts terms that both sides signed."""


@authority.command("serve")
@click.option(
    "--home",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder with service.toml, such as net/services/authority.",
)
def serve_authority(home: Path) -> None:
    """Run the permission desk in the foreground until SIGTERM or Ctrl-C.

    Example: hansa channel authority serve --home net/services/authority
    """
    import trio

    from services.agency.authority import run
    from services.agency.config import AuthorityFile, authority_settings
    from services.local.files import read_service

    trio.run(run, authority_settings(home, read_service(home, AuthorityFile)))
