"""cooperation and evidence against a small model: random agreements, channels, keys, terms and anchors, some forged.

The model says of each call every reason why it must be refused; the contract has to refuse with one of them, and to do
the call where there is none. It never looks at the contract's state: keys, epochs, versions and anchors are its own.
"""

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consensus.ledger.codec import encode
from consensus.ledger.cooperation import agreement_hash, answer_hash, orders_hash, terms_hash
from consensus.ledger.ids import tagged_hash
from consensus.ledger.keys import Purpose
from tests.contracts.domain.agency import TERMS, Agency, key, make_agency
from tests.contracts.support import START_MS

BANKS, ISSUERS = ("bank-a", "bank-b"), ("issuer-c", "issuer-f")
PARTIES = (*BANKS, *ISSUERS)
PAIRS = [(bank, issuer) for bank in BANKS for issuer in ISSUERS]
HOUR_MS, SLACK_MS = 3_600_000, 600_000
GRACE_BLOCKS, REPLACED_MAX = 10_000, 4
ENTRY = ("root", "roundNumber", "outcomeRoot", "status", "epoch", "count", "previous", "height", "timeMs")


@dataclass
class Application:
    bank: str
    issuers: list[str]
    fields: dict[str, Any]
    status: str = "PENDING"


@dataclass
class Channel:
    epoch: int
    expires_ms: int
    is_revoked: bool = False
    revoked_ms: int = 0


@dataclass
class Proposal:
    bank: str
    issuer: str
    subject: str
    version: int
    proposer: str
    expires_ms: int
    signed: dict[str, int] = field(default_factory=dict)
    """Organisation → the number of the key that signed."""


class AgencyMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.agency: Agency = make_agency()
        self.keys = {name: 100 + index for index, name in enumerate(["bank-a", "bank-b", "issuer-c"])}
        self.keys["issuer-f"] = 104
        self.replaced: dict[str, list[tuple[int, int]]] = {name: [] for name in PARTIES}
        self.used = 1_000
        self.applications: dict[bytes, Application] = {}
        self.numbers: dict[tuple[str, str], bytes] = {}
        self.channels: dict[tuple[str, str], Channel] = {}
        self.proposals: dict[bytes, Proposal] = {}
        self.terms: dict[tuple[str, str, str], int] = {}
        self.anchors: dict[tuple[str, str, bytes, int, bytes], str] = {}
        self.logged: dict[tuple[str, str], int] = {}
        fields = self.agency.agreement("0")
        application = self.agency.open("0")
        self.applications[application] = Application("bank-a", ["issuer-c"], fields, "OPENED")
        self.numbers["bank-a", "0"] = application
        self.channels[PAIRS[0]] = Channel(1, fields["valid_until_ms"])

    # -- the model ---------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """The time of the block that comes next."""
        return self.agency.chain.block_context().time_ms

    def counts(self, who: str, number: int) -> bool:
        """Whether what a key has signed counts for a party in the block that comes next."""
        height = self.agency.chain.height + 1
        return number == self.keys[who] or any(
            number == old and height - until <= GRACE_BLOCKS for old, until in self.replaced[who]
        )

    def act(self, contract: str, reasons: list[str], who: str, method: str, /, **arguments: Any) -> bool:
        """Call; tell whether it was done, which it must be unless there is a reason against it."""
        before = self.agency.chain.state.entries()
        receipt = self.agency.chain.call(who, contract, method, **arguments)
        if reasons:
            assert receipt.code in reasons, f"{method}: {receipt.code!r} is none of {reasons}"
            after = self.agency.chain.state.entries()
            assert {name for name in after if after[name] != before.get(name)} <= {
                name for name in after if name.startswith(b"lanes/")
            }
            return False
        assert receipt.code == "", f"{method}: {receipt.code} {self.agency.chain.logs[-1:]}"
        return True

    def signed(self, number: int, purpose: Purpose, payload: Any) -> bytes:
        return key(number).sign(purpose, self.agency.chain.chain_id, payload)

    # -- what may be tried -------------------------------------------------------------------------------

    parties = st.sampled_from(PARTIES)
    pairs = st.sampled_from([*PAIRS, PAIRS[0], PAIRS[0], PAIRS[0]])
    callers = st.sampled_from([*PARTIES, "permission", "permission", "clerk-a"])
    fair = st.sampled_from([True, True, True, False])

    @rule(who=parties)
    def rotate(self, who: str) -> None:
        height = self.agency.chain.height + 1
        recent = [until for _, until in self.replaced[who] if height - until <= GRACE_BLOCKS]
        reasons = ["too_many_key_changes"] if len(recent) >= REPLACED_MAX else []
        self.used += 1
        fields = {**self.agency.party(who), "business_key": key(self.used).public.compressed}
        if self.act("cooperation", reasons, who, "register_party", **fields):
            self.replaced[who].insert(0, (self.keys[who], height))
            self.keys[who] = self.used

    @rule(blocks=st.sampled_from([1, 5_000, 10_001]), hours=st.integers(1, 30))
    def pass_time(self, blocks: int, hours: int) -> None:
        self.agency.chain.height += blocks
        self.agency.pass_ms(hours * HOUR_MS)

    def old_key(self, who: str, is_fair: bool) -> int:
        """The present key, or the last one before it."""
        return self.keys[who] if is_fair or not self.replaced[who] else self.replaced[who][0][0]

    @rule(
        bank=st.sampled_from(BANKS),
        issuers=st.sampled_from([list(some) for size in (1, 2) for some in combinations(ISSUERS, size)]),
        number=st.sampled_from("123456"),
        hours=st.integers(1, 60),
        flaw=st.sampled_from(["", "", "", "", "missing", "altered", "foreign", "old key", "caller"]),
        victim=st.integers(0, 2),
    )
    def apply(self, bank: str, issuers: list[str], number: str, hours: int, flaw: str, victim: int) -> None:
        fields: dict[str, Any] = {"number": number, "issuers": issuers, "document": bytes(32), "grace_ms": HOUR_MS}
        begins_ms = self.now - (0 if hours % 4 else 2 * HOUR_MS)
        fields |= {"valid_from_ms": begins_ms, "valid_until_ms": begins_ms + (2 + hours) * HOUR_MS}
        agreed = agreement_hash(bank=bank, **fields)
        signers = [bank, *issuers]
        chosen = signers[victim % len(signers)]
        numbers = {name: self.old_key(name, flaw != "old key" or name != chosen) for name in signers}
        if flaw == "foreign":
            numbers[chosen] = self.keys[next(name for name in PARTIES if name not in signers)]
        signatures = {name: self.signed(numbers[name], Purpose.AGREEMENT, agreed) for name in signers}
        reasons = [] if all(self.counts(name, numbers[name]) for name in signers) else ["bad_signature"]
        if flaw == "missing":
            del signatures[chosen]
            reasons = ["signature_missing"]
        if flaw == "altered":
            signatures[chosen] = bytes(64)
            reasons = ["bad_signature"]
        who = bank
        if flaw == "caller":
            who = next(name for name in BANKS if name != bank)
            reasons = ["signature_missing"]
        old = self.numbers.get((bank, number))
        if old is not None and self.applications[old].status != "REFUSED":
            reasons.append("application_exists")
        if len([item for item in self.applications.values() if item.bank == bank and item.status == "PENDING"]) >= 16:
            reasons.append("too_many_applications")
        if self.act("cooperation", reasons, who, "apply", **fields, signatures=signatures):
            self.applications[agreed] = Application(bank, issuers, fields)
            self.numbers[bank, number] = agreed

    @precondition(lambda self: self.applications)
    @rule(data=st.data(), who=callers, is_fair=fair, opens=fair)
    def decide(self, data: st.DataObject, who: str, is_fair: bool, opens: bool) -> None:
        waiting = [name for name, item in self.applications.items() if item.status == "PENDING" and is_fair]
        application = data.draw(st.sampled_from(sorted(waiting or self.applications)))
        found = self.applications[application]
        who = "permission" if is_fair else who
        reasons = [] if who == "permission" else ["not_allowed"]
        reasons += [] if found.status == "PENDING" else ["application_state"]
        until = found.fields["valid_until_ms"]
        if not opens:
            if self.act("cooperation", reasons, who, "refuse_application", application=application, reason="no"):
                found.status = "REFUSED"
            return
        now = self.now
        reasons += [] if now < until else ["agreement_expired"]
        begins_ms = found.fields["valid_from_ms"]
        channels = [self.channels[found.bank, name] for name in found.issuers if (found.bank, name) in self.channels]
        if any(item.is_revoked and item.revoked_ms > begins_ms + SLACK_MS for item in channels):
            reasons.append("channel_revoked")
        if not self.act("cooperation", reasons, who, "open_channels", application=application):
            return
        found.status = "OPENED"
        for issuer in found.issuers:
            old = self.channels.get((found.bank, issuer))
            if old is not None and not old.is_revoked and now < old.expires_ms:
                old.expires_ms = max(old.expires_ms, until)
            else:
                self.channels[found.bank, issuer] = Channel(1 if old is None else old.epoch + 1, until)

    @rule(pair=pairs, who=callers, is_fair=fair)
    def revoke(self, pair: tuple[str, str], who: str, is_fair: bool) -> None:
        if is_fair:
            pair = next((pair for pair, item in self.channels.items() if not item.is_revoked), pair)
            who = pair[1]
        channel = self.channels.get(pair)
        reasons = [] if who in pair else ["not_allowed"] if who == "clerk-a" and "bank-a" in pair else ["not_party"]
        reasons += ["unknown_channel"] if channel is None else ["channel_revoked"] if channel.is_revoked else []
        fields = {"bank": pair[0], "issuer": pair[1], "reason": ""}
        now = self.now
        if self.act("cooperation", reasons, who, "revoke_channel", **fields) and channel is not None:
            channel.is_revoked = True
            channel.revoked_ms = now

    @rule(
        pair=pairs,
        proposer=st.integers(0, 1),
        subject=st.sampled_from(["type:a", "type:b"]),
        age=st.integers(0, 3),
        ahead=st.sampled_from([1, 1, 1, 2]),
        is_fair=fair,
    )
    def propose(self, pair: tuple[str, str], proposer: int, subject: str, age: int, ahead: int, is_fair: bool) -> None:
        who = pair[proposer]
        version = self.terms.get((*pair, subject), 0) + ahead
        fields: dict[str, Any] = {"bank": pair[0], "issuer": pair[1], "subject": subject}
        fields |= {"terms": {**TERMS, "ageMin": age}, "effective_ms": START_MS, "expires_ms": self.now + 90 * HOUR_MS}
        proposal = terms_hash(version=version, **fields)
        number = self.keys[who] if is_fair else self.keys[pair[1 - proposer]]
        reasons = [] if is_fair and ahead == 1 else ["bad_signature"]
        reasons += ["proposal_exists"] if proposal in self.proposals else []
        made = [item for item in self.proposals.values() if item.proposer == who]
        reasons += ["too_many_proposals"] if len(made) >= 64 else []
        signature = self.signed(number, Purpose.TERMS, proposal)
        if self.act("cooperation", reasons, who, "propose_terms", **fields, signature=signature):
            made_now = Proposal(*pair, subject, version, who, fields["expires_ms"], {who: number})
            self.proposals[proposal] = made_now

    def stale(self, found: Proposal) -> list[str]:
        newest = self.terms.get((found.bank, found.issuer, found.subject), 0)
        reasons = [] if found.version == newest + 1 else ["terms_superseded"]
        return reasons + ([] if self.now < found.expires_ms else ["terms_expired"])

    @precondition(lambda self: self.proposals)
    @rule(data=st.data(), who=callers, is_fair=fair, signs=fair)
    def accept(self, data: st.DataObject, who: str, is_fair: bool, signs: bool) -> None:
        proposal = data.draw(st.sampled_from(sorted(self.proposals)))
        found = self.proposals[proposal]
        pair = (found.bank, found.issuer)
        other = found.issuer if found.proposer == found.bank else found.bank
        who = other if is_fair else who
        reasons = [] if who == other else ["not_allowed", "not_party"]
        reasons += self.stale(found)
        number = self.keys[other] if signs else self.keys[found.proposer]
        reasons += [] if signs else ["bad_signature"]
        signature = self.signed(number, Purpose.TERMS, proposal)
        if self.act("cooperation", reasons, who, "accept_terms", proposal=proposal, signature=signature):
            assert who in pair
            found.signed.setdefault(other, number)

    @precondition(lambda self: self.proposals)
    @rule(data=st.data(), who=callers, is_fair=fair)
    def enact(self, data: st.DataObject, who: str, is_fair: bool) -> None:
        signed = [name for name, item in self.proposals.items() if len(item.signed) == 2 and is_fair]
        proposal = data.draw(st.sampled_from(sorted(signed or self.proposals)))
        found = self.proposals[proposal]
        who = "permission" if is_fair else who
        reasons = [] if who == "permission" else ["not_allowed"]
        reasons += self.stale(found)
        reasons += [] if len(found.signed) == 2 else ["signature_missing"]
        reasons += [] if all(self.counts(name, found.signed[name]) for name in found.signed) else ["bad_signature"]
        if self.act("cooperation", reasons, who, "enact_terms", proposal=proposal):
            self.terms[found.bank, found.issuer, found.subject] = found.version
            del self.proposals[proposal]

    @precondition(lambda self: self.proposals)
    @rule(data=st.data(), who=callers)
    def withdraw(self, data: st.DataObject, who: str) -> None:
        proposal = data.draw(st.sampled_from(sorted(self.proposals)))
        found = self.proposals[proposal]
        reasons = [] if who in (found.bank, found.issuer) else ["not_party", "not_allowed"]
        if self.act("cooperation", reasons, who, "withdraw_terms", proposal=proposal):
            del self.proposals[proposal]

    @precondition(lambda self: self.channels)
    @rule(
        data=st.data(),
        pair=pairs,
        who=callers,
        root=st.sampled_from([b"r" * 32, b"s" * 32]),
        outcome=st.sampled_from([b"o" * 32, b"p" * 32]),
        round_number=st.sampled_from([0, 0, 1]),
        signed=st.sampled_from(["both", "both", "bank", "issuer"]),
        flaw=st.sampled_from(["", "", "", "", "epoch", "channel", "outcome", "swapped", "old key"]),
        is_fair=fair,
    )
    def anchor(
        self,
        data: st.DataObject,
        pair: tuple[str, str],
        who: str,
        root: bytes,
        outcome: bytes,
        round_number: int,
        signed: str,
        flaw: str,
        is_fair: bool,
    ) -> None:
        """Anchor what was signed for this, or for something else: another epoch, channel or outcome."""
        if is_fair and pair not in self.channels:
            pair = sorted(self.channels)[0]
        bank, issuer = pair
        who = bank if is_fair else who
        channel = self.channels.get(pair)
        epochs = 1 if channel is None else channel.epoch
        epoch = data.draw(st.sampled_from([*range(1, epochs + 1), epochs, epochs, epochs + 1]))
        previous = bytes(32)
        if signed == "bank":
            outcome, round_number, previous = b"", 0, b""
        for_issuer = next(name for name in ISSUERS if name != issuer) if flaw == "channel" else issuer
        said: tuple[str, str, int, bytes] = (bank, for_issuer, epoch + (flaw == "epoch"), root)
        about = b"x" * 32 if flaw == "outcome" else outcome
        numbers = [self.old_key(bank, flaw != "old key"), self.old_key(issuer, flaw != "old key")]
        right = [self.counts(bank, numbers[0]), self.counts(issuer, numbers[1])]
        if flaw == "swapped":
            numbers.reverse()
        orders = self.signed(numbers[0], Purpose.ORDERS, orders_hash(*said, 5))
        answer = self.signed(numbers[1], Purpose.ANSWER, answer_hash(*said, round_number, about, previous))
        orders_hold = right[0] and flaw not in ("epoch", "channel", "swapped")
        answer_holds = right[1] and flaw not in ("epoch", "channel", "swapped", "outcome")
        reasons = [] if who in pair or (who == "clerk-a" and bank == "bank-a") else ["not_party"]
        known = self.says_already(pair, root, round_number, outcome, signed)
        if not known:
            reasons += [] if channel is not None and epoch <= channel.epoch else ["unknown_channel"]
            reasons += [] if signed == "issuer" or orders_hold else ["bad_signature"]
            reasons += [] if signed == "bank" or answer_holds else ["bad_signature"]
        fields: dict[str, Any] = {"bank": bank, "issuer": issuer, "epoch": epoch, "root": root, "count": 5}
        fields |= {"round_number": round_number, "outcome_root": outcome, "previous": previous}
        fields["orders_signature"] = b"" if signed == "issuer" else orders
        fields["answer_signature"] = b"" if signed == "bank" else answer
        if self.act("evidence", reasons, who, "anchor", **fields) and not known:
            self.anchors[bank, issuer, root, round_number, outcome] = "MUTUAL" if signed == "both" else "CLAIMED"
            self.logged[pair] = self.logged.get(pair, 0) + 1
            if signed == "both" and round_number == 0:
                self.anchors.pop((bank, issuer, root, 0, b""), None)

    def says_already(self, pair: tuple[str, str], root: bytes, round_number: int, outcome: bytes, signed: str) -> bool:
        """Whether what stands says as much as this would."""
        if signed == "bank":
            stands = [
                name[4]
                for name, status in self.anchors.items()
                if name[:4] == (*pair, root, 0) and (status == "MUTUAL" or not name[4])
            ]
            return bool(stands)
        status = self.anchors.get((*pair, root, round_number, outcome))
        return status == "MUTUAL" or (status == "CLAIMED" and signed == "issuer")

    # -- what always holds -------------------------------------------------------------------------------

    @invariant()
    def channels_are_as_foretold(self) -> None:
        listed = {(item["bank"], item["issuer"]): item for item in self.agency.query("channels")}
        shown = {pair: (item["epoch"], item["expiresMs"], item["status"] == "REVOKED") for pair, item in listed.items()}
        assert shown == {pair: (item.epoch, item.expires_ms, item.is_revoked) for pair, item in self.channels.items()}
        waiting = {item["application"] for item in self.agency.query("pending")}
        assert waiting == {name for name, item in self.applications.items() if item.status == "PENDING"}

    @invariant()
    def terms_are_as_foretold(self) -> None:
        listed = {item["proposal"]: item for item in self.agency.query("proposals")}
        assert {name: sorted(item["signatures"]) for name, item in listed.items()} == {
            name: sorted(item.signed) for name, item in self.proposals.items()
        }
        for (bank, issuer, subject), version in self.terms.items():
            fields = {"bank": bank, "issuer": issuer, "subject": subject}
            assert self.agency.query("terms_version", **fields, version=version)["version"] == version
            self.agency.refuses("unknown_terms", "terms_version", **fields, version=version + 1)

    @invariant()
    def anchors_are_as_foretold(self) -> None:
        prefix = b"evidence/anchor/"
        stand = {name for name in self.agency.chain.state.entries() if name.startswith(prefix)}
        assert stand == {
            prefix + f"{bank}/{issuer}/{root.hex()}/{number}/{outcome.hex()}".encode()
            for bank, issuer, root, number, outcome in self.anchors
        }
        for (bank, issuer, root, number, outcome), status in self.anchors.items():
            found = self.agency.evidence.query("anchor_of", bank=bank, issuer=issuer, root=root, round_number=number)
            mine = next(item for item in found["anchors"] if item["outcomeRoot"] == outcome)
            assert mine["status"] == status
            others = [name for name in self.anchors if name[:4] == (bank, issuer, root, number) and name[4]]
            assert found["isContradicted"] == (len(others) > 1)

    @invariant()
    def the_log_is_whole(self) -> None:
        for (bank, issuer), count in self.logged.items():
            head, number = bytes(32), 0
            while page := self.agency.evidence.query("anchors", bank=bank, issuer=issuer, start=number):
                for entry in page:
                    head = tagged_hash("contract-data", encode([head, [entry[name] for name in ENTRY]]))
                number += len(page)
            assert self.agency.evidence.query("log", bank=bank, issuer=issuer) == {"count": count, "head": head}


TestAgency = AgencyMachine.TestCase
TestAgency.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
