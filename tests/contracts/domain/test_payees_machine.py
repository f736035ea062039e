"""payees against a small model: random merchants, platforms, epochs, records and environments, much of it forged.

The model says of each call every reason why it must be refused; the contract has to refuse with one of them, and to do
the call where there is none. It never looks at the contract's state: keys, versions, epochs and logs are its own. A
forged call has one thing changed that somebody signed, or one signature that is of somebody or something else.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consensus.ledger import payees as ledger
from consensus.ledger.codec import decode
from consensus.ledger.ids import ZERO_HASH
from consensus.ledger.keys import Purpose
from tests.contracts.domain.payees import MEASUREMENT, Payees, identity, key

SERVERS = ("wallet-p", "wallet-q")
ENVIRONMENTS = {"bank-a": "bank-a", "issuer-c": "issuer-c", "spare": "bank-a"}
"""Names of environments and the organisation that registers each."""
CARRIERS = ("merchant-m", *SERVERS)
MERCHANTS = 3
"""Two of them are registered from the beginning."""


@dataclass
class Kept:
    """A record as the model has it."""

    version: int
    content_version: int
    epoch: int
    commitment: bytes
    ciphertext: bytes
    is_shareable: bool
    is_removed: bool = False


@dataclass
class Merchant:
    """A registered merchant: the number of its key, what it has said, what was signed at each change."""

    key: int
    key_number: int = 0
    consent: bool = False
    consent_number: int = 0
    signed: list[bytes] = field(default_factory=list)


@dataclass
class Platform:
    """A platform: the number of its key, its epoch, and who was given which epoch's key."""

    key: int
    epoch: int = 0
    wraps: dict[tuple[int, str], bytes] = field(default_factory=dict)


def rare(usual: list[Any], others: list[Any]) -> st.SearchStrategy[Any]:
    """One of the usual values, and now and then another."""
    return st.sampled_from(usual * (len(others) * 5) + others)


