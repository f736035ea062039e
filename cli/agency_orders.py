"""``hansa agency``: what a bank does with orders: send, follow, look at records, prove."""

import click

COMMANDS: tuple[click.Command, ...] = ()
