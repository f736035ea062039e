"""Whose clock is off, judged by the majority of those that are known. Pure."""

from collections.abc import Mapping

from consensus.ledger.ids import NodeName
from node.rpc.finding import Finding
from p2p.clock import ClockOffset

WARN_MS = 5_000
"""Clocks that are farther apart are reported; blocks are refused from ten seconds on."""


def findings(node: NodeName, offsets: Mapping[NodeName, ClockOffset]) -> list[Finding]:
    """Name the nodes whose clocks are not with the majority; without a majority name nobody, but say so.

    Args:
        node: who measured; its own clock counts like any other.
        offsets: how far the others' clocks are ahead of its own.
    """
    known = {node: ClockOffset(0, 0), **offsets}
    right = max(
        ([name for name in known if _agree(known[name], item)] for item in known.values()),
        key=len,
    )
    off = sorted(name for name in known if name not in right)
    if not off:
        return []
    if 2 * len(right) <= len(known):
        listed = ", ".join(f"{name} {_seconds(known[name].ahead_ms, sign=True)}" for name in sorted(known))
        message = f"the clocks disagree, and no majority tells which is right; against ours: {listed}"
        return [Finding("warning", "clocks_disagree", message, advice="set all clocks by NTP")]
    times = sorted(known[name].ahead_ms for name in right)
    middle_ms = times[len(times) // 2]
    found: list[Finding] = []
    for name in off:
        ahead_ms = known[name].ahead_ms - middle_ms
        direction = "ahead of" if ahead_ms > 0 else "behind"
        message = (
            f"the clock of {name} is {_seconds(abs(ahead_ms))} {direction} those of {', '.join(sorted(right))}"
            f" (± {known[name].uncertainty_ms / 1_000:.3f} s)"
        )
        advice = f"set the clock of {name} by NTP; blocks are refused from 10 s on"
        found.append(Finding("warning", "clock_off", message, about=name, advice=advice))
    return found


def _agree(one: ClockOffset, other: ClockOffset) -> bool:
    """Tell whether two clocks may be within the tolerance, given how well they are known."""
    return abs(one.ahead_ms - other.ahead_ms) <= WARN_MS + one.uncertainty_ms + other.uncertainty_ms


def _seconds(time_ms: int, *, sign: bool = False) -> str:
    return f"{time_ms / 1_000:{'+' if sign else ''}.1f} s"
