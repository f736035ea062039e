"""Targets of agency sale: fund files, what travels on a private channel, the channel itself, disclosures."""

from pathlib import Path

from consensus.ledger.codec import encode
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.keys import PrivateKey
from consensus.ledger.proof import Proof, StateClaim, proof_to_json
from consensus.ledger.state_tree import prove, update
from node.rpc.methods_owner import _channel_untrusted, _payload_untrusted
from p2p.frames import FrameKind
from p2p.private.records import check_signature_untrusted, decode_record_untrusted, encode_signed
from services.agency import disclosure
from services.agency.ofd.files import new_header
from services.agency.ofd.index import IndexFile, read_index, write_index
from services.agency.ofd.layout import FileType
from services.agency.ofd.mapping import application_file, applications_of
from services.agency.ofd.reader import read
from services.agency.ofd.synthetic import orders_file, registrations
from services.agency.ofd.writer import write
from services.agency.orders import Confirmation
from services.agency.packages import (
    Answer,
    Package,
    Question,
    Refusal,
    check_answer_untrusted,
    check_package_untrusted,
    make_answer,
    make_package,
    message_codec,
)
from tests.fuzz.target import Target
from tests.ledger.builders import CHAIN, certify, make_block, make_genesis, make_genesis_block, make_keys, make_set
from tests.p2p.private.sides import KEYS, Pair
from tests.p2p.support import CHAIN as CHANNEL_CHAIN

BANK_KEY, ISSUER_KEY = PrivateKey.from_secret(61), PrivateKey.from_secret(62)
ORDERS = applications_of(orders_file(1, orders=3, accounts=3, foreign=0), {"000198": "C-FUNDS"})
ACCOUNTS = registrations(ORDERS, 1, interface="C-FUNDS", distributor="996")
CONFIRMATIONS = [
    Confirmation(order.serial, "122", f"TA{place}", order.ta_account, "0000", "", order.amount, 5, 10_000, 0, 1, True)
    for place, order in enumerate(ORDERS)
]
RECORD_KINDS = (FrameKind.PRIVATE_MESSAGE, FrameKind.PRIVATE_RECEIPT, FrameKind.PRIVATE_OPEN)


def targets(folder: Path) -> list[Target]:
    """Return the targets of agency sale; a file that is read goes into the folder."""
    return [*_file_targets(), *_package_targets(), *_channel_targets(), *_disclosure_targets(folder)]


def _file_targets() -> list[Target]:
    """Whatever a file says, it is refused by its one code or comes out as it went in."""

    def fund_file(data: bytes) -> None:
        try:
            file = read(data, "f")
            if file.header.file_type in (FileType.ACCOUNT_APPLICATIONS, FileType.TRADE_APPLICATIONS):
                applications_of(file, {"000198": "C-FUNDS"}, account_interface="C-FUNDS")
        except LocalError as error:
            raise _documented(error) from None
        if write(file) != data:
            raise AssertionError("a fund file comes out as another one")

    def index_file(data: bytes) -> None:
        try:
            index = read_index(data, "f")
        except LocalError as error:
            raise _documented(error) from None
        if write_index(index) != data:
            raise AssertionError("an index file comes out as another one")

    trades = orders_file(2, orders=2, accounts=2)
    header = new_header(FileType.ACCOUNT_APPLICATIONS, creator="996", receiver="H0", date="20170427")
    accounts = application_file(header, ACCOUNTS[:2])
    index = IndexFile("996", "H0", "20170427", ("OFD_996_H0_20170427_01.TXT", "OFD_996_H0_20170427_03.TXT"))
    may = (LocalError,)
    return [
        Target("fund file", fund_file, [write(trades), write(accounts)], may=may, weight=2),
        Target("index file", index_file, [write_index(index)], may=may),
    ]


def _package_targets() -> list[Target]:
    """What still is signed is what was signed."""
    package, answer = _package_and_answer(CHAIN)

    def message(data: bytes) -> None:
        found = message_codec.decode_untrusted(data)
        if isinstance(found, Package):
            check_package_untrusted(found, CHAIN, BANK_KEY.public.compressed)
            if found.applications != package.applications:
                raise AssertionError("a forged package is signed")
        elif isinstance(found, Answer):
            check_answer_untrusted(found, package, CHAIN, ISSUER_KEY.public.compressed)
            if found.confirmations != answer.confirmations:
                raise AssertionError("a forged answer is signed")

    every: list[Package | Answer | Refusal | Question] = [
        package,
        answer,
        Refusal(package.root, "wrong_interface", "no"),
        Question(package.root, True),
    ]
    file = "services/agency/packages.py"
    reached = (f"{file}:check_package_untrusted", f"{file}:check_answer_untrusted")
    return [Target("partner's message", message, [message_codec.encode(item) for item in every], reached, weight=2)]


def _package_and_answer(chain_id: bytes) -> tuple[Package, Answer]:
    chain, salts = type(CHAIN)(chain_id), [bytes([place]) * 32 for place in range(3)]
    package = make_package(
        BANK_KEY, chain, bank="bank-a", issuer="issuer-c", epoch=1, created_ms=1, salts=salts, applications=ORDERS
    )
    return package, make_answer(ISSUER_KEY, chain, package, CONFIRMATIONS, previous=bytes(32))


