"""Payee codes (业务图形码): merchants, the platforms' encrypted records of them, and who may decrypt these.

A *merchant* is an identity, 16 random bytes, with a key of its own: it needs no account, and nothing ties it to a legal
name. A *platform* is an organisation with a key; of each identity it has at most one *record*: acquiring information
encrypted outside this contract under the key of the platform's *epoch*, and a commitment to it. An *environment* is a
program of an organisation that decrypts records: a platform puts the epoch's key on the chain once for each environment
that it trusts, *wrapped* so that this one alone opens it. :mod:`consensus.ledger.payees` says what each of them signs.

**Who may do what.** Signatures authorise, accounts only carry: an account with the role ``merchant`` or ``wallet``
brings what merchants sign; an account with the role ``wallet`` acts for the platform that its organisation is; admins
register environments of their organisation; ``permission`` keeps the allow-list of measurements. A record needs the
signatures of both, platform and merchant. Encrypting the same content anew needs the platform's alone, and to remove a
record either one's.

**Versions** of a record rise by one with each change and never go back, over its removal too: a removed record stays as
a tombstone, and the next add goes on from its version. What is signed names the version that comes next, so that no
signature serves twice. **Epochs** of a platform rise by one. A record is written under the epoch in force; one of an
earlier epoch stays as it is until the platform encrypts it anew. What an environment was given it can have kept.

**Keys** serve one use for ever: no key of a merchant, a platform or an environment is, or was, another one's, nor is it
one that an account was registered with before. A key that was replaced signs nothing from then on; what it had signed
before stays in force.

**The log** of a merchant is a hash chain over what was signed at every change of it and its records, in order:
log(n) = ``context.hash("payee-log", log(n − 1), n, signed)``, log(0) = 32 zero bytes. Each change's event names n and
``signed``, so that whoever has read all events knows from the log in a proven state that none is missing.

State, under ``payees/``; IDENTITY, KEY, MEASUREMENT and HASH are in hex, SERVER is an organisation:

- ``merchant/IDENTITY`` = {key, keyNumber, consent, consentNumber, servers: those with an active record, ascending,
  changes, log}
- ``record/SERVER/IDENTITY`` = {version, contentVersion: the one that the merchant signed, epoch, commitment,
  ciphertext, isShareable, platformSignature, merchantSignature, status: ACTIVE or REMOVED}. In a tombstone the
  ciphertext is empty, and the one signature that is not is of who removed it, over ``contentVersion``
- ``platform/SERVER`` = {key, epoch: 0 before the first}; ``wrap/SERVER/EPOCH/ENVIRONMENT`` = {wrap, signature}, EPOCH
  with 6 digits
- ``environment/ENVIRONMENT`` = {organisation, exchangeKey, signingKey, measurement, status: ACTIVE or WITHDRAWN}
- ``allowed/MEASUREMENT`` = {status: ALLOWED or DISALLOWED, note}
- ``query/HASH`` = {account, height, timeMs}, for a query that somebody wants on record
- ``owner/KEY`` = whose key it is or was: ``merchant/…``, ``platform/…``, ``environment/…`` as above
"""

from typing import Annotated, Any, TypeAlias

import msgspec

from consensus.ledger.ids import HASH_BYTES, ZERO_HASH
from consensus.ledger.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Purpose
from contracts.runtime.accounts import SUSPENDED
from contracts.runtime.contract import Context, Contract, Revert, Value, method, query

ADMIN_ROLE, PERMISSION_ROLE = "admin", "permission"
MERCHANT_ROLE, WALLET_ROLE = "merchant", "wallet"

IDENTITY_BYTES = 16
CIPHERTEXT_BYTES_MAX = 4_096
WRAP_BYTES_MAX = 256
PLATFORMS_MAX = 32
"""How many platforms have an active record of one identity."""
ENVIRONMENTS_MAX = 32
"""How many environments have one epoch's key of a platform."""
PAGE_BYTES_MAX = 60_000
"""How much of records one page returns, below what a call may return."""
RECORD_BYTES = 500
"""More than a record takes without its ciphertext."""

