"""Stories as scripts: commands above ``----``, what the replicas did below it, kept as golden traces.

``HANSA_REWRITE=1`` writes what happens into the files instead of comparing. Commands:

    cluster N             a new cluster, started          run MS                let time pass
    submit T …            transactions for everyone       crash / restart X …   nodes
    drop A>B Kind …       lose messages (* for any)       deliver               lose nothing any more
    hide answers          leave out what answers STATUS   equivocate A: XY Z    A proposes one block to X
                                                                                and Y and another to Z
    heights · phases · evidence                           who stands where
"""

import os
from pathlib import Path

import pytest

from consensus.ledger.ids import NodeName
from consensus.ledger.keys import Purpose
from consensus.ledger.validators import vote_payload
from consensus.pbft.events import (
    Broadcast,
    CatchUp,
    Decide,
    Effect,
    Evidence,
    Penalise,
    Persist,
    Propose,
    Send,
    Validate,
    ViewEntered,
)
from consensus.pbft.messages import (
    BlockBody,
    Commit,
    Decided,
    FetchBlock,
    Message,
    NewView,
    Prepare,
    PrePrepare,
    Status,
    ViewChange,
)
from consensus.pbft.vote_log import RecordKind
from tests.pbft.cluster import Cluster, make_block
from tests.pbft.solo import sign

SCRIPTS = Path(__file__).parent / "scripts"


class Script:
    """Runs the commands of one file against one cluster."""

    def __init__(self) -> None:
        self.cluster = Cluster(1)
        self.blocks: dict[bytes, str] = {}
        self.hides_answers = False

    def run(self, command: str) -> list[str]:
        verb, *words = command.split()
        cluster = self.cluster
        cluster.trace.clear()
        match verb:
            case "cluster":
                self.cluster = cluster = Cluster(int(words[0]))
                cluster.run(20)
            case "run":
                cluster.run(int(words[0]))
            case "submit":
                cluster.submit(*[word.encode() for word in words])
            case "crash":
                cluster.crash(*words)
            case "restart":
                cluster.restart(*words)
            case "drop":
                route, kinds = words[0].split(">"), words[1:]
                cluster.drop = lambda sender, to, message: (
                    route[0] in (sender, "*") and route[1] in (to, "*") and type(message).__name__ in kinds
                )
            case "deliver":
                cluster.drop = lambda sender, to, message: False
            case "equivocate":
                self.equivocate(words[0].rstrip(":"), words[1:])
            case "heights":
                return [" ".join(f"{replica.name}:{replica.height}" for replica in cluster.alive)]
            case "hide":
                self.hides_answers = True
            case "phases":
                return [" ".join(f"{name}:{phase}" for name, phase in cluster.phases().items())]
            case "evidence":
                found = [(replica.name, item) for replica in cluster.alive for item in replica.evidence]
                return [f"{name}: {item.kind} by {item.signer} at {item.height}/{item.view}" for name, item in found]
            case _:
                raise AssertionError(f"unknown command {command}")
        lines = [(name, self.describe(effect)) for name, effect in cluster.trace]
        return [f"{name} {line}" for name, line in lines if line]

    def equivocate(self, primary: str, targets: list[str]) -> None:
        """Let a primary that does not run its engine propose block number i to the i-th group of nodes."""
        self.cluster.crash(primary)
        for number, group in enumerate(targets):
            block = make_block(self.cluster[group[0]].head, primary, [b"%d" % number])
            payload = vote_payload(block.height, 0, block.hash)
            message = PrePrepare(0, block.record(), sign(primary, Purpose.PROPOSAL, payload))
            for name in group:
                self.cluster.deliver(NodeName(primary), NodeName(name), message)
        self.cluster.drain()

    def label(self, block_hash: bytes) -> str:
        return self.blocks.setdefault(block_hash, f"#{len(self.blocks) + 1}")

    def describe(self, effect: Effect) -> str:
        match effect:
            case Persist(records):
                return "persist " + " ".join(RecordKind(key[0]).name.lower() for key, _ in records)
            case Send(to, message):
                text = self.describe_message(message)
                return (text and not self.hides_answers and f"send {to} {text}") or ""
            case Broadcast(message):
                text = self.describe_message(message)
                return text and f"broadcast {text}"
            case Propose(height, view, _):
                return f"propose {height}/{view}"
            case Validate(block, first_seen):
                return f"validate {self.label(block.hash)}{' first seen' if first_seen else ''}"
            case Decide(block, certificate):
                signers = "".join(vote.signer for vote in certificate.signatures)
                return f"decide {self.label(block.hash)} at {block.height}/{certificate.view} by {signers}"
            case CatchUp(certificate, source):
                return f"catch up to {certificate.height} from {source}"
            case Evidence():
                return f"evidence {effect.kind} by {effect.signer}"
            case Penalise(peer, code):
                return f"penalise {peer} {code}"
            case ViewEntered(height, view, primary, opened):
                return f"{'view' if opened else 'leave for'} {height}/{view}, primary {primary}"
        raise AssertionError(effect)

    def describe_message(self, message: Message) -> str:
        match message:
            case PrePrepare():
                return f"PRE-PREPARE {message.height}/{message.view} {self.label(message.block.header.hash())}"
            case Prepare():
                return f"PREPARE {message.height}/{message.view} {self.label(message.block_hash)}"
            case Commit():
                return f"COMMIT {message.height}/{message.view} {self.label(message.block_hash)}"
            case ViewChange():
                claim = message.vote.claim
                text = "nothing" if claim is None else f"{self.label(claim.block_hash)} of view {claim.view}"
                return f"VIEW-CHANGE {message.height}/{message.vote.view} claims {text}"
            case NewView():
                required = message.certificate
                text = "anything" if required is None else self.label(required.block_hash)
                voters = "".join(vote.signer for vote in message.votes)
                return f"NEW-VIEW {message.height}/{message.view} by {voters} requires {text}"
            case Decided():
                return f"DECIDED {message.certificate.height} {self.label(message.certificate.block_hash)}"
            case FetchBlock():
                return f"FETCH {self.label(message.block_hash)}"
            case BlockBody():
                return f"BODY {self.label(message.block.header.hash())}"
            case Status():
                return ""  # asked all the time
        raise AssertionError(message)


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    script, out = Script(), []
    text = path.read_text()
    for part in text.strip().split("\n\n"):
        head = part.split("\n----")[0]
        out.append(head)
        commands = [line for line in head.splitlines() if line and not line.startswith("#")]
        lines = [line for command in commands for line in script.run(command)]
        if commands:
            out[-1] += "\n----\n" + ("\n".join(lines) if lines else "nothing")
    script.cluster.agree()
    told = "\n\n".join(out) + "\n"
    if os.environ.get("HANSA_REWRITE"):
        path.write_text(told)
    assert told == text
