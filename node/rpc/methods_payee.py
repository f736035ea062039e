"""``payee_*``: queries for payees, answered by the node's trusted environment, which is an emulation and says so."""

from base64 import b64encode
from typing import Annotated

import msgspec

from consensus.ledger.payees import QUERY_BYTES_MAX
from node.payees import ISOLATION
from node.rpc.context import Context, methods
from node.rpc.protocol import Json
from node.rpc.render import hex_of
from node.rpc.schema import NoParams, Params


class Resolve(Params, frozen=True):
    """A signed query in its canonical encoding, in base64."""

    query: Annotated[bytes, msgspec.Meta(max_length=QUERY_BYTES_MAX)]


@methods.add("payee_resolve", Resolve)
async def payee_resolve(context: Context, params: Resolve) -> Json:
    """Answer a query for a payee: the environment's encrypted answer, and the proven states that it was made from.

    Both are in base64; the environment is emulated, without hardware isolation.
    """
    found = await context.backend.payees.resolve(params.query)
    return {
        "answer": b64encode(found.answer).decode(),
        "states": b64encode(found.states).decode(),
        "environment": found.environment,
        "emulated": True,
    }


@methods.add("payee_environment", NoParams)
async def payee_environment(context: Context, _: NoParams) -> Json:
    """The node's trusted environment: its keys, what runs there, as which user; it is emulated.

    ``status`` is ``ready``, or the code that queries are refused with: ``environment_missing``, ``environment_down``,
    ``environment_refused``, ``busy``; ``message`` says why.
    """
    report = await context.backend.payees.report()
    quote = report.quote
    return {
        "status": report.code or "ready",
        "message": report.message,
        "name": None if quote is None else quote.environment,
        "measurement": None if quote is None else hex_of(quote.measurement),
        "exchangeKey": None if quote is None else hex_of(quote.exchange_key),
        "signingKey": None if quote is None else hex_of(quote.signing_key),
        "user": report.user,
        "isolation": ISOLATION,
        "emulated": True,
    }
