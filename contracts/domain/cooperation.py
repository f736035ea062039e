"""Agency sale (代销) on the chain: parties, agreements, channels between bank and issuer, products, terms.

A *party* is an organisation with the node and the two keys that it cooperates by: the *business key* signs agreements,
terms, packages and answers, the *channel key* what its node sends. A *bank* is a party whose account holds the role
``sales``, an *issuer* one with ``issuer``; its role never changes. Who acts for a party is an account of it with that
role, in an organisation that is not suspended.

**Who may do what.** A bank applies with an agreement that it and every issuer named in it have signed. An account with
the role ``permission`` opens the channels or refuses; it enacts terms that both sides have signed. That is all it can
do: it cannot make an agreement or terms, touch a party's keys, or revoke; everything else needs a party. Either side
revokes. Only an issuer speaks for its interfaces, products and net asset values.

**Channels.** The epoch of a channel counts from 1 and never falls. While it is open, a further agreement prolongs it
within its epoch; once revoked or expired it is opened anew under the next one, so that what was sent under an old
epoch never counts again. An epoch belongs to one pair of nodes: a party moves to another node while none of its
channels is open. A channel is *open* while its status is OPEN and block time below ``expiresMs``; after that, up to
``graceUntilMs``, confirmations still travel; then it is closed. An agreement that began before a channel's newest
revocation, by more than a slack for people's clocks, neither opens nor prolongs it ever after: what was in force
earlier is no way round it. One that both signed for a time to come still does, once it has begun.

**Keys** never come back and belong to one party for one use. What a business key has signed counts while the key is in
force and, so that nothing under way is lost, for ``KEY_GRACE_BLOCKS`` blocks after it was replaced. A stolen key is
worth as much for as long; who cannot wait revokes its channels. The grace cannot be cut short, and a business key is
replaced at most 4 times within it: else a party could disown what it has signed before it is anchored.

**Terms** are versions 1, 2, … for each bank, issuer and subject, ``product:CODE`` or ``type:NAME``. Both sign the
same bytes, which name the version that comes next; of several proposals for one version the first enacted one wins
and the others are void. In force is the newest version that has begun, unless it has expired: an older one does not
come back. A product's own terms go before those of its type, also when these are newer.

**Applications** are known by the hash of their agreement. One that was refused may be applied for again.

State, under ``cooperation/``; ORG, BANK, ISSUER are organisations, hashes are in hex:

- ``party/ORG`` = {node, businessKey, channelKey, role}; ``key/ORG/KEY`` = {use: business or channel, fromHeight,
  untilHeight: 0 while in force}; ``owner/KEY`` = ORG, for every key ever registered; ``replaced/ORG`` = [[business key,
  height of its replacement]…], the newest first, at most 4
- ``interface/ID`` = {issuer, node}
- ``application/HASH`` = {number, bank, issuers, document, validFromMs, validUntilMs, graceMs, status: PENDING, OPENED
  or REFUSED, reason}; ``agreement/BANK/NUMBER`` = its hash; ``pending/BANK/HASH`` = true while it waits
- ``channel/BANK/ISSUER`` = {bank, issuer, epoch, status: OPEN or REVOKED, agreement, bankNode, issuerNode, openedMs,
  expiresMs, revokedMs, graceUntilMs, revokedBy, reason}; ``partner/ORG/OTHER`` = whether ORG is the bank,
  for either side; ``revoked/BANK/ISSUER`` = when it was revoked last, ms, also in later epochs
- ``product/CODE`` = {issuer, interface, type, risk, currency, chargeBasisPoints, isOpen, nav, navDate};
  ``nav/CODE/DATE`` = {nav, height, timeMs}
- ``proposal/HASH`` = {bank, issuer, subject, version, terms, effectiveMs, expiresMs, proposer, signatures: ORG → 64
  bytes} while it is neither enacted nor withdrawn; ``proposing/ORG`` = the hashes of those that ORG made
- ``terms/BANK/ISSUER/SUBJECT/VERSION`` = {terms, effectiveMs, expiresMs, signatures, proposal, height, timeMs},
  VERSION with 6 digits; ``terms-now/BANK/ISSUER/SUBJECT`` = the newest version
"""

from typing import Annotated, Any, TypeAlias

import msgspec

from consensus.ledger.ids import HASH_BYTES
from consensus.ledger.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Purpose
from contracts.runtime.accounts import ACTIVE
from contracts.runtime.contract import AccountRecord, Context, Contract, Revert, Value, method, query

SALES_ROLE, ISSUER_ROLE = "sales", "issuer"
PERMISSION_ROLE = "permission"
"""The role of an account that opens channels and enacts terms."""

KEY_GRACE_BLOCKS = 10_000
KEYS_REPLACED_MAX = 4
"""How many replaced business keys of a party are in their grace."""
REOPEN_SLACK_MS = 600_000
"""How long before a revocation an agreement may have begun that opens the channel again: clocks differ."""
ISSUERS_MAX = 32
PENDING_MAX = 16
"""How many applications of one bank wait."""
PROPOSALS_MAX = 64
"""How many open proposals one party has made."""
COMING_VERSIONS_MAX = 8
"""How many versions of one subject's terms have been enacted and not begun."""
GRACE_MS_MAX = 90 * 24 * 3_600 * 1_000
TERMS_AMOUNT_MAX = 10**16 - 1
KINDS = ("001", "002", "003", "008", "020", "022", "024", "026", "027", "028", "036")
"""Business codes that terms may admit."""

