"""``hansa agency terms``: eligibility terms, versioned: one party proposes, the other accepts, the desk enacts."""

import rich_click as click


@click.group("terms")
def terms() -> None:
    """Eligibility terms: who may buy what. Both sign, the permission desk enacts."""