class PayeesMachine(RuleBasedStateMachine):
    """Each rule makes a call that is right but for a flaw, and knows what must come of it."""

    @initialize()
    def begin(self) -> None:
        self.payees = Payees()
        self.merchants: dict[int, Merchant] = {}
        self.platforms: dict[str, Platform] = {}
        self.records: dict[tuple[str, int], Kept] = {}
        self.in_service: dict[str, bool] = {}
        self.is_allowed = False
        self.keys_made = 1_000
        self.used: list[int] = []
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        # From nothing, random calls would hardly ever come to a record.
        self.judge_measurement(is_allowed=True, who="permission")
        for name in ("bank-a", "issuer-c"):
            self.register_environment(name=name, is_used=0, is_foreign=0)
        for server in SERVERS:
            self.register_platform(server=server, is_used=0)
            self.put_wraps(server=server, step=1, names=["bank-a"], flaw="")
        for number in (0, 1):
            self.register_merchant(number=number, carrier="merchant-m", flaw="")
            self.add_record(number=number, server="wallet-p", step=1, epoch_step=0, is_shareable=False, flaw="")

    # -- the model ---------------------------------------------------------------------------------------

    def new_key(self) -> int:
        """The number of a key that nobody has."""
        self.keys_made += 1
        return self.keys_made

    def sign(self, number: int, purpose: Purpose, payload: bytes) -> bytes:
        return self.payees.sign(key(number), purpose, payload)

    def act(self, reasons: list[str], who: str, method: str, arguments: dict[str, Any]) -> Any:
        """Call; return the fields of its last event if it was done, which it must be unless a reason is against it."""
        before = self.payees.records()
        receipt = self.payees.receipt = self.payees.chain.call(who, "payees", method, **arguments)
        if reasons:
            assert receipt.code in reasons, f"{method}: {receipt.code!r} is none of {reasons}"
            assert self.payees.records() == before
            return None
        assert receipt.code == "", f"{method}: {receipt.code} {self.payees.chain.logs[-1:]}"
        self.sent.append((who, method, arguments))
        events = self.payees.events()
        return events[-1][1] if events else {}

    def note(self, number: int, event: Any, signed: bytes) -> None:
        """Take down what was signed at a merchant's change, and that its event says so."""
        merchant = self.merchants[number]
        merchant.signed.append(signed)
        expected = (identity(number), len(merchant.signed), signed)
        assert (event["identity"], event["change"], event["signed"]) == expected
        assert "ciphertext" not in event

    def merchant_key(self, number: int) -> int:
        """The number of a merchant's key, of a strange one for who is not registered."""
        return self.merchants[number].key if number in self.merchants else 900

    def platform_key(self, server: str) -> int:
        return self.platforms[server].key if server in self.platforms else 901

    def common_reasons(self, number: int, server: str, *, needs_platform: bool = True) -> list[str]:
        reasons = [] if number in self.merchants else ["unknown_merchant"]
        if needs_platform and server not in self.platforms:
            reasons.append("unknown_platform")
        return reasons

    numbers = st.sampled_from([0, 0, 0, 0, 1, 1, 2])
    servers = st.sampled_from([*SERVERS, SERVERS[0], SERVERS[0]])
    carriers = st.sampled_from([*CARRIERS, *CARRIERS, "user-b"])
    flips = st.sampled_from([0, 0, 0, 0, 0, 1])

    # -- merchants ---------------------------------------------------------------------------------------

    @rule(number=numbers, carrier=carriers, flaw=st.sampled_from(["", "", "", "signature", "used"]))
    def register_merchant(self, number: int, carrier: str, flaw: str) -> None:
        reasons = ["not_allowed"] if carrier == "user-b" else []
        reasons += ["merchant_exists"] if number in self.merchants else []
        made = self.new_key()
        if flaw == "used" and self.used:
            made = self.used[self.keys_made % len(self.used)]
            reasons.append("key_used")
        signed = ledger.merchant_hash(identity(number), key(made).public.compressed)
        signature = self.sign(901 if flaw == "signature" else made, Purpose.PAYEE_MERCHANT, signed)
        reasons += ["bad_signature"] if flaw == "signature" else []
        fields = {"identity": identity(number), "key": key(made).public.compressed, "signature": signature}
        if (event := self.act(reasons, carrier, "register_merchant", fields)) is not None:
            self.merchants[number] = Merchant(made)
            self.used.append(made)
            self.note(number, event, signed)

    @rule(
        number=numbers,
        carrier=carriers,
        step=st.sampled_from([1, 1, 1, 1, 0, 2]),
        flaw=st.sampled_from(["", "", "", "old", "new", "used"]),
    )
    def replace_merchant_key(self, number: int, carrier: str, step: int, flaw: str) -> None:
        reasons = self.common_reasons(number, "", needs_platform=False)
        reasons += ["not_allowed"] if carrier == "user-b" else []
        merchant = self.merchants.get(number, Merchant(900))
        count = max(1, merchant.key_number + step)
        reasons += ["wrong_number"] if count != merchant.key_number + 1 else []
        made = self.new_key()
        if flaw == "used" and self.used:
            made = self.used[self.keys_made % len(self.used)]
            reasons.append("key_used")
        reasons += ["bad_signature"] if flaw in ("old", "new") else []
        signed = ledger.merchant_change_hash(identity(number), count, key(made).public.compressed)
        fields = {
            "identity": identity(number),
            "number": count,
            "new_key": key(made).public.compressed,
            "old_signature": self.sign(made if flaw == "old" else merchant.key, Purpose.PAYEE_MERCHANT, signed),
            "new_signature": self.sign(merchant.key if flaw == "new" else made, Purpose.PAYEE_MERCHANT, signed),
        }
        if (event := self.act(reasons, carrier, "replace_merchant_key", fields)) is not None:
            merchant.key, merchant.key_number = made, count
            self.used.append(made)
            self.note(number, event, signed)

    @rule(
        number=numbers,
        carrier=carriers,
        step=st.sampled_from([1, 1, 1, 0, 2]),
        is_given=st.booleans(),
        flaw=st.sampled_from(["", "", "", "turned", "other", "purpose"]),
    )
    def set_consent(self, number: int, carrier: str, step: int, is_given: bool, flaw: str) -> None:
        reasons = self.common_reasons(number, "", needs_platform=False)
        reasons += ["not_allowed"] if carrier == "user-b" else []
        merchant = self.merchants.get(number, Merchant(900))
        count = max(1, merchant.consent_number + step)
        reasons += ["wrong_number"] if count != merchant.consent_number + 1 else []
        reasons += ["bad_signature"] if flaw else []
        about = identity((number + 1) % MERCHANTS if flaw == "other" else number)
        signed = ledger.consent_hash(about, count, is_given != (flaw == "turned"))
        purpose = Purpose.PAYEE_CODE if flaw == "purpose" else Purpose.PAYEE_MERCHANT
        signature = self.sign(merchant.key, purpose, signed)
        fields = {"identity": identity(number), "number": count, "is_given": is_given, "signature": signature}
        if (event := self.act(reasons, carrier, "set_consent", fields)) is not None:
            merchant.consent, merchant.consent_number = is_given, count
            self.note(number, event, signed)

    # -- platforms and environments ----------------------------------------------------------------------

    @rule(server=st.sampled_from([*SERVERS, *SERVERS, "merchant-m"]), is_used=flips)
    def register_platform(self, server: str, is_used: int) -> None:
        reasons = ["not_allowed"] if server == "merchant-m" else []
        made = self.new_key()
        if is_used and self.used:
            made = self.used[self.keys_made % len(self.used)]
            reasons += [] if made == self.platform_key(server) else ["key_used"]
        before = self.platforms.get(server)
        fields = {"key": key(made).public.compressed}
        if self.act(reasons, server, "register_platform", fields) is not None:
            self.platforms[server] = Platform(made) if before is None else before
            self.platforms[server].key = made
            self.used.append(made)

    @rule(
        is_allowed=st.sampled_from([True, True, True, False]),
        who=st.sampled_from(["permission", "permission", "bank-a"]),
    )
    def judge_measurement(self, is_allowed: bool, who: str) -> None:
        reasons = [] if who == "permission" else ["not_allowed"]
        if is_allowed:
            done = self.act(reasons, who, "allow_measurement", {"measurement": MEASUREMENT, "note": ""})
        else:
            reasons += [] if self.is_allowed else ["unknown_measurement"]
            done = self.act(reasons, who, "disallow_measurement", {"measurement": MEASUREMENT})
        if done is not None:
            self.is_allowed = is_allowed

    @rule(name=st.sampled_from(sorted(ENVIRONMENTS)), is_used=flips, is_foreign=flips)
    def register_environment(self, name: str, is_used: int, is_foreign: int) -> None:
        reasons = [] if self.is_allowed else ["unknown_measurement"]
        who = "permission" if is_foreign else ENVIRONMENTS[name]
        reasons += (
            ["environment_exists"] if self.in_service.get(name) or (is_foreign and name in self.in_service) else []
        )
        if is_foreign and not reasons:
            return
        made = [self.new_key(), self.new_key()]
        if is_used and self.used:
            made[self.keys_made % 2] = self.used[self.keys_made % len(self.used)]
            reasons.append("key_used")
        keys = {name: key(made[place]).public.compressed for place, name in enumerate(("exchange_key", "signing_key"))}
        fields = {"name": name, **keys, "measurement": MEASUREMENT}
        if self.act(reasons, who, "register_environment", fields) is not None:
            self.in_service[name] = True
            self.used += made

    @rule(name=st.sampled_from(["bank-a", "issuer-c", "spare", "spare", "spare"]), is_foreign=flips)
    def withdraw_environment(self, name: str, is_foreign: int) -> None:
        reasons = {None: ["unknown_environment"], False: ["environment_withdrawn"], True: []}[self.in_service.get(name)]
        reasons = [*reasons, "not_allowed"] if is_foreign else reasons
        who = "permission" if is_foreign else ENVIRONMENTS[name]
        if self.act(reasons, who, "withdraw_environment", {"name": name}) is not None:
            self.in_service[name] = False

    @rule(
        server=servers,
        step=st.sampled_from([0, 0, 1, 1, -1, 2]),
        names=st.lists(st.sampled_from(sorted(ENVIRONMENTS)), min_size=1, max_size=3, unique=True),
        flaw=st.sampled_from(["", "", "", "", "missing", "swapped", "signer", "epoch"]),
    )
    def put_wraps(self, server: str, step: int, names: list[str], flaw: str) -> None:
        reasons = [] if server in self.platforms else ["unknown_platform"]
        platform = self.platforms.get(server, Platform(901))
        epoch = max(1, platform.epoch + step)
        reasons += [] if epoch in (platform.epoch, platform.epoch + 1) else ["wrong_epoch"]
        for name in names:
            reasons += {None: ["unknown_environment"], False: ["environment_withdrawn"], True: []}[
                self.in_service.get(name)
            ]
        reasons += [] if self.is_allowed else ["unknown_measurement"]
        reasons += ["bad_signature"] if flaw else []
        wraps = {name: b"wrap %d %d %s" % (self.new_key(), epoch, name.encode()) for name in names}
        signer = 902 if flaw == "signer" else platform.key
        signatures = {
            name: self.sign(
                signer,
                Purpose.PAYEE_PLATFORM,
                ledger.wrap_hash(
                    server,
                    epoch + (flaw == "epoch"),
                    name if flaw != "swapped" else names[places - 1] + "x" * (len(names) == 1),
                    wraps[name],
                ),
            )
            for places, name in enumerate(names)
        }
        if flaw == "missing":
            del signatures[names[0]]
        fields = {"epoch": epoch, "wraps": wraps, "signatures": signatures}
        if self.act(reasons, server, "put_wraps", fields) is not None:
            platform.epoch = epoch
            platform.wraps |= {(epoch, name): wrap for name, wrap in wraps.items()}

    # -- records -----------------------------------------------------------------------------------------

    @rule(
        number=numbers,
        server=servers,
        step=rare([1], [0, 2]),
        epoch_step=rare([0], [1, -1]),
        is_shareable=st.booleans(),
        flaw=rare([""], ["content", "merchant", "server", "version", "shared", "cipher", "whole"]),
    )
    def add_record(self, number: int, server: str, step: int, epoch_step: int, is_shareable: bool, flaw: str) -> None:
        reasons = self.common_reasons(number, server)
        old = self.records.get((server, number))
        standing = 0 if old is None else old.version
        version = max(1, standing + step)
        reasons += ["wrong_version"] if version != standing + 1 else []
        current = self.platforms[server].epoch if server in self.platforms else 0
        epoch = max(1, current + epoch_step)
        reasons += ["wrong_epoch"] if epoch != current else []
        reasons += ["bad_signature"] if flaw else []
        committed = ledger.commitment(bytes(32), b"content %d" % self.new_key())
        ciphertext = b"ciphertext %d" % self.keys_made
        content = ledger.content_hash(
            identity(number),
            "wallet-x" if flaw == "server" else server,
            version + (flaw == "version"),
            bytes(32) if flaw == "content" else committed,
            is_shareable != (flaw == "shared"),
        )
        whole = ledger.record_hash(
            identity(number),
            server,
            version,
            version + (flaw == "whole"),
            epoch,
            committed,
            b"other" if flaw == "cipher" else ciphertext,
            is_shareable,
        )
        merchant = 903 if flaw == "merchant" else self.merchant_key(number)
        fields = {
            "identity": identity(number),
            "version": version,
            "epoch": epoch,
            "commitment": committed,
            "ciphertext": ciphertext,
            "is_shareable": is_shareable,
            "platform_signature": self.sign(self.platform_key(server), Purpose.PAYEE_PLATFORM, whole),
            "merchant_signature": self.sign(merchant, Purpose.PAYEE_MERCHANT, content),
        }
        if (event := self.act(reasons, server, "add_record", fields)) is not None:
            self.records[server, number] = Kept(version, version, epoch, committed, ciphertext, is_shareable)
            self.note(number, event, whole)

    @rule(
        number=numbers,
        server=servers,
        step=rare([1], [0, 2]),
        flaw=rare([""], ["content", "cipher", "other", "merchant"]),
    )
    def reencrypt_record(self, number: int, server: str, step: int, flaw: str) -> None:
        reasons = self.common_reasons(number, server)
        old = self.records.get((server, number))
        if old is None:
            reasons.append("unknown_record")
            old = Kept(0, 0, 1, bytes(32), b"", False)
        reasons += ["record_removed"] if old.is_removed else []
        version = max(1, old.version + step)
        reasons += ["wrong_version"] if version != old.version + 1 else []
        epoch = max(1, self.platforms[server].epoch if server in self.platforms else 0)
        reasons += ["wrong_epoch"] if server in self.platforms and not self.platforms[server].epoch else []
        reasons += ["bad_signature"] if flaw else []
        ciphertext = b"anew %d" % self.new_key()
        whole = ledger.record_hash(
            identity(number),
            "wallet-x" if flaw == "other" else server,
            version,
            version if flaw == "content" and version != old.content_version else old.content_version,
            epoch,
            old.commitment,
            b"other" if flaw == "cipher" else ciphertext,
            old.is_shareable,
        )
        signer = self.merchant_key(number) if flaw == "merchant" else self.platform_key(server)
        fields = {
            "identity": identity(number),
            "version": version,
            "epoch": epoch,
            "ciphertext": ciphertext,
            "platform_signature": self.sign(signer, Purpose.PAYEE_PLATFORM, whole),
        }
        if flaw == "content" and version == old.content_version:
            return
        if (event := self.act(reasons, server, "reencrypt_record", fields)) is not None:
            old.version, old.epoch, old.ciphertext = version, epoch, ciphertext
            self.note(number, event, whole)

    @rule(
        number=numbers,
        server=servers,
        carrier=carriers,
        back=rare([0], [1, 2, -1]),
        by=rare(["merchant", "platform"], ["other merchant", "other platform", "purpose"]),
    )
    def remove_record(self, number: int, server: str, carrier: str, back: int, by: str) -> None:
        reasons = self.common_reasons(number, server, needs_platform=False)
        reasons += ["not_allowed"] if carrier == "user-b" else []
        old = self.records.get((server, number))
        if old is None:
            reasons.append("unknown_record")
            old = Kept(0, 0, 1, bytes(32), b"", False)
        reasons += ["record_removed"] if old.is_removed else []
        version = max(1, old.version + 1 - back)
        lowest = old.content_version + 1 if by == "merchant" else old.version + 1
        reasons += [] if lowest <= version <= old.version + 1 else ["wrong_version"]
        signed = ledger.removal_hash(identity(number), server, version)
        other = (number + 1) % MERCHANTS
        signature = {
            "merchant": lambda: self.sign(self.merchant_key(number), Purpose.PAYEE_MERCHANT, signed),
            "platform": lambda: self.sign(self.platform_key(server), Purpose.PAYEE_PLATFORM, signed),
            "other merchant": lambda: self.sign(self.merchant_key(other), Purpose.PAYEE_MERCHANT, signed),
            "other platform": lambda: self.sign(
                self.platform_key(SERVERS[server == SERVERS[0]]), Purpose.PAYEE_PLATFORM, signed
            ),
            "purpose": lambda: self.sign(self.merchant_key(number), Purpose.PAYEE_CODE, signed),
        }[by]()
        reasons += [] if by in ("merchant", "platform") else ["bad_signature", "wrong_version"]
        fields = {"identity": identity(number), "server": server, "version": version, "signature": signature}
        if (event := self.act(reasons, carrier, "remove_record", fields)) is not None:
            old.version, old.content_version = old.version + 1, version
            old.ciphertext, old.is_removed = b"", True
            self.note(number, event, signed)

    @rule(pick=st.integers(0, 1_000), sender=st.sampled_from(["", "", *CARRIERS]))
    def replay(self, pick: int, sender: str) -> None:
        """What was done once is not done again, whoever sends it; some calls may be, and change nothing then."""
        if not self.sent:
            return
        who, method, fields = self.sent[pick % len(self.sent)]
        before = self.payees.records()
        receipt = self.payees.chain.call(sender or who, "payees", method, **fields)
        is_repeatable = method in ("register_platform", "put_wraps", "allow_measurement", "disallow_measurement")
        if is_repeatable:
            # A key in force, a wrap of the epoch in force, a word about a measurement: theirs who may say it anew.
            self.payees.chain.state.apply(
                {name: before.get(name) for name in self.payees.records() | before if name.startswith(b"payees/")}
            )
            return
        assert receipt.code != "", f"{method} was done twice"
        assert self.payees.records() == before

    # -- what always holds -------------------------------------------------------------------------------

    @invariant()
    def the_chain_has_what_the_model_has(self) -> None:
        for number, merchant in self.merchants.items():
            log = ZERO_HASH
            for place, signed in enumerate(merchant.signed):
                log = ledger.log_hash(log, place + 1, signed)
            active = [server for server in SERVERS if self.is_active(server, number)]
            assert self.payees.query("merchant", identity=identity(number)) == {
                "key": key(merchant.key).public.compressed,
                "keyNumber": merchant.key_number,
                "consent": merchant.consent,
                "consentNumber": merchant.consent_number,
                "servers": active,
                "changes": len(merchant.signed),
                "log": log,
            }
        for (server, number), kept in self.records.items():
            found = self.payees.query("record", server=server, identity=identity(number))
            assert (found["version"], found["contentVersion"]) == (kept.version, kept.content_version)
            assert (found["epoch"], found["commitment"]) == (kept.epoch, kept.commitment)
            assert (found["ciphertext"], found["isShareable"]) == (kept.ciphertext, kept.is_shareable)
            assert found["status"] == ("REMOVED" if kept.is_removed else "ACTIVE")
        for server, platform in self.platforms.items():
            found = self.payees.query("platform", server=server)
            assert (found["key"], found["epoch"]) == (key(platform.key).public.compressed, platform.epoch)

    @invariant()
    def wraps_and_keys_are_those_that_were_given(self) -> None:
        records: dict[str, Any] = {name.decode(): decode(data) for name, data in self.payees.records().items()}
        wraps = {name: value["wrap"] for name, value in records.items() if name.startswith("payees/wrap/")}
        assert wraps == {
            ledger.wrap_key(server, epoch, name): wrap
            for server, platform in self.platforms.items()
            for (epoch, name), wrap in platform.wraps.items()
        }
        owned = {name for name in records if name.startswith("payees/owner/")}
        assert owned == {f"payees/owner/{key(number).public.compressed.hex()}" for number in self.used}

    def is_active(self, server: str, number: int) -> bool:
        kept = self.records.get((server, number))
        return kept is not None and not kept.is_removed


TestPayees = PayeesMachine.TestCase
TestPayees.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
