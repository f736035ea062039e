"""The ``hansa`` command: a door to every program of the house, with no logic of its own.

Groups are imported when they are used, so that help and a node start fast. Whatever goes wrong leaves
through one place, as one line with its code: exit 0 for done, 1 for refused by the system, 2 for usage,
130 when interrupted.
"""

import errno
import os
import sys
from collections.abc import Mapping
from typing import Any

import rich_click as click
from click.exceptions import Exit

from cli.lazy import LazyCommands
from cli.output import (
    ERROR_DETAILS,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_USAGE,
    JSON_WANTED,
    print_json_error,
    report_error,
    wants_json,
)
from consensus.ledger.errors import HansaError, LocalError
from services.client.tasks import single_errors

# group or command → (where it is, what `hansa --help` says about it)
COMMANDS: dict[str, tuple[str, str]] = {
    "network": ("cli.network:network", "A local consortium of real processes: init, up, status, down, reset."),
    "node": ("cli.node:node", "One node from its home folder, as on a server."),
    "member": ("cli.member:member", "Organisations and nodes join, change keys and leave, while the network runs."),
    "key": ("cli.key:key", "Keys of accounts, encrypted on disk."),
    "tx": ("cli.tx:tx", "Submit transactions and follow them."),
    "query": ("cli.query:query", "Ask a contract, without a transaction."),
    "state": ("cli.state:state", "Read contract state."),
    "proof": ("cli.proof:proof", "Get proofs, and check them offline."),
    "chain": ("cli.chain:chain", "Blocks, and the verification of the whole chain."),
    "contract": ("cli.contract:contract", "The contracts on the chain and how to call them."),
    "consensus": ("cli.consensus:consensus", "Who votes, in which view, and what the quorum lacks."),
    "rights": ("cli.rights:rights", "Reward rights: the programs, campaigns, users, messages."),
    "channel": ("cli.channel:channel", "Private channels of bank and issuer: agreements, opening, revoking."),
    "agency": ("cli.agency:agency", "Agency sale: orders of a bank for an issuer's products, records, evidence."),
    "settle": ("cli.settle:settle", "Settlement: an asset and its payment move both, or neither."),
    "payee": ("cli.payee:payee", "One merchant code, many payment platforms: merchants, codes, paying."),
    "stream": ("cli.stream:stream", "Payment streams: many payments between two parties, one upload."),
    "demo": ("cli.demo:demo", "The business stories on a network of their own."),
    "bench": ("cli.bench:bench", "The benchmarks."),
}


class LazyGroup(LazyCommands):
    """All groups and commands; whatever goes wrong in one leaves through here."""

    table = COMMANDS

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether ``--json`` stands anywhere: also an error of usage is told as JSON then."""
        options = args[: args.index("--")] if "--" in args else args
        ctx.meta[JSON_WANTED] = "--json" in options
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of ours becomes one line and an exit code."""
        try:
            with single_errors():
                return super().invoke(ctx)
        except HansaError as error:
            ctx.exit(report_error(error))
        except KeyboardInterrupt:
            hint = _whereabouts(ctx.meta.get(ERROR_DETAILS, {}))
            if wants_json():
                print_json_error("interrupted", f"interrupted{hint}")
            else:
                click.echo(f"interrupted{hint}", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except click.ClickException as error:
            if not wants_json():
                raise
            print_json_error("usage" if error.exit_code == EXIT_USAGE else "error", error.format_message())
            ctx.exit(error.exit_code)
        except (Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:  # the border of the program: people get a line, HANSA_DEBUG=1 a traceback
            if os.environ.get("HANSA_DEBUG") or _is_output_lost(error):
                raise
            ctx.exit(report_error(_described(error)))


def _whereabouts(details: Mapping[str, Any]) -> str:
    """Return how people learn what becomes of what was under way."""
    if event := details.get("event"):
        return f"; hansa settle events show {event} says where it is, the same with --event {event} goes on"
    if stream := details.get("stream"):
        again = "hansa stream pay" if details.get("isOpening") else "the same command"
        return f"; hansa stream show {stream} says where it is, {again} goes on"
    transaction_id = details.get("transactionId")
    return f"; hansa tx explain {transaction_id} says where it is" if transaction_id else ""


def _is_output_lost(error: Exception) -> bool:
    """Tell whether standard output took no more, as on a full disk: :func:`main` says so."""
    return isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EIO)


def _described(error: Exception) -> HansaError:
    """Return what is said of an error that is not ours: the disk's refusals plainly, anything else as a bug."""
    if isinstance(error, OSError) and error.filename is not None:
        return LocalError("file_error", f"{error.filename}: {error.strerror}")
    return HansaError("internal", f"{type(error).__name__}: {error} (HANSA_DEBUG=1 says more)")


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"hansa {version('hansa')}")
    except PackageNotFoundError:
        click.echo("hansa, not installed: run from its source")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def cli() -> None:
    """Hansa: a permissioned blockchain for consortiums.

    Commands find the network by --network DIR, else HANSA_NETWORK, else ./net.

    Example: hansa network init net && hansa network up net

    Exit codes: 0 done, 1 refused by the system, 2 wrong usage or input, 130 interrupted.

    Completion: eval "$(_HANSA_COMPLETE=bash_source hansa)"
    """


def main() -> None:
    """Run the command line of this process; a reader who has left or a full disk is no bug of ours."""
    try:
        try:
            cli(prog_name="hansa")
        finally:
            sys.stdout.flush()
    except OSError as error:
        # What could not be written is still buffered, and the interpreter would try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            print(f"error file_error: standard output: {error.strerror}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