def _channel_targets() -> list[Target]:
    """Records as they are, and signed anew by the peer: whatever it says, the session ends by a typed error at most."""
    samples = _channel_records()

    def records(data: bytes) -> None:
        key = KEYS["issuer"][0].public.compressed
        for kind in FrameKind:
            try:
                check_signature_untrusted(decode_record_untrusted(kind, data), key, CHANNEL_CHAIN)
            except PeerError as error:
                if error.code not in ("malformed", "too_large", "unexpected_frame", "bad_signature"):
                    raise AssertionError("an undocumented code") from error

    def machine(data: bytes) -> None:
        record = None
        for kind in RECORD_KINDS:
            try:
                record = decode_record_untrusted(kind, data)
            except PeerError as error:
                refusal = error
        if record is None:
            raise refusal
        signed = decode_record_untrusted(*encode_signed(record, KEYS["issuer"][0], CHANNEL_CHAIN))
        bank = _busy_pair().sides["bank"]
        bank.machine.receive_untrusted(signed)
        bank.work()

    def call(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        _channel_untrusted(text)
        _payload_untrusted(text)

    file, pure = "p2p/private/records.py", "p2p/private/channel_machine.py"
    checks = tuple(f"{file}:{name}_untrusted" for name in ("decode_record", "check_signature"))
    steps = ("receive", "_on_message", "_on_receipt", "_on_open", "_check_end")
    owners = tuple(f"node/rpc/methods_owner.py:{name}_untrusted" for name in ("_channel", "_payload"))
    return [
        Target("channel record", records, samples, checks),
        Target("channel machine", machine, samples, tuple(f"{pure}:{name}_untrusted" for name in steps)),
        Target("owner's call", call, [b"bank-a/issuer-c", b"0x00ff"], owners),
    ]


def _busy_pair() -> Pair:
    """Return two sides that know each other, with messages under way in both directions."""
    pair = Pair()
    pair.connect()
    for side, text in (("bank", b"orders"), ("issuer", b"answers")):
        for number in range(2):
            pair.sides[side].submit(f"{side}-{number}", text)
    for _ in range(2):
        for side in ("bank", "issuer"):
            pair.sides[side].work()
            while pair.wire[side]:
                pair.arrive(side)
    for side in ("bank", "issuer"):
        pair.sides[side].submit(f"{side}-last", b"more")
        pair.sides[side].work()
    return pair


def _channel_records() -> list[bytes]:
    pair = _busy_pair()
    fresh = Pair()
    fresh.connect()
    for side in fresh.sides.values():
        side.submit("first", b"orders")
        side.work()
    return [payload for each in (pair, fresh) for side in ("bank", "issuer") for _, payload in each.wire[side]]


def _disclosure_targets(folder: Path) -> list[Target]:
    """What is proven is what was disclosed."""
    keys = make_keys(4)
    genesis, validators = make_genesis(keys), make_set(keys)
    package, answer = _package_and_answer(genesis.chain_id())
    key = disclosure.anchor_key("bank-a", "issuer-c", package.root, 0, answer.outcome_root).encode()
    anchor = encode(
        {
            "status": "MUTUAL",
            "epoch": 1,
            "count": len(ORDERS),
            "previous": answer.previous,
            "ordersSignature": package.signature,
            "answerSignature": answer.signature,
            "bankKey": BANK_KEY.public.compressed,
            "issuerKey": ISSUER_KEY.public.compressed,
            "height": 1,
            "timeMs": 1,
            "number": 1,
            "isContradicted": False,
        }
    )
    tree = update({}, {key: anchor})
    parent = make_genesis_block(genesis.chain_id(), validators).header
    header = make_block(parent, validators, sealed_root=tree.root).header
    claim = StateClaim(key, anchor, prove({path: blob for path, blob in tree.nodes.items() if blob is not None}, key))
    document = proof_to_json(Proof(genesis.chain_id(), (), header, certify(header, keys), claim))
    good = disclosure.make_disclosure(package, ORDERS[1].serial, answer, document)
    proven = disclosure.verify_disclosure(good, genesis)

    def check(data: bytes) -> None:
        verdict = disclosure.verify_disclosure(disclosure.decode_disclosure_untrusted(data), genesis)
        if (verdict.application, verdict.confirmation) != (proven.application, proven.confirmation):
            raise AssertionError("another order is proven")

    def load(data: bytes) -> None:
        (folder / "some.disclosure").write_bytes(data)
        disclosure.load_untrusted(folder / "some.disclosure")

    file, samples = "services/agency/disclosure.py", [disclosure.encode_disclosure(good)]
    reached = ("decode_disclosure", "_anchor", "_record")
    return [
        Target("disclosure", check, samples, tuple(f"{file}:{name}_untrusted" for name in reached), is_json=True),
        Target("disclosure file", load, samples, (f"{file}:load_untrusted",), is_json=True),
    ]


def _documented(error: LocalError) -> LocalError:
    """Return the error; a file has one code for whatever is wrong with it."""
    if error.code != "bad_fund_file":
        raise AssertionError(f"an undocumented code: {error.code}") from error
    return error
