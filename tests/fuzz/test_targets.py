"""Whatever bytes come in over a border, nothing comes out but what its docstring says (R04, R09, R66, R67, R72)."""

import base64
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from consensus.ledger.codec import decode_untrusted, encode
from consensus.ledger.errors import InvariantError, LocalError, PeerError
from contracts.runtime.state import MemoryState
from node.members import Members
from node.network.ca import to_pem
from node.rpc.protocol import Faulty, parse_untrusted
from p2p.tls import Trust, server_context
from tests.fuzz.bombs import JSON_BOMBS, MSGPACK_BOMBS
from tests.fuzz.pure import Outcome, all_targets, attempt, throw, throw_absences
from tests.fuzz.target import Target, record_codecs, untrusted_functions
from tests.p2p.support import Certificates

INPUTS = 20_000
SEED = 1
MEMORY_FACTOR_MAX = 40


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # a serial number of 0
async def test_no_input_brings_out_more_than_the_documented_errors(tmp_path: Path) -> None:
    with all_targets(tmp_path) as targets:
        outcome = await throw(targets, INPUTS, SEED)
    assert outcome.findings == []
    assert outcome.inputs >= INPUTS - len(targets)
    assert outcome.ends["taken"] > INPUTS / 10  # the changed samples reach behind the decoders


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
async def test_r67_every_field_absent_and_every_field_nil(tmp_path: Path) -> None:
    with all_targets(tmp_path) as targets:
        outcome = await throw_absences(targets)
    assert outcome.findings == []
    assert outcome.inputs > 3_000


def test_every_untrusted_function_is_fuzzed(tmp_path: Path) -> None:
    """Whoever adds one says in a target's ``reaches`` how bytes get there, or below what else does."""
    elsewhere = {
        "node/rpc/server.py:_read_body_untrusted": "the calls against a running node",
        "node/driver.py:receive_untrusted": "the frames against a running node",
        "node/driver.py:answer_request_untrusted": "the frames against a running node",
        "node/driver.py:take_response_untrusted": "the frames against a running node",
        "node/driver.py:answer_results_untrusted": "the frames against a running node",
        "p2p/private/network.py:_take_untrusted": "tests/p2p/private/test_network.py",
        "services/messages/center.py:_greet_untrusted": "tests/messages/test_center.py",
        "services/messages/center.py:_read_untrusted": "tests/messages/test_center.py",
        "services/local/pages.py:decoded_untrusted": "tests/accounts/test_program.py",
        "services/accounts/pages.py:_query_untrusted": "tests/accounts/test_program.py",
        "services/local/pages.py:_body_size_untrusted": "tests/rights/test_business.py",
        "services/local/pages.py:read_body_untrusted": "tests/rights/test_business.py",
        "services/payee/payments.py:_read_untrusted": "tests/payee/test_payments.py",
        "services/stream/pages.py:_binary_untrusted": "tests/stream/test_service.py",
    }
    with all_targets(tmp_path) as targets:
        reached = {name for target in targets for name in target.reaches}
    assert untrusted_functions() - reached - set(elsewhere) == set(), "tests/fuzz/targets_*.py know nothing of these"
    assert reached - untrusted_functions() == set(), "these are gone"
    assert set(elsewhere) <= untrusted_functions()


async def test_a_finding_is_found() -> None:
    """The runner can fail: an error of another kind, and an error that is not this target's."""

    def broken(data: bytes) -> None:
        raise (KeyError if data else InvariantError)("oh")

    outcome = Outcome()
    for data in (b"", b"x"):
        await attempt(Target("broken", broken, []), data, outcome)
    assert [finding.partition(" at ")[0] for finding in outcome.findings] == [
        "broken: InvariantError",
        "broken: KeyError",
    ]


@pytest.mark.parametrize("name", MSGPACK_BOMBS)
def test_r72_messagepack_bombs_are_refused_at_little_cost(name: str) -> None:
    bomb = MSGPACK_BOMBS[name]
    codecs = record_codecs()
    with at_little_cost(bomb):
        with pytest.raises(PeerError):
            decode_untrusted(bomb)
        for codec in codecs.values():
            with pytest.raises(PeerError):
                codec.decode_untrusted(bomb)


@pytest.mark.parametrize("name", JSON_BOMBS)
def test_r72_json_bombs_are_refused_whole_or_call_by_call(name: str) -> None:
    with at_little_cost(JSON_BOMBS[name]):
        try:
            entries = parse_untrusted(JSON_BOMBS[name]).entries
        except PeerError:
            return
        assert all(isinstance(entry, Faulty) for entry in entries)


@contextmanager
def at_little_cost(bomb: bytes) -> Iterator[None]:
    """No more memory than a fixed multiple of the input, however much it claims to hold."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_FACTOR_MAX * len(bomb) + (1 << 18)


@pytest.mark.parametrize(
    ("known", "strange"),
    [
        (bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030106")),
        (bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2b24030302080101")),
        (bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2a8648ce3d0207")),
        (bytes.fromhex("a003020102"), bytes.fromhex("a003020106")),
    ],
    ids=["a curve nobody has", "brainpool", "a key of no known kind", "version 7"],
)
def test_r67_certificates_with_an_unknown_curve_key_or_version_are_refused(
    tmp_path: Path, known: bytes, strange: bytes
) -> None:
    """The library answers these with errors of kinds of their own, which ended the node that read them."""
    certificates = Certificates(tmp_path, "a")
    der = certificates.identity("a").certificate.public_bytes(serialization.Encoding.DER)
    assert der.count(known) == 1
    assert certificates.trust.identify_untrusted(der).name == "a"
    with pytest.raises(PeerError) as caught:
        certificates.trust.identify_untrusted(der.replace(known, strange))
    assert caught.value.code == "untrusted_certificate"


@pytest.mark.parametrize(
    ("known", "strange"),
    [
        (bytes.fromhex("a003020102"), bytes.fromhex("a003020106")),
        (bytes.fromhex("060355040a0c"), bytes.fromhex("060355040a04")),
        (b"", b""),
    ],
    ids=["version 7", "a name that is no text", "cut"],
)
def test_r67_a_root_that_either_library_refuses_is_refused_before_it_counts(
    tmp_path: Path, known: bytes, strange: bytes
) -> None:
    """Members may agree on any text as a new organisation's root: it ended the nodes, or kept them from starting."""
    certificates = Certificates(tmp_path, "a", "b")
    good, der = (certificates.roots[name].certificate for name in ("org-a", "org-b"))
    changed = der.public_bytes(serialization.Encoding.DER).replace(known, strange) if known else b"0\x82"
    pem = f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(changed).decode()}\n-----END CERTIFICATE-----\n"
    with pytest.raises(LocalError) as refused:
        Trust.of([("org-b", pem)])
    assert refused.value.code == "bad_certificate_file"
    state = MemoryState()
    for name, text in {"org-a": to_pem(good).decode(), "org-b": pem}.items():
        record = {"roles": [], "rootCertificate": text, "status": "active"}
        state.apply({b"membership/organisation/" + name.encode(): encode(record)})
    trust = Members.read(state).trust
    assert set(trust.roots) == {"org-a"}
    server_context(certificates.identity("a"), trust)
