"""All mutants, in the order in which the table shows them."""

from tests.mutants import (
    table_agency,
    table_consensus,
    table_ledger,
    table_membership,
    table_messages,
    table_node,
    table_rights,
)
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *table_ledger.MUTANTS,
    *table_consensus.MUTANTS,
    *table_node.MUTANTS,
    *table_membership.MUTANTS,
    *table_messages.MUTANTS,
    *table_rights.MUTANTS,
    *table_agency.MUTANTS,
)
