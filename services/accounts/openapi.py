"""The account system's HTTP side as an OpenAPI 3.1 document, made from the types that decode and encode."""

from functools import cache
from typing import Final

from services.accounts import wire
from services.accounts.port import AccountId, Order
from services.local import openapi
from services.local.openapi import Operation

_ABOUT: Final = (
    "An account system with **simulated money**; every answer has the header `hansa-money: simulated`. Amounts are "
    "integers in 1/100 of the currency, times UTC in ms. An operation is known by its event and its name: the same "
    "again gives the first answer, so repeating a request is always safe."
)
_ERRORS: Final = {
    "400": "`malformed` JSON or a field that stands twice, or `bad_field` with the field's path",
    "401": "`bad_token`: needs the bearer token",
    "403": "`unknown_host`: a `Host` that the program does not know, or an `Origin` of another site",
    "404": "`unknown_account`, `unknown_path`, `no_fault_panel`",
    "408": "`timeout`: the body did not arrive in time",
    "409": "`account_exists`, `operation_conflict` of a deposit, `overflow`, `too_many_faults`",
    "413": "`too_large`",
    "415": "`bad_media_type`: the body must be application/json",
    "503": "`intake_full`, `database_unreachable`: what was done is unknown; the same again is safe",
}


CALLS: Final = (
    Operation("post", "/orders", "Do one order or up to 1,000, each for itself", wire.Answered, Order | wire.Orders),
    Operation("post", "/standings", "What was done for events", wire.Stood, wire.Events),
    Operation("get", "/entries", "Postings of a time", wire.Posted, query=wire.EntriesQuery),
    Operation("get", "/accounts", "Accounts by their ids", wire.AccountPage, query=wire.AccountsQuery),
    Operation("post", "/accounts", "Open accounts, all or none", wire.AccountPage, wire.Openings),
    Operation("get", "/accounts/{account}", "One account", wire.AccountSaid),
    Operation("post", "/accounts/{account}/deposits", "Bring simulated money in", wire.AccountSaid, wire.Deposit),
    Operation("post", "/accounts/{account}/freeze", "Neither pay nor be paid", wire.AccountSaid),
    Operation("post", "/accounts/{account}/unfreeze", "Pay and be paid again", wire.AccountSaid),
    Operation("get", "/faults", "The faults in force", wire.FaultsSaid),
    Operation("post", "/faults", "Misbehave in more ways, where that is allowed", wire.FaultsSaid, wire.Faults),
    Operation("delete", "/faults", "Behave", wire.FaultsSaid),
    Operation("get", "/money", "What all accounts hold together, per currency", wire.Money),
    Operation("get", "/healthz", "Whether the books can be read", wire.Ready),
)
"""What is answered in JSON; ``/metrics`` is text for Prometheus."""


@cache
def document() -> bytes:
    """Return the OpenAPI document, as JSON."""
    return openapi.document(
        title="Hansa account system", about=_ABOUT, errors=_ERRORS, operations=CALLS, parts={"account": AccountId}
    )
