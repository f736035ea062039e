"""Mutants of what an institution's programs share, of the permission desk, and of how a network is set up."""

from tests.mutants.mutant import Mutant

_SERVICE = "services/local/service.py"
_VAULT = "services/local/vault.py"
_DESK = "services/agency/authority.py"
_SETUP = "services/agency/setup.py"
_BACKUP = "services/agency/backup.py"
_FILES = "services/agency/credentials.py"
_SERVED = "pytest tests/local/test_service.py::test_"
_KEPT = "pytest tests/local/test_vault.py::test_"
_AGENCY = "pytest tests/agency/test_"

MUTANTS = (
    Mutant(
        "local socket for everybody",
        _SERVICE,
        "draft.chmod(0o600)",
        "draft.chmod(0o666)",
        "any user of the machine may send orders",
        f"{_SERVED}bytes_there_and_back",
    ),
    Mutant(
        "local socket taken from a living program",
        _SERVICE,
        "            _check_nobody_answers(path)\n",
        "",
        "two programs answer for one institution",
        f"{_SERVED}a_living_program_is_left_alone_and_a_dead_one_replaced",
    ),
    Mutant(
        "local program survives its disk",
        _SERVICE,
        "                self._failed.set()\n",
        "",
        "a program goes on after its disk has failed",
        f"{_SERVED}a_failed_disk_is_answered_and_ends_the_program",
    ),
    Mutant(
        "vault seals for no place",
        _VAULT,
        "self._sealer.seal(name, value)",
        'self._sealer.seal(b"", value)',
        "a value copied to another key opens there",
        f"{_KEPT}values_stay_where_they_were_sealed",
    ),
    Mutant(
        "vault of two processes",
        _VAULT,
        "        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "        pass\n",
        "two programs write one store",
        f"{_KEPT}one_process_alone",
    ),
    Mutant(
        "vault makes a key for old data",
        _VAULT,
        "        if not is_empty:",
        "        if False:",
        "a lost key is replaced in silence, and nothing opens any more",
        f"{_KEPT}a_lost_key",
    ),
    Mutant(
        "permission desk keeps what never opens",
        _DESK,
        "if receipt.code in _HOPELESS and",
        "if False and",
        "a hopeless application waits for ever and fills the bank's 16 places",
        f"{_AGENCY}authority.py::test_what_the_chain_will_never_open_is_refused_with_its_reason",
    ),
    Mutant(
        "permission desk opens for the refused",
        _DESK,
        "if name in refuse]",
        "if False]",
        "a channel for an organisation that the policy shuts out",
        f"{_AGENCY}authority.py::test_it_refuses_whom_it_is_told_to",
    ),
    Mutant(
        "setup forgets its application",
        _SETUP,
        'before.status == "PENDING" and before.issuers == sorted(issuers)',
        "False",
        "every interrupted set-up leaves an application behind",
        f"{_AGENCY}setup.py::test_it_goes_on_where_it_was_interrupted",
    ),
    Mutant(
        "setup renews a revoked channel",
        _SETUP,
        "if await clerk.channel(self._client, name, issuer) is None]",
        'if getattr(await clerk.channel(self._client, name, issuer), "status", "") != "OPEN"]',
        "a start of the programs undoes a revocation",
        f"{_AGENCY}setup.py::test_what_people_changed_is_respected",
    ),
    Mutant(
        "terms signed unseen",
        "services/agency/clerk.py",
        "if terms_hash(*says) != found.proposal:",
        "if False:",
        "who accepts signs other terms than he was shown",
        f"{_AGENCY}setup.py::test_terms_are_signed_for_what_they_say_alone",
    ),
    Mutant(
        "agreement signed by strangers",
        _FILES,
        "if extra := sorted(set(self.signatures) - set(self.parties)):",
        "if extra := []:",
        "a file with signatures of those it does not name goes from hand to hand",
        f"{_AGENCY}credentials.py::test_a_file_is_what_was_written",
    ),
    Mutant(
        "backup without an end",
        _BACKUP,
        "            if not is_last:\n                raise",
        "            if False:\n                raise",
        "a backup that was cut off passes for a whole one",
        f"{_AGENCY}backup.py::test_a_file_that_was_altered_is_refused_before_anything_is_read",
    ),
)
