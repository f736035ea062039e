"""What all nodes together say stands in the way of the next block: each sees the others from its own place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import trio

from consensus.ledger.errors import HansaError
from consensus.ledger.genesis import Genesis
from services.client.client import open_client
from services.client.errors import Unreachable

Answer = dict[str, Any]

ANSWER_MS_MAX = 3_000
"""Time for a node to answer; a frozen one never does."""
_LEVELS = ("stuck", "warning", "ok")


@dataclass(frozen=True, slots=True)
class Visit:
    """What a node answered to ``consensus_doctor``; None when it did not, ``why`` says how."""

    answer: Answer | None
    why: str = ""


async def ask_all(genesis: Genesis, urls: Mapping[str, str]) -> dict[str, Visit]:
    """Ask the nodes at these URLs, by name, side by side.

    Raises:
        Unreachable: not one of them answers.
    """
    visits: dict[str, Visit] = {}

    async def visit(name: str, url: str) -> None:
        visits[name] = Visit(None, f"no answer within {ANSWER_MS_MAX} ms")
        with trio.move_on_after(ANSWER_MS_MAX / 1_000):
            try:
                async with open_client(genesis, [url]) as client:
                    visits[name] = Visit(await client.request("consensus_doctor", {}, Answer))
            except HansaError as error:
                visits[name] = Visit(None, error.message)

    async with trio.open_nursery() as nursery:
        for name, url in urls.items():
            nursery.start_soon(visit, name, url)
    if all(found.answer is None for found in visits.values()):
        raise Unreachable("no node answers; does the network run? hansa network up starts a local one")
    return {name: visits[name] for name in urls}


def merge(visits: Mapping[str, Visit]) -> Answer:
    """Return one diagnosis out of several, of which at least one node gave an answer.

    What a node says of itself counts more than what others see of it; what several see alike stands once.
    """
    answers = {str(found.answer["node"]): found.answer for found in visits.values() if found.answer is not None}
    status = max((answer["status"] for answer in answers.values()), key=lambda item: int(item["height"]))
    silent = {name: found.why for name, found in visits.items() if found.answer is None}
    own = {name for name, answer in answers.items() if not answer["status"]["isValidator"]}
    seen = [item | {"node": name} for name, answer in answers.items() for item in answer["findings"]]
    idle = {item["about"] for item in seen if item["code"] == "not_voting"} | own
    members = status["validators"]
    voting = [name for name in members if name not in silent and name not in idle]
    findings = [_finding("node_silent", f"{name} does not answer: {why}", name) for name, why in silent.items()]
    if len(voting) < status["quorum"]:
        names = ", ".join(
            f"{name} ({'silent' if name in silent else 'not voting'})" for name in members if name not in voting
        )
        message = f"{len(voting)} of {len(members)} validators vote, {status['quorum']} are needed; missing: {names}"
        findings.append(_finding("no_quorum", message, None, level="stuck"))
        seen = [item for item in seen if item["code"] != "no_quorum"]
    # The nodes' own words first; a frozen node is known by its silence, whatever others still make of it.
    said: set[tuple[str, str]] = set()
    for item in sorted(seen, key=lambda item: item["about"] != item["node"]):
        mark = (item["code"], item["about"] or item["message"])
        if item["level"] != "ok" and mark not in said:
            said.add(mark)
            findings.append(item)
    findings.sort(key=lambda item: _LEVELS.index(item["level"]))
    if not findings:
        findings = [
            _finding("healthy", f"all {len(members)} validators take part; {status['quorum']} decide", None, level="ok")
        ]
    is_healthy = findings[0]["level"] == "ok"
    return {
        "ok": is_healthy,
        "healthy": is_healthy,
        "nodes": {name: found.answer is not None for name, found in visits.items()},
        "findings": findings,
        "status": status,
    }


def _finding(code: str, message: str, about: str | None, *, level: str = "warning") -> Answer:
    return {"level": level, "code": code, "message": message, "about": about, "node": None}
