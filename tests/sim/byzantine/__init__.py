"""How liars lie: each strategy twists what a real engine says, adds to it, or keeps it back.

A liar holds its own signer and no other's, sees only what is sent to it, and runs real software otherwise. The
strategy ``Twins`` has no code here: the host runs two of the node, which share the key and see different peers.
"""

from tests.sim.byzantine.base import Parcel, Strategy
from tests.sim.byzantine.helpers import Flooder, LyingHelper, SlowHelper, Twins, Wiped
from tests.sim.byzantine.proposals import (
    BadBlocks,
    Censor,
    ClockLiar,
    DoubleSpender,
    HeaderMutator,
    PingsOnly,
    Silent,
    Slow,
    Staller,
    Withholder,
)
from tests.sim.byzantine.views import (
    Amnesiac,
    BadNewView,
    ClaimHider,
    DoubleLeaver,
    DoubleOpener,
    HugeViews,
    MixedViews,
    Stormer,
)
from tests.sim.byzantine.votes import (
    Equivocator,
    ForeignVotes,
    Forger,
    Framer,
    Relayer,
    Replayer,
    SelectiveCommitter,
)

__all__ = ["STRATEGIES", "Parcel", "Strategy", "Wiped"]

_ABOUT_VOTES = (Equivocator, Forger, Relayer, Replayer, ForeignVotes, SelectiveCommitter, Framer)
_ABOUT_VIEWS = (HugeViews, MixedViews, Stormer, ClaimHider, Amnesiac, BadNewView, DoubleOpener, DoubleLeaver)
_ABOUT_BLOCKS = (
    *(Silent, PingsOnly, Slow, Staller, Withholder, BadBlocks, HeaderMutator),
    *(DoubleSpender, Censor, ClockLiar),
)
_ABOUT_HELP = (LyingHelper, SlowHelper, Flooder, Twins, Wiped)

STRATEGIES: dict[str, type[Strategy]] = {
    kind.__name__.lower(): kind for kind in (*_ABOUT_VOTES, *_ABOUT_VIEWS, *_ABOUT_BLOCKS, *_ABOUT_HELP)
}
"""Name → strategy, as a schedule's plan says it."""
