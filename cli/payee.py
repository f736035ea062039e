"""``hansa payee``: one merchant code, many payment platforms."""

import rich_click as click

from cli.lazy import LazyCommands

# command or group → (where it is, what `hansa payee --help` says about it)
COMMANDS = {
    "setup": ("cli.payee_setup:setup", "Prepare a running network: environments, platforms, folders."),
    "merchant": ("cli.payee_merchant:merchant", "Merchants: identity and key, consent, removal of records."),
    "code": ("cli.payee_code:code", "Codes: make, read from an image, check field by field."),
    "resolve": ("cli.payee_pay:resolve", "Find out from a code whom to pay, checked by proofs."),
    "pay": ("cli.payee_pay:pay", "Pay what a code asks for, with simulated money."),
    "proof": ("cli.payee_shown:proof", "Check offline what a resolution has shown."),
    "platform": ("cli.payee_platform:platform", "Platforms: the program, records, keys, payments."),
    "enclave": ("cli.payee_enclave:enclave", "Environments: the program that opens records."),
}


class PayeeGroup(LazyCommands):
    """The commands of payee codes."""

    table = COMMANDS


@click.group(cls=PayeeGroup)
def payee() -> None:
    """One merchant code, many payment platforms.

    A code carries an identity; platforms keep their encrypted records of it on the chain, so that a printed code stays
    as it is when a platform is added. hansa network up --with payee starts a network with all programs.

    Environments here are emulated, without hardware isolation. All money here is simulated.
    """
