"""What all nodes together say stands in the way of the next block: each sees the others from its own place.

Nodes answer with what they see; of a local network the processes are looked at too. Who takes part is
counted here anew, since a node that is cut off sees everyone else away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from consensus.ledger.errors import HansaError
from consensus.ledger.genesis import Genesis
from services.client.client import open_client
from services.client.errors import Unreachable

Answer = dict[str, Any]

ANSWER_MS_MAX = 3_000
"""Time for a node to answer; a frozen one never does."""
NOT_ASKED = "not_asked"
_LEVELS = ("stuck", "warning", "ok", "note")
_COUNTED_ANEW = frozenset({"no_quorum", "validators_away", "primary_away"})
"""What a node says of who takes part; all nodes together know it better."""
_SYMPTOMS = frozenset({"view_change", "prepares_missing", "commits_missing", "different_views"})
"""What follows from a missing quorum by itself, and is said once else."""
_ABSENCES = frozenset({"not_voting", "slow_primary", "not_let_in", "behind"})
"""What others see of a node that is known not to run."""

_WAYS_OUT = {
    "disk_failed": "make room on its disk, or replace the disk and hansa node rejoin {name}; then hansa network up",
    "disk_full": "make room on its disk, then hansa network up",
    "corrupted": "hansa node rejoin {name} fetches all anew; hansa chain verify --home HOME says what is damaged",
    "contract_code_missing": "install the version of Hansa whose contracts the chain has activated, then start it",
    "contract_refused": "install the version of Hansa whose contracts the chain has activated, then start it",
    "diverged": "its log folder holds the bundle: which transaction, key and values; compare its code with the others'",
    "wrong_chain": "give it the genesis.json of this network, or its data folder back",
    "vote_log_corrupt": "hansa node rejoin {name}",
    "vote_log_ahead": "hansa node rejoin {name}",
    "port_in_use": "end the program that holds its port",
    "bad_config": "mend the file that it names; where it is lost, hansa node rejoin {name} makes all that is missing",
    "never_started": "hansa network up starts it; where its home is lost, hansa node rejoin {name} makes it anew",
    "crashed": "a bug: its log holds the traceback",
}
"""What to do about a node that has ended, by the code of its last words."""


@dataclass(frozen=True, slots=True)
class Process:
    """A node's process on this machine: ``running``, ``frozen`` or ``stopped``, and how it ended."""

    state: str
    pid: int | None = None
    code: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class Visit:
    """What a node answered to ``consensus_doctor``; None when it did not: ``code`` and ``why`` say how."""

    answer: Answer | None
    why: str = ""
    code: str = ""


async def ask_all(genesis: Genesis, urls: Mapping[str, str]) -> dict[str, Visit]:
    """Ask the nodes at these URLs, by name, side by side."""
    visits: dict[str, Visit] = {}

    async def visit(name: str, url: str) -> None:
        visits[name] = Visit(None, f"no answer within {ANSWER_MS_MAX} ms", "node_timeout")
        with trio.move_on_after(ANSWER_MS_MAX / 1_000):
            try:
                async with open_client(genesis, [url]) as client:
                    visits[name] = Visit(await client.request("consensus_doctor", {}, Answer))
            except HansaError as error:
                visits[name] = Visit(None, error.message, error.code)

    async with trio.open_nursery() as nursery:
        for name, url in urls.items():
            nursery.start_soon(visit, name, url)
    return {name: visits[name] for name in urls}


@dataclass(slots=True)
class _Picture:
    """What the visits give together."""

    answers: dict[str, Answer]
    members: list[str]
    quorum: int
    absent: dict[str, str] = field(default_factory=dict)
    """Why a member takes no part in the next block, in a word or two."""
    findings: list[Answer] = field(default_factory=list)


