"""Why an application is rejected: one word here, four digits in a file of type 04 or 02 (ReturnCode). Pure.

JR/T 0017 fixes ``0000`` alone; the issuer and its distributors agree on the others. Ours stand in the block 90xx: 901x
the holder, 902x suitability, 903x terms, 904x the product, 905x amounts, 906x accounts, 907x the application as such.
"""

from typing import Final

from services.agency.orders import RETURN_OK

RETURN_CODES: Final[dict[str, str]] = {
    "": RETURN_OK,
    "unknown_user": "9010",
    "identity_missing": "9011",
    "minor": "9012",
    "risk_mismatch": "9020",
    "lowest_class": "9022",
    "no_terms": "9030",
    "stale_terms": "9031",
    "kind_forbidden": "9032",
    "terms_expired": "9033",
    "unknown_product": "9040",
    "product_closed": "9041",
    "wrong_currency": "9042",
    "no_price": "9043",
    "wrong_interface": "9044",
    "amount_too_small": "9050",
    "amount_too_large": "9051",
    "insufficient_units": "9052",
    "amount_missing": "9053",
    "unknown_account": "9060",
    "account_exists": "9061",
    "account_closed": "9062",
    "account_in_use": "9063",
    "duplicate_serial": "9070",
    "bad_target": "9071",
    "not_supported": "9072",
    "foreign_distributor": "9073",
    "channel_revoked": "9074",
    "bad_date": "9075",
}
"""Reason word → ReturnCode; "" is an accepted application."""

REASONS: Final[dict[str, str]] = {code: reason for reason, code in RETURN_CODES.items()}
"""ReturnCode → reason word."""

UNNAMED = "9099"
"""ReturnCode of a reason that has no row here: the word is in the confirmation, a file can say no more."""


def return_code(reason: str) -> str:
    """Return the four digits of a reason word; ``0000`` for "", 9099 for a word that has no row."""
    return RETURN_CODES.get(reason, UNNAMED)


def reason_of(code: str) -> str:
    """Return the reason word of four digits; "" for ``0000``, ``rejected`` for a code that is not ours."""
    return REASONS.get(code, "rejected")
