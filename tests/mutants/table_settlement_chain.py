"""Mutants of settlement's side of the chain: liens, the census of validators, the listener, the clerk."""

from tests.mutants.mutant import Mutant

_TOKENS = "contracts/domain/tokens.py"
_LIENS = "pytest tests/contracts/domain/test_tokens.py::"

MUTANTS = (
    # -- liens --------------------------------------------------------------------------------------------
    Mutant(
        "lien lifted by anyone",
        _TOKENS,
        'context.require(lien["agent"] == context.caller,',
        "context.require(True,",
        "a buyer frees what it has not paid",
        _LIENS + "test_what_is_delivered_is_the_buyers_and_out_of_its_hands",
    ),
    Mutant(
        "lien ended twice",
        _TOKENS,
        'context.require(lien["status"] == HELD,',
        "context.require(True,",
        "units are freed and given back: made of nothing",
        _LIENS + "test_a_lien_ends_once",
    ),
    Mutant(
        "event delivered twice",
        _TOKENS,
        "context.require(context.state.get(lien_key) is None,",
        "context.require(True,",
        "the second delivery of an event overwrites the first one's lien",
        _LIENS + "test_an_event_serves_each_seller_once",
    ),
    Mutant(
        "delivered units are free",
        _TOKENS,
        "context.state.put(to_key, [to_available, to_reserved + amount])",
        "context.state.put(to_key, [to_available + amount, to_reserved])",
        "the buyer spends what it has not paid",
        _LIENS + "test_what_is_delivered_is_the_buyers_and_out_of_its_hands",
    ),
    Mutant(
        "agent that is the seller",
        _TOKENS,
        "is_apart = seller != to and agent != seller and agent != to",
        "is_apart = seller != to and agent != to",
        "a seller takes back what was paid for",
        _LIENS + "test_a_delivery_needs_three_accounts",
    ),
)
