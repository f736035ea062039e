"""``hansa stream``: payment streams: many payments between two parties, one upload to the chain."""

import rich_click as click

from cli.lazy import LazyCommands

# command or group → (where it is, what `hansa stream --help` says about it)
COMMANDS = {
    "setup": ("cli.stream_setup:setup", "Prepare a running network: unit, balances, folders."),
    "offer": ("cli.stream_open:offer", "Ask a service party for terms that it signs."),
    "open": ("cli.stream_open:open_stream", "Open a stream on the chain, with its deposit."),
    "pay": ("cli.stream_pay:pay", "Pay as units come, an iteration each; a live table."),
    "show": ("cli.stream_show:show", "One stream: chain, own records, service party."),
    "list": ("cli.stream_show:list_streams", "The streams of this payer."),
    "close": ("cli.stream_close:close", "End a stream together; the rest comes back."),
    "withdraw": ("cli.stream_close:withdraw", "Take the deposit back alone, after the window."),
    "top-up": ("cli.stream_close:top_up", "Put more into a stream's deposit."),
    "claim": ("cli.stream_close:claim", "Pay a service party out of the deposit."),
    "iteration": ("cli.stream_iteration:iteration", "Iterations in files: show, check offline."),
    "service": ("cli.stream_service:service", "The service party: program, streams, export."),
    "watch": ("cli.stream_watch:watch", "Settle for a service party that is offline."),
}


class StreamGroup(LazyCommands):
    """The commands of payment streams."""

    table = COMMANDS


@click.group(cls=StreamGroup)
def stream() -> None:
    """Payment streams: many payments between two parties, one upload to the chain.

    The payer puts a deposit aside and signs a whole transaction for the total so far at each step; the service party
    keeps the last one and uploads it at the end. Either can lose one step at the most.

    hansa network up --with stream starts a network with a service party and a watcher. All money here is simulated.
    """