OPEN, REVOKED = "OPEN", "REVOKED"
PENDING, OPENED, REFUSED = "PENDING", "OPENED", "REFUSED"
PROPOSED, ACCEPTED, VOID = "PROPOSED", "ACCEPTED", "VOID"

# No slash, since these are parts of state keys.
Party = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
NodeName = Party
InterfaceId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,32}\Z")]
ProductCode = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]{1,12}\Z")]
ProductType = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,32}\Z")]
Subject = Annotated[str, msgspec.Meta(pattern=r"^(product:[A-Za-z0-9]{1,12}|type:[a-z0-9-]{1,32})\Z")]
Number = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
Currency = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Z]{3}\Z")]
PublicKeyBytes = Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
SignatureBytes = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
HashBytes = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Issuers = Annotated[list[Party], msgspec.Meta(min_length=1, max_length=ISSUERS_MAX)]
Signatures = Annotated[dict[Party, SignatureBytes], msgspec.Meta(max_length=ISSUERS_MAX + 1)]
TimeMs = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
GraceMs = Annotated[int, msgspec.Meta(ge=0, le=GRACE_MS_MAX)]
Reason = Annotated[str, msgspec.Meta(max_length=200)]
Risk = Annotated[int, msgspec.Meta(ge=1, le=5)]
BasisPoints = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
Date = Annotated[int, msgspec.Meta(ge=19_000_101, le=99_991_231)]
Nav = Annotated[int, msgspec.Meta(ge=1, le=10**12)]
Version = Annotated[int, msgspec.Meta(ge=1, le=999_999)]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=100)]

Record: TypeAlias = dict[str, Any]
"""A record as state holds it; the module's text says which."""