def merge(visits: Mapping[str, Visit], processes: Mapping[str, Process] | None = None) -> Answer:
    """Return one diagnosis out of what the nodes and the processes of a local network tell.

    What a node says of itself counts more than what others see of it; what several see alike stands once.

    Raises:
        Unreachable: not one of the nodes answers, and nothing is known of their processes.
    """
    answers = {str(found.answer["node"]): found.answer for found in visits.values() if found.answer is not None}
    processes = processes or {}
    if not answers:
        return _nobody(visits, processes)
    status = max((answer["status"] for answer in answers.values()), key=lambda item: int(item["height"]))
    picture = _Picture(answers, list(status["validators"]), int(status["quorum"]))
    known = {*visits, *answers}  # nodes may be asked by URL
    unasked = {name: Visit(None, "was not asked", NOT_ASKED) for name in picture.members if name not in known}
    _note_unanswered(picture, {**visits, **unasked}, processes)
    together = _note_groups(picture)
    is_stuck = _note_quorum(picture, together)
    _note_said(picture, together, is_stuck=is_stuck)
    findings = sorted(picture.findings, key=lambda item: _LEVELS.index(item["level"]))
    if not findings or findings[0]["level"] == "note":
        message = f"all {len(picture.members)} validators take part; {picture.quorum} decide"
        findings.insert(0, _finding("healthy", message, level="ok"))
    return _diagnosis(findings, visits, status)


def _nobody(visits: Mapping[str, Visit], processes: Mapping[str, Process]) -> Answer:
    """Return the diagnosis of a network of which no node answers."""
    if not any(process.state != "running" for process in processes.values()):
        raise Unreachable("no node answers; does the network run? hansa network up starts a local one")
    picture = _Picture({}, [], 0)
    _note_unanswered(picture, visits, processes)
    stuck = _finding("no_quorum", "no node answers, so nobody votes", level="stuck", advice="hansa network up")
    return _diagnosis([stuck, *picture.findings], visits, None)


def _diagnosis(findings: list[Answer], visits: Mapping[str, Visit], status: Answer | None) -> Answer:
    is_healthy = findings[0]["level"] == "ok"
    return {
        "ok": is_healthy,
        "healthy": is_healthy,
        "nodes": {name: found.answer is not None for name, found in visits.items()},
        "findings": findings,
        "status": status,
    }


def _note_unanswered(picture: _Picture, visits: Mapping[str, Visit], processes: Mapping[str, Process]) -> None:
    """Say why a node does not answer: its process, another chain, or silence."""
    for name, visit in visits.items():
        process = processes.get(name, Process("running"))
        if process.state == "stopped":
            picture.absent[name] = "stopped"
            advice = way_out(name, process.code)
            picture.findings.append(_finding("node_stopped", f"{name} does not run: {process.words}", name, advice))
        elif process.state == "frozen":
            picture.absent[name] = "frozen"
            advice = f"kill -CONT {process.pid} wakes it"
            picture.findings.append(_finding("node_frozen", f"{name} is frozen (SIGSTOP)", name, advice))
        elif visit.answer is None and visit.code == "wrong_chain":
            picture.absent[name] = "on another chain"
            advice = f"give {name} the genesis.json of this network and a fresh data folder"
            message = f"{name} serves another chain: its genesis file is not ours"
            picture.findings.append(_finding("other_chain", message, name, advice))
        elif visit.answer is None and visit.code == NOT_ASKED:
            if not any(name in answer["connected"] for answer in picture.answers.values()):
                picture.absent[name] = "away"
                message = f"{name} is away{_as_others_say(picture, name)}"
                picture.findings.append(_finding("validators_away", message, name, f"look at {name}"))
        elif visit.answer is None:
            seen_by = [node for node, answer in picture.answers.items() if name in answer["connected"]]
            if not seen_by or any(name in answer["idle"] for answer in picture.answers.values()):
                picture.absent[name] = "silent"
            message = f"{name} does not answer: {visit.why}"
            message += f"; connected with it: {', '.join(seen_by)}" if seen_by else _as_others_say(picture, name)
            advice = f"look at {name}: is it overloaded, frozen, or its RPC not reachable from here?"
            picture.findings.append(_finding("node_silent", message, name, advice))


def _as_others_say(picture: _Picture, name: str) -> str:
    """Return why a node is away, in the words of the first that says so."""
    for node, answer in picture.answers.items():
        if node != name and name in answer["away"]:
            return f"; {node} says: {answer['away'][name]}"
    return ""


def way_out(name: str, code: str) -> str:
    """Return what to do about a node that has ended with this code as its last word."""
    return _WAYS_OUT.get(code, "hansa network up starts it").format(name=name)


