"""For all tests: hypothesis draws the same examples in every run, and a busy machine is no failure."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from bench import postgres

settings.register_profile("hansa", deadline=None, derandomize=True, database=None)
settings.load_profile("hansa")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # In a script's background, where every program below would ignore SIGINT: a test's Ctrl-C would never end one.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_DATA = Path(os.environ.get("HANSA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def require(name: str, reason: str) -> None:
    """Skip the test for want of ``name`` (``data``, ``postgres``, …), or fail where ``HANSA_REQUIRE`` lists it."""
    if name in os.environ.get("HANSA_REQUIRE", "").split(","):
        pytest.fail(f"HANSA_REQUIRE wants {name}: {reason}")
    pytest.skip(reason)


def data_folder(name: str) -> Path:
    """Return a folder of the shared data (``HANSA_DATA``, default ``../shared/data``), or leave the test."""
    folder = _DATA / name
    if not folder.is_dir():
        require("data", f"{folder} is missing; HANSA_DATA says where the shared data is")
    return folder


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresCluster]:
    """One PostgreSQL for all tests of a session; who stops it starts it again."""
    if not postgres.has_postgres():
        require("postgres", "PostgreSQL is not installed")
    with postgres.postgres_server() as cluster:
        yield cluster


@pytest.fixture
def postgres_url(postgres_server: postgres.PostgresCluster) -> str:
    """An empty place in a database for each test."""
    return postgres_server.new_schema()