class Cooperation(Contract):
    """Parties, agreements, channels, products and terms of agency sale.

    Whoever acts for a party, or as permission desk, holds the role for it, else it is ``not_allowed``, in an
    organisation that is active, else ``organisation_suspended``.
    """

    name = "cooperation"
    version = 1

    # -- parties -----------------------------------------------------------------------------------------

    @method
    def register_party(
        self, context: Context, node: NodeName, business_key: PublicKeyBytes, channel_key: PublicKeyBytes
    ) -> None:
        """Say which node and keys the caller's organisation cooperates by, from now on and instead of before.

        The caller holds the role ``sales`` or ``issuer``, and the same one ever after; the node is its organisation's.
        Keys are compressed P-256, 33 bytes, each new to the chain or in force for the same use already. Fails with
        ``unknown_node``, ``node_state`` about a removed node, ``bad_key``, ``key_used``, ``too_many_key_changes`` where
        4 business keys were replaced in 10,000 blocks, or ``channel_open`` where another node is named while a channel
        of the party is open.
        """
        account = _active_account(context)
        organisation = account.organisation
        old: Record | None = context.state.get(f"party/{organisation}")
        roles = [role for role in (SALES_ROLE, ISSUER_ROLE) if role in account.roles]
        role = old["role"] if old is not None else roles[0] if roles else ""
        context.require(role in roles, "not_allowed", "needs the role sales or issuer")
        found = _own_node(context, organisation, node)
        context.require(business_key != channel_key, "key_used", "a key is for one use")
        if old is not None and old["node"] != node:
            _require_no_open_channel(context, organisation)
        for use, key in (("business", business_key), ("channel", channel_key)):
            in_force: bytes | None = None if old is None else old[f"{use}Key"]
            if key != in_force:
                context.require(key != found["voteKey"], "key_used", "the node votes with this key")
                _install_key(context, organisation, use, key, in_force)
        record = {"node": node, "businessKey": business_key, "channelKey": channel_key, "role": role}
        context.state.put(f"party/{organisation}", record)
        context.emit("party_registered", organisation=organisation, **record)

    @method
    def set_interface(self, context: Context, interface: InterfaceId, node: NodeName) -> None:
        """Say that orders with this interface id go to the calling issuer's node.

        Fails with ``unknown_party``, ``wrong_node`` for any but the node it is registered with, or ``interface_taken``.
        """
        issuer = _acting(context, ISSUER_ROLE)
        context.require(node == _party(context, issuer)["node"], "wrong_node", "the issuer's channels end elsewhere")
        old: Record | None = context.state.get(f"interface/{interface}")
        context.require(old is None or old["issuer"] == issuer, "interface_taken", "it is another issuer's")
        context.state.put(f"interface/{interface}", {"issuer": issuer, "node": node})
        context.emit("interface_set", interface=interface, issuer=issuer, node=node)

    # -- agreements and channels -------------------------------------------------------------------------

    @method
    def apply(
        self,
        context: Context,
        number: Number,
        issuers: Issuers,
        document: HashBytes,
        valid_from_ms: TimeMs,
        valid_until_ms: TimeMs,
        grace_ms: GraceMs,
        signatures: Signatures,
    ) -> bytes:
        """Apply for channels between the calling bank and the issuers that an agreement names; return its id, 32 bytes.

        ``issuers`` ascend; ``signatures`` hold the bank's and every issuer's, of the agreement's hash by their business
        keys. ``number`` is the bank's own, ``document`` the SHA-256 of the paper. Fails with ``signature_missing``,
        ``bad_agreement``, ``agreement_expired``, ``unknown_party``, ``bad_signature``, ``application_exists`` or
        ``too_many_applications``.
        """
        bank = _acting(context, SALES_ROLE)
        is_ordered = all(issuers[place - 1] < issuers[place] for place in range(1, len(issuers)))
        context.require(is_ordered and bank not in issuers, "bad_agreement", "issuers ascend, each once, without bank")
        context.require(valid_from_ms < valid_until_ms, "bad_agreement", "it ends before it begins")
        for signer in (bank, *issuers):
            context.require(signer in signatures, "signature_missing", f"{signer} has not signed")
        context.require(len(signatures) == len(issuers) + 1, "bad_agreement", "signed by one whom it does not name")
        context.require(context.time_ms < valid_until_ms, "agreement_expired")
        listed: list[Value] = [*issuers]
        agreed = context.hash("agreement", number, bank, listed, document, valid_from_ms, valid_until_ms, grace_ms)
        _check_new_application(context, bank, number, agreed)
        for signer in (bank, *issuers):
            party = _party_with(context, signer, SALES_ROLE if signer == bank else ISSUER_ROLE)
            _require_signed(context, signer, party, signatures[signer], Purpose.AGREEMENT, agreed)
        record: dict[str, Value] = {
            "number": number,
            "bank": bank,
            "issuers": listed,
            "document": document,
            "validFromMs": valid_from_ms,
            "validUntilMs": valid_until_ms,
            "graceMs": grace_ms,
            "status": PENDING,
            "reason": "",
        }
        context.state.put(f"application/{agreed.hex()}", record)
        context.state.put(f"agreement/{bank}/{number}", agreed)
        context.state.put(f"pending/{bank}/{agreed.hex()}", True)
        context.emit("application_made", application=agreed, bank=bank, issuers=listed, number=number)
        return agreed

    @method
    def open_channels(self, context: Context, application: HashBytes) -> dict[str, int]:
        """Open, by the permission desk, the channels that an application asks for; return issuer → epoch.

        Fails with ``unknown_application``, ``application_state``, ``agreement_early``, ``agreement_expired``,
        ``channel_revoked`` where a channel was revoked since the agreement began, ``node_state`` or
        ``organisation_suspended`` about one of the parties.
        """
        _acting(context, PERMISSION_ROLE)
        record = _pending_application(context, application)
        context.require(context.time_ms >= record["validFromMs"], "agreement_early", "it has not begun")
        context.require(context.time_ms < record["validUntilMs"], "agreement_expired")
        bank = record["bank"]
        bank_node = _reachable_node(context, bank)
        epochs: dict[str, int] = {}
        for issuer in record["issuers"]:
            nodes = (bank_node, _reachable_node(context, issuer))
            epochs[issuer] = _open_channel(context, application, record, issuer, nodes)
        context.state.put(f"application/{application.hex()}", {**record, "status": OPENED})
        context.state.delete(f"pending/{bank}/{application.hex()}")
        opened: dict[str, Value] = {**epochs}
        context.emit("channels_opened", application=application, bank=bank, epochs=opened)
        return epochs

    @method
    def refuse_application(self, context: Context, application: HashBytes, reason: Reason) -> None:
        """Refuse an application by the permission desk, with a reason for people.

        Fails with ``unknown_application`` or ``application_state``.
        """
        _acting(context, PERMISSION_ROLE)
        record = _pending_application(context, application)
        bank = record["bank"]
        context.state.put(f"application/{application.hex()}", {**record, "status": REFUSED, "reason": reason})
        context.state.delete(f"pending/{bank}/{application.hex()}")
        context.emit("application_refused", application=application, bank=bank, reason=reason)

    @method
    def revoke_channel(self, context: Context, bank: Party, issuer: Party, reason: Reason) -> None:
        """Revoke a channel by either of its parties: no more orders at once, confirmations until the grace time ends.

        Fails with ``unknown_channel``, ``not_party`` or ``channel_revoked``.
        """
        caller = _acting_party(context, bank, issuer)
        record = _channel(context, bank, issuer)
        context.require(record["status"] == OPEN, "channel_revoked", "it was revoked before")
        grace_ms = _application(context, record["agreement"])["graceMs"]
        grace_until_ms = min(record["graceUntilMs"], context.time_ms + grace_ms)
        revoked: dict[str, Value] = {
            "revokedMs": context.time_ms,
            "graceUntilMs": grace_until_ms,
            "revokedBy": caller,
            "reason": reason,
        }
        context.state.put(f"channel/{bank}/{issuer}", {**record, "status": REVOKED, **revoked})
        context.state.put(f"revoked/{bank}/{issuer}", context.time_ms)
        context.emit("channel_revoked", bank=bank, issuer=issuer, epoch=record["epoch"], **revoked)

    # -- products ----------------------------------------------------------------------------------------

    @method
    def set_product(
        self,
        context: Context,
        product: ProductCode,
        interface: InterfaceId,
        product_type: ProductType,
        risk: Risk,
        currency: Currency,
        charge_basis_points: BasisPoints,
        is_open: bool,
    ) -> None:
        """Say what a product of the calling issuer is: risk R1–R5 as 1…5, currency as in JR/T 0017 (156 for CNY).

        Fails with ``unknown_interface``, ``not_allowed`` about another's interface, or ``product_taken``.
        """
        issuer = _acting(context, ISSUER_ROLE)
        owner = _interface(context, interface)["issuer"]
        context.require(owner == issuer, "not_allowed", "the interface is another issuer's")
        old: Record | None = context.state.get(f"product/{product}")
        context.require(old is None or old["issuer"] == issuer, "product_taken", "it is another issuer's")
        record: dict[str, Value] = {
            "issuer": issuer,
            "interface": interface,
            "type": product_type,
            "risk": risk,
            "currency": currency,
            "chargeBasisPoints": charge_basis_points,
            "isOpen": is_open,
            "nav": 0 if old is None else old["nav"],
            "navDate": 0 if old is None else old["navDate"],
        }
        context.state.put(f"product/{product}", record)
        context.emit("product_set", product=product, **record)

    @method
    def set_nav(self, context: Context, product: ProductCode, date: Date, nav: Nav) -> None:
        """Say a product's net asset value of a day, YYYYMMDD, in 1/10,000 of the currency a unit, by its issuer.

        Said once for a day: the same again has no effect. The product's is that of the latest day. Fails with
        ``unknown_product``, ``not_allowed``, ``nav_exists``, or ``bad_date`` for a day that has begun nowhere yet.
        """
        issuer = _acting(context, ISSUER_ROLE)
        record = _product(context, product)
        context.require(record["issuer"] == issuer, "not_allowed", "another issuer's product")
        # A slip of the pen into the future would stay the latest day, until that day.
        context.require(date <= _latest_date(context.time_ms), "bad_date", "the day has not come")
        key = f"nav/{product}/{date}"
        old: Record | None = context.state.get(key)
        if old is not None:
            context.require(old["nav"] == nav, "nav_exists", f"it was said to be {old['nav']}")
            return
        context.state.put(key, {"nav": nav, "height": context.height, "timeMs": context.time_ms})
        if date > record["navDate"]:
            context.state.put(f"product/{product}", {**record, "nav": nav, "navDate": date})
        context.emit("nav_set", product=product, date=date, nav=nav)

    # -- terms -------------------------------------------------------------------------------------------

    @method
    def propose_terms(
        self,
        context: Context,
        bank: Party,
        issuer: Party,
        subject: Subject,
        terms: dict[str, Value],
        effective_ms: TimeMs,
        expires_ms: TimeMs,
        signature: SignatureBytes,
    ) -> bytes:
        """Propose the next version of a subject's terms by either party; return the proposal's id, 32 bytes.

        ``terms`` = {kinds: [business codes, ascending], ageMin, needsIdentity, needsRegistration, needsRiskMatch,
        amountMin, amountMax}, amounts in 1/100 of the currency, 0 for no bound. The signature is of the terms' hash by
        the caller's business key. Fails with ``unknown_party``, ``not_party``, ``unknown_product``, ``bad_terms``,
        ``terms_expired``, ``bad_signature``, ``proposal_exists`` or ``too_many_proposals``.
        """
        caller = _acting_party(context, bank, issuer)
        _party_with(context, bank, SALES_ROLE)
        _party_with(context, issuer, ISSUER_ROLE)
        if subject.startswith("product:"):
            owner = _product(context, subject[8:])["issuer"]
            context.require(owner == issuer, "unknown_product", "the issuer has no such product")
        _check_terms(context, terms)
        context.require(effective_ms < expires_ms, "bad_terms", "they end before they begin")
        context.require(context.time_ms < expires_ms, "terms_expired")
        version = _newest_version(context, bank, issuer, subject) + 1
        proposal = context.hash("terms", bank, issuer, subject, version, terms, effective_ms, expires_ms)
        key = f"proposal/{proposal.hex()}"
        context.require(context.state.get(key) is None, "proposal_exists", "the identical one was proposed before")
        _require_signed(context, caller, _party(context, caller), signature, Purpose.TERMS, proposal)
        made: list[bytes] = context.state.get(f"proposing/{caller}") or []
        context.require(len(made) < PROPOSALS_MAX, "too_many_proposals", "withdraw one first")
        context.state.put(f"proposing/{caller}", [*made, proposal])
        record: dict[str, Value] = {
            "bank": bank,
            "issuer": issuer,
            "subject": subject,
            "version": version,
            "terms": terms,
            "effectiveMs": effective_ms,
            "expiresMs": expires_ms,
            "proposer": caller,
            "signatures": {caller: signature},
        }
        context.state.put(key, record)
        context.emit("terms_proposed", proposal=proposal, proposer=caller, **_told(record))
        return proposal

    @method
    def accept_terms(self, context: Context, proposal: HashBytes, signature: SignatureBytes) -> None:
        """Accept proposed terms by the party that did not propose them; once more changes nothing.

        Fails with ``unknown_proposal``, ``not_party``, ``not_allowed`` for the proposer, ``terms_superseded``,
        ``terms_expired`` or ``bad_signature``.
        """
        record = _proposal(context, proposal)
        caller = _acting_party(context, record["bank"], record["issuer"])
        context.require(caller != record["proposer"], "not_allowed", "the other party accepts")
        _require_current(context, record)
        _require_signed(context, caller, _party(context, caller), signature, Purpose.TERMS, proposal)
        if caller in record["signatures"]:
            return
        signatures = {**record["signatures"], caller: signature}
        context.state.put(f"proposal/{proposal.hex()}", {**record, "signatures": signatures})
        context.emit("terms_accepted", proposal=proposal, **_told(record))

    @method
    def withdraw_terms(self, context: Context, proposal: HashBytes) -> None:
        """Take back, or decline, a proposal that is not enacted, by either of its parties.

        Fails with ``unknown_proposal`` or ``not_party``.
        """
        record = _proposal(context, proposal)
        caller = _acting_party(context, record["bank"], record["issuer"])
        _forget_proposal(context, proposal, record)
        context.emit("terms_withdrawn", proposal=proposal, organisation=caller, **_told(record))

    @method
    def enact_terms(self, context: Context, proposal: HashBytes) -> int:
        """Make terms that both parties signed the subject's newest, by the permission desk; return their version.

        Both signatures are checked again, by the keys that count now. Fails with ``unknown_proposal``,
        ``signature_missing``, ``bad_signature``, ``terms_superseded``, ``terms_expired`` or ``too_many_versions``
        where 8 are still to begin.
        """
        _acting(context, PERMISSION_ROLE)
        record = _proposal(context, proposal)
        _require_current(context, record)
        bank, issuer, subject, version = record["bank"], record["issuer"], record["subject"], record["version"]
        for signer in (bank, issuer):
            signature: bytes | None = record["signatures"].get(signer)
            if signature is None:
                raise Revert("signature_missing", f"{signer} has not signed")
            _require_signed(context, signer, _party(context, signer), signature, Purpose.TERMS, proposal)
        if version > COMING_VERSIONS_MAX:
            earlier = context.state.get(_terms_key(bank, issuer, subject, version - COMING_VERSIONS_MAX))
            has_begun = earlier["effectiveMs"] <= context.time_ms
            context.require(has_begun, "too_many_versions", "wait until earlier ones have begun")
        enacted: dict[str, Value] = {
            "terms": record["terms"],
            "effectiveMs": record["effectiveMs"],
            "expiresMs": record["expiresMs"],
            "signatures": record["signatures"],
            "proposal": proposal,
            "height": context.height,
            "timeMs": context.time_ms,
        }
        context.state.put(_terms_key(bank, issuer, subject, version), enacted)
        context.state.put(f"terms-now/{bank}/{issuer}/{subject}", version)
        _forget_proposal(context, proposal, record)
        context.emit("terms_enacted", proposal=proposal, **_told(record))
        number: int = version
        return number

    # -- queries -----------------------------------------------------------------------------------------

    @query
    def party(self, context: Context, organisation: Party) -> dict[str, Value]:
        """Return {organisation, node, businessKey, channelKey, role}, or fail with ``unknown_party``."""
        return {**_party(context, organisation), "organisation": organisation}

    @query
    def key_at(self, context: Context, organisation: Party, key: PublicKeyBytes) -> dict[str, Value] | None:
        """Return {use, fromHeight, untilHeight, isAccepted} of a key a party registered, or null.

        ``untilHeight`` is 0 while it is in force; ``isAccepted`` tells whether its signatures count now.
        """
        record: Record | None = context.state.get(f"key/{organisation}/{key.hex()}")
        if record is None:
            return None
        is_business = record["use"] == "business"
        accepted = _signing_keys(context, organisation, _party(context, organisation)) if is_business else []
        return {**record, "isAccepted": key in accepted or not record["untilHeight"]}

    @query
    def signers(self, context: Context, bank: Party, issuer: Party) -> dict[str, Value]:
        """Return what judges signatures of a channel: {epoch, bankKeys, issuerKeys}, those in force first.

        The keys are the business keys whose signatures count now. Fails with ``unknown_channel``.
        """
        epoch = _channel(context, bank, issuer)["epoch"]
        bank_keys: list[Value] = [*_signing_keys(context, bank, _party(context, bank))]
        issuer_keys: list[Value] = [*_signing_keys(context, issuer, _party(context, issuer))]
        return {"epoch": epoch, "bankKeys": bank_keys, "issuerKeys": issuer_keys}

    @query
    def interface(self, context: Context, interface: InterfaceId) -> dict[str, Value]:
        """Return {interface, issuer, node}, or fail with ``unknown_interface``."""
        return {**_interface(context, interface), "interface": interface}

    @query
    def application(self, context: Context, application: HashBytes) -> dict[str, Value]:
        """Return an application: what was agreed, ``status`` and ``reason``; or fail with ``unknown_application``."""
        return {**_application(context, application), "application": application}

    @query
    def applications(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` applications from the id ``start`` (in hex) on, as ``application``."""
        entries = context.state.scan("application/", f"application/{start}", limit)
        return [{**record, "application": bytes.fromhex(key[12:])} for key, record in entries]

    @query
    def pending(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` applications that wait, as ``application``, from ``BANK/ID`` (in hex) on."""
        ids = [bytes.fromhex(key[-64:]) for key, _ in context.state.scan("pending/", f"pending/{start}", limit)]
        return [self.application(context, application) for application in ids]

    @query
    def channel(self, context: Context, bank: Party, issuer: Party) -> dict[str, Value]:
        """Return a channel's record, or fail with ``unknown_channel``."""
        return _channel(context, bank, issuer)

    @query
    def channels(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` channels from ``BANK/ISSUER`` on, as ``channel``."""
        return [record for _, record in context.state.scan("channel/", f"channel/{start}", limit)]

    @query
    def product(self, context: Context, product: ProductCode) -> dict[str, Value]:
        """Return a product's record with its latest net asset value (0 before the first), or ``unknown_product``."""
        return {**_product(context, product), "product": product}

    @query
    def products(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` products whose codes are ``start`` or come after it, as ``product``."""
        entries = context.state.scan("product/", f"product/{start}", limit)
        return [{**record, "product": key[8:]} for key, record in entries]

    @query
    def terms(self, context: Context, bank: Party, product: ProductCode) -> dict[str, Value] | None:
        """Return the terms in force for a product at a bank at this block's time, as ``terms_version``; null for none.

        Those of the product itself go before those of its type. Fails with ``unknown_product``.
        """
        record = _product(context, product)
        issuer = record["issuer"]
        own = _in_force(context, bank, issuer, f"product:{product}")
        return own if own is not None else _in_force(context, bank, issuer, f"type:{record['type']}")

    @query
    def terms_version(
        self, context: Context, bank: Party, issuer: Party, subject: Subject, version: Version
    ) -> dict[str, Value]:
        """Return enacted terms: the terms' own fields, bank, issuer, subject, version, times and signatures.

        Fails with ``unknown_terms``.
        """
        found = _terms(context, bank, issuer, subject, version)
        if found is None:
            raise Revert("unknown_terms")
        return found

    @query
    def proposals(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` proposals of terms, neither enacted nor withdrawn, from the id ``start`` (in hex) on.

        Each has ``proposal``, ``status`` (PROPOSED; ACCEPTED: both signed; VOID: its version was enacted otherwise),
        and what was proposed.
        """
        entries = context.state.scan("proposal/", f"proposal/{start}", limit)
        return [_proposal_map(context, bytes.fromhex(key[9:]), record) for key, record in entries]

    @query
    def proposal(self, context: Context, proposal: HashBytes) -> dict[str, Value]:
        """Return a proposal as ``proposals`` does, or fail with ``unknown_proposal``."""
        return _proposal_map(context, proposal, _proposal(context, proposal))


def _active_account(context: Context) -> AccountRecord:
    """Return the caller's record, if its organisation is active."""
    account = context.account(context.caller)
    if account is None:
        raise Revert("not_allowed", "no account of a member")
    _require_active(context, account.organisation)
    return account


def _require_active(context: Context, organisation: str) -> None:
    status = context.query("membership", "organisation", organisation=organisation)["status"]
    context.require(status == ACTIVE, "organisation_suspended", f"{organisation} is suspended")


def _acting(context: Context, role: str) -> str:
    """Return the caller's organisation, if the caller holds the role."""
    account = _active_account(context)
    context.require(role in account.roles, "not_allowed", f"needs the role {role}")
    return account.organisation


def _acting_party(context: Context, bank: str, issuer: str) -> str:
    """Return which of the two parties the caller acts for."""
    account = _active_account(context)
    organisation = account.organisation
    context.require(organisation in (bank, issuer), "not_party", f"{organisation} is neither bank nor issuer here")
    role = SALES_ROLE if organisation == bank else ISSUER_ROLE
    context.require(role in account.roles, "not_allowed", f"needs the role {role}")
    return organisation


def _own_node(context: Context, organisation: str, node: str) -> Record:
    """Return a node as membership has it, if it is this organisation's and was not removed."""
    found: Record = context.query("membership", "node", node=node)
    context.require(found["organisation"] == organisation, "not_allowed", "a node of another organisation")
    context.require(found["status"] != "removed", "node_state", f"{node} was removed")
    return found


def _reachable_node(context: Context, organisation: str) -> str:
    """Return a party's node, if its organisation is active and the node was not removed."""
    _require_active(context, organisation)
    node: str = _party(context, organisation)["node"]
    _own_node(context, organisation, node)
    return node


def _party(context: Context, organisation: str) -> Record:
    record: Record | None = context.state.get(f"party/{organisation}")
    if record is None:
        raise Revert("unknown_party", f"{organisation} has not registered")
    return record


def _party_with(context: Context, organisation: str, role: str) -> Record:
    record = _party(context, organisation)
    context.require(record["role"] == role, "unknown_party", f"{organisation} is no party with the role {role}")
    return record


def _install_key(context: Context, organisation: str, use: str, key: bytes, in_force: bytes | None) -> None:
    """Note a key new to the chain, and that it replaces the one in force."""
    context.require(context.account(context.address_of(key)) is None, "key_used", "an account has this key")
    is_new = context.state.get(f"owner/{key.hex()}") is None
    context.require(is_new, "key_used", "a party has, or had, this key")
    context.state.put(f"owner/{key.hex()}", organisation)
    place = f"key/{organisation}/"
    context.state.put(place + key.hex(), {"use": use, "fromHeight": context.height, "untilHeight": 0})
    if in_force is None:
        return
    old: Record = context.state.get(place + in_force.hex())
    context.state.put(place + in_force.hex(), {**old, "untilHeight": context.height})
    if use == "business":
        recent = _in_grace(context, organisation)
        is_often = len(recent) >= KEYS_REPLACED_MAX
        context.require(not is_often, "too_many_key_changes", f"{KEYS_REPLACED_MAX} in {KEY_GRACE_BLOCKS} blocks")
        context.state.put(f"replaced/{organisation}", [[in_force, context.height], *recent])


def _in_grace(context: Context, organisation: str) -> list[Any]:
    """Return [business key, height of its replacement] of those replaced keys whose signatures count, newest first."""
    oldest = context.height - KEY_GRACE_BLOCKS
    return [item for item in context.state.get(f"replaced/{organisation}") or [] if item[1] >= oldest]


def _signing_keys(context: Context, organisation: str, party: Record) -> list[bytes]:
    """Return the business keys of a party whose signatures count now, the one in force first."""
    return [party["businessKey"], *[key for key, _ in _in_grace(context, organisation)]]


def _require_signed(
    context: Context, organisation: str, party: Record, signature: bytes, purpose: Purpose, payload: bytes
) -> None:
    for key in _signing_keys(context, organisation, party):
        if context.verifies(key, signature, purpose, payload):
            return
    raise Revert("bad_signature", f"not signed by {organisation}")


def _interface(context: Context, interface: str) -> Record:
    record: Record | None = context.state.get(f"interface/{interface}")
    if record is None:
        raise Revert("unknown_interface")
    return record


def _check_new_application(context: Context, bank: str, number: str, agreed: bytes) -> None:
    """Check that an agreement and its number are new, or were refused, and that not too many wait."""
    old: bytes | None = context.state.get(f"agreement/{bank}/{number}")
    if old is not None:
        status = _application(context, old)["status"]
        context.require(status == REFUSED, "application_exists", f"number {number} is {status}")
    waiting = context.state.scan(f"pending/{bank}/", limit=PENDING_MAX)
    context.require(len(waiting) < PENDING_MAX, "too_many_applications", f"{PENDING_MAX} wait already")


def _application(context: Context, application: bytes) -> Record:
    record: Record | None = context.state.get(f"application/{application.hex()}")
    if record is None:
        raise Revert("unknown_application")
    return record


def _pending_application(context: Context, application: bytes) -> Record:
    record = _application(context, application)
    context.require(record["status"] == PENDING, "application_state", f"it is {record['status']}")
    return record


def _channel(context: Context, bank: str, issuer: str) -> Record:
    record: Record | None = context.state.get(f"channel/{bank}/{issuer}")
    if record is None:
        raise Revert("unknown_channel")
    return record


def _is_open(context: Context, channel: Record) -> bool:
    is_current: bool = context.time_ms < channel["expiresMs"]
    return is_current and channel["status"] == OPEN


def _require_no_open_channel(context: Context, organisation: str) -> None:
    """Check that none of a party's channels is open."""
    prefix = f"partner/{organisation}/"
    partners = context.state.scan(prefix)
    while partners:
        for key, is_bank in partners:
            other = key[len(prefix) :]
            channel = _channel(context, organisation, other) if is_bank else _channel(context, other, organisation)
            is_open = _is_open(context, channel)
            context.require(not is_open, "channel_open", f"the channel with {other} ends at its present node")
        partners = context.state.scan(prefix, partners[-1][0] + "\0")


def _open_channel(context: Context, application: bytes, record: Record, issuer: str, nodes: tuple[str, str]) -> int:
    """Open a channel for an agreement, or prolong one that is open; return its epoch."""
    bank, expires_ms = record["bank"], record["validUntilMs"]
    grace_until_ms = expires_ms + record["graceMs"]
    key = f"channel/{bank}/{issuer}"
    old: Record | None = context.state.get(key)
    is_newer = record["validFromMs"] + REOPEN_SLACK_MS >= (context.state.get(f"revoked/{bank}/{issuer}") or 0)
    context.require(is_newer, "channel_revoked", f"revoked with {issuer} after this agreement had begun")
    if old is not None and _is_open(context, old):
        if expires_ms > old["expiresMs"]:
            prolonged = {"agreement": application, "expiresMs": expires_ms, "graceUntilMs": grace_until_ms}
            context.state.put(key, {**old, **prolonged})
        kept: int = old["epoch"]
        return kept
    if old is None:
        context.state.put(f"partner/{bank}/{issuer}", True)
        context.state.put(f"partner/{issuer}/{bank}", False)
    epoch = 1 if old is None else old["epoch"] + 1
    opened: dict[str, Value] = {
        "bank": bank,
        "issuer": issuer,
        "epoch": epoch,
        "status": OPEN,
        "agreement": application,
        "bankNode": nodes[0],
        "issuerNode": nodes[1],
        "openedMs": context.time_ms,
        "expiresMs": expires_ms,
        "revokedMs": 0,
        "graceUntilMs": grace_until_ms,
        "revokedBy": "",
        "reason": "",
    }
    context.state.put(key, opened)
    return epoch


def _product(context: Context, product: str) -> Record:
    record: Record | None = context.state.get(f"product/{product}")
    if record is None:
        raise Revert("unknown_product")
    return record


def _latest_date(time_ms: int) -> int:
    """Return the date, YYYYMMDD, that it is where on earth it is latest, in UTC+14."""
    # A year begins with March here, so that a leap day is its last; 146,097 days are 400 years.
    days = (time_ms + 14 * 3_600_000) // 86_400_000 + 719_468
    day = days % 146_097
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day += 1 - (153 * month + 2) // 5
    year += days // 146_097 * 400
    return (year + month // 10) * 10_000 + ((month + 2) % 12 + 1) * 100 + day


def _check_terms(context: Context, terms: Record) -> None:
    """Check that terms have their fields and no others, each in its range."""
    flags = ("needsIdentity", "needsRegistration", "needsRiskMatch")
    numbers = {"ageMin": 150, "amountMin": TERMS_AMOUNT_MAX, "amountMax": TERMS_AMOUNT_MAX}
    expected = sorted(["kinds", *flags, *numbers])
    context.require(sorted(terms) == expected, "bad_terms", f"they have the fields {', '.join(expected)}")
    for flag in flags:
        context.require(isinstance(terms[flag], bool), "bad_terms", f"{flag} is true or false")
    for name, largest in numbers.items():
        value = terms[name]
        is_number = isinstance(value, int) and not isinstance(value, bool)
        context.require(is_number and 0 <= value <= largest, "bad_terms", f"{name} is 0 to {largest}")
    is_range = terms["amountMax"] == 0 or terms["amountMin"] <= terms["amountMax"]
    context.require(is_range, "bad_terms", "the least amount exceeds the largest")
    kinds = terms["kinds"]
    context.require(isinstance(kinds, list) and kinds, "bad_terms", "kinds lists business codes")
    listed = [kind for kind in KINDS if kind in kinds]
    context.require(listed == kinds, "bad_terms", f"kinds are some of {', '.join(KINDS)}, ascending")


def _newest_version(context: Context, bank: str, issuer: str, subject: str) -> int:
    version: int = context.state.get(f"terms-now/{bank}/{issuer}/{subject}") or 0
    return version


def _terms_key(bank: str, issuer: str, subject: str, version: int) -> str:
    return f"terms/{bank}/{issuer}/{subject}/{version:06d}"


def _terms(context: Context, bank: str, issuer: str, subject: str, version: int) -> Record | None:
    """Return enacted terms as queries show them."""
    record: Record | None = context.state.get(_terms_key(bank, issuer, subject, version))
    if record is None:
        return None
    place = {"bank": bank, "issuer": issuer, "subject": subject, "version": version}
    fields = ("effectiveMs", "expiresMs", "signatures", "proposal", "height", "timeMs")
    return {**record["terms"], **place, **{name: record[name] for name in fields}}


def _in_force(context: Context, bank: str, issuer: str, subject: str) -> Record | None:
    """Return the newest version of a subject's terms that has begun, unless it has expired."""
    version = _newest_version(context, bank, issuer, subject)
    while version > 0:
        found = _terms(context, bank, issuer, subject, version)
        if found is not None and found["effectiveMs"] <= context.time_ms:
            return found if context.time_ms < found["expiresMs"] else None
        version -= 1
    return None


def _proposal(context: Context, proposal: bytes) -> Record:
    record: Record | None = context.state.get(f"proposal/{proposal.hex()}")
    if record is None:
        raise Revert("unknown_proposal")
    return record


def _is_next(context: Context, record: Record) -> bool:
    """Tell whether the version that a proposal names is still the one that comes next."""
    newest = _newest_version(context, record["bank"], record["issuer"], record["subject"])
    following: bool = record["version"] == newest + 1
    return following


def _require_current(context: Context, record: Record) -> None:
    context.require(_is_next(context, record), "terms_superseded", "another proposal became this version")
    context.require(context.time_ms < record["expiresMs"], "terms_expired")


def _told(record: Record) -> Record:
    """Return what events tell of a proposal."""
    return {name: record[name] for name in ("bank", "issuer", "subject", "version")}


def _proposal_map(context: Context, proposal: bytes, record: Record) -> dict[str, Value]:
    is_signed = len(record["signatures"]) == 2
    status = VOID if not _is_next(context, record) else ACCEPTED if is_signed else PROPOSED
    return {**record, "proposal": proposal, "status": status}


def _forget_proposal(context: Context, proposal: bytes, record: Record) -> None:
    key = f"proposing/{record['proposer']}"
    left = [item for item in context.state.get(key) or [] if item != proposal]
    if left:
        context.state.put(key, left)
    else:
        context.state.delete(key)
    context.state.delete(f"proposal/{proposal.hex()}")
