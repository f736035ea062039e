"""``python -m tests``: all tests, in two streams that share the machine; what ``make test`` runs.

Tests of real programs mostly wait: for time-outs, kills, disks. Tests of pure code never look at a clock. So those run
beside the others at the lowest priority and take only what is left of the processors; both streams must pass.
"""

import os
import subprocess
import sys
import tempfile

PURE = (
    *("tests/contracts", "tests/ledger", "tests/pbft", "tests/sim", "tests/fuzz/test_targets.py"),
    *("tests/agency/ofd", "tests/mutants", "tests/test_tidy.py", "tests/test_faults.py", "tests/test_systems.py"),
    *(f"tests/accounts/test_{name}.py" for name in ("ledger", "store")),
    *(f"tests/node/test_{name}.py" for name in ("chain", "disk_faults", "mempool", "state", "storage", "vote_log")),
    *(f"tests/settlement/test_{name}.py" for name in ("crashes", "decision", "histories", "store")),
    *(f"tests/payee/test_{name}.py" for name in ("codes", "emv", "images", "resolver", "sealing")),
    *(
        "tests/cli/test_commands.py",
        "tests/cli/test_stream.py",
        "tests/messages/test_queue_machine.py",
        "tests/p2p/private/test_channel_stateful.py",
    ),
    *(f"tests/stream/test_{name}.py" for name in ("exposure", "payer_machine", "service_machine")),
)
"""Tests that depend on no clock, but for guards of half a minute or more against what never ends."""
LOWEST = 19


def main() -> int:
    """Run both streams, print the second one's report below the first one's, and return 0 if all tests passed."""
    run = [sys.executable, "-m", "pytest"]
    with (
        tempfile.TemporaryFile() as report,
        subprocess.Popen([*run, *PURE], stdout=report, stderr=subprocess.STDOUT) as pure,
    ):
        try:
            os.setpriority(os.PRIO_PROCESS, pure.pid, LOWEST)
            others = subprocess.run([*run, *(f"--ignore={path}" for path in PURE)], check=False).returncode
            code = pure.wait()
        finally:
            pure.terminate()
        report.seek(0)
        print(f"\n{', '.join(PURE)}, beside the others:\n{report.read().decode()}", flush=True)
    return others or code


if __name__ == "__main__":
    raise SystemExit(main())