ACTIVE, REMOVED, WITHDRAWN = "ACTIVE", "REMOVED", "WITHDRAWN"
ALLOWED, DISALLOWED = "ALLOWED", "DISALLOWED"

Identity = Annotated[bytes, msgspec.Meta(min_length=IDENTITY_BYTES, max_length=IDENTITY_BYTES)]
# No slash, since these are parts of state keys.
Server = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
EnvironmentName = Server
PublicKeyBytes = Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
SignatureBytes = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
HashBytes = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Ciphertext = Annotated[bytes, msgspec.Meta(min_length=1, max_length=CIPHERTEXT_BYTES_MAX)]
Wrap = Annotated[bytes, msgspec.Meta(min_length=1, max_length=WRAP_BYTES_MAX)]
Wraps = Annotated[dict[EnvironmentName, Wrap], msgspec.Meta(min_length=1, max_length=ENVIRONMENTS_MAX)]
WrapSignatures = Annotated[dict[EnvironmentName, SignatureBytes], msgspec.Meta(max_length=ENVIRONMENTS_MAX)]
Number = Annotated[int, msgspec.Meta(ge=1)]
Epoch = Annotated[int, msgspec.Meta(ge=1, le=999_999)]
Note = Annotated[str, msgspec.Meta(max_length=200)]
PageStart = Annotated[str, msgspec.Meta(max_length=64)]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=100)]

Record: TypeAlias = dict[str, Any]
"""A record as state holds it; the module's text says which."""