def _note_groups(picture: _Picture) -> frozenset[str]:
    """Say who is cut off from whom; return the members of the group that has the most who vote."""
    here = [name for name in picture.members if name not in picture.absent]
    groups: list[frozenset[str]] = []
    for name in here:
        if not any(name in group for group in groups):
            groups.append(_reached(picture.answers, here, name))
    if not groups:
        return frozenset()
    groups.sort(key=lambda group: (-sum(_votes(picture, name) for name in group), min(group)))
    for group in groups[1:]:
        names = ", ".join(sorted(group))
        if len(group) == 1:
            message = f"{names} runs and reaches no other validator{_as_others_say(picture, names)}"
        else:
            message = f"{names} reach each other and no other validator"
        advice = f"the network or a firewall between {names} and {', '.join(sorted(groups[0]))} is in the way"
        about = names if len(group) == 1 else None
        picture.findings.append(_finding("cut_off", message, about, advice))
        picture.absent |= dict.fromkeys(group, "cut off")
    for one, other in _dead_links(picture.answers, groups[0]):
        message = f"{one} and {other} do not reach each other, though both reach others"
        advice = f"look at the network between {one} and {other}"
        picture.findings.append(_finding("link_down", message, None, advice))
    return groups[0]


def _reached(answers: Mapping[str, Answer], here: Sequence[str], first: str) -> frozenset[str]:
    """Return whom a validator reaches, also by way of others, and itself."""
    group, edge = {first}, [first]
    while edge:
        name = edge.pop()
        for other in here:
            if other not in group and _is_linked(answers, name, other):
                group.add(other)
                edge.append(other)
    return frozenset(group)


def _is_linked(answers: Mapping[str, Answer], one: str, other: str) -> bool:
    """Tell whether a session stands, as those of both say who answered."""
    said = [there in answers[here]["connected"] for here, there in ((one, other), (other, one)) if here in answers]
    return bool(said) and all(said)


def _dead_links(answers: Mapping[str, Answer], group: frozenset[str]) -> list[tuple[str, str]]:
    names = sorted(name for name in group if name in answers)
    pairs = [(one, other) for number, one in enumerate(names) for other in names[number + 1 :]]
    return [(one, other) for one, other in pairs if not _is_linked(answers, one, other)]


def _votes(picture: _Picture, name: str) -> bool:
    """Tell whether a member votes: as it says itself, else as others see it."""
    if name in picture.absent:
        return False
    if name in picture.answers and not picture.answers[name]["status"]["isValidator"]:
        return False
    others = [answer for node, answer in picture.answers.items() if node != name]
    return not others or not all(name in answer["idle"] for answer in others if name in answer["connected"])


def _note_quorum(picture: _Picture, together: frozenset[str]) -> bool:
    """Say what the quorum lacks; tell whether it does."""
    voting = [name for name in picture.members if name in together and _votes(picture, name)]
    if len(voting) >= picture.quorum:
        return False
    lacking = ", ".join(
        f"{name} ({picture.absent.get(name, 'not voting')})" for name in picture.members if name not in voting
    )
    count = f"{len(voting)} of {len(picture.members)} validators vote together, {picture.quorum} are needed"
    advice = f"bring back {picture.quorum - len(voting)} of them; what is submitted waits until then"
    picture.findings.append(_finding("no_quorum", f"{count}; missing: {lacking}", None, advice, level="stuck"))
    return True


def _note_said(picture: _Picture, together: frozenset[str], *, is_stuck: bool) -> None:
    """Add what the nodes say themselves: their own words first, each thing once, no mere symptoms."""
    said: set[tuple[str, str]] = {(item["code"], item["about"]) for item in picture.findings}
    own = {
        item["about"]
        for node, answer in picture.answers.items()
        for item in answer["findings"]
        if item["about"] == node
    }
    items = [item | {"node": node} for node, answer in picture.answers.items() for item in answer["findings"]]
    items.sort(key=lambda item: (item["about"] != item["node"], item["node"] not in together))
    for item in items:
        code, about = item["code"], item["about"]
        if item["level"] == "ok" or code in _COUNTED_ANEW or (is_stuck and code in _SYMPTOMS):
            continue
        if about is None and item["node"] not in together:
            continue  # who is cut off sees everything else wrong
        if code in _ABSENCES and about != item["node"] and (about in picture.absent or about in own):
            continue
        mark = (code, about or ("" if code in _SYMPTOMS else item["message"]))
        if mark not in said:
            said.add(mark)
            picture.findings.append(item)


def _finding(code: str, message: str, about: str | None = None, advice: str = "", *, level: str = "warning") -> Answer:
    return {"level": level, "code": code, "message": message, "about": about, "advice": advice or None, "node": None}
