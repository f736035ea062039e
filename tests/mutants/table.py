"""All mutants, in the order in which the table shows them."""

from tests.mutants import (
    table_agency,
    table_agency_bank,
    table_agency_channel,
    table_agency_files,
    table_agency_house,
    table_agency_issuer,
    table_agency_node,
    table_consensus,
    table_ledger,
    table_membership,
    table_messages,
    table_node,
    table_rights,
    table_settlement,
    table_settlement_chain,
    table_settlement_cli,
    table_settlement_flow,
    table_settlement_store,
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
    *table_agency_bank.MUTANTS,
    *table_agency_files.MUTANTS,
    *table_agency_house.MUTANTS,
    *table_agency_issuer.MUTANTS,
    *table_agency_node.MUTANTS,
    *table_agency_channel.MUTANTS,
    *table_settlement.MUTANTS,
    *table_settlement_chain.MUTANTS,
    *table_settlement_store.MUTANTS,
    *table_settlement_cli.MUTANTS,
    *table_settlement_flow.MUTANTS,
)