class Payees(Contract):
    """Merchants, platforms' records of them, epochs, environments and the allow-list of measurements.

    Whoever calls holds the role that a method names, else it is ``not_allowed``, in an organisation that is active,
    else ``organisation_suspended``. Signatures are for the chain at hand, ``bad_signature`` if they do not fit.
    """

    name = "payees"
    version = 1

    # -- merchants ---------------------------------------------------------------------------------------

    @method
    def register_merchant(
        self, context: Context, identity: Identity, key: PublicKeyBytes, signature: SignatureBytes
    ) -> None:
        """Register an identity with its key, which signs for it; sent by an account with the role merchant or wallet.

        Fails with ``merchant_exists``, ``bad_key``, ``key_used`` or ``bad_signature``.
        """
        _carrier(context)
        place = f"merchant/{identity.hex()}"
        context.require(context.state.get(place) is None, "merchant_exists")
        _use_key(context, key, place)
        signed = context.hash("payee-merchant", identity, key)
        _require_signed(context, key, signature, Purpose.PAYEE_MERCHANT, signed)
        merchant: Record = {"key": key, "keyNumber": 0, "consent": False, "consentNumber": 0, "servers": []}
        change = _log(context, identity, {**merchant, "changes": 0, "log": ZERO_HASH}, signed)
        context.emit("merchant_registered", **change, key=key)

    @method
    def replace_merchant_key(
        self,
        context: Context,
        identity: Identity,
        number: Number,
        new_key: PublicKeyBytes,
        old_signature: SignatureBytes,
        new_signature: SignatureBytes,
    ) -> None:
        """Replace a merchant's key for the ``number``-th time, from 1 on; the old and the new one sign.

        Sent by an account with the role merchant or wallet. Fails with ``unknown_merchant``, ``wrong_number``,
        ``bad_key``, ``key_used`` or ``bad_signature``.
        """
        _carrier(context)
        merchant = _merchant(context, identity)
        context.require(number == merchant["keyNumber"] + 1, "wrong_number", f"{merchant['keyNumber'] + 1} is next")
        _use_key(context, new_key, f"merchant/{identity.hex()}")
        signed = context.hash("payee-merchant-key", identity, number, new_key)
        for key, signature in ((merchant["key"], old_signature), (new_key, new_signature)):
            _require_signed(context, key, signature, Purpose.PAYEE_MERCHANT, signed)
        change = _log(context, identity, {**merchant, "key": new_key, "keyNumber": number}, signed)
        context.emit("merchant_key_replaced", **change, key=new_key, keyNumber=number)

    @method
    def set_consent(
        self, context: Context, identity: Identity, number: Number, is_given: bool, signature: SignatureBytes
    ) -> None:
        """Let other platforms' clients see the merchant's shareable records, or no more; its ``number``-th such word.

        Sent by an account with the role merchant or wallet. Fails with ``unknown_merchant``, ``wrong_number`` or
        ``bad_signature``.
        """
        _carrier(context)
        merchant = _merchant(context, identity)
        next_number = merchant["consentNumber"] + 1
        context.require(number == next_number, "wrong_number", f"{next_number} is next")
        signed = context.hash("payee-consent", identity, number, is_given)
        _require_signed(context, merchant["key"], signature, Purpose.PAYEE_MERCHANT, signed)
        change = _log(context, identity, {**merchant, "consent": is_given, "consentNumber": number}, signed)
        context.emit("consent_set", **change, consent=is_given, consentNumber=number)

    # -- platforms ---------------------------------------------------------------------------------------

    @method
    def register_platform(self, context: Context, key: PublicKeyBytes) -> None:
        """Make the caller's organisation a platform with this key, or replace its key; by an account with role wallet.

        The key in force may be named again. Fails with ``bad_key`` or ``key_used``.
        """
        server = _acting(context, WALLET_ROLE)
        old: Record | None = context.state.get(f"platform/{server}")
        if old is not None and old["key"] == key:
            return
        _use_key(context, key, f"platform/{server}")
        epoch = 0 if old is None else old["epoch"]
        context.state.put(f"platform/{server}", {"key": key, "epoch": epoch})
        context.emit("platform_registered", server=server, key=key, epoch=epoch)

    @method
    def put_wraps(self, context: Context, epoch: Epoch, wraps: Wraps, signatures: WrapSignatures) -> None:
        """Give environments the key of the platform's epoch, each wrapped for it and signed; by role wallet.

        The epoch is the one in force, or the next one, which thereby begins. A wrap may be put again. Fails with
        ``unknown_platform``, ``wrong_epoch``, ``bad_signature`` (also where one is missing or too many),
        ``unknown_environment``, ``environment_withdrawn``, ``unknown_measurement`` about an environment whose
        measurement is not allowed any more, or ``too_many_environments``.
        """
        server = _acting(context, WALLET_ROLE)
        platform = _platform(context, server)
        current: int = platform["epoch"]
        is_near = epoch in (current, current + 1)
        context.require(is_near, "wrong_epoch", f"epoch {current} is in force, {current + 1} is next")
        names = sorted(wraps)
        context.require(names == sorted(signatures), "bad_signature", "wraps and signatures name the same environments")
        place = f"wrap/{server}/{epoch:06d}/"
        for name in names:
            _require_trusted(context, name)
            signed = context.hash("payee-wrap", server, epoch, name, wraps[name])
            _require_signed(context, platform["key"], signatures[name], Purpose.PAYEE_PLATFORM, signed)
            context.state.put(place + name, {"wrap": wraps[name], "signature": signatures[name]})
        held = len(context.state.scan(place, limit=ENVIRONMENTS_MAX + 1))
        context.require(held <= ENVIRONMENTS_MAX, "too_many_environments", f"at most {ENVIRONMENTS_MAX} have an epoch")
        if epoch > current:
            context.state.put(f"platform/{server}", {**platform, "epoch": epoch})
            context.emit("epoch_begun", server=server, epoch=epoch)
        environments: list[Value] = [*names]
        context.emit("wraps_put", server=server, epoch=epoch, environments=environments)

    # -- records -----------------------------------------------------------------------------------------

    @method
    def add_record(
        self,
        context: Context,
        identity: Identity,
        version: Number,
        epoch: Epoch,
        commitment: HashBytes,
        ciphertext: Ciphertext,
        is_shareable: bool,
        platform_signature: SignatureBytes,
        merchant_signature: SignatureBytes,
    ) -> None:
        """Write the platform's record of an identity: its first, an update, or one after a removal; by role wallet.

        ``commitment`` is to salt and content (32 bytes), ``ciphertext`` up to 4 KiB. The merchant signs identity,
        platform, version, commitment and ``is_shareable``, the platform that, the epoch and the ciphertext. Fails with
        ``unknown_platform``, ``unknown_merchant``, ``wrong_epoch``, ``wrong_version``, ``bad_signature`` or
        ``too_many_platforms`` where 32 have an active record.
        """
        server = _acting(context, WALLET_ROLE)
        platform = _platform(context, server)
        merchant = _merchant(context, identity)
        old: Record | None = context.state.get(f"record/{server}/{identity.hex()}")
        _require_next(context, old, version)
        _require_epoch(context, platform, epoch)
        content = context.hash("payee-content", identity, server, version, commitment, is_shareable)
        _require_signed(context, merchant["key"], merchant_signature, Purpose.PAYEE_MERCHANT, content)
        record: Record = {
            "version": version,
            "contentVersion": version,
            "epoch": epoch,
            "commitment": commitment,
            "ciphertext": ciphertext,
            "isShareable": is_shareable,
            "platformSignature": platform_signature,
            "merchantSignature": merchant_signature,
            "status": ACTIVE,
        }
        signed = _require_record_signed(context, platform, identity, server, record)
        if server not in merchant["servers"]:
            servers = sorted([*merchant["servers"], server])
            context.require(len(servers) <= PLATFORMS_MAX, "too_many_platforms", f"{PLATFORMS_MAX} have a record")
            merchant = {**merchant, "servers": servers}
        context.state.put(f"record/{server}/{identity.hex()}", record)
        change = _log(context, identity, merchant, signed)
        is_new = old is None or old["status"] == REMOVED
        context.emit("record_added" if is_new else "record_updated", **change, server=server, **_told(record))

    @method
    def reencrypt_record(
        self,
        context: Context,
        identity: Identity,
        version: Number,
        epoch: Epoch,
        ciphertext: Ciphertext,
        platform_signature: SignatureBytes,
    ) -> None:
        """Replace the ciphertext of a platform's record by one of the same content under the epoch in force.

        By an account with the role wallet; what the merchant has signed stays. Fails with ``unknown_platform``,
        ``unknown_merchant``, ``unknown_record``, ``record_removed``, ``wrong_epoch``, ``wrong_version`` or
        ``bad_signature``.
        """
        server = _acting(context, WALLET_ROLE)
        platform = _platform(context, server)
        merchant = _merchant(context, identity)
        old = _active_record(context, server, identity)
        _require_next(context, old, version)
        _require_epoch(context, platform, epoch)
        changed = {"version": version, "epoch": epoch, "ciphertext": ciphertext}
        record: Record = {**old, **changed, "platformSignature": platform_signature}
        signed = _require_record_signed(context, platform, identity, server, record)
        context.state.put(f"record/{server}/{identity.hex()}", record)
        change = _log(context, identity, merchant, signed)
        context.emit("record_reencrypted", **change, server=server, **_told(record))

    @method
    def remove_record(
        self, context: Context, identity: Identity, server: Server, version: Number, signature: SignatureBytes
    ) -> None:
        """Remove a platform's record of an identity, signed by the merchant or by the platform; leaves a tombstone.

        ``version`` is the next one. The merchant may have signed an earlier one after that of the content: a platform
        that encrypts anew all the time does not outrun it. Sent by an account with the role merchant or wallet. Fails
        with ``unknown_merchant``, ``unknown_record``, ``record_removed``, ``wrong_version`` or ``bad_signature``.
        """
        _carrier(context)
        merchant = _merchant(context, identity)
        old = _active_record(context, server, identity)
        next_version = old["version"] + 1
        is_near = old["contentVersion"] < version <= next_version
        context.require(is_near, "wrong_version", f"version {next_version} is next")
        signed = context.hash("payee-removal", identity, server, version)
        by_merchant = context.verifies(merchant["key"], signature, Purpose.PAYEE_MERCHANT, signed)
        if not by_merchant:
            _require_next(context, old, version)
            _require_signed(context, _platform(context, server)["key"], signature, Purpose.PAYEE_PLATFORM, signed)
        removed: Record = {
            **old,
            "version": next_version,
            "contentVersion": version,
            "ciphertext": b"",
            "platformSignature": b"" if by_merchant else signature,
            "merchantSignature": signature if by_merchant else b"",
            "status": REMOVED,
        }
        context.state.put(f"record/{server}/{identity.hex()}", removed)
        servers = [item for item in merchant["servers"] if item != server]
        change = _log(context, identity, {**merchant, "servers": servers}, signed)
        signer = "merchant" if by_merchant else "platform"
        context.emit("record_removed", **change, server=server, version=next_version, signer=signer)

    # -- environments ------------------------------------------------------------------------------------

    @method
    def register_environment(
        self,
        context: Context,
        name: EnvironmentName,
        exchange_key: PublicKeyBytes,
        signing_key: PublicKeyBytes,
        measurement: HashBytes,
    ) -> None:
        """Register an environment of the calling admin's organisation, whose measurement is allowed.

        One that was withdrawn is registered anew, with new keys, by its organisation. Fails with
        ``environment_exists``, ``unknown_measurement``, ``bad_key`` or ``key_used``.
        """
        organisation = _acting(context, ADMIN_ROLE)
        place = f"environment/{name}"
        old: Record | None = context.state.get(place)
        is_free = old is None or (old["status"] == WITHDRAWN and old["organisation"] == organisation)
        context.require(is_free, "environment_exists")
        _require_allowed(context, measurement)
        for key in (exchange_key, signing_key):
            _use_key(context, key, place)
        keys = {"exchangeKey": exchange_key, "signingKey": signing_key}
        record = {"organisation": organisation, **keys, "measurement": measurement, "status": ACTIVE}
        context.state.put(place, record)
        context.emit("environment_registered", environment=name, organisation=organisation, measurement=measurement)

    @method
    def withdraw_environment(self, context: Context, name: EnvironmentName) -> None:
        """Withdraw an environment of the calling admin's organisation: nothing that it says counts any more.

        Fails with ``unknown_environment`` or ``environment_withdrawn``.
        """
        organisation = _acting(context, ADMIN_ROLE)
        record = _environment(context, name)
        context.require(record["organisation"] == organisation, "not_allowed", "another organisation's environment")
        context.require(record["status"] == ACTIVE, "environment_withdrawn")
        context.state.put(f"environment/{name}", {**record, "status": WITHDRAWN})
        context.emit("environment_withdrawn", environment=name, organisation=organisation)

    @method
    def allow_measurement(self, context: Context, measurement: HashBytes, note: Note) -> None:
        """Put a measurement on the allow-list, with a note for people; by an account with the role permission."""
        _acting(context, PERMISSION_ROLE)
        context.state.put(f"allowed/{measurement.hex()}", {"status": ALLOWED, "note": note})
        context.emit("measurement_allowed", measurement=measurement, note=note)

    @method
    def disallow_measurement(self, context: Context, measurement: HashBytes) -> None:
        """Strike a measurement off the allow-list: environments that run it count no more; by role permission.

        Fails with ``unknown_measurement``.
        """
        _acting(context, PERMISSION_ROLE)
        record = _require_allowed(context, measurement)
        context.state.put(f"allowed/{measurement.hex()}", {**record, "status": DISALLOWED})
        context.emit("measurement_disallowed", measurement=measurement)

    # -- queries on record -------------------------------------------------------------------------------

    @method
    def record_query(self, context: Context, query: HashBytes) -> None:
        """Put on record that a query was made, by its hash alone; by any account. Fails with ``query_exists``."""
        _acting(context)
        place = f"query/{query.hex()}"
        context.require(context.state.get(place) is None, "query_exists")
        record = {"account": context.caller, "height": context.height, "timeMs": context.time_ms}
        context.state.put(place, record)
        context.emit("query_recorded", query=query, account=context.caller)

    # -- reading -----------------------------------------------------------------------------------------

    @query
    def merchant(self, context: Context, identity: Identity) -> dict[str, Value]:
        """Return a merchant's record as state holds it, or fail with ``unknown_merchant``."""
        return _merchant(context, identity)

    @query
    def record(self, context: Context, server: Server, identity: Identity) -> dict[str, Value]:
        """Return a platform's record of an identity, a tombstone too, or fail with ``unknown_record``."""
        return {**_record(context, server, identity), "server": server, "identity": identity}

    @query
    def records(self, context: Context, identity: Identity) -> list[Value]:
        """Return the active records of an identity as ``record``, without ciphertext, in order of their platforms.

        Fails with ``unknown_merchant``.
        """
        shown: list[Value] = []
        for server in _merchant(context, identity)["servers"]:
            record = _record(context, server, identity)
            del record["ciphertext"]
            shown.append({**record, "server": server, "identity": identity})
        return shown

    @query
    def records_of(self, context: Context, server: Server, start: PageStart = "", limit: PageSize = 100) -> list[Value]:
        """Return records of a platform as ``record``, tombstones too, from the identity ``start`` (in hex) on.

        At most ``limit``, and no more than some 50 KiB of ciphertext: a page is the last one only if it is empty.
        """
        prefix = f"record/{server}/"
        page: list[Value] = []
        size_bytes = 0
        for key, record in context.state.scan(prefix, prefix + start, limit):
            size_bytes += RECORD_BYTES + len(record["ciphertext"])
            if size_bytes > PAGE_BYTES_MAX:
                break
            page.append({**record, "server": server, "identity": bytes.fromhex(key[len(prefix) :])})
        return page

    @query
    def platform(self, context: Context, server: Server) -> dict[str, Value]:
        """Return a platform's {server, key, epoch} or fail with ``unknown_platform``."""
        return {**_platform(context, server), "server": server}

    @query
    def platforms(self, context: Context, start: PageStart = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` platforms whose names are ``start`` or come after it, as ``platform``."""
        entries = context.state.scan("platform/", f"platform/{start}", limit)
        return [{**record, "server": key[9:]} for key, record in entries]

    @query
    def environment(self, context: Context, name: EnvironmentName) -> dict[str, Value]:
        """Return an environment's {environment, organisation, exchangeKey, signingKey, measurement, status}.

        Fails with ``unknown_environment``.
        """
        return {**_environment(context, name), "environment": name}

    @query
    def environments(self, context: Context, start: PageStart = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` environments whose names are ``start`` or come after it, as ``environment``."""
        entries = context.state.scan("environment/", f"environment/{start}", limit)
        return [{**record, "environment": key[12:]} for key, record in entries]

    @query
    def allowed(self, context: Context, start: PageStart = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` measurements as {measurement, status, note}, from ``start`` (in hex) on."""
        entries = context.state.scan("allowed/", f"allowed/{start}", limit)
        return [{**record, "measurement": bytes.fromhex(key[8:])} for key, record in entries]

    @query
    def wraps(self, context: Context, server: Server, epoch: Epoch) -> list[Value]:
        """Return who was given a platform's key of an epoch, as {environment, wrap, signature}, in order of names."""
        prefix = f"wrap/{server}/{epoch:06d}/"
        entries = context.state.scan(prefix, limit=ENVIRONMENTS_MAX)
        return [{**record, "environment": key[len(prefix) :]} for key, record in entries]

    @query
    def query_record(self, context: Context, query: HashBytes) -> dict[str, Value] | None:
        """Return {account, height, timeMs} of a query on record, null for none."""
        found: Record | None = context.state.get(f"query/{query.hex()}")
        return found


def _carrier(context: Context) -> None:
    """Check that the caller may bring what merchants have signed."""
    _acting(context, MERCHANT_ROLE, WALLET_ROLE)


def _acting(context: Context, role: str = "", other: str = "") -> str:
    """Return the caller's organisation, if it is active and the caller holds the role or the other, if one is named."""
    account = context.account(context.caller)
    if account is None:
        raise Revert("not_allowed", "no account of a member")
    is_held = not role or role in account.roles or other in account.roles
    context.require(is_held, "not_allowed", f"needs the role {role}{' or ' if other else ''}{other}")
    organisation = account.organisation
    status = context.query("membership", "organisation", organisation=organisation)["status"]
    context.require(status != SUSPENDED, "organisation_suspended", f"{organisation} is suspended")
    return organisation


def _use_key(context: Context, key: bytes, owner: str) -> None:
    """Note whose key it is for ever, if it is nobody's."""
    context.require(context.account(context.address_of(key)) is None, "key_used", "an account has this key")
    place = f"owner/{key.hex()}"
    context.require(context.state.get(place) is None, "key_used", "a key serves one use")
    context.state.put(place, owner)


def _require_signed(context: Context, key: bytes, signature: bytes, purpose: Purpose, signed: bytes) -> None:
    context.require(context.verifies(key, signature, purpose, signed), "bad_signature")


def _require_record_signed(context: Context, platform: Record, identity: bytes, server: str, record: Record) -> bytes:
    """Return what the platform has signed of a record, once it has."""
    signed = context.hash(
        "payee-record",
        identity,
        server,
        record["version"],
        record["contentVersion"],
        record["epoch"],
        record["commitment"],
        record["ciphertext"],
        record["isShareable"],
    )
    _require_signed(context, platform["key"], record["platformSignature"], Purpose.PAYEE_PLATFORM, signed)
    return signed


def _require_next(context: Context, old: Record | None, version: int) -> None:
    next_version = 1 if old is None else old["version"] + 1
    context.require(version == next_version, "wrong_version", f"version {next_version} is next")


def _require_epoch(context: Context, platform: Record, epoch: int) -> None:
    context.require(epoch == platform["epoch"], "wrong_epoch", f"epoch {platform['epoch']} is in force")


def _require_allowed(context: Context, measurement: bytes) -> Record:
    """Return a measurement's entry, if it is allowed."""
    record: Record | None = context.state.get(f"allowed/{measurement.hex()}")
    if record is None or record["status"] != ALLOWED:
        raise Revert("unknown_measurement", f"{measurement.hex()} is not on the allow-list")
    return record


def _require_trusted(context: Context, name: str) -> None:
    """Check that an environment is in service and runs what is allowed."""
    record = _environment(context, name)
    context.require(record["status"] == ACTIVE, "environment_withdrawn", f"{name} is withdrawn")
    _require_allowed(context, record["measurement"])


def _log(context: Context, identity: bytes, merchant: Record, signed: bytes) -> dict[str, Value]:
    """Write a merchant with one more change in its log; return what the change's event tells of it."""
    number = merchant["changes"] + 1
    log = context.hash("payee-log", merchant["log"], number, signed)
    context.state.put(f"merchant/{identity.hex()}", {**merchant, "changes": number, "log": log})
    return {"identity": identity, "change": number, "signed": signed}


def _told(record: Record) -> dict[str, Value]:
    """Return what events tell of a record: never its ciphertext."""
    return {name: record[name] for name in ("version", "contentVersion", "epoch", "commitment", "isShareable")}


def _merchant(context: Context, identity: bytes) -> Record:
    record: Record | None = context.state.get(f"merchant/{identity.hex()}")
    if record is None:
        raise Revert("unknown_merchant")
    return record


def _platform(context: Context, server: str) -> Record:
    record: Record | None = context.state.get(f"platform/{server}")
    if record is None:
        raise Revert("unknown_platform", f"{server} is no platform")
    return record


def _record(context: Context, server: str, identity: bytes) -> Record:
    record: Record | None = context.state.get(f"record/{server}/{identity.hex()}")
    if record is None:
        raise Revert("unknown_record", f"{server} has no record of this identity")
    return record


def _active_record(context: Context, server: str, identity: bytes) -> Record:
    record = _record(context, server, identity)
    context.require(record["status"] == ACTIVE, "record_removed", f"{server}'s record was removed")
    return record


def _environment(context: Context, name: str) -> Record:
    record: Record | None = context.state.get(f"environment/{name}")
    if record is None:
        raise Revert("unknown_environment", f"there is no environment {name}")
    return record
