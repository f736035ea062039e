"""What validators have signed, as found on stopped nodes' disks, and whether anybody has contradicted itself.

Votes stand in the vote log of the replica that cast them, in the certificates that others keep, and in
the certificate of every block. A statement binds (who, what, height, view) to one content for ever.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from consensus.ledger.block import Block, decode_block_untrusted
from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PrivateKey
from consensus.ledger.validators import Certificate, certificate_codec
from consensus.pbft.messages import Claim, PreparedCertificate
from consensus.pbft.vote_log import RestoredVotes, VoteLog
from node.network.homes import NodeHome
from node.storage import layout
from node.storage.leveldb import LevelStore

ACCEPT, COMMIT, LEAVE = "accept", "commit", "leave"
"""A proposal or prepare; a commit; a view-change vote."""

_KIND_PLACES = {
    layout.BLOCK: "blocks",
    layout.RECEIPTS: "receipts",
    layout.WRITES: "writes",
    layout.VALIDATORS: "validator sets",
}


@dataclass
class StatementBook:
    """Collects statements and the places where stores differ; ``contradictions`` must stay empty."""

    genesis: Genesis
    said: dict[tuple[str, str, int, int], bytes | Claim | None] = field(default_factory=dict)
    contradictions: list[str] = field(default_factory=list)
    stopped: dict[str, tuple[int, RestoredVotes]] = field(default_factory=dict)
    """Whose logs were read last: the height in progress there, and what they hold."""
    _left: dict[tuple[str, int], int] = field(default_factory=dict)
    """The highest view that a replica's log has moved it to, by name and height."""

    def read_stopped(self, homes: Sequence[NodeHome]) -> None:
        """Read vote logs and newest certificates of nodes that do not run; their files stay untouched."""
        logs: dict[str, tuple[int, RestoredVotes]] = {}
        for home in homes:
            with _copy_of(home) as store:
                height = _head(store) + 1
                records = {key[1:]: value for key, value in store.scan(layout.VOTE)}
                own = VoteLog(PrivateKey.from_pem((home.folder / "keys" / "vote.pem").read_bytes()).public.compressed)
                logs[home.name] = height, own.restore(records, height)
                if height > 1:
                    self.add_certificate(_certificate(store, height - 1))
        for name, (height, votes) in logs.items():
            self.add_log(name, height, votes)
        self.stopped = logs

    def check_durable(self) -> None:
        """Check that what others hold of the votes of those who were read last stands in their own logs (P12)."""
        for name, (height, votes) in self.stopped.items():
            self._is_durable(name, height, votes)

    def read_whole(self, homes: list[NodeHome]) -> int:
        """Read everything that stopped nodes hold and compare it height by height; return the lowest head."""
        self.read_stopped(homes)
        contents: dict[tuple[bytes, int], bytes] = {}
        heads = []
        for home in homes:
            with _copy_of(home) as store:
                heads.append(_head(store))
                for height in range(1, heads[-1] + 1):
                    self.add_certificate(_certificate(store, height))
                self._compare(home.name, store, contents)
        self.check_durable()
        return min(heads)

    def add_log(self, name: str, height: int, votes: RestoredVotes) -> None:
        """Take note of what a replica's log says at the height in progress."""
        before = self._left.get((name, height), 0)
        if votes.accepted is not None:
            block = Block.of(votes.accepted.block.header, votes.accepted.block.transactions)
            self._accepts(name, height, votes.accepted.view, block.hash, not_below=before)
            self._says(self._primary(height, votes.accepted.view), ACCEPT, height, votes.accepted.view, block.hash)
        if votes.prepared is not None:
            self._add_prepared(votes.prepared)
            self._says(name, COMMIT, height, votes.prepared.view, votes.prepared.block_hash)
        if votes.view_change is not None:
            vote = votes.view_change.vote
            self._says(name, LEAVE, height, vote.view, vote.claim)
        if votes.new_view is not None:
            for vote in votes.new_view.votes:
                self._says(vote.signer, LEAVE, height, vote.view, vote.claim)
        if votes.view < before:
            self.contradictions.append(f"{name} went back from view {before} to {votes.view} at height {height}")
        self._left[name, height] = max(before, votes.view)

    def add_certificate(self, certificate: Certificate) -> None:
        """Take note of a block's certificate."""
        for signature in certificate.signatures:
            self._says(signature.signer, COMMIT, certificate.height, certificate.view, certificate.block_hash)

    def _is_durable(self, name: str, height: int, votes: RestoredVotes) -> None:
        logged = {
            ACCEPT: votes.accepted.view if votes.accepted is not None else -1,
            COMMIT: votes.prepared.view if votes.prepared is not None else -1,
            LEAVE: votes.view,
        }
        for what, view in logged.items():
            sent = [
                said_view for signer, kind, at, said_view in self.said if (signer, kind, at) == (name, what, height)
            ]
            if max(sent, default=-1) > view:
                self.contradictions.append(f"{name} sent a {what} at height {height} that its log does not know")

    def _add_prepared(self, certificate: PreparedCertificate) -> None:
        signers = [self._primary(certificate.height, certificate.view), *(item.signer for item in certificate.prepares)]
        for signer in signers:
            self._says(signer, ACCEPT, certificate.height, certificate.view, certificate.block_hash)

    def _accepts(self, name: str, height: int, view: int, block_hash: bytes, *, not_below: int) -> None:
        if view < not_below and (name, ACCEPT, height, view) not in self.said:
            self.contradictions.append(f"{name} accepted in view {view} of height {height} after leaving it")
        self._says(name, ACCEPT, height, view, block_hash)

    def _says(self, signer: str, what: str, height: int, view: int, content: bytes | Claim | None) -> None:
        first = self.said.setdefault((signer, what, height, view), content)
        if first != content:
            self.contradictions.append(f"{signer}: two {what} statements at height {height}, view {view}")

    def _primary(self, height: int, view: int) -> str:
        names = sorted(validator.name for validator in self.genesis.validators)
        return names[(height + view) % len(names)]

    def _compare(self, name: str, store: LevelStore, contents: dict[tuple[bytes, int], bytes]) -> None:
        for kind, what in _KIND_PLACES.items():
            for key, value in store.scan(kind):
                height = int.from_bytes(key[1:9], "big")
                if kind == layout.BLOCK:
                    value = decode_block_untrusted(value).hash
                if contents.setdefault((kind, height), value) != value:
                    self.contradictions.append(f"{name} has other {what} at height {height}")


def evidence_in_logs(homes: list[NodeHome]) -> list[str]:
    """Return the lines in which nodes report a contradiction that they saw on the wire, or an own failure."""
    found = []
    for home in homes:
        for line in home.log_file.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                found.append(f"{home.name}: {line}")  # a traceback, or what no log line of ours looks like
                continue
            if entry.get("event") == "evidence" or entry.get("level") == "error":
                found.append(f"{home.name}: {line}")
    return found


@contextmanager
def _copy_of(home: NodeHome) -> Iterator[LevelStore]:
    """Open a copy of a stopped node's database: opening repairs nothing, but it rewrites files."""
    with tempfile.TemporaryDirectory(prefix="hansa-copy-") as folder:
        shutil.copytree(home.data, Path(folder) / "data")
        store = LevelStore.open(Path(folder) / "data")
        try:
            yield store
        finally:
            store.close()


def _head(store: LevelStore) -> int:
    return int.from_bytes(store.get(layout.META_HEAD) or b"", "big")


def _certificate(store: LevelStore, height: int) -> Certificate:
    return certificate_codec.decode_untrusted(store.get(layout.at_height(layout.CERTIFICATE, height)) or b"")
