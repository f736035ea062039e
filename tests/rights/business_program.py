"""Runs a business server as a process of its own: ``python -m tests.rights.business_program FOLDER CENTER``."""

import sys
from pathlib import Path

import trio

from services.rights import business
from tests.rights.business_world import settings_of

if __name__ == "__main__":
    trio.run(business.run, settings_of(Path(sys.argv[1]), center=sys.argv[2]), strict_exception_groups=True)
